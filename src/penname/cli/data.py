"""What is stored: `users`, `show`, `export`, `erase` and `db upgrade`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penname.cli.options import Db, Json, UserArgument, open_store
from penname.cli.output import confirmed, day, line, note, plural, progress, say, say_json, table, to_json
from penname.errors import BadInputError, UnknownUserError

if TYPE_CHECKING:
    from penname.records import Document
    from penname.store import Span, Store, UserStore


def users(
    limit: Annotated[
        int, typer.Option("--limit", min=0, metavar="N", help="Show the first N users only; 0: all.")
    ] = 100,
    db: Db = None,
    json: Json = False,
) -> None:
    """List the users, with their documents, dates and profile.

    With --json one object a line.

    Example: penname users --limit 20
    """
    with open_store(db) as store:
        total = store.n_users
        rows = _summaries(store, limit)
        if json:
            for row in rows:
                say_json(row)
        else:
            head = ("id", "documents", "first", "last", "profile")
            table(head, ([_cell(row[name]) for name in head] for row in rows))
        if limit and total > limit:
            note(f"{limit:,} of {total:,} users; --limit 0 shows all")


def show(
    user: UserArgument,
    documents: Annotated[
        int, typer.Option("--documents", min=0, metavar="N", help="How many of the newest documents to list.")
    ] = 10,
    db: Db = None,
    json: Json = False,
) -> None:
    """Show in short what is stored of a user.

    Example: penname show alice --documents 3
    """
    with open_store(db) as store:
        found = store.user(user)
        profile = found.profile()
        newest = [
            _brief(document) for document in reversed(found.documents()[-documents:] if documents else [])
        ]
        summary: dict[str, Any] = {
            "id": found.id,
            "name": found.name,
            **_shown(found.span),
            "preferences": len(found.preferences()),
            "requests": len(found.requests()),
            "profile": profile.version if profile else None,
            "newest": newest,
        }
    if json:
        say_json(summary)
        return
    named = f" ({line(found.name)})" if found.name else ""
    span = f", {summary['first']} to {summary['last']}" if summary["first"] else ""
    say(f"{found.id}{named}")
    say(f"{plural(summary['documents'], 'document')}{span}")
    say(f"{plural(summary['preferences'], 'preference')}, {plural(summary['requests'], 'request')}")
    say(f"profile: version {profile.version}" if profile else "profile: none yet")
    if newest:
        say()
        head = ("date", "id", "title", "words", "begins")
        table(head, [(d["date"] or "", d["id"], d["title"], d["words"], line(d["text"], 50)) for d in newest])


def export(
    user: UserArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write this file, whole or not at all, not stdout."),
    ] = None,
    db: Db = None,
) -> None:
    """Write everything of a user as JSON lines.

    `penname import jsonl` reads them back as they were.

    Example: penname export alice --out alice.jsonl
    """
    with open_store(db) as store:
        rows = store.user(user).export()
        if out is None:
            for row in rows:
                say_json(row)
            return
        with progress(f"exporting {line(user, 40)}") as shown:
            written = _write_whole(out, shown.track(rows, task_id=shown.task_ids[0]))
    note(f"{plural(written, 'row')} in {out}")


def erase(
    user: UserArgument,
    trained: Annotated[
        list[Path] | None,
        typer.Option(
            "--trained",
            metavar="DIR",
            help="Erase the user's row in this run's table too; again for more. Runs that were trained from "
            "the store are known.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    db: Db = None,
    json: Json = False,
) -> None:
    """Erase everything of a user, for good, and tell how much it was.

    Asks first, unless --yes. The user's rows in trained tables go too; models whose shared weights were
    trained on the user's data are named. What was exported or copied elsewhere is not touched.

    Example: penname erase alice --yes
    """
    from penname.methods.erase import forget

    with open_store(db) as store:
        found = _to_erase(store, user, trained or [])
        if not yes:
            held = "the rows in the tables that you named"
            if found is not None:
                held = f"{plural(found.count, 'document')} and all that was made of them"
            if not confirmed(f"Erase {line(user)}: {held}, for good?"):
                note("nothing was erased")
                raise typer.Exit(1)
        forgotten = forget(store, user, trained or [])
        erased = asdict(found.erase()) if found is not None else {}
    if json:
        paths = {
            name: [str(path) for path in each] if isinstance(each, tuple) else each
            for name, each in asdict(forgotten).items()
        }
        say_json({"user": user, **erased, "trained": paths})
        return
    counts = [plural(n, name.removesuffix("s")) for name, n in erased.items()]
    rows = plural(len(forgotten.rows), "row in trained tables", "rows in trained tables")
    lines = [plural(forgotten.lines, "line in what trainings saw", "lines in what trainings saw")]
    say(f"erased {user}: {', '.join([*counts, rows, *(lines if forgotten.lines else [])])}")
    if forgotten.weights:
        say("trained on the user's data, in weights that all users share; only training anew takes it out:")
        for folder in forgotten.weights:
            say(f"  {folder}")
    for folder in forgotten.gone:
        note(f"{folder}: trained from this store, and not there any more; passed over")


def upgrade(db: Db = None, json: Json = False) -> None:
    """Bring the database's tables to this version of penname.

    Safe to run again. An SQLite file is also brought up to date on opening; PostgreSQL only by this command.

    Example: penname db upgrade --db postgresql://localhost/penname
    """
    from penname.store import Store

    with Store(db, check=False) as store:
        before = store.schema.current
        schema = store.upgrade()
        where = store.url
    if json:
        say_json({"url": where, "before": before, "schema": schema.current})
    elif before == schema.current:
        say(f"{where}: schema {schema.current} is the newest; nothing to do")
    else:
        say(f"{where}: upgraded from {before or 'nothing'} to schema {schema.current}")


def _to_erase(store: Store, user: str, trained: Sequence[Path]) -> UserStore | None:
    """The user's part of the store; None where only the tables of `trained` know the user."""
    from penname.methods.erase import knows

    try:
        return store.user(user)
    except UnknownUserError:
        if any(knows(folder, user) for folder in trained):
            return None
        raise


