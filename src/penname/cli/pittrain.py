"""`penname train pit`, `pit-sft`, `pit-gap` and `pit-rl`: to improve texts, as is preferred."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from penname.cli.options import Json, Model
from penname.cli.output import note, plural
from penname.cli.training import (
    About,
    DType,
    Every,
    MaxTokens,
    Only,
    Out,
    Patience,
    Portion,
    Preferences,
    Rank,
    Rate,
    Task,
    Warmup,
    Weights,
    bar,
    done,
    lora_and_loop,
    place,
    read_prepared,
    register,
    task_of,
    with_options,
    without_erased_of,
)
from penname.errors import BadInputError
from penname.methods.pit import Method

if TYPE_CHECKING:
    from penname.methods.pit.train import PITConfig, Progress
    from penname.train.folder import Trained
    from penname.train.preferences.data import Prepared

_ABOUT = {
    "pit": "Train a model to improve texts, with the goal learnt.\n\n    PIT (arXiv 2310.00898): its three "
    "stages, each on a third of the preferences.",
    "pit-sft": "Train PIT's first stage: to write what was preferred.\n\n    Fine-tuned on the chosen text, "
    "with the rejected one as its draft (PIT, arXiv 2310.00898).",
    "pit-gap": "Train PIT's second stage: how much better a text is.\n\n    The gap reward over a draft "
    "(PIT, arXiv 2310.00898).",
    "pit-rl": "Train PIT's third stage: to improve by the gap reward.\n\n    RLOO, first from the "
    "preferences' texts and then from sampled drafts (PIT, arXiv 2310.00898).",
}
_MORE = {"pit-rl": " --sft runs/sft --gap runs/gap"}

All = Annotated[
    bool,
    typer.Option("--all", help="Learn from all the preferences, not from this stage's third of them."),
]
Sft = Annotated[Path | None, typer.Option("--sft", metavar="DIR", help="The result of `train pit-sft`.")]
Gap = Annotated[Path | None, typer.Option("--gap", metavar="DIR", help="The result of `train pit-gap`.")]
Stages = Annotated[
    Literal["both", "data", "policy"],
    typer.Option(
        "--curriculum",
        help="What RL learns to improve: the preferences' texts (data), then drafts of the drafter (policy).",
    ),
]
Drafter = Annotated[
    str | None,
    typer.Option(
        "--drafter", metavar="MODEL", help="Whose drafts are to be improved. Default: the base model."
    ),
]
DraftTemperature = Annotated[
    float, typer.Option("--draft-temperature", metavar="T", help="Of the drafter's drafts.")
]
DraftTokens = Annotated[
    int | None,
    typer.Option("--draft-tokens", metavar="N", help="Of a draft. Default: the task's limit, or 256."),
]
Samples = Annotated[int, typer.Option("--samples", min=2, metavar="K", help="Texts of each case in RL.")]
Temperature = Annotated[float, typer.Option("--temperature", metavar="T", help="Of these texts.")]
AnswerTokens = Annotated[int, typer.Option("--answer-tokens", metavar="N", help="Of such a text.")]
Beta = Annotated[float, typer.Option("--beta", help="How closely RL keeps to the first stage's model.")]
Epochs = Annotated[
    float, typer.Option("--epochs", metavar="N", help="Times that SFT and gap see each preference.")
]
Batch = Annotated[int, typer.Option("--batch", metavar="N", help="Preferences of a step of SFT and gap.")]
RLEpochs = Annotated[
    float, typer.Option("--rl-epochs", metavar="N", help="Times that RL takes up each draft.")
]
RLBatch = Annotated[
    int, typer.Option("--rl-batch", metavar="N", help="Drafts of a step of RL, each with its samples.")
]
RLRate = Annotated[float, typer.Option("--rl-lr", metavar="RATE", help="Of RL.")]
HeldOut = Annotated[
    float,
    typer.Option("--held-out", metavar="SHARE", help="Of the prompts, to evaluate SFT and gap on."),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Of the thirds, order, adapters and samples.")]

_STAGES = ("pit-sft", "pit-gap", "pit-rl")
_SUPERVISED = ("weights", "epochs", "batch", "lr", "warmup", "held_out", "every", "patience", "max_tokens")
_REINFORCED = (
    *("task", "curriculum", "drafter", "draft_temperature", "draft_tokens", "samples", "temperature"),
    *("answer_tokens", "beta", "rl_epochs", "rl_batch", "rl_lr"),
)
_UNUSED: Mapping[Method, tuple[str, ...]] = {
    "pit": ("everything", "sft", "gap"),
    "pit-sft": ("sft", "gap", *_REINFORCED),
    "pit-gap": ("sft", "gap", *_REINFORCED),
    "pit-rl": ("model", *_SUPERVISED),
}


def _options(
    *,
    preferences: Preferences,
    model: Model = None,
    out: Out = None,
    sft: Sft = None,
    gap: Gap = None,
    everything: All = False,
    about: About = False,
    only: Only = None,
    curriculum: Stages = "both",
    drafter: Drafter = None,
    task: Task = None,
    draft_temperature: DraftTemperature = 0.7,
    draft_tokens: DraftTokens = None,
    samples: Samples = 4,
    temperature: Temperature = 1.0,
    answer_tokens: AnswerTokens = 256,
    beta: Beta = 0.05,
    rl_epochs: RLEpochs = 1.0,
    rl_batch: RLBatch = 8,
    rl_lr: RLRate = 8e-4,
    weights: Weights = "lora",
    rank: Rank = 8,
    dtype: DType = None,
    epochs: Epochs = 1.0,
    batch: Batch = 16,
    portion: Portion = 4096,
    lr: Rate = 2e-4,
    warmup: Warmup = 150,
    held_out: HeldOut = 0.1,
    every: Every = 25,
    patience: Patience = 0,
    max_tokens: MaxTokens = 2048,
    seed: Seed = 0,
    json: Json = False,
) -> dict[str, Any]:
    """The options of all four commands, and what holds where a command does not have one."""
    return locals()


def command(method: Method) -> Callable[..., None]:
    """The command that trains PIT or a stage of it, with the options that mean something for it."""

    def run(**given: Any) -> None:
        _train(method, _options(**given))

    about = f"""{_ABOUT[method]}

    The same command again goes on where it was stopped.

    Example: penname train {method} --preferences edits.jsonl{_MORE.get(method, "")} --out runs/{method}
    """
    return with_options(run, _options, _UNUSED[method], about, needed=("sft", "gap"))


def _config(asked: Mapping[str, Any], task: str | None) -> PITConfig:
    """The settings that a command's options ask for."""
    from penname.methods.pit.config import RLConfig
    from penname.methods.pit.data import DraftConfig
    from penname.methods.pit.gap import GapConfig
    from penname.methods.pit.train import PITConfig
    from penname.train.loop import LoopSettings
    from penname.train.optimizer import OptimizerSettings
    from penname.train.sft import SFTConfig

    same = {
        **{name: asked[name] for name in ("weights", "dtype", "max_tokens", "portion", "held_out")},
        **lora_and_loop(asked),
        "optimizer": OptimizerSettings(lr=asked["lr"], warmup=asked["warmup"]),
    }
    plain = RLConfig()
    return PITConfig(
        sft=SFTConfig(**same),
        gap=GapConfig(**same),
        rl=RLConfig(
            **{name: asked[name] for name in ("samples", "temperature", "beta", "dtype", "portion")},
            max_tokens=asked["answer_tokens"],
            lora=same["lora"],
            optimizer=OptimizerSettings(lr=asked["rl_lr"], warmup=plain.optimizer.warmup),
            loop=LoopSettings(
                epochs=asked["rl_epochs"],
                batch=asked["rl_batch"],
                checkpoint_every=plain.loop.checkpoint_every,
                seed=asked["seed"],
            ),
        ),
        curriculum=asked["curriculum"],
        drafts=DraftConfig(
            task=task, temperature=asked["draft_temperature"], max_tokens=asked["draft_tokens"]
        ),
        seed=asked["seed"],
    )


