"""`penname prefer`: what a user preferred, recorded, so that what is trained can learn from it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penname.cli.options import Db, Json, UserArgument, open_store, read_text
from penname.cli.output import day, line, note, plural, progress, say, say_json, table
from penname.errors import BadInputError

if TYPE_CHECKING:
    from penname.methods.prlhf.adapt import Adapted
    from penname.records import Preference
    from penname.store import Store

# What each kind needs beside --prompt: (option, field of the record).
KINDS = {
    "choice": (("--chosen", "chosen"), ("--rejected", "rejected")),
    "rating": (("--completion", "completion"), ("--rating", "rating")),
    "edit": (("--revision", "chosen"), ("--draft", "rejected")),
}


def _file(option: str, help_text: str) -> Any:
    return typer.Option(option, metavar="FILE", help=help_text)


def prefer(
    context: typer.Context,
    user: UserArgument,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="What the texts were written for.")
    ] = None,
    chosen: Annotated[str | None, _file("--chosen", "A choice: the better text; - reads stdin.")] = None,
    rejected: Annotated[str | None, _file("--rejected", "A choice: the other text.")] = None,
    completion: Annotated[str | None, _file("--completion", "A rating: the text.")] = None,
    rating: Annotated[
        float | None,
        typer.Option("--rating", min=-1, max=1, metavar="R", help="A rating: from -1 (bad) to 1 (good)."),
    ] = None,
    draft: Annotated[str | None, _file("--draft", "An edit: the text as it was.")] = None,
    revision: Annotated[str | None, _file("--revision", "An edit: the text as the user made it.")] = None,
    adapt: Annotated[
        Path | None,
        typer.Option(
            "--adapt",
            envvar="PENNAME_ADAPT",
            metavar="DIR",
            help="Also fit the user's vector in this trained run at once.",
        ),
    ] = None,
    db: Db = None,
    json: Json = False,
) -> None:
    """Record a choice, a rating or an edit of a user, or list them.

    Prints the id under which it is kept. Without texts it lists what was recorded; with --json one object a
    line.

    Example: penname prefer alice --prompt "Thank the team" --chosen short.txt --rejected long.txt
    """
    given = {
        "--chosen": chosen,
        "--rejected": rejected,
        "--completion": completion,
        "--rating": rating,
        "--draft": draft,
        "--revision": revision,
    }
    kind = _kind(given, prompt)
    if kind is None and _on_command_line(context, "adapt"):
        raise typer.BadParameter(f"--adapt goes with a recording: give --prompt, and {_ways()}")
    with open_store(db) as store:
        found = store.user(user)
        if kind is None:
            _print_all(found.preferences(), json)
            return
        kept = found.prefer(_read(user, kind, prompt or "", given))
        fitted = _adapt(adapt, kept, store) if adapt is not None else None
    if json:
        say_json({"id": kept.id, "kind": kept.kind, "adapted": fitted and _shown(fitted)})
        return
    say(kept.id)
    if fitted is not None:
        note(f"fitted {user} to {plural(fitted.preferences, 'preference')} in {fitted.seconds:.1f} s")


def _on_command_line(context: typer.Context, name: str) -> bool:
    """Whether the option was given, and not taken from its variable."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _kind(given: dict[str, Any], prompt: str | None) -> str | None:
    """What the options record; None where they record nothing. Refuses what does not go together."""
    named = {option for option, value in given.items() if value is not None}
    if not named:
        if prompt is not None:
            raise typer.BadParameter(f"--prompt alone records nothing: give {_ways()}")
        return None
    for kind, needed in KINDS.items():
        if named == {option for option, _ in needed}:
            if prompt is None or not prompt.strip():
                raise typer.BadParameter(f"a {kind} needs --prompt: what the texts were written for")
            if [given[option] for option, _ in needed].count("-") > 1:
                raise typer.BadParameter("stdin (-) holds one text: name a file for the other")
            return kind
    raise typer.BadParameter(f"{' and '.join(sorted(named))}: give {_ways()}")


def _ways() -> str:
    return ", or ".join(" and ".join(option for option, _ in needed) for needed in KINDS.values())


def _read(user: str, kind: str, prompt: str, given: dict[str, Any]) -> Preference:
    """The preference that the options name, its texts read from their files."""
    from penname.records import Preference

    values = {}
    for option, field in KINDS[kind]:
        values[field] = given[option] if option == "--rating" else _text(given[option])
    if "chosen" in values and values["chosen"] == values["rejected"]:
        raise BadInputError("both texts are the same: nothing was preferred, and nothing was recorded")
    return Preference.model_validate(
        {"user": user, "kind": kind, "prompt": prompt, "made_at": datetime.now(UTC), **values}
    )


def _text(source: str) -> str:
    """A file's text without the line ends that editors put at its end."""
    text = read_text(source).rstrip("\r\n")
    if not text.strip():
        raise BadInputError(f"{'stdin' if source == '-' else source}: there is no text in it")
    return text


def _adapt(folder: Path, kept: Preference, store: Store) -> Adapted:
    """Fits the user's vector. What was recorded stays recorded where that fails, and is told."""
    from penname.methods.prlhf.adapt import adapt

    try:
        with progress(f"fitting {line(kept.user, 40)}"):
            return adapt(folder, kept.user, store)
    except BaseException:
        note(f"recorded as {kept.id}; the vector in {folder} was not fitted")
        raise


def _shown(fitted: Adapted) -> dict[str, Any]:
    return {"preferences": fitted.preferences, "seconds": fitted.seconds}


def _print_all(preferences: list[Preference], json: bool) -> None:
    if json:
        for one in preferences:
            say_json(one.model_dump(mode="json"))
        return
    rows = ((one.id, one.kind, day(one.made_at), line(one.prompt, 50)) for one in preferences)
    table(("id", "kind", "date", "prompt"), rows)
