"""`penname demo`: the whole job at once, with a report to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penname.cli.options import Db, Model, Prompts, open_model, open_store
from penname.cli.output import note, plural, progress, say


def demo(
    db: Db = None,
    model: Model = None,
    prompts: Prompts = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where results go; a demo that is there goes on.")
    ] = Path("penname-report"),
    limit: Annotated[
        int, typer.Option("--limit", min=1, metavar="N", help="Users, and groups, written for at most.")
    ] = 12,
    task: Annotated[
        str,
        typer.Option(
            "--task", "-t", metavar="TASK", help="What is written, where no requests were imported."
        ),
    ] = "write",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="The same seed, the same drafts.")] = 0,
) -> None:
    """Show what personalisation changes, on a sample or your own users.

    Profiles users, writes for them, scores the drafts, and reports. Without --db it uses a built-in sample.
    Each held-out request is written without anything of a user, for its first author, for all its authors,
    and with somebody else's history (the control). A demo that was stopped goes on with the same command.

    Example: penname demo
    """
    from penname.cli.evaluate import print_report
    from penname.evaluate.demo import ARMS, DEMO_K, DEMO_TOKENS, load_demo
    from penname.evaluate.run import Settings, evaluate
    from penname.lm import load_embedder
    from penname.tasks import PromptTexts
    from penname.tasks import task as find_task

    find_task(task)
    texts = PromptTexts.load(prompts)
    out.mkdir(parents=True, exist_ok=True)
    sample = db is None
    where = str(out / "demo.db") if db is None else db
    with open_store(where, create=sample) as store:
        loaded = load_demo(store, task, limit, sample=sample)
        held_out = plural(len(loaded.requests), "request")
        note(f"{plural(store.n_users, 'user')} in {store.url}; {held_out} held out")
        language_model = open_model(model)
        with progress("profiles", total=0, left=True) as shown:
            results = evaluate(
                loaded,
                store,
                language_model,
                ARMS,
                out,
                settings=Settings(k=DEMO_K, max_tokens=DEMO_TOKENS, seed=seed),
                embedder=load_embedder(),
                texts=texts,
                progress=lambda stage, done, total: shown.update(
                    shown.task_ids[0], description=stage, completed=done, total=total
                ),
                note=note,
            )
    print_report([results], out, drafts=3)
    if sample:
        say(f"Go on with the same store: penname users --db {where}")
