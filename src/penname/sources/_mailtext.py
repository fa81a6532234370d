"""What the sender of an e-mail wrote: HTML as text, then quoted text and the signature taken away.

The library mail-parser-reply knows how attributions ("On … wrote:"), forwarded headers and signatures look.
Two things are done around it. Answers between the lines of a quote are kept, which it would drop with the
quote. And it is given short lines and few blank ones only, as its patterns take quadratic time on others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser

from penname.errors import BadInputError

MAX_MAIL_TEXT = 1_000_000  # characters of one body, quotes included
_LONG_LINE = 200  # characters; no attribution or signature mark is longer
_LONG_SIGNATURE = 400  # characters; more than closing words, a name and an address take
_QUOTED = re.compile(r"(?m)^>.*(?:\n>.*)*")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n){2,}")
_DECLARATION = re.compile(r"<[!?][^<>]*>")
_NO_TAG = re.compile(r"<(?!/?[A-Za-z][^<>]*>)")
_STAND_IN = "\N{OBJECT REPLACEMENT CHARACTER}%d\N{OBJECT REPLACEMENT CHARACTER}"
_STOOD_IN = re.compile("\N{OBJECT REPLACEMENT CHARACTER}(\\d+)\N{OBJECT REPLACEMENT CHARACTER}")


def own_text(body: str, languages: tuple[str, ...] = ("en",)) -> str:
    """`body` without what others wrote and without the signature; "" where nothing is left.

    Args:
        body: the plain text of a mail.
        languages: codes of those whose attributions and closing words are known ("en", "de", …).

    Raises:
        BadInputError: it has more than MAX_MAIL_TEXT characters.
    """
    from mailparser_reply import EmailMessage

    if len(body) > MAX_MAIL_TEXT:
        raise BadInputError(f"the body has {len(body):,} characters; the limit is {MAX_MAIL_TEXT:,}")
    text = "\n".join(line.strip() for line in body.replace("\r\n", "\n").split("\n"))
    text = _BLANK_LINES.sub("\n\n", _QUOTED.sub(">", text))  # one line stands for each quote
    long: list[str] = []
    short = "\n".join(_shortened(line, long) for line in text.split("\n"))
    own: list[str] = []
    for part in EmailMessage(text=short, languages=list(languages)).read().replies:
        rest = part.content.removeprefix(part.headers or "").strip()
        if part.headers and not rest.startswith(">"):
            break  # an unmarked quote: all that follows is somebody else's
        rest = "\n".join(line for line in rest.split("\n") if line != ">").strip()
        if rest:
            own.append(_unsigned(rest, languages, first=not part.headers))
    kept = "\n\n".join(part for part in own if part)
    return _BLANK_LINES.sub("\n\n", _STOOD_IN.sub(lambda found: _original(found, long), kept)).strip()


def _unsigned(text: str, languages: tuple[str, ...], *, first: bool) -> str:
    """`text` without the signature that ends it.

    Closing words ("Thanks, …") at the very start of a mail are no signature, which the library knows; so
    elsewhere a line is put before them. What is long and not marked by -- is no signature either.
    """
    from mailparser_reply import EmailMessage

    mail = EmailMessage(
        text=text if first else f"\n{text}", languages=list(languages), keep_hyphen_lists=True
    )
    reply = mail.read().replies[0]
    signature = str(reply.signatures)
    if len(signature) > _LONG_SIGNATURE and not signature.startswith(("--", "__")):
        return text
    return str(reply.body)


def _shortened(line: str, long: list[str]) -> str:
    """The line, or a stand-in for one that is long (or that looks like a stand-in)."""
    if len(line) <= _LONG_LINE and not _STOOD_IN.search(line):
        return line
    long.append(line)
    return _STAND_IN % (len(long) - 1)


def _original(found: re.Match[str], long: list[str]) -> str:
    return long[int(found[1])]


def html_to_text(html: str) -> str:
    """The text of an HTML mail, with block quotes marked by > as in plain mails.

    Raises:
        BadInputError: it has more than MAX_MAIL_TEXT characters.
    """
    if len(html) > MAX_MAIL_TEXT:
        raise BadInputError(f"the HTML body has {len(html):,} characters; the limit is {MAX_MAIL_TEXT:,}")
    reader = _Text()
    # Only whole tags are left for the parser, which takes quadratic time on those that are never closed.
    reader.feed(_NO_TAG.sub("&lt;", _DECLARATION.sub("", "".join(_without_comments(html)))))
    reader.close()
    return reader.text()


def _without_comments(html: str) -> Iterator[str]:
    end = 0
    while (start := html.find("<!--", end)) >= 0:
        yield html[end:start]
        end = html.find("-->", start)
        if end < 0:
            return
        end += len("-->")
    yield html[end:]


class _Text(HTMLParser):
    """Collects text by lines."""

    HIDDEN = frozenset({"head", "script", "style", "title", "template"})
    SPACED = frozenset("blockquote h1 h2 h3 h4 h5 h6 ol p pre table ul".split())
    BREAKS = SPACED | frozenset("address article br dd div dl dt hr li section tr".split())

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[str] = []
        self.line: list[str] = []
        self.quotes = 0
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag in self.BREAKS:
            self._break(tag)
        if tag == "li":
            self.line.append("- ")
        self.quotes += tag == "blockquote"
        self.hidden += tag in self.HIDDEN

    def handle_endtag(self, tag: str) -> None:
        if tag in self.BREAKS:
            self._break(tag)
        self.quotes = max(0, self.quotes - (tag == "blockquote"))
        self.hidden = max(0, self.hidden - (tag in self.HIDDEN))

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.line.append(data)

    def text(self) -> str:
        self._break("")
        return "\n".join(self.lines)

    def _break(self, tag: str) -> None:
        line = " ".join("".join(self.line).split())
        self.line.clear()
        mark = ">" * min(self.quotes, 3)
        if line:
            self.lines.append(f"{mark} {line}".strip())
        if tag in self.SPACED and (not line or self.lines):
            self.lines.append(mark)
