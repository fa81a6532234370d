"""`penname train`: one folder as the result, resumable."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from penname.cli.options import Json, Model
from penname.cli.output import note, progress
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
    Seed,
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
    without_erased_of,
)
from penname.errors import BadInputError

if TYPE_CHECKING:
    from penname.methods.prlhf.config import PDPOConfig

_SHOWN = ("loss", "accuracy", "held_out_loss", "held_out_accuracy", "held_out_worst_user")

_FEATURED = ("low-rank", "pooled", "alone")
_SOFT = (
    *("model", "alpha", "user_tokens", "weights", "rank", "dtype", "epochs", "batch", "portion"),
    *("lr", "user_lr", "warmup", "every", "patience", "max_tokens", "about"),
)  # what user models that train a language model take

train_app = typer.Typer(
    help="Train a model, or a reward, on people's texts and preferences.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Alpha = Annotated[float, typer.Option("--alpha", help="Share of the user's own loss; the rest: the generic.")]
Tokens = Annotated[int, typer.Option("--user-tokens", metavar="T", help="Rows of a soft prompt.")]
Lean = Annotated[
    float,
    typer.Option("--lean", metavar="L", help="How far apart users start, each towards what was chosen."),
]
Clusters = Annotated[int, typer.Option("--clusters", metavar="K", help="Of --users cluster.")]
Epochs = Annotated[float, typer.Option("--epochs", metavar="N", help="Times that each preference is seen.")]
Batch = Annotated[
    int,
    typer.Option(
        "--batch", metavar="N", help="Preferences of a step; gradients add up over portions that fit."
    ),
]
UserRate = Annotated[float, typer.Option("--user-lr", metavar="RATE", help="Of the users' parameters.")]
MixtureRate = Annotated[
    float, typer.Option("--mixture-lr", metavar="RATE", help="Of --users cluster: of users' weights of them.")
]
HeldOut = Annotated[
    float, typer.Option("--held-out", metavar="SHARE", help="Of each user's preferences, to evaluate on.")
]
Reference = Annotated[
    Path | None,
    typer.Option(
        "--reference", metavar="FILE", help="Keep the reference's log-probabilities there, for others to use."
    ),
]


@train_app.command("p-dpo")
def p_dpo(
    context: typer.Context,
    preferences: Preferences,
    model: Model = None,
    out: Out = None,
    users: Annotated[
        Literal["individual", "cluster", "none"],
        typer.Option("--users", help="The user model; none: one model for all (vanilla DPO)."),
    ] = "individual",
    loss: Annotated[
        Literal["sigmoid", "ipo", "kto"],
        typer.Option("--loss", help="DPO, IPO, or KTO for single ratings."),
    ] = "sigmoid",
    beta: Annotated[float, typer.Option("--beta", help="How closely the reference is kept to.")] = 0.1,
    anchor: Annotated[
        float,
        typer.Option(
            "--anchor",
            metavar="W",
            help="What a chosen text becomes less likely counts so much: 5 or so; 0.02 with --sparse.",
        ),
    ] = 0.0,
    sparse: Annotated[
        int,
        typer.Option(
            "--sparse", metavar="K", help="Of a rejected text the K tokens that lost most count; 0: all."
        ),
    ] = 0,
    alpha: Alpha = 0.5,
    user_tokens: Tokens = 10,
    lean: Lean = 0.0,
    clusters: Clusters = 5,
    weights: Weights = "lora",
    rank: Rank = 8,
    dtype: DType = None,
    epochs: Epochs = 1.0,
    batch: Batch = 16,
    portion: Portion = 4096,
    lr: Rate = 5e-5,
    user_lr: UserRate = 1e-3,
    mixture_lr: MixtureRate = 0.1,
    warmup: Warmup = 150,
    held_out: HeldOut = 0.1,
    every: Every = 25,
    patience: Patience = 0,
    max_tokens: MaxTokens = 1024,
    seed: Seed = 0,
    task: Task = None,
    about: About = False,
    only: Only = None,
    reference: Reference = None,
    json: Json = False,
) -> None:
    """Train a model and its users' soft prompts on preferences.

    Personalised DPO (P-RLHF, arXiv 2402.05133). The same command again goes on where it was stopped.

    Example: penname train p-dpo --preferences choices.jsonl --out runs/ours
    """
    asked = locals()
    _check_options(context, asked)
    _train("p-dpo", preferences, out, model, _config(asked), asked)


@train_app.command("p-rm")
def p_rm(
    context: typer.Context,
    preferences: Preferences,
    model: Model = None,
    out: Out = None,
    users: Annotated[
        Literal["individual", "cluster", "none", "low-rank", "pooled", "alone"],
        typer.Option(
            "--users",
            help="individual, cluster, none: soft prompts and a trained model. low-rank: weights over a "
            "shared basis on fixed features (LoRe); pooled, alone: one reward for all, or one per user.",
        ),
    ] = "individual",
    features: Annotated[
        Literal["embedder", "model"],
        typer.Option("--features", help="Of low-rank, pooled, alone: what an answer's features are made by."),
    ] = "embedder",
    basis: Annotated[
        int, typer.Option("--basis", metavar="N", help="Of low-rank: dimensions in which users differ.")
    ] = 16,
    alpha: Alpha = 0.5,
    user_tokens: Tokens = 10,
    lean: Lean = 0.0,
    clusters: Clusters = 5,
    weights: Weights = "lora",
    rank: Rank = 8,
    dtype: DType = None,
    epochs: Epochs = 1.0,
    batch: Batch = 16,
    portion: Portion = 4096,
    lr: Rate = 5e-5,
    user_lr: UserRate = 1e-3,
    mixture_lr: MixtureRate = 0.1,
    warmup: Warmup = 150,
    held_out: HeldOut = 0.1,
    every: Every = 25,
    patience: Patience = 0,
    max_tokens: MaxTokens = 1024,
    seed: Seed = 0,
    task: Task = None,
    about: About = False,
    only: Only = None,
    json: Json = False,
) -> None:
    """Train a reward that knows its users on preferences.

    A personalised reward model (P-RLHF, arXiv 2402.05133), or its low-rank form (LoRe, arXiv 2504.14439). The
    same command again goes on where it was stopped.

    Example: penname train p-rm --users low-rank --preferences choices.jsonl --out runs/taste
    """
    asked = locals()
    _check_options(context, asked)
    if users in _FEATURED:
        _featured(preferences, out, model, asked)
        return
    _train("p-rm", preferences, out, model, _config(asked), asked)


def _check_options(context: typer.Context, asked: Mapping[str, Any]) -> None:
    """Refuse options that mean nothing for the user model that was asked for.

    Raises:
        BadInputError: it names the option.
    """
    users = asked["users"]
    common = ("preferences", "out", "users", "held_out", "seed", "task", "only", "json", "context")
    # Of p-dpo alone, which has them for all user models.
    ours = ("loss", "beta", "anchor", "sparse", "reference")
    # The head of a reward goes by the users' rate.
    unused = ("alpha", "user_tokens", "user_lr") if "beta" in asked else ("alpha", "user_tokens")
    mine = {
        "low-rank": ("features", "basis"),
        "pooled": ("features",),
        "alone": ("features",),
        "individual": (*_SOFT, "lean"),
        "cluster": (*_SOFT, "clusters", "mixture_lr"),
        "none": tuple(name for name in _SOFT if name not in unused),
    }[users]
    allowed = {*common, *ours, *mine}
    if asked.get("features") == "model":
        allowed.add("model")
    for name in asked.keys() - allowed:
        source = context.get_parameter_source(name)
        if source and source.name == "COMMANDLINE":
            raise BadInputError(f"--users {users} has no use for --{name.replace('_', '-')}: leave it out")


def _config(asked: Mapping[str, Any]) -> PDPOConfig:
    """The settings that a command's options ask for."""
    from penname.methods.prlhf.config import PDPOConfig
    from penname.train.optimizer import OptimizerSettings

    same = (
        "users",
        "alpha",
        "user_tokens",
        "lean",
        "clusters",
        "weights",
        "dtype",
        "max_tokens",
        "portion",
        "held_out",
    )
    own = {name: asked[name] for name in (*same, "loss", "beta", "anchor", "sparse") if name in asked}
    return PDPOConfig(
        **own,
        **lora_and_loop(asked),
        optimizer=OptimizerSettings(asked["lr"], asked["user_lr"], asked["mixture_lr"], asked["warmup"]),
    )


