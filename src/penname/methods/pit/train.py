"""PIT: learn to improve a text from preferences, in three stages (arXiv 2310.00898).

    OUT.training/sft           writes the chosen text, the rejected one as its draft: of the first third
    OUT.training/gap           tells how much better a text is than its draft: of the second
    OUT.training/rl            the policy, from the last third's references and from drafts sampled for it

Each is the whole result of a command of its own, made in a workshop of its own and not made again where it is
there: a kill loses steps since a checkpoint, or one batch of drafts, and the same call goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from penname.files import put
from penname.lm import LanguageModel, load_model
from penname.methods.pit.card import model_card
from penname.methods.pit.config import RLConfig
from penname.methods.pit.data import DraftConfig, drafts, references, revisions
from penname.methods.pit.form import Form
from penname.methods.pit.gap import GapConfig, train_gap
from penname.methods.pit.rl import train_rl
from penname.methods.pit.thirds import thirds
from penname.tasks import PromptTexts
from penname.train import seen
from penname.train.base import checked_base
from penname.train.folder import (
    CARD,
    METRICS,
    Trained,
    check_free,
    finish,
    link_weights,
    open_trained,
    workshop,
)
from penname.train.index import create_index
from penname.train.model import trainable_config
from penname.train.optimizer import OptimizerSettings
from penname.train.preferences.data import Prepared
from penname.train.sft import SFTConfig, train_sft

Curriculum = Literal["both", "data", "policy"]
"""What RL learns to improve: the preferences' texts and then drafts of a policy, or only one of these."""

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""Called with what is being done, how much of it is done and of how much, and the newest figures."""

Note = Callable[[str], None]

_MADE = "made"  # in a stage's workshop: what it made, before users and drafts are put beside it
_README = "README.md"
_TOLD = ("data", "held_out", "calibration", "stages")  # of a stage's card, on that of the whole


@dataclass(frozen=True)
class PITConfig:
    """How the three stages are trained."""

    sft: SFTConfig = field(default_factory=lambda: SFTConfig(optimizer=OptimizerSettings(lr=2e-4)))
    gap: GapConfig = field(default_factory=GapConfig)
    rl: RLConfig = field(default_factory=RLConfig)
    curriculum: Curriculum = "both"  # dropping either half loses nearly all of the gain (section 4.4)
    drafts: DraftConfig = field(default_factory=DraftConfig)  # of the second half of the curriculum
    seed: int = 0  # of the thirds and of the drafts; the stages have their own


def train_pit(
    prepared: Prepared,
    out: Path,
    *,
    model: str | None = None,
    config: PITConfig = PITConfig(),
    drafter: LanguageModel | None = None,
    progress: Progress = lambda *_: None,
    note: Note = lambda _: None,
) -> Trained:
    """Train the three stages, each on a third of the preferences, or go on where that was stopped.

    It is `train_pit_sft`, `train_pit_gap` and `train_pit_rl` one after the other, on `thirds`.

    Args:
        prepared: pairs; text about the user (`Pair.about`) stands in the prompts of all stages.
        out: the result's folder; must not be there yet.
        model: the base of SFT and of the gap reward, as `penname.lm.load_model` takes it.
        drafter: the policy that will be improved; None: the base. Not used by the curriculum "data".
        progress: called as the work goes on.
        note: told what a person should know.

    Raises:
        BadInputError: there are fewer than three prompts; a stage has nothing left to learn from; `out` is
            there, or another training's leavings.
        TrainedError: a checkpoint is cut short.
        ModelError: a model cannot be loaded, or not trained here.
    """
    check_free(out.expanduser())
    first, second, last = thirds(prepared, config.seed)
    base = load_model(trainable_config(model))
    if drafter is None and config.curriculum != "data":
        drafter = base
    asked = {
        "method": "pit",
        "model_fingerprint": base.fingerprint,
        "settings": {
            **asdict(config),
            "shape": base.shape,
            "about": _about(prepared),
            "drafter": drafter and drafter.fingerprint,
        },
        "data": {
            "fingerprint": prepared.fingerprint,
            "pairs": len(prepared),
            "thirds": [len(third) for third in (first, second, last)],
            "users": len(prepared.users),
            "left_out": prepared.left_out,
        },
    }
    with workshop(out, asked) as folder:
        sft, gap, rl = (folder / name for name in ("sft", "gap", "rl"))
        if not sft.is_dir():
            train_pit_sft(first, sft, model=model, config=config.sft, progress=progress, note=note)
        if not gap.is_dir():
            train_pit_gap(second, gap, model=model, config=config.gap, progress=progress, note=note)
        if not rl.is_dir():
            train_pit_rl(
                last,
                rl,
                sft=sft,
                gap=gap,
                config=config.rl,
                curriculum=config.curriculum,
                drafts_config=config.drafts,
                drafter=drafter,
                seed=config.seed,
                progress=progress,
                note=note,
            )
        cards = {name: _card(folder / name) for name in ("sft", "gap", "rl")}
        card = {
            **asked,
            "model": model or base.name,
            "held_out": cards["rl"]["held_out"],
            "rewards": cards["rl"]["rewards"],
            "stages": {name: {key: one[key] for key in _TOLD if key in one} for name, one in cards.items()},
            "version": version("penname"),
        }
        return _finish(folder, out, rl, card, prepared.users, model_card(card))


def train_pit_sft(
    prepared: Prepared,
    out: Path,
    *,
    model: str | None = None,
    config: SFTConfig = SFTConfig(),
    progress: Progress = lambda *_: None,
    note: Note = lambda _: None,
) -> Trained:
    """The first stage alone: fine-tune on the chosen texts, each after its prompt and the rejected text.

    Takes and raises as `train_pit`, and trains on all the pairs that it is given.
    """
    check_free(out.expanduser())
    base = load_model(trainable_config(model))
    about = {"shape": base.shape, "about": _about(prepared)}
    asked = {
        "method": "pit-sft",
        "model_fingerprint": base.fingerprint,
        "settings": {**asdict(config), **about},
        "data": {"fingerprint": prepared.fingerprint},
    }
    with workshop(out, asked) as folder:
        made = folder / _MADE
        if not made.is_dir():
            train_sft(
                revisions(prepared, Form(base.shape, PromptTexts.load())),
                made,
                model=model,
                config=config,
                method="pit-sft",
                about=about,
                progress=lambda done, total, figures: progress("sft", done, total, figures),
                note=lambda text: note(f"sft: {text}"),
            )
        card = _card(made)
        return _finish(folder, out, made, card, prepared.users, model_card(card))


def train_pit_gap(
    prepared: Prepared,
    out: Path,
    *,
    model: str | None = None,
    config: GapConfig = GapConfig(),
    progress: Progress = lambda *_: None,
    note: Note = lambda _: None,
) -> Trained:
    """The second stage alone: how much better a text is than its draft.

    Takes and raises as `train_pit`, and trains on all the pairs that it is given.
    """
    return train_gap(
        prepared.pairs,
        out,
        model=model,
        config=config,
        about={"about": _about(prepared)},
        progress=lambda done, total, figures: progress("gap", done, total, figures),
        note=lambda text: note(f"gap: {text}"),
    )


def train_pit_rl(
    prepared: Prepared,
    out: Path,
    *,
    sft: Path,
    gap: Path,
    config: RLConfig = RLConfig(),
    curriculum: Curriculum = "both",
    drafts_config: DraftConfig = DraftConfig(),
    drafter: LanguageModel | None = None,
    seed: int = 0,
    progress: Progress = lambda *_: None,
    note: Note = lambda _: None,
) -> Trained:
    """The third stage alone: improve the preferences' texts, then drafts that are sampled here.

    Takes and raises as `train_pit`, and trains on all the pairs that it is given.

    Args:
        sft, gap: results of the first two stages, which the result then holds too.
        drafter: the policy that will be improved; None: the base of `sft`.
        seed: of the drafts.
    """
    check_free(out.expanduser())
    sft, gap = sft.expanduser(), gap.expanduser()
    tuned, judge = open_trained(sft, "pit-sft"), open_trained(gap, "pit-gap")
    if curriculum == "data":
        drafter = None
    elif drafter is None:
        drafter = load_model(checked_base(tuned, None))
    own = {
        "curriculum": curriculum,
        "drafts": asdict(drafts_config),
        "drafter": drafter and drafter.fingerprint,
    }
    asked = {
        "method": "pit-rl",
        "model_fingerprint": tuned.model_fingerprint,
        "settings": {"rl": asdict(config), "seed": seed, **own},
        "data": {
            "fingerprint": prepared.fingerprint,
            **{one.method: [one.settings, one.data] for one in (tuned, judge)},
        },
    }
    with workshop(out, asked) as folder:
        made = folder / _MADE
        if not made.is_dir():
            (folder / seen.SEEN).mkdir(exist_ok=True)
            second = drafter and drafts(
                prepared,
                folder / seen.SEEN / "drafts.jsonl",
                drafter,
                drafts_config,
                seed,
                progress=lambda done, total: progress("drafts", done, total, {}),
                note=note,
            )
            train_rl(
                [] if curriculum == "policy" else references(prepared),
                second or [],
                made,
                sft=sft,
                gap=gap,
                config=config,
                users=prepared.users,
                about={**own, "about": _about(prepared)},
                progress=progress,
                note=lambda text: note(f"rl: {text}"),
            )
        readme = (made / _README).read_text(encoding="utf-8")
        return _finish(folder, out, made, _card(made), prepared.users, readme, sft)


def _finish(
    folder: Path,
    out: Path,
    made: Path,
    card: Mapping[str, Any],
    users: Sequence[str],
    readme: str,
    sft: Path | None = None,
) -> Trained:
    """The result: what was made, whose texts it learnt from, what it saw, and what it began as."""

    def fill(result: Path) -> None:
        for part in made.iterdir():
            if part.is_dir():
                shutil.copytree(part, result / part.name, copy_function=link_weights)
        if (folder / seen.SEEN).is_dir():
            shutil.copytree(folder / seen.SEEN, result / seen.SEEN)
        if sft is not None:
            shutil.copytree(sft, result / "sft", copy_function=link_weights)
        create_index(result, sorted(users))
        put(result / _README, readme)

    shutil.copyfile(made / METRICS, folder / METRICS)
    return finish(folder, out, card, fill)


def _card(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
    return read


def _about(prepared: Prepared) -> bool:
    """Whether text about users stands in prompts."""
    return any(pair.about for pair in prepared.pairs)
