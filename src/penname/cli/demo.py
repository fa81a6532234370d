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
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the report is written.")] = Path(
        "penname-report"
    ),
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
    Each held-out request is written without a profile, with another user's (the control), with its author's
    and, where several wrote, with all authors'.

    Example: penname demo
    """
    from penname.evaluate import print_summary, write_html
    from penname.evaluate.demo import compare, held_out, load_sample
    from penname.lm import load_embedder
    from penname.tasks import PromptTexts
    from penname.tasks import task as find_task

    find_task(task)
    texts = PromptTexts.load(prompts)
    out.mkdir(parents=True, exist_ok=True)
    sample = db is None
    where = str(out / "demo.db") if db is None else db
    with open_store(where, create=sample) as store:
        if sample:
            load_sample(store)
        requests = held_out(store, task, limit)
        note(f"{plural(store.n_users, 'user')} in {store.url}; {plural(len(requests), 'request')} held out")
        language_model = open_model(model)
        embedder = load_embedder()
        with progress("profiles", total=len(requests)) as shown:
            results = compare(
                store,
                language_model,
                embedder,
                requests,
                texts=texts,
                seed=seed,
                title="penname demo" if sample else f"penname on {where}",
                progress=lambda stage, done, total: shown.update(
                    shown.task_ids[0], description=stage, completed=done, total=total
                ),
            )
    from rich.console import Console

    print_summary(results, Console(markup=False, highlight=False, emoji=False))
    say(f"\nThe report: {write_html(results, out)}")
    if sample:
        say(f"Go on with the same store: penname users --db {where}")
