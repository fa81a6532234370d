"""The source `mbox`: whose mail it is, what of it is the sender's own, and mails that cannot be used."""

from __future__ import annotations

import gzip
import mailbox
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penname.errors import BadInputError
from penname.records import Authored, BadRow, Document, Item, User
from penname.sources import read
from penname.sources._mailtext import html_to_text, own_text

HEAD = "From: Ann Lee <Ann@X.org>\nDate: Fri, 1 Mar 2024 10:00:00 +0200\nSubject: Lunch\n"


def mails(folder: Path, *raw: str | bytes, **options: Any) -> list[Item]:
    """The items of an mbox file with these mails."""
    path = folder / "box.mbox"
    parts = [each if isinstance(each, bytes) else each.encode() for each in raw]
    path.write_bytes(b"".join(b"From x Fri Mar  1 10:00:00 2024\n" + part + b"\n\n" for part in parts))
    return list(read("mbox", path, **options))


def document(items: list[Item]) -> Document:
    (found,) = (item.document for item in items if isinstance(item, Authored))
    return found


def reason(items: list[Item]) -> str:
    (found,) = items
    assert isinstance(found, BadRow)
    return found.why


def test_a_mail_is_a_document_of_its_sender(tmp_path: Path) -> None:
    user, mail = mails(tmp_path, HEAD + "Message-ID: <m1@x.org>\n\nShall we eat?\n\n-- \nAnn\n")
    assert user == User(id="ann@x.org", name="Ann Lee")
    assert isinstance(mail, Authored)
    assert mail.user == "ann@x.org"
    assert mail.document == Document(
        id="m1@x.org", title="Lunch", text="Shall we eat?", written_at=datetime(2024, 3, 1, 8, tzinfo=UTC)
    )


def test_the_standard_library_is_the_peer_for_where_mails_begin(tmp_path: Path) -> None:
    box = mailbox.mbox(tmp_path / "peer.mbox")
    for number in range(5):
        message = EmailMessage()
        message["From"] = f"u{number}@x.org"
        message["Subject"] = f"Mail {number}"
        message.set_content(f"Line.\n\nFrom here to there.\n>From quoted\n{'long ' * 100}\n")
        box.add(message)
    box.flush()
    box.close()
    found = [item.document for item in read("mbox", tmp_path / "peer.mbox") if isinstance(item, Authored)]
    assert [each.title for each in found] == [f"Mail {number}" for number in range(5)]
    assert all("From here to there." in each.text for each in found)


def test_a_sentence_that_begins_with_from_does_not_begin_a_mail(tmp_path: Path) -> None:
    found = mails(tmp_path, HEAD + "\nOne.\n\nFrom then on, all went well.\n\nEnd.", HEAD + "\nTwo.")
    texts = [item.document.text for item in found if isinstance(item, Authored)]
    assert texts == ["One.\n\nFrom then on, all went well.\n\nEnd.", "Two."]


@pytest.mark.parametrize(
    ("subject", "title", "fields"),
    [
        ("Re: Re: Lunch", "Lunch", {"reply": True}),
        ("Fwd: Lunch", "Lunch", {"forward": True}),
        ("AW: Fw:  Lunch  now", "Lunch now", {"reply": True, "forward": True}),
        ("Re[2]: Lunch", "Lunch", {"reply": True}),
        ("Regarding: Lunch", "Regarding: Lunch", {}),
        ("=?utf-8?q?Caf=C3=A9?=", "Café", {}),
        ("", "", {}),
    ],
)
def test_subjects(tmp_path: Path, subject: str, title: str, fields: dict[str, bool]) -> None:
    found = document(mails(tmp_path, f"From: a@x.org\nSubject: {subject}\n\nText."))
    assert (found.title, found.fields) == (title, fields)


def test_headers_that_are_absent_are_no_error(tmp_path: Path) -> None:
    found = document(mails(tmp_path, "From: a@x.org\nIn-Reply-To: <m0>\n\nText."))
    assert (found.written_at, found.title, found.fields) == (None, "", {"reply": True})


