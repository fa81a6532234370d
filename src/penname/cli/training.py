"""What the commands of `penname train` share: their options, and what is done before and after."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from penname.cli.output import clean, note, plural, progress, say, say_json

if TYPE_CHECKING:
    from penname.records import BadRow
    from penname.store import Store
    from penname.train.folder import Trained
    from penname.train.preferences.data import Prepared

RAW = "raw"  # the prompt's form: as it stands

Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="The result's folder. Without it: the method's own place."),
]
Weights = Annotated[Literal["lora", "full"], typer.Option("--weights", help="What of the model is trained.")]
Rank = Annotated[int, typer.Option("--rank", metavar="R", help="Of the LoRA.")]
DType = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option("--dtype", help="Type computed with. Default: bfloat16 where the processor is fast at it."),
]
Portion = Annotated[int, typer.Option("--portion", metavar="N", help="Tokens read at once: bounds memory.")]
Rate = Annotated[float, typer.Option("--lr", metavar="RATE", help="Of the model's weights.")]
Warmup = Annotated[
    int, typer.Option("--warmup", metavar="N", help="Steps of rising rate, a tenth of all at most.")
]
Every = Annotated[
    int, typer.Option("--every", metavar="N", help="Steps between evaluations, and between checkpoints.")
]
Patience = Annotated[
    int,
    typer.Option("--patience", metavar="N", help="Evaluations without a lower loss that end it; 0: none."),
]
MaxTokens = Annotated[
    int, typer.Option("--max-tokens", metavar="N", help="Longer preferences are left out, and counted.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Of order, adapters and soft prompts.")]


Preferences = Annotated[
    str,
    typer.Option(
        "--preferences",
        metavar="FILE|DB",
        help="Rows in TRL's form with user_id (JSON or JSON Lines), or a store: its choices, ratings, edits.",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        "-t",
        metavar="TASK",
        help="How prompts are put to the model, as `penname write --task` does; `raw`: as they stand. "
        "Default: write for a store, raw for a file.",
    ),
]
Only = Annotated[
    str | None,
    typer.Option("--only", metavar="USER", help="This user's preferences alone: one model per user."),
]
About = Annotated[
    bool, typer.Option("--about", help="Of a store: the user's profile stands in the prompt as well.")
]


def with_options(
    run: Callable[..., None],
    options: Callable[..., dict[str, Any]],
    unused: Collection[str],
    about: str,
    needed: Collection[str] = (),
) -> Callable[..., None]:
    """`run` as a command: with those of the keyword options that mean something for it.

    Args:
        options: takes the options of several commands; its signature says what each is.
        unused: those that this command does not have.
        about: the command's help.
        needed: those that this command must be given.
    """
    signature = inspect.signature(options, eval_str=True)
    used = [
        one.replace(default=inspect.Parameter.empty) if name in needed else one
        for name, one in signature.parameters.items()
        if name not in unused
    ]
    vars(run)["__signature__"] = signature.replace(parameters=used, return_annotation=None)
    run.__annotations__ = {one.name: one.annotation for one in used}
    run.__doc__ = about
    return run


def lora_and_loop(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings `lora` and `loop` that a command's options ask for."""
    from penname.train.loop import LoopSettings
    from penname.train.model import LoraSettings

    rank, every = asked["rank"], asked["every"]
    return {
        "lora": LoraSettings(rank, 2 * rank),
        "loop": LoopSettings(asked["epochs"], asked["batch"], every, every, asked["patience"], asked["seed"]),
    }


def read_prepared(
    source: str, *, ratings: bool = False, users: bool = True, about: bool, only: str | None
) -> Prepared:
    """The preferences, with what was left out told on stderr.

    Raises as `penname.train.preferences.data.prepare`.
    """
    from penname.train.preferences.data import prepare, read_preferences

    def bad(row: BadRow) -> None:
        note(f"left out: {row}")

    found = read_preferences(source, about=about)
    prepared = prepare(found, wanted="ratings" if ratings else "pairs", users=users, only=only, bad=bad)
    remarks = prepared.remarks if users else {}  # they are of what users' own parameters learn from
    for what, number in (*prepared.left_out.items(), *remarks.items()):
        note(f"{number:,} {what}")
    note(f"{plural(len(prepared), 'preference')} of {plural(len(prepared.users), 'user')}")
    return prepared


def task_of(task: str | None, source: str) -> str | None:
    """The task whose form prompts are put in; None: as they stand."""
    from penname.tasks import task as find_task
    from penname.train.preferences.read import is_store

    if task is None:
        return "write" if is_store(source) else None
    return None if task == RAW else find_task(task).name


def place(method: str, out: Path | None) -> Path:
    """Where the result goes."""
    from penname.paths import trained_dir

    return (out or trained_dir(method)).expanduser()


@contextmanager
def bar(
    method: str, folder: Path, figures: Collection[str] = ("loss", "reward")
) -> Iterator[Callable[[str, int, int, Mapping[str, float]], None]]:
    """Shows how far a training is; where it is stopped, says what is kept.

    Yields what is called with the stage, its steps done and to do, and its figures.

    Args:
        figures: those that are shown, where there are any.
    """
    with progress(f"training {method}", total=1, left=True) as shown:

        def tell(stage: str, done: int, total: int, found: Mapping[str, float]) -> None:
            text = " ".join(f"{name} {found[name]:.3f}" for name in figures if name in found)
            shown.update(shown.task_ids[0], completed=done, total=total, description=clean(f"{stage} {text}"))

        try:
            yield tell
        except KeyboardInterrupt:
            note(f"stopped: what is done is kept beside {folder}; the same command goes on with it")
            raise


def register(source: str, folder: Path, method: str) -> None:
    """Note the result in the store whose users it learns from, so that erasing a user finds it."""
    from penname.store import Store
    from penname.train.preferences.read import is_store

    if is_store(source):
        with Store(source, create=False) as store:
            store.add_trained(folder, method)


def without_erased(store: Store, users: Iterable[str]) -> None:
    """Take out of the results who was erased from the store while one was made."""
    from penname.methods.erase import forget

    there = {user.id for user in store.users()}
    for user in users:
        if user not in there:
            forget(store, user)
            note(f"{user!r} was erased meanwhile: the user's part is erased here too")


def without_erased_of(source: str, prepared: Prepared) -> None:
    """`without_erased` where the preferences came from a store."""
    from penname.store import Store
    from penname.train.preferences.read import is_store

    if is_store(source):
        with Store(source, create=False) as store:
            without_erased(store, prepared.users)


def done(trained: Trained, *, json: bool) -> None:
    """Tell what came of a training."""
    import json as json_lib

    from penname.train.folder import CARD

    card = json_lib.loads((trained.path / CARD).read_text(encoding="utf-8"))
    if json:
        say_json({"out": str(trained.path), **card})
        return
    found = ", ".join(f"{name} {value:.4g}" for name, value in card["held_out"].items())
    say(f"{trained.method} over {trained.model}: {trained.path}")
    if found:
        say(f"kept: {found}")
