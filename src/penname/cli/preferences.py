"""`penname evaluate preferences`: held-out pairs put in order, and how many each way puts right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from penname.cli.output import clean, note, plural, progress, say, table
from penname.errors import BadInputError

if TYPE_CHECKING:
    from penname.evaluate.results import Results

PREFERENCES = "preferences"
_OF_WRITING = {
    "users": "--users",
    "metrics": "--metric",
    "judge": "--judge",
    "force_judge": "--force-judge",
    "split": "--split",
    "temperature": "--temperature",
    "max_tokens": "--max-tokens",
    "db": "--db",
}
"""The options, by parameter, that mean something only where texts are written."""


def check_options(context: typer.Context, benchmark: str) -> None:
    """Refuse options of the command line that mean nothing for the benchmark.

    Raises:
        BadInputError: it names them.
    """
    others = _OF_WRITING if benchmark == PREFERENCES else {"history": "--history"}
    sources = {option: context.get_parameter_source(name) for name, option in others.items()}
    given = [option for option, source in sources.items() if source and source.name == "COMMANDLINE"]
    if given:
        what = "orders pairs and writes nothing" if benchmark == PREFERENCES else "has no known preferences"
        named = ", ".join(given)
        raise BadInputError(f"{benchmark} {what}: leave {named} out")


def check_folder(out: Path, benchmark: str) -> None:
    """Refuse a folder that holds results of another benchmark."""
    from penname.evaluate.folder import read_run

    if (out / "run.json").exists():
        held = read_run(out)["settings"]["data"]
        if held.split()[0] != benchmark:
            raise BadInputError(f"{out} holds results of {held}: name another --out")


def order(
    data: str,
    history: str | None,
    tasks: list[str],
    methods: list[str],
    controls: list[str],
    limit: int | None,
    out: Path,
    k: int,
    seed: int,
    model: str | None,
    prompts: str | None,
) -> Results:
    """Put held-out pairs in order in every way."""
    from penname.evaluate.held import read
    from penname.evaluate.preferences import Settings, evaluate, plan
    from penname.lm import EMBEDDED, parse
    from penname.tasks import PromptTexts

    if len(tasks) > 1:
        raise BadInputError("preferences takes one --task, whose form all prompts have")
    check_folder(out, PREFERENCES)
    arms = plan(methods, controls)
    with progress("reading the preferences"):
        held = read(data, history=history, task=tasks[0] if tasks else "", limit=limit, seed=seed, note=note)
    pairs, users = plural(len(held.pairs), "pair"), plural(len(held.users), "user")
    note(
        f"{PREFERENCES} {held.version}: {pairs} of {users}, {plural(len(arms), 'way')} of ordering; "
        f"results in {out}"
    )
    with progress("pairs", total=len(held.pairs), left=True) as shown:
        return evaluate(
            held,
            parse(model or EMBEDDED),
            arms,
            out,
            settings=Settings(k, seed),
            texts=PromptTexts.load(prompts),
            progress=lambda arm, done, total: shown.update(
                shown.task_ids[0], description=clean(arm), completed=done, total=total
            ),
            note=note,
        )


def print_shares(results: Results) -> None:
    """Print how many pairs each arm puts right: of all users, of the worst tenth, of each group."""
    from penname.evaluate.preferences import shares

    say("\nPairs put right, in per cent (95 % interval: bootstrap over users)")
    table(
        ["users", "arm", "right", "95 % interval", "mean of users", "worst tenth", "pairs", "n users"],
        (
            [
                one.part or "all",
                one.arm,
                f"{100 * one.right:.1f}",
                f"{100 * one.low:.1f} to {100 * one.high:.1f}" if one.users > 1 else "one user",
                f"{100 * one.by_user:.1f}",
                f"{100 * one.worst:.1f}",
                one.pairs,
                one.users,
            ]
            for one in shares(results)
        ),
    )
