"""`penname import`: brings documents in, tells every row that it could not use, and can be stopped."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penname.cli.options import Db, Json, open_store
from penname.cli.output import line, note, plural, progress, say, say_json
from penname.errors import PennameError, UnknownSourceError

if TYPE_CHECKING:
    from penname.store import Added


def import_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="jsonl, git, mbox, markdown, lamp, longlamp, psw, personamem, prism, psoups, tldr, "
            "personalllm or trl: what PATH is.",
        ),
    ],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file or folder to read.")],
    user_field: Annotated[
        str | None,
        typer.Option("--user-field", metavar="NAME", help="jsonl, trl: the field that names the user."),
    ] = None,
    text_field: Annotated[
        str | None, typer.Option("--text-field", metavar="NAME", help="jsonl: the field with the text.")
    ] = None,
    title_field: Annotated[
        str | None, typer.Option("--title-field", metavar="NAME", help="jsonl: the field with the title.")
    ] = None,
    date_field: Annotated[
        str | None, typer.Option("--date-field", metavar="NAME", help="jsonl: the field with the date.")
    ] = None,
    id_field: Annotated[
        str | None,
        typer.Option("--id-field", metavar="NAME", help="jsonl: the field with the document's id."),
    ] = None,
    languages: Annotated[
        str | None,
        typer.Option("--languages", metavar="LIST", help="mbox: of the mails' quotations, such as en,de."),
    ] = None,
    author: Annotated[
        str | None,
        typer.Option("--author", metavar="USER", help="markdown, psoups: the user of files that name none."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="TASK", help="lamp, longlamp, psw: which task the files are of."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="NAME", help="Of a benchmark: which split, or size, to read."),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option("--prefix", metavar="TEXT", help="Of a benchmark: put before every user's id."),
    ] = None,
    users: Annotated[
        int | None, typer.Option("--users", metavar="N", help="personalllm: how many users to simulate.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", metavar="A", help="personalllm: small, and each user follows one score."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="personalllm: of the users and their choices.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave with status 0 even if some rows could not be used.")
    ] = False,
    db: Db = None,
    json: Json = False,
) -> None:
    """Import documents; what is there already stays as it is.

    Every row that cannot be used is told on stderr with its file and line; the others are kept. The status is
    then 1, unless --skip-bad. Ctrl-C keeps what was written; the same command goes on from there.

    Example: penname import jsonl letters.jsonl --user-field from --text-field body
    """
    options = {
        "user_field": user_field,
        "text_field": text_field,
        "title_field": title_field,
        "date_field": date_field,
        "id_field": id_field,
        "languages": tuple(languages.replace(",", " ").split()) if languages is not None else None,
        "author": author,
        "task": task,
        "split": split,
        "prefix": prefix,
        "users": users,
        "alpha": alpha,
        "seed": seed,
    }
    given = {name: value for name, value in options.items() if value is not None}
    _check_options(source, given)
    added = _run(source, path, given, db)
    if json:
        say_json(asdict(added))
    else:
        say(_summary(added))
    if added.bad and not skip_bad:
        note(
            "the bad rows are told above and were passed over (--skip-bad: leave with status 0 all the same)"
        )
        raise typer.Exit(1)


def _check_options(source: str, given: dict[str, Any]) -> None:
    """Refuse options that another source has: they would say what does not happen."""
    from penname.sources import SOURCES

    if source not in SOURCES:
        raise UnknownSourceError(source, SOURCES)
    takes = SOURCES[source].options
    for name in given:
        if name not in takes:
            others = f"it takes {', '.join(map(_flag, takes))}" if takes else "it takes no options of its own"
            raise typer.BadParameter(
                f"the source {source!r} has no such option: {others}", param_hint=_flag(name)
            )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _run(source: str, path: Path, given: dict[str, Any], db: str | None) -> Added:
    """Import, with a moving count on stderr; Ctrl-C ends it with what was kept so far."""
    from penname.sources import read
    from penname.store import Added

    kept = Added()
    with open_store(db, create=True) as store, progress(f"importing {line(str(path), 40)}") as shown:
        task = shown.task_ids[0]

        def on_batch(so_far: Added) -> None:
            nonlocal kept
            kept = so_far
            shown.update(task, description=f"importing {line(str(path), 40)}: {_summary(so_far)}")

        try:
            return store.add(
                read(source, path, **given), on_bad=lambda row: note(str(row)), on_batch=on_batch
            )
        except KeyboardInterrupt:
            shown.stop()
            note(f"stopped; kept so far: {_summary(kept)}. The same command again goes on from there.")
            raise typer.Exit(130) from None
        except PennameError:
            if kept != Added():
                note(f"kept so far: {_summary(kept)}")
            raise


def _summary(added: Added) -> str:
    """The counts in words; those of 0 only where they are the documents'."""
    parts = [
        plural(added.new, "new document"),
        plural(added.changed, "changed", "changed"),
        plural(added.same, "already there", "already there"),
    ]
    for number, noun in (
        (added.users, "new user"),
        (added.requests, "request"),
        (added.preferences, "preference"),
        (added.profiles, "profile"),
        (added.bad, "bad row"),
    ):
        if number:
            parts.append(plural(number, noun))
    return ", ".join(parts)
