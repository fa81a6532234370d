"""`penname train sft`, `sft-reasoning`, `rest-em` and `rest-pg`: to write as the users of a store wrote."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from penname.cli.options import Db, Json, Model, Prompts, open_store
from penname.cli.output import note, plural, progress
from penname.cli.training import (
    DType,
    Every,
    MaxTokens,
    Out,
    Patience,
    Portion,
    Rank,
    Rate,
    Seed,
    Warmup,
    Weights,
    bar,
    done,
    lora_and_loop,
    place,
    with_options,
    without_erased,
)
from penname.errors import BadInputError
from penname.methods.restpg import Method

if TYPE_CHECKING:
    from datetime import datetime

    from penname.evaluate.rewards import SumReward
    from penname.lm import LanguageModel
    from penname.methods.restpg.config import RestPGConfig
    from penname.methods.restpg.reasoning import Reasoner
    from penname.records import Request
    from penname.store import Store
    from penname.tasks import PromptTexts, Task

_ABOUT = {
    "sft": "Fine-tune a model on what its users wrote.",
    "sft-reasoning": "Fine-tune a model to reason about the writer, and then write.",
    "rest-em": "Train a model on texts, then on its own best outputs.\n\n    ReST-EM (arXiv 2312.06585).",
    "rest-pg": "Train a model to reason and write, then on its best outputs.\n\n    "
    "REST-PG (arXiv 2501.04167).",
}
_EXAMPLE = "penname train {} --db mine.db --task email --out runs/mine"

TaskName = Annotated[
    str, typer.Option("--task", "-t", metavar="TASK", help="What is to be written: see `penname tasks`.")
]
Context = Annotated[
    str,
    typer.Option(
        "--context",
        metavar="STAGES",
        help="What prompts show of a user: none, retrieval[:NAME], step-back, or two joined by +.",
    ),
]
K = Annotated[int, typer.Option("--k", min=1, metavar="N", help="Documents of each author in a prompt.")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="Texts to learn from, drawn by --seed.")
]
Before = Annotated[
    str | None, typer.Option("--before", metavar="DATE", help="Learn only from what was written before.")
]
ReasonerModel = Annotated[
    str | None,
    typer.Option(
        "--reasoner", metavar="MODEL", help="Makes the reasoning to begin with. Default: the base itself."
    ),
]
Budget = Annotated[
    int, typer.Option("--budget", metavar="N", help="Tokens of reasoning, then the text is begun.")
]
Iterations = Annotated[int, typer.Option("--iterations", min=1, metavar="T", help="E and M steps.")]
Samples = Annotated[int, typer.Option("--samples", min=2, metavar="M", help="Outputs of each input.")]
Temperature = Annotated[float, typer.Option("--temperature", metavar="T", help="Of these outputs.")]
Threshold = Annotated[
    float | None,
    typer.Option("--threshold", metavar="R", help="Least reward that is learnt from, from 0 to 1."),
]
Quantile = Annotated[
    float | None,
    typer.Option(
        "--quantile",
        metavar="Q",
        help="Instead: least that is learnt from, of an input's own. Default: 0.75.",
    ),
]
RewardSpec = Annotated[
    str,
    typer.Option(
        "--reward",
        metavar="REWARD",
        help="rouge1, rougeL, chrf, similarity, pmi, style, authorship, judge, p-rm:DIR, or a weighted sum, "
        "such as similarity+0.5*chrf.",
    ),
]
JudgeModel = Annotated[
    str | None, typer.Option("--judge", metavar="MODEL", help="Of the reward `judge`: a capable model.")
]
Start = Annotated[
    Literal["base", "previous"],
    typer.Option("--start", help="What each M step starts from; previous: only to compare."),
]
AnswerTokens = Annotated[
    int | None,
    typer.Option("--answer-tokens", metavar="N", help="Of an output's text. Default: the task's limit."),
]
Epochs = Annotated[float, typer.Option("--epochs", metavar="N", help="Times that each text is seen.")]
Batch = Annotated[int, typer.Option("--batch", metavar="N", help="Texts of a step.")]
HeldOut = Annotated[
    float, typer.Option("--held-out", metavar="SHARE", help="Of the inputs, to evaluate on while training.")
]

_REASONED = ("reasoner", "budget")  # options of what reasons
_ITERATED = ("iterations", "samples", "temperature", "threshold", "quantile", "reward", "judge", "start")


def _options(
    *,
    task: TaskName,
    db: Db = None,
    model: Model = None,
    out: Out = None,
    shown: Context = "retrieval",
    k: K = 3,
    before: Before = None,
    limit: Limit = None,
    reasoner: ReasonerModel = None,
    budget: Budget = 128,
    iterations: Iterations = 3,
    samples: Samples = 32,
    temperature: Temperature = 0.7,
    threshold: Threshold = None,
    quantile: Quantile = None,
    reward: RewardSpec = "similarity",
    judge: JudgeModel = None,
    start: Start = "base",
    answer_tokens: AnswerTokens = None,
    weights: Weights = "lora",
    rank: Rank = 8,
    dtype: DType = None,
    epochs: Epochs = 2.0,
    batch: Batch = 4,
    portion: Portion = 4096,
    lr: Rate = 1e-3,
    warmup: Warmup = 150,
    held_out: HeldOut = 0.1,
    every: Every = 25,
    patience: Patience = 0,
    max_tokens: MaxTokens = 2048,
    seed: Seed = 0,
    prompts: Prompts = None,
    json: Json = False,
) -> dict[str, Any]:
    """The options of all four commands, and what holds where a command does not have one."""
    return locals()


def command(method: Method) -> Callable[..., None]:
    """The command that trains by one method, with the options that mean something for it."""

    def run(**given: Any) -> None:
        asked = _options(**given)
        if asked["threshold"] is not None and asked["quantile"] is not None:
            raise BadInputError("give --threshold or --quantile, not both: each says what is learnt from")
        if asked["judge"] and "judge" not in asked["reward"]:
            raise BadInputError("--judge without the reward `judge`: name it in --reward, or leave it out")
        _reads(asked["shown"])
        _train(method, asked)

    unused = {
        *(() if method in ("sft-reasoning", "rest-pg") else _REASONED),
        *(() if method in ("rest-em", "rest-pg") else _ITERATED),
    }
    about = f"""{_ABOUT[method]}

    Texts are those of the store: imported requests of the task with their real texts, else every document
    that shows the task done, to be written from what its authors wrote before it. The same command again goes
    on where it was stopped.

    Example: {_EXAMPLE.format(method)}
    """
    return with_options(run, _options, unused, about)


def _config(method: Method, task: Task, asked: Mapping[str, Any]) -> RestPGConfig:
    """The settings that a command's options ask for."""
    from penname.methods.restpg.config import RestPGConfig
    from penname.methods.restpg.format import Format
    from penname.train.optimizer import OptimizerSettings
    from penname.train.sft import SFTConfig

    sft = SFTConfig(
        **{name: asked[name] for name in ("weights", "dtype", "max_tokens", "portion", "held_out")},
        **lora_and_loop(asked),
        optimizer=OptimizerSettings(lr=asked["lr"], warmup=asked["warmup"]),
    )
    return RestPGConfig(
        reasoning=Format(budget=asked["budget"]) if method in ("sft-reasoning", "rest-pg") else None,
        iterations=asked["iterations"] if method in ("rest-em", "rest-pg") else 0,
        **{name: asked[name] for name in ("samples", "temperature", "threshold", "start", "seed")},
        quantile=0.75 if asked["quantile"] is None else asked["quantile"],
        answer_tokens=asked["answer_tokens"] or task.max_tokens,
        sft=sft,
    )