def test_several_senders_are_several_authors(tmp_path: Path) -> None:
    items = mails(tmp_path, "From: A <a@x.org>, b@x.org\n\nText.")
    found = [(i.user, i.document.position, i.document.n_authors) for i in items if isinstance(i, Authored)]
    assert found == [("a@x.org", 0, 2), ("b@x.org", 1, 2)]


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("Subject: x\n\nText.", "no sender's address"),
        ("From: nobody\n\nText.", "no sender's address"),
        ("From: a@x.org\nDate: Thu, 30 Feb 2024 10:00:00 +0000\n\nText.", "impossible"),
        ("From: a@x.org\nDate: soon\n\nText.", "impossible"),
        ("From: a@x.org\n\n> only a quote", "nothing in the mail"),
        ("From: a@x.org\n\n", "nothing in the mail"),
        ("From: a@x.org\nAuto-Submitted: auto-replied\n\nI am away.", "automatic"),
        ("From: a@x.org\nContent-Type: multipart/report; boundary=b\n\n--b\n\nx\n--b--", "automatic"),
        ("From: a@x.org\nContent-Type: image/png\n\nxx", "no text part"),
        (b"From: a@x.org\n\nbinary \0 text", "NUL"),
        ("From: a@x.org\n\n" + "word " * 250_000, "the limit"),
        (b"From: a@x.org\n\n" + b"x" * (33 << 20), "32 MB"),
        (f"From: {'a' * 300}@x.org\n\nText.", "the limit is 256"),
    ],
)
def test_a_mail_that_cannot_be_used_is_told_with_its_line(tmp_path: Path, raw: str | bytes, why: str) -> None:
    assert why in reason(mails(tmp_path, raw))
    items = mails(tmp_path, HEAD + "\nGood.", raw, HEAD + "\nGood.")
    assert [item.line for item in items if isinstance(item, BadRow)] == [8]
    assert sum(isinstance(item, Authored) for item in items) == 2


def test_character_sets(tmp_path: Path) -> None:
    kind = b"From: a@x.org\nContent-Type: text/plain; charset="
    cases: list[tuple[bytes, bytes, str, dict[str, str]]] = [
        (b"iso-8859-1", b"caf\xe9", "café", {}),
        (b"utf-8", "café 🙂".encode(), "café 🙂", {}),
        (b"x-unknown", "café".encode(), "café", {"charset_guessed": "utf-8"}),
        (b"utf-8", b"caf\xe9", "café", {"charset_guessed": "latin-1"}),
    ]
    for charset, body, text, fields in cases:
        found = document(mails(tmp_path, kind + charset + b"\nContent-Transfer-Encoding: 8bit\n\n" + body))
        assert (found.text, found.fields) == (text, fields)


def test_the_plain_part_is_preferred_and_html_is_read(tmp_path: Path) -> None:
    message = EmailMessage()
    message["From"] = "a@x.org"
    message.set_content("<p>Only <b>HTML</b>.</p><blockquote>quoted</blockquote>", subtype="html")
    assert document(mails(tmp_path, message.as_bytes())).text == "Only HTML."
    message = EmailMessage()
    message["From"] = "a@x.org"
    message.set_content("Plain.")
    message.add_alternative("<p>HTML.</p>", subtype="html")
    message.add_attachment(b"\0", maintype="image", subtype="png", filename="x.png")
    assert document(mails(tmp_path, message.as_bytes())).text == "Plain."


def test_gzip_windows_lines_and_other_files(tmp_path: Path) -> None:
    path = tmp_path / "box.mbox.gz"
    path.write_bytes(gzip.compress(f"From x\n{HEAD}\nText.\n".replace("\n", "\r\n").encode()))
    assert document(list(read("mbox", path))).text == "Text."
    path.write_bytes(b"\x89PNG\r\n\0\0")
    with pytest.raises(BadInputError, match="no mbox file"):
        list(read("mbox", path))


