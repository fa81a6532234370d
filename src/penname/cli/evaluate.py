"""`penname evaluate` and `penname report`: methods compared on a benchmark, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penname.cli.options import Db, Model, Prompts, open_model
from penname.cli.output import note, plural, progress, say
from penname.cli.preferences import PREFERENCES, check_folder, check_options, order, print_shares
from penname.errors import BadInputError, UnknownBenchmarkError

if TYPE_CHECKING:
    from penname.evaluate.results import Results

MLflow = Annotated[
    str | None,
    typer.Option("--mlflow", metavar="URI", help="Log the summary to MLflow: a tracking URI or folder."),
]
TensorBoard = Annotated[
    Path | None,
    typer.Option("--tensorboard", metavar="DIR", help="Log the summary as TensorBoard events in DIR."),
]
Trackio = Annotated[
    str | None, typer.Option("--trackio", metavar="PROJECT", help="Log the summary to a trackio project.")
]


def evaluate(
    context: typer.Context,
    benchmark: Annotated[
        str,
        typer.Argument(
            metavar="BENCHMARK",
            help="proposals, lamp, longlamp, psw, personamem, sample, store (your own requests), or "
            "preferences: held-out pairs put in order.",
        ),
    ],
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", metavar="TASK", help="A task; again for more. Default: all it has."),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="METHOD",
            help="none, in-context, retrieval[:NAME], step-back, rest-pg[:DIR], p-dpo[:DIR], "
            "p-rm[:DIR], pit[:DIR], or some joined by +; again for more. The first is what the others are "
            "compared with. Default: none, retrieval, step-back, and the last two joined. Of preferences: "
            "none, none:total, "
            "preferences-in-context, p-dpo[:DIR], p-rm[:DIR], one-per-user:DIR.",
        ),
    ] = None,
    users: Annotated[
        list[str] | None,
        typer.Option(
            "--users", metavar="one|all", help="Write for the first author, for all, or (twice) for both."
        ),
    ] = None,
    controls: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            metavar="CONTROL",
            help="swap-user, random-profile, shuffle-authors, history=N or swap-vector; again for more.",
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", help="Only these scores; default: all that a task has."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option("--judge", metavar="MODEL", help="A model that judges drafts, given as for --model."),
    ] = None,
    force_judge: Annotated[
        bool, typer.Option("--force-judge", help="Go on with a judge that gave a reward in training; marked.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="PATH",
            help="The benchmark's files; default: from PENNAME_DATA. Of preferences: FILE or DB.",
        ),
    ] = None,
    history: Annotated[
        str | None,
        typer.Option(
            "--history",
            metavar="FILE|DB",
            help="Of preferences: those that are known before, for preferences-in-context.",
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="Of the benchmark; default: its first.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, metavar="N", help="Examples of each task, drawn by --seed."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where results go; a run that is there goes on.")
    ] = Path("penname-run"),
    k: Annotated[
        int,
        typer.Option("--k", min=1, metavar="N", help="Documents (or preferences) of each author shown."),
    ] = 3,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, metavar="T", help="0: always the likeliest word.")
    ] = 0.7,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, metavar="N", help="Cut drafts there; default: the task's limit."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, metavar="N", help="Of lots, samples and intervals.")
    ] = 0,
    db: Db = None,
    model: Model = None,
    prompts: Prompts = None,
    mlflow: MLflow = None,
    tensorboard: TensorBoard = None,
    trackio: Trackio = None,
) -> None:
    """Compare methods on a benchmark, with controls and intervals.

    Every method writes every example; drafts and scores go to --out as they are made. The same command goes
    on with a run that was stopped, and adding a method runs that method alone.

    Example: penname evaluate proposals --task P-4 --method none --method step-back --control swap-user
    """
    from penname.evaluate.trackers import log

    check_options(context, benchmark)
    if benchmark == PREFERENCES:
        if data is None:
            raise BadInputError("preferences needs the held-out pairs: name their file or store with --data")
        found = order(
            data,
            history,
            tasks or [],
            methods or ["none"],
            controls or [],
            limit,
            out,
            k,
            seed,
            model,
            prompts,
        )
        log(found, mlflow=mlflow, tensorboard=tensorboard, trackio=trackio)
        print_report([found], out)
        print_shares(found)
        return
    from penname.evaluate.arms import plan
    from penname.evaluate.benchmarks import load
    from penname.evaluate.official import write_predictions
    from penname.evaluate.run import Settings
    from penname.evaluate.run import evaluate as run
    from penname.lm import load_embedder, load_model
    from penname.store import Store
    from penname.tasks import PromptTexts

    arms = plan(
        methods or ["none", "retrieval", "step-back", "step-back+retrieval"], users or ["all"], controls or []
    )
    settings = Settings(k, temperature, max_tokens, seed, tuple(metrics or ()))
    texts = PromptTexts.load(prompts)
    if benchmark != "store":
        _folder(out, benchmark)
    # A benchmark's histories stay with its results: one's own store (PENNAME_DB) is not filled with them.
    source = context.get_parameter_source("db")
    own = benchmark == "store" or (source is not None and source.name == "COMMANDLINE")
    place = db if own else str(out / "histories.db")
    with Store(place, create=benchmark != "store") as store:
        with progress("reading the benchmark"):
            loaded = load(
                benchmark,
                store,
                data=Path(data) if data else None,
                split=split,
                tasks=tasks or (),
                limit=limit,
                seed=seed,
                note=note,
            )
        examples = plural(len(loaded.requests), "example")
        note(f"{loaded.data}: {examples}, {plural(len(arms), 'way')} of writing; results in {out}")
        language_model = open_model(model)
        judging = load_model(judge) if judge else None
        remarks = _judge_remark(judging.fingerprint, model, methods or [], force_judge) if judging else ()
        with progress("profiles", total=0, left=True) as shown:
            results = run(
                loaded,
                store,
                language_model,
                arms,
                out,
                settings=settings,
                embedder=load_embedder(),
                judge=judging,
                texts=texts,
                remarks=remarks,
                progress=lambda stage, done, total: shown.update(
                    shown.task_ids[0], description=stage, completed=done, total=total
                ),
                note=note,
            )
    for task in results.tasks:
        for arm in results.arms:
            rows = [row for row in results.rows if row.arm == arm.name and row.task == task]
            # By the ids of the official files; where a metric needs no draft, there may be none.
            answers = {
                row.example.removeprefix(f"{task}/"): row.text if row.answer is None else row.answer
                for row in rows
                if row.finish != "unwritten"
            }
            if answers:
                write_predictions(out / "predictions" / _file_name(arm.name), task, answers)
    log(results, mlflow=mlflow, tensorboard=tensorboard, trackio=trackio)
    print_report([results], out)


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER", help="A folder of `penname evaluate`; more for several.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where it goes; default: the first folder.")
    ] = None,
    mlflow: MLflow = None,
    tensorboard: TensorBoard = None,
    trackio: Trackio = None,
) -> None:
    """Make the report of one run, or of several together.

    It has a page (report.html), tables in Markdown (summary.md) and all numbers (summary.csv).

    Example: penname report penname-run
    """
    from penname.evaluate.folder import load_results
    from penname.evaluate.trackers import log

    runs = [load_results(folder) for folder in folders]
    for results in runs:
        log(results, mlflow=mlflow, tensorboard=tensorboard, trackio=trackio)
    print_report(runs, out or folders[0])


def print_report(runs: list[Results], out: Path, drafts: int = 0) -> None:
    """Print what came of the runs, with up to `drafts` examples of each task; write the report into `out`."""
    from rich.console import Console

    from penname.evaluate.console import print_summary
    from penname.evaluate.report import write_report

    console = Console(markup=False, highlight=False, emoji=False)
    for results in runs:
        print_summary(results, console, drafts)
    say(f"\nThe report: {write_report(runs, out)}")


def _folder(out: Path, benchmark: str) -> None:
    """Make the folder; the histories of another benchmark are not put among those that it holds.

    Raises:
        UnknownBenchmarkError: no such benchmark.
        BadInputError: the folder cannot be made, or is another benchmark's.
    """
    from penname.evaluate.benchmarks import BENCHMARKS

    if benchmark not in BENCHMARKS:
        raise UnknownBenchmarkError(benchmark, [*BENCHMARKS, PREFERENCES])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(f"cannot write results into {out}: {error.strerror}") from error
    check_folder(out, benchmark)


def _judge_remark(judge: str, model: str | None, methods: Sequence[str], force: bool) -> tuple[str, ...]:
    """What must be said of a judge that gave a reward to a model under test; () where it did not.

    The card of a training says which models gave its rewards ("rewards": fingerprints).
    """
    from penname.evaluate.judges import check_independent
    from penname.methods.stages import TRAINED, run_folder, stages
    from penname.train.folder import rewards_behind

    tested = [
        run_folder(stage, name)
        for method in methods
        if method != "in-context"
        for stage, name in stages(method).items()
        if stage in TRAINED
    ]
    named: list[str | Path] = [*([model] if model else []), *tested]
    rewards = {one for path in named for one in rewards_behind(path)}
    remark = check_independent(judge, rewards, force)
    return (remark,) if remark else ()


def _file_name(arm: str) -> str:
    """An arm's name as a folder's: letters, digits and what joins stages."""
    return "".join(c if c.isalnum() or c in "+-_=." else "_" for c in arm.replace(" · ", "."))