def _train(
    method: Literal["p-dpo", "p-rm"],
    source: str,
    out: Path | None,
    model: str | None,
    config: PDPOConfig,
    asked: Mapping[str, Any],
) -> None:
    from penname.methods.prlhf.train import train_preferences

    folder = place(method, out)
    task = task_of(asked["task"], source)
    register(source, folder, method)
    prepared = read_prepared(
        source,
        ratings=config.loss == "kto",
        users=config.users != "none",
        about=asked["about"],
        only=asked["only"],
    )
    with bar(method, folder, _SHOWN) as tell:
        trained = train_preferences(
            method,
            prepared,
            folder,
            model=model,
            config=config,
            task=task,
            reference=asked.get("reference"),
            progress=partial(tell, method),
            note=note,
        )
    without_erased_of(source, prepared)
    done(trained, json=asked["json"])


def _featured(source: str, out: Path | None, model: str | None, asked: Mapping[str, Any]) -> None:
    from penname.methods.prlhf.featured import train_featured
    from penname.methods.prlhf.lowrank import LowRankConfig

    folder = place("p-rm", out)
    task = task_of(asked["task"], source)
    register(source, folder, "p-rm")
    prepared = read_prepared(
        source, users=asked["users"] != "pooled", about=asked["about"], only=asked["only"]
    )
    with progress("training p-rm", total=1) as shown:
        trained = train_featured(
            prepared,
            folder,
            users=asked["users"],
            features=asked["features"],
            model=model,
            config=LowRankConfig(rank=asked["basis"], seed=asked["seed"]),
            task=task,
            held_out=asked["held_out"],
            progress=lambda done, total, _: shown.update(shown.task_ids[0], completed=done, total=total),
        )
    without_erased_of(source, prepared)
    done(trained, json=asked["json"])