@pytest.mark.parametrize(
    ("body", "own"),
    [
        ("Yes.\n\nOn Tue, 5 Mar 2024, Bob <b@x.org> wrote:\n> Are you there?\n> Best regards\n", "Yes."),
        ("On 5 Mar 2024, Bob <b@x.org>\nwrote:\n> one?\n\nOne.\n\n> two?\n> > three?\nTwo.\n-- \nAnn",
         "One.\n\nTwo."),
        ("Mine.\n\nFrom: Bob\nSent: Monday\nTo: Ann\nSubject: x\n\nNot mine.", "Mine."),
        ("Mine.\n\n-----Original Message-----\nNot mine.", "Mine."),
        ("Mine.\n\nBest regards,\nAnn", "Mine."),
        ("Mine.\n\nSent from my phone", "Mine."),
        ("Thanks, that helps.\n\n- one\n- two", "Thanks, that helps.\n\n- one\n- two"),
        ("First.\n\nThanks, " + "and so on " * 60, "First.\n\nThanks, " + ("and so on " * 60).strip()),
        ("On Monday I wrote:\nto you.", ""),
        ("> all quoted", ""),
        ("\ufffc0\ufffc stays", "\ufffc0\ufffc stays"),
    ],
)  # fmt: skip
def test_own_text(body: str, own: str) -> None:
    assert own_text(body) == own


def test_attributions_in_other_languages_are_known_when_asked_for(tmp_path: Path) -> None:
    body = "Ja.\n\nAm 5.3.2024 um 10:00 schrieb Bob:\n> Bist du da?\n"
    raw = f"From: a@x.org\n\n{body}"
    assert document(mails(tmp_path, raw, languages=("de",))).text == "Ja."


@pytest.mark.parametrize(
    "body", ["On a " * 200_000, ("On " + "a " * 90 + "\n") * 200, "\n" * 900_000, ". Warning: x" * 80_000,
             ">\n" * 400_000, "From: a\n" * 50_000, "On x wrote:\n>\n" * 20_000]
)  # fmt: skip
def test_hostile_bodies_take_no_quadratic_time(body: str) -> None:
    own_text(body)


@pytest.mark.parametrize(
    "html", ["<", "<!--", "<![x", "<a ", "</", "<div>", '<a href="x>', "<script>", "&#x"]
)
def test_hostile_html_takes_no_quadratic_time(html: str) -> None:
    html_to_text((html * 100_000)[:1_000_000])


def test_html_as_text() -> None:
    html = """<html><head><title>no</title><style>p {}</style></head><body><!-- no --><p>Hi <b>Bob</b>,</p>
    <ul><li>one<li>two</ul>caf&eacute; 1 < 2<br>done<blockquote>quoted<p>twice</p></blockquote></body>"""
    assert [line for line in html_to_text(html).split("\n") if line.strip("> ")] == [
        "Hi Bob,", "- one", "- two", "café 1 < 2", "done", "> quoted", "> twice",
    ]  # fmt: skip


PIECES = [
    "From: a@x.org\n",
    "From: =?utf-8?b?!!?= <@>\n",
    "From: [,;\n",
    "From: a:b;c\n",
    "Date: x\n",
    "Subject: =?a?q?\udcff?=\n",
    'To: "\n',
    "Message-ID: <[\n",
    "Auto-Submitted: ;\n",
    "Content-Type: multipart/mixed; boundary=b\n",
    "Content-Type: text/html; charset=x\n",
    "Content-Transfer-Encoding: base64\n",
    "--b\n",
    "\n",
    "From x\n",
    "> q\n",
    "On x wrote:\n",
    "<p",
    "\x00",
]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=10), max_size=15))
def test_no_mail_raises_anything_but_our_own_errors(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.mbox"
    path.write_bytes(b"From x\n" + "".join(pieces).encode("utf-8", "surrogateescape"))
    assert list(read("mbox", path)) or not pieces