def _train(method: Method, asked: Mapping[str, Any]) -> None:
    from penname.methods.pit.thirds import thirds
    from penname.train.folder import check_free

    if asked["drafter"] and asked["curriculum"] == "data":
        raise BadInputError("--drafter with --curriculum data: no drafts are sampled; leave one of them out")
    source, folder = asked["preferences"], place(method, asked["out"])
    check_free(folder)
    config = _config(asked, task_of(asked["task"], source))
    register(source, folder, method)
    prepared = read_prepared(source, users=False, about=asked["about"], only=asked["only"])
    learnt = prepared
    if method != "pit" and not asked["everything"]:
        learnt = dict(zip(("pit-sft", "pit-gap", "pit-rl"), thirds(prepared, config.seed), strict=True))[
            method
        ]
        note(f"this stage's third: {plural(len(learnt), 'preference')}")
    with bar(method, folder) as tell:
        trained = _trained(method, learnt, folder, config, asked, tell)
    without_erased_of(source, prepared)
    done(trained, json=asked["json"])


def _trained(
    method: Method,
    learnt: Prepared,
    folder: Path,
    config: PITConfig,
    asked: Mapping[str, Any],
    tell: Progress,
) -> Trained:
    from penname.lm import load_model
    from penname.methods.pit import train

    if method == "pit-sft":
        return train.train_pit_sft(
            learnt, folder, model=asked["model"], config=config.sft, progress=tell, note=note
        )
    if method == "pit-gap":
        return train.train_pit_gap(
            learnt, folder, model=asked["model"], config=config.gap, progress=tell, note=note
        )
    drafter = load_model(asked["drafter"]) if asked["drafter"] else None
    if method == "pit":
        return train.train_pit(
            learnt, folder, model=asked["model"], config=config, drafter=drafter, progress=tell, note=note
        )
    return train.train_pit_rl(
        learnt,
        folder,
        sft=asked["sft"],
        gap=asked["gap"],
        config=config.rl,
        curriculum=config.curriculum,
        drafts_config=config.drafts,
        drafter=drafter,
        seed=config.seed,
        progress=tell,
        note=note,
    )
