"""`penname profile`: what was learnt of a user, in words that the user can read and edit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penname.cli.options import Db, Json, Model, Prompts, open_model, open_store, read_text
from penname.cli.output import day, line, note, plural, progress, say, say_json, table
from penname.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penname.records import Profile
    from penname.store import Store


def profile(
    users: Annotated[list[str], typer.Argument(metavar="USER…", help="One or more user ids.")],
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Make it anew, even if it was edited (that version is kept).")
    ] = False,
    edit: Annotated[
        bool, typer.Option("--edit", help="Open it in $VISUAL or $EDITOR, and use what you save.")
    ] = False,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="FILE", help="Use this file's text as the profile; - reads stdin."),
    ] = None,
    history: Annotated[bool, typer.Option("--history", help="List all versions instead.")] = False,
    db: Db = None,
    model: Model = None,
    prompts: Prompts = None,
    json: Json = False,
) -> None:
    """Show, make or edit what was learnt of a user, in words.

    It is made where there is none, and made again where the history has changed. An edited profile stays in
    use until you say --refresh. With --json one object a line.

    Example: penname profile alice --edit
    """
    _check(users, refresh=refresh, edit=edit, text=text is not None, history=history)
    with open_store(db) as store:
        for user in users:
            store.user(user)  # all are known before any work begins
        if history:
            for user in users:
                _print_history(user, store.user(user).profiles(), json)
            return
        if text is not None:
            shown = [_set(store, users[0], read_text(text))]
        elif edit:
            shown = [_edit(store, users[0], model, prompts)]
        else:
            shown = _made(store, users, model, prompts, refresh=refresh)
    for number, one in enumerate(shown):
        if json:
            say_json(one.model_dump(mode="json"))
        else:
            if number:
                say()
            _print(one)


def _check(users: Sequence[str], *, refresh: bool, edit: bool, text: bool, history: bool) -> None:
    """Refuse what contradicts itself, before anything is loaded."""
    given = [
        name
        for name, on in (("--refresh", refresh), ("--edit", edit), ("--text", text), ("--history", history))
        if on
    ]
    if len(given) > 1:
        raise typer.BadParameter(f"{' and '.join(given)} do not go together")
    if (edit or text) and len(users) > 1:
        raise typer.BadParameter(f"{given[0]} takes one user, not {len(users)}")


def _made(
    store: Store, users: Sequence[str], model: str | None, prompts: str | None, *, refresh: bool = False
) -> list[Profile]:
    """The profile of each user, made where it is not there or out of date."""
    from penname.methods.stepback import History, profile_histories
    from penname.tasks import PromptTexts

    texts = PromptTexts.load(prompts)
    loaded = open_model(model)
    with progress("profiling", total=len(users)) as shown:
        task = shown.task_ids[0]
        try:
            return profile_histories(
                store,
                loaded,
                [History(user) for user in users],
                texts=texts,
                refresh=refresh,
                progress=lambda done, _: shown.update(task, completed=done),
                note=note,
            )
        except KeyboardInterrupt:
            shown.stop()
            note("stopped; what was made so far is kept, and the same command goes on from there")
            raise


def _edit(store: Store, user: str, model: str | None, prompts: str | None) -> Profile:
    """The user's profile as the person at the terminal leaves it; made first where there is none."""
    current = store.user(user).profile() or _made(store, [user], model, prompts)[0]
    with _draft(user, current.text) as file:
        _open_editor(file)
        return _set(store, user, read_text(str(file)))


def _set(store: Store, user: str, text: str) -> Profile:
    """Store `text` as the profile of `user`, unless it is what is there."""
    from penname.methods.stepback import edit_profile
    from penname.records import check_text

    current = store.user(user).profile()
    if current is not None and current.text.strip() == text.strip():
        note(f"the profile of {user!r} is as it was: nothing was stored")
        return current
    return edit_profile(store, user, check_text(text))


@contextmanager
def _draft(user: str, text: str) -> Iterator[Path]:
    """A file that holds `text`, for the time of editing. It stays, and is told, where what a person wrote in
    it could not be stored (a busy or full database, say): nobody should have to write it twice."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="penname-"))  # only its owner can read it
    file = folder / "profile.txt"
    file.write_text(text + "\n", encoding="utf-8", newline="\n")
    keep = False
    try:
        yield file
    except BaseException:  # Ctrl-C too
        keep = file.is_file() and file.read_bytes().strip() not in (b"", text.strip().encode())
        raise
    finally:
        if keep:
            note(f"what you wrote is kept in {file}: `penname profile --text` stores it for {user!r}")
        else:
            shutil.rmtree(folder)


def _open_editor(file: Path) -> None:
    """Returns when the person's editor has closed `file`.

    Raises:
        BadInputError: the editor is not there, or it failed.
    """
    import shlex
    import subprocess

    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ("notepad" if os.name == "nt" else "vi")
    try:
        status = subprocess.run([*shlex.split(command), str(file)], check=False).returncode
    except (OSError, ValueError) as error:
        raise BadInputError(
            f"the editor {command!r} could not be started ({error}): set VISUAL or EDITOR, or use --text FILE"
        ) from None
    if status:
        raise BadInputError(f"the editor {command!r} ended with status {status}: nothing was stored")


def _print(profile: Profile) -> None:
    say(_heading(profile))
    say()
    say(profile.text)


def _heading(profile: Profile) -> str:
    how = "edited by hand" if profile.edited else f"made by {profile.model}"
    documents = plural(len(profile.documents), "document")
    return " · ".join(
        filter(
            None, (line(profile.user), f"version {profile.version}", documents, how, day(profile.created_at))
        )
    )


def _print_history(user: str, versions: Sequence[Profile], json: bool) -> None:
    if json:
        for version in versions:
            say_json(version.model_dump(mode="json"))
        return
    if not versions:
        note(f"{user!r} has no profile yet: `penname profile` makes one")
        return
    head = ("user", "version", "made", "by", "documents", "before", "begins")
    table(
        head,
        [
            (
                user,
                one.version,
                day(one.created_at),
                "hand" if one.edited else one.model,
                len(one.documents),
                day(one.before),
                line(one.text, 50),
            )
            for one in versions
        ],
    )