def _train(method: Method, asked: Mapping[str, Any]) -> None:
    from penname.lm import load_model
    from penname.methods.restpg.examples import Material
    from penname.methods.restpg.train import train_rest_pg
    from penname.tasks import PromptTexts
    from penname.tasks import task as find_task
    from penname.train.folder import check_free
    from penname.train.model import trainable_config
    from penname.writer import Writer

    task = find_task(asked["task"])
    trainable_config(asked["model"])
    folder = place(method, asked["out"])
    check_free(folder)
    config = _config(method, task, asked)
    texts = PromptTexts.load(asked["prompts"])
    with open_store(asked["db"]) as store:
        base = load_model(asked["model"])
        room = config.answer_tokens + (config.reasoning.budget if config.reasoning else 0)
        writer = Writer(store, base, asked["shown"], k=asked["k"], texts=texts, max_tokens=room, note=note)
        requests, left_out = _requests(store, task, asked)
        users = dict.fromkeys(user for one in requests for user in one.users)
        note(f"{plural(len(requests), 'text')} of {plural(len(users), 'user')}")
        reward = _reward(store, requests, base, texts, folder, asked) if config.iterations else None
        reasoner = _reasoner(base, texts, asked, config.reasoning.room) if config.reasoning else None
        store.add_trained(folder, method)
        with progress("reading the histories"):
            materials = [Material.of(draft) for draft in writer.prompts(requests)]
        with bar(method, folder, ("loss",)) as tell:
            trained = train_rest_pg(
                materials,
                folder,
                task=task,
                config=config,
                model=asked["model"],
                reasoner=reasoner,
                reward=reward,
                context={"stages": asked["shown"], "k": asked["k"]},
                left_out=left_out,
                progress=tell,
                note=note,
            )
        without_erased(store, users)
    done(trained, json=asked["json"])


