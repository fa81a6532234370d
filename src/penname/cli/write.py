"""`penname write`: one request, one draft, and on asking the way it came about; and `penname tasks`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penname.cli.improve import explain_rounds
from penname.cli.options import Db, Json, Model, Prompts, open_model, open_store, read_text
from penname.cli.output import clean, day, line, note, progress, say, say_json, table
from penname.errors import BadInputError

if TYPE_CHECKING:
    from penname.records import Draft, Prompt, Request
    from penname.store import Store
    from penname.writer import Writer

_NOTHING = "the model wrote nothing: try another --seed, or say more in the request"


def write(
    text: Annotated[
        str, typer.Argument(metavar="REQUEST", help="What to write about; - reads it from stdin.")
    ],
    users: Annotated[
        list[str],
        typer.Option(
            "--user", "-u", metavar="USER", help="Whom to write as; once for each author, in their order."
        ),
    ],
    task: Annotated[
        str,
        typer.Option("--task", "-t", metavar="TASK", help="The kind of text: see `penname tasks`."),
    ] = "write",
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="METHOD",
            help="none, retrieval[:NAME], step-back, rest-pg[:DIR], p-dpo[:DIR], p-rm[:DIR], pit[:DIR], or "
            "some joined by +.",
        ),
    ] = "step-back+retrieval",
    k: Annotated[
        int | None,
        typer.Option("--k", min=1, metavar="N", help="Documents retrieved per author; default: 5."),
    ] = None,
    retriever: Annotated[
        str | None,
        typer.Option(
            "--retriever", metavar="NAME", help="lexical (the default), dense, fusion, recency or random."
        ),
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option("--candidates", min=1, metavar="N", help="Drafts that p-rm chooses from; default: 4."),
    ] = None,
    before: Annotated[
        str | None,
        typer.Option("--before", metavar="DATE", help="Use only what was written before this ISO date."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, metavar="N", help="The same seed, the same draft.")
    ] = 0,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, metavar="T", help="0: always the likeliest word.")
    ] = 0.7,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, metavar="N", help="Cut the draft there; default: the task's."),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Show, on stderr, profiles, documents, the prompt, tokens, times."),
    ] = False,
    db: Db = None,
    model: Model = None,
    prompts: Prompts = None,
    json: Json = False,
) -> None:
    """Write a text as a user would, or as several users together.

    The draft, and nothing else, goes to stdout. With --json it is the draft with all that went into it.

    Example: penname write --user alice --task email "Moving Thursday's meeting"
    """
    from penname.retrieve import retriever as find_retriever
    from penname.tasks import PromptTexts
    from penname.writer import DEFAULT_CANDIDATES, Writer

    _check_options(method, k, retriever, candidates)
    if not math.isfinite(temperature):
        raise typer.BadParameter("it must be a finite number", param_hint="--temperature")
    request = _request(text, users, task, before)
    texts = PromptTexts.load(prompts)
    with open_store(db) as store:
        _check_known(store, request)
        search = find_retriever(retriever, seed) if retriever else None  # else the one the method names
        writer = Writer(
            store,
            open_model(model),
            method,
            search=search,
            k=k,
            texts=texts,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            candidates=candidates or DEFAULT_CANDIDATES,
            note=note,
        )
        if sys.stdout.isatty() and not (explain or json):
            _stream(writer, request)
            return
        with progress("writing"):
            draft = writer.write(request)
    if explain:
        _explain(draft)
    if json:
        say_json(draft.model_dump(mode="json"))
        return
    _remarks(draft, all_told=explain)
    say(draft.text)


def tasks(json: Json = False) -> None:
    """List the kinds of text that `penname write --task` knows.

    Example: penname tasks
    """
    from penname.tasks import TASKS

    if json:
        for task in TASKS.values():
            metrics = list(task.metrics)
            say_json(
                {"name": task.name, "help": task.help, "max_tokens": task.max_tokens, "metrics": metrics}
            )
        return
    table(("task", "writes", "tokens"), [(task.name, task.help, task.max_tokens) for task in TASKS.values()])


def _check_options(method: str, k: int | None, retriever: str | None, candidates: int | None) -> None:
    """Refuse options that the method has no use for."""
    from penname.methods.stages import stages

    found = stages(method)
    if (k or retriever) and "retrieval" not in found:
        raise typer.BadParameter(f"method {method!r} retrieves nothing", param_hint="--k, --retriever")
    if candidates and "p-rm" not in found:
        raise typer.BadParameter(f"method {method!r} has no p-rm", param_hint="--candidates")


def _remarks(draft: Draft, *, all_told: bool) -> None:
    """What must be said beside the text; where `--explain` has told all, only what it does not tell."""
    if not all_told:
        for said in (*draft.notes, *(f"left out: {left_out}" for left_out in draft.dropped)):
            note(said)
    if draft.finish == "length":
        note(f"the draft was cut at its limit, {draft.completion_tokens} tokens (--max-tokens)")
    if not draft.text:
        note(_NOTHING)


def _request(text: str, users: Sequence[str], task: str, before: str | None) -> Request:
    """The request that the arguments stand for.

    Raises:
        BadInputError: no text, or binary, a user named twice, or a date that is none.
    """
    from penname.records import Request, check_text

    written = check_text(read_text("-") if text == "-" else text)
    if not written.strip():
        raise BadInputError("the request is empty: say what to write")
    named: dict[str, Any] = {} if before is None else {"before": before}
    return Request(task=task, input=written, users=tuple(users), **named)


def _check_known(store: Store, request: Request) -> None:
    """Raise for a user or task that is not there, before the seconds that loading a model takes."""
    from penname.tasks import task

    task(request.task)
    for user in request.users:
        store.user(user)


def _stream(writer: Writer, request: Request) -> None:
    """The draft, piece by piece, as the model writes it."""
    written = ""
    try:
        for piece in writer.stream(request):
            written = piece or written
            print(clean(piece), end="", flush=True)
    finally:
        if written:  # an error's message begins on a line of its own
            print(flush=True)
    if not written:
        note(_NOTHING)


def _explain(draft: Draft) -> None:
    """How the draft came about, on stderr."""
    note(f"method {draft.method}, model {draft.model}, seed {draft.seed}")
    for profile in draft.profiles:
        _section(f"profile of {profile.user}, version {profile.version}", profile.text)
    if draft.documents:
        _section("documents retrieved")
        rows = [
            (
                f"{hit.score:.3f}",
                hit.user,
                day(hit.document.written_at),
                hit.document.id,
                hit.document.title or line(hit.document.text, 60),
            )
            for hit in draft.documents
        ]
        table(("score", "user", "date", "id", "document"), rows, stderr=True)
    if draft.notes:
        _section("notes", "\n".join(draft.notes))
    if draft.dropped:
        _section("left out", "\n".join(draft.dropped))
    _section("prompt, as sent", _prompt(draft.prompt))
    if draft.reasoning:
        _section("what the model reasoned first", draft.reasoning)
    times = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in draft.seconds.items())
    if draft.rounds:
        _section("draft, before it was improved", draft.first)
        explain_rounds(draft.first, draft.rounds)
    _section(
        "tokens and times",
        f"{draft.prompt_tokens:,} of the prompt, {draft.completion_tokens:,} written; {times}",
    )
    _section("draft")


def _section(title: str, text: str = "") -> None:
    note(f"\n── {title} ──")
    if text:
        note(text)


def _prompt(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"[{message.role}]\n{message.content}" for message in prompt)
