"""E-mail in one mbox file (plain or gzip): what each sender wrote, per address in lower case.

A mail's own text is a document: its plain part, or its HTML part as text, without quoted text and signature.
These become bad rows that say so: mails that a machine answered with (Auto-Submitted, delivery reports), and
mails in which nothing is the sender's own. The recipients' addresses are not kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.errors import MessageError
from email.message import EmailMessage, MIMEPart
from email.parser import BytesParser
from email.policy import default as default_policy
from email.utils import parsedate_to_datetime
from pathlib import Path

from pydantic import ValidationError

from penname.errors import BadInputError
from penname.records import Authored, BadRow, Item, User, check_user_id
from penname.sources._files import lines
from penname.sources._mailtext import html_to_text, own_text
from penname.sources._rows import authored, bad, text_of

MAX_MAIL = 64 << 20  # bytes of one mail with its attachments
_HEADER = re.compile(rb"[!-9;-~]+[ \t]*:|>?From ")
_ESCAPED = re.compile(rb">+From ")
_PREFIX = re.compile(r"\s*(?:(re|aw|sv|vs|antw|fwd?|wg|tr|rv)(?:\[\d+\])?\s*:\s*)", re.IGNORECASE)
_FORWARDS = frozenset({"fw", "fwd", "wg", "tr", "rv"})

# What the standard library's mail parser raises, beside its own errors, on headers that make no sense.
_PARSER_ERRORS = (
    MessageError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    RecursionError,
)


@dataclass
class _Mail:
    """The raw lines of one mail; `why` says what was wrong with them, if anything."""

    line: int  # of its "From " line
    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    why: str = ""


def read(path: Path, *, languages: tuple[str, ...] = ("en",)) -> Iterator[Item]:
    """A User for each sender when first met, then an Authored per mail (and sender).

    Document: title is the subject without Re: and Fwd:, id the Message-ID; `fields` has `reply` and `forward`
    where true, and `charset_guessed` where the declared character set did not fit.

    Args:
        languages: of the attributions and signatures to be known, such as ("en", "de").

    Raises:
        BadInputError: the file cannot be opened, or is no mbox file.
    """
    met: set[str] = set()
    for mail in _mails(path):
        if isinstance(mail, BadRow):
            yield mail
            continue
        try:
            senders, documents = _document(mail, languages)
        except (BadInputError, ValidationError) as error:
            yield bad(path, mail.line, error)
            continue
        except _PARSER_ERRORS as error:
            yield bad(path, mail.line, f"the mail cannot be parsed: {error}")
            continue
        for user in senders:
            if user.id not in met:
                met.add(user.id)
                yield user
        yield from documents


def _mails(path: Path) -> Iterator[_Mail | BadRow]:
    """The mails one after the other."""
    mail: _Mail | None = None
    for item in _marked(path):
        if isinstance(item, BadRow):
            if mail is None:
                yield item
            else:
                mail.why = f"line {item.line}: {item.why}"
            continue
        number, line, begins = item
        if begins or (mail is None and line.startswith(b"From ")):
            if mail is not None:
                yield mail
            mail = _Mail(number)
        elif mail is not None:
            _append(mail, line)
        elif line.strip():
            raise BadInputError(f"{path} is no mbox file: it does not begin with a line 'From …'")
    if mail is not None:
        yield mail


def _marked(path: Path) -> Iterator[tuple[int, bytes, bool] | BadRow]:
    """(number, line, whether a mail begins with it) for each line.

    One begins at a line "From …" that follows a blank line and that a header line follows, so that a
    sentence of a body that begins with this word is not taken for one.
    """
    blank = True
    waiting: tuple[int, bytes] | None = None  # a "From " line, until it is known what follows it
    for item in lines(path):
        if isinstance(item, BadRow):
            yield item
            continue
        number, line = item[0], item[1].removesuffix(b"\r")
        if waiting is not None:
            yield *waiting, bool(_HEADER.match(line))
            waiting = None
        if blank and line.startswith(b"From "):
            waiting = number, line
        else:
            yield number, line, False
        blank = not line.strip()
    if waiting is not None:
        yield *waiting, False


def _append(mail: _Mail, line: bytes) -> None:
    mail.size += len(line) + 1
    if mail.size > MAX_MAIL:
        mail.why = f"the mail is larger than {MAX_MAIL >> 20} MB"
        mail.parts.clear()
    else:
        mail.parts.append(line[1:] if _ESCAPED.match(line) else line)


def _document(mail: _Mail, languages: tuple[str, ...]) -> tuple[list[User], list[Authored]]:
    if mail.why:
        raise BadInputError(mail.why)
    message = BytesParser(EmailMessage, policy=default_policy).parsebytes(b"\n".join(mail.parts))
    _refuse_automatic(message)
    senders = _senders(message)
    body, guessed = _body(message)
    text = own_text(body, languages)
    if not text:
        raise BadInputError(
            "nothing in the mail is the sender's own text (only quotes, a signature or files)"
        )
    title, fields = _subject(str(message.get("Subject", "")))
    if message.get("In-Reply-To"):
        fields["reply"] = True
    if guessed:
        fields["charset_guessed"] = guessed
    documents = authored(
        [user.id for user in senders],
        text_of(text, "body"),
        title=text_of(title, "Subject"),
        written_at=_date(message),
        id=str(message.get("Message-ID", "")).strip().strip("<>"),
        fields=fields,
    )
    return senders, documents


def _refuse_automatic(message: EmailMessage) -> None:
    automatic = str(message.get("Auto-Submitted", "no")).split(";")[0].strip().lower()
    if automatic != "no" or message.get_content_type() == "multipart/report":
        raise BadInputError("an automatic mail (Auto-Submitted, or a report): no person wrote it")


def _senders(message: EmailMessage) -> list[User]:
    header = message.get("From")
    addresses = getattr(header, "addresses", ())
    senders: dict[str, User] = {}
    for address in addresses:
        user = address.addr_spec.strip().lower()
        if "@" in user and user != "@":
            name = " ".join(address.display_name.split())
            senders.setdefault(user, User(id=check_user_id(user), name=text_of(name, "From")))
    if not senders:
        raise BadInputError("the mail names no sender's address in From")
    return list(senders.values())


def _subject(subject: str) -> tuple[str, dict[str, object]]:
    """The subject without Re:, Fwd: and the like, and which of them there were."""
    fields: dict[str, object] = {}
    while found := _PREFIX.match(subject):
        fields["forward" if found[1].lower() in _FORWARDS else "reply"] = True
        subject = subject[found.end() :]
    return " ".join(subject.split()), fields


def _date(message: EmailMessage) -> datetime | None:
    header = message.get("Date")
    if header is None:
        return None
    try:
        moment = parsedate_to_datetime(str(header))
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, TypeError, OverflowError, IndexError):
        raise BadInputError(f"the date {str(header)[:60]!r} is impossible or no date") from None


def _body(message: EmailMessage) -> tuple[str, str]:
    """The text of the plain part, or else of the HTML part; and the character set if it was guessed."""
    part = message.get_body(preferencelist=("plain", "html"))
    if part is None:
        raise BadInputError("the mail has no text part")
    text, guessed = _decoded(part)
    if part.get_content_type() == "text/html":
        text = html_to_text(text)
    return text, guessed


def _decoded(part: MIMEPart) -> tuple[str, str]:
    """The part's text. Where its declared character set is unknown or does not fit, UTF-8 or Latin-1."""
    content = part.get_payload(decode=True)
    if not isinstance(content, bytes):
        raise BadInputError("the text part holds no text")
    try:
        return content.decode(part.get_content_charset("ascii")), ""
    except (LookupError, ValueError):
        pass
    try:
        return content.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return content.decode("latin-1"), "latin-1"
