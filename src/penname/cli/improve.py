"""`penname improve`: a text in, a better one out, and on asking every round between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penname.cli.options import Db, Json, open_store, read_text
from penname.cli.output import note, progress, say, say_json
from penname.errors import BadInputError

if TYPE_CHECKING:
    from penname.records import Round


def improve(
    user: Annotated[
        str, typer.Option("--user", "-u", metavar="USER", help="Whom the text is to suit: by the profile.")
    ],
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="The text to improve; -, or none, reads it from stdin.")
    ] = "-",
    request: Annotated[
        str, typer.Option("--request", metavar="TEXT", help="What the text was written for.")
    ] = "",
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", metavar="DIR", help="A result of `penname train pit`. Default: pit's own place."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, metavar="N", help="Rounds at most.")] = 3,
    threshold: Annotated[
        float,
        typer.Option(
            "--threshold", metavar="G", help="A round counts if its gain is above G; -inf: all rounds do."
        ),
    ] = 0.0,
    candidates: Annotated[
        int | None,
        typer.Option(
            "--candidates", min=1, metavar="N", help="New texts of each round to choose from; default: 4."
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, metavar="T", help="0: always the likeliest word.")
    ] = 0.5,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", min=1, metavar="N", help="Of a new text; default: twice the current one's."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, metavar="N", help="The same seed, the same text.")
    ] = 0,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show, on stderr, each round's gain and what it changed.")
    ] = False,
    db: Db = None,
    json: Json = False,
) -> None:
    """Improve a text for a user, in rounds, while a reward agrees.

    The improved text, and nothing else, goes to stdout; where no round was better, the text as it was.

    Example: penname improve --user alice --request "Thank the team" --explain "Thanks all for everything."
    """
    from penname.methods.pit.about import joined, newest_profiles
    from penname.methods.pit.form import Case
    from penname.methods.pit.improve import ImproveConfig, open_improver
    from penname.paths import trained_dir

    if not math.isfinite(temperature):
        raise typer.BadParameter("it must be a finite number", param_hint="--temperature")
    config = ImproveConfig(rounds, threshold, candidates, temperature, max_tokens=max_tokens)
    with open_store(db) as store:
        profiles = newest_profiles(store, [user])
    draft = _draft(text)
    case = Case(_checked(request), draft, joined(profiles))
    improver = open_improver(run or trained_dir("pit"))
    with progress("improving"):
        [improved] = improver.improve([case], config, seed)
    if not profiles:
        note(f"there is no profile of {user!r} to go by: `penname profile {user}` makes one")
    if explain:
        explain_rounds(draft, improved.rounds)
    if json:
        made = [one.model_dump(mode="json") for one in improved.rounds]
        shown = {"user": user, "request": request, "first": draft, "text": improved.text, "rounds": made}
        say_json({**shown, "stopped": improved.stopped, "run": str(improver.path), "seed": seed})
        return
    note(f"stopped: {improved.stopped}")
    say(improved.text)


def explain_rounds(first: str, rounds: Sequence[Round]) -> None:
    """Each round on stderr: what it gained, and what it changed of the text before it."""
    from penname.methods.pit.words import difference, marked

    text = first
    for number, made in enumerate(rounds, 1):
        note(f"\n── round {number}: {'taken' if made.taken else 'left out'}{_gained(made)} ──")
        note(marked(difference(text, made.text)))
        text = made.text if made.taken else text


def _gained(made: Round) -> str:
    if made.gain is None or made.probability is None:
        return ""
    return f", gain {made.gain:+.3f}, better with a probability of {made.probability:.0%}"


def _draft(text: str) -> str:
    """The text to improve.

    Raises:
        BadInputError: it is blank, or binary.
    """
    draft = _checked(read_text("-") if text == "-" else text)
    if not draft.strip():
        raise BadInputError("the text is empty: give one to improve")
    return draft.strip("\r\n")


def _checked(text: str) -> str:
    from penname.records import check_text

    return check_text(text)