def _cell(value: object) -> object:
    return "" if value is None else value


def _summaries(store: Store, limit: int) -> Iterator[dict[str, Any]]:
    """What `users` shows of each user, one after the other; the first `limit`, or all where it is 0."""
    for user in islice(store.users(), limit or None):
        try:
            found = store.user(user.id)
            profile = found.profile()
            span = found.span
        except UnknownUserError:  # erased by another process meanwhile
            continue
        yield {
            "id": user.id,
            "name": user.name,
            **_shown(span),
            "profile": profile.version if profile else None,
        }


def _shown(span: Span) -> dict[str, Any]:
    return {
        "documents": span.documents,
        "first": day(span.first) or None,
        "last": day(span.last) or None,
    }


def _brief(document: Document) -> dict[str, Any]:
    return {
        "id": document.id,
        "date": day(document.written_at) or None,
        "title": document.title,
        "words": len(document.text.split()),
        "text": line(document.text, 200),
    }


def _write_whole(out: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write `rows` beside `out` and rename: `out` is never half written. Returns the number of rows.

    Raises:
        BadInputError: `out` is there and no file: a folder, or a device that renaming would replace; or it
            cannot be written. What is there stays as it is.
    """
    import tempfile

    out = out.expanduser().resolve()
    if out.exists() and not out.is_file():
        raise BadInputError(f"{out} is no file that could be replaced: leave --out away to write to stdout")
    try:
        handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name[:40]}.", suffix=".part")
    except OSError as error:
        raise BadInputError(f"{out}: no file can be made in {out.parent} ({error.strerror})") from error
    written = 0
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            for row in rows:
                file.write(to_json(row) + "\n")
                written += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, out)
    except BaseException as error:  # Ctrl-C too leaves nothing behind
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):  # a full disk's names no file
            raise BadInputError(f"{out} cannot be written: {error.strerror}") from error
        raise
    return written