def _requests(store: Store, task: Task, asked: Mapping[str, Any]) -> tuple[list[Request], dict[str, int]]:
    """What is learnt from, and what was left out, by reason: that is told on stderr too.

    Raises:
        BadInputError: there is nothing.
    """
    from penname.methods.restpg.requests import requests_to_learn

    found, left_out = requests_to_learn(
        store, task, least=1 if _reads(asked["shown"]) else 0, before=_moment(asked["before"])
    )
    for why, number in left_out.items():
        note(f"{number:,} {why}")
    if asked["limit"] and asked["limit"] < len(found):
        drawn = set(random.Random(asked["seed"]).sample(range(len(found)), asked["limit"]))  # noqa: S311
        found = [one for place, one in enumerate(found) if place in drawn]
    if not found:
        raise BadInputError(
            f"the store holds no text to learn the task {task.name!r} from: import documents, or requests "
            "with their real texts, or choose another --task"
        )
    return found, left_out


def _reads(shown: str) -> bool:
    """Whether prompts show anything of a history.

    Raises:
        BadInputError: `shown` names a stage that is trained itself.
    """
    from penname.methods.stages import TRAINED, reads_history, stages

    if trained := stages(shown).keys() & set(TRAINED):
        raise BadInputError(
            f"--context {shown}: {sorted(trained)[0]} is trained itself; name what prompts show"
        )
    return reads_history(shown)


def _moment(before: str | None) -> datetime | None:
    """The date as a request's is read. Raises BadInputError where it is none."""
    from pydantic import TypeAdapter

    from penname.records import Moment

    return None if before is None else TypeAdapter(Moment).validate_python(before)


def _reasoner(base: LanguageModel, texts: PromptTexts, asked: Mapping[str, Any], room: int) -> Reasoner:
    from penname.lm import load_model
    from penname.methods.restpg.reasoning import Reasoner, ReasoningConfig

    model = load_model(asked["reasoner"]) if asked["reasoner"] else base
    return Reasoner(model, texts, ReasoningConfig(max_tokens=room), asked["seed"])


def _reward(
    store: Store,
    requests: list[Request],
    base: LanguageModel,
    texts: PromptTexts,
    folder: Path,
    asked: Mapping[str, Any],
) -> SumReward:
    from penname.evaluate.rewards import parse_reward, reward_of
    from penname.lm import load_embedder, load_model
    from penname.train.folder import workshop_of

    parts = {term.part for term in parse_reward(asked["reward"])}
    workshop = workshop_of(folder)
    workshop.mkdir(parents=True, exist_ok=True)
    return reward_of(
        asked["reward"],
        store=store,
        requests=requests,
        model=base if "pmi" in parts else None,
        embedder=load_embedder() if "similarity" in parts else None,
        judge=load_model(asked["judge"]) if asked["judge"] else None,
        texts=texts,
        kept=workshop / "rewards.sqlite",
        note=note,
    )
