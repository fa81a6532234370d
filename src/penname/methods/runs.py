"""The trained runs that a method writes with: opened where its name says, over the model that is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from penname.errors import TrainedError
from penname.lm.base import LanguageModel
from penname.methods.stages import run_folder

if TYPE_CHECKING:
    from penname.methods.pit.improve import Improver
    from penname.methods.prlhf.method import Personal
    from penname.methods.prlhf.rerank import Reward
    from penname.methods.restpg.method import Reasoning


@dataclass(frozen=True)
class Runs:
    """The run of each trained stage; None where the method has no such stage, or it is not open."""

    reasoning: Reasoning | None = None  # rest-pg
    personal: Personal | None = None  # p-dpo
    reward: Reward | None = None  # p-rm
    improver: Improver | None = None  # pit


def open_runs(found: Mapping[str, str], model: LanguageModel, given: Runs) -> Runs:
    """The runs of a method's stages.

    Args:
        found: as `penname.methods.stages.stages` gives them.
        model: runs are opened on its device, and those that were trained over it with its settings.
        given: those that are open already; what the method has no stage for is left out.

    Raises:
        TrainedError: a run cannot be used, or two of them do not go together.
    """
    device = getattr(getattr(model, "config", None), "device", None)
    reasoning = given.reasoning if "rest-pg" in found else None
    personal = given.personal if "p-dpo" in found else None
    reward = given.reward if "p-rm" in found else None
    improver = given.improver if "pit" in found else None
    if "rest-pg" in found and reasoning is None:
        from penname.methods.restpg.method import open_reasoning

        reasoning = open_reasoning(run_folder("rest-pg", found["rest-pg"]), device)
    if "p-dpo" in found and personal is None:
        base = model if reasoning is None else reasoning.model
        personal = _open_personal(run_folder("p-dpo", found["p-dpo"]), base)
    if personal is not None and reasoning is not None:
        _check_stacked(personal, reasoning)
    if "p-rm" in found and reward is None:
        from penname.methods.prlhf.reward import open_reward

        reward = open_reward(run_folder("p-rm", found["p-rm"]))
    if "pit" in found and improver is None:
        from penname.methods.pit.improve import open_improver

        improver = open_improver(run_folder("pit", found["pit"]), device)
    return Runs(reasoning, personal, reward, improver)


def _check_stacked(personal: Personal, reasoning: Reasoning) -> None:
    """Refuse soft prompts that were not trained over the very model that reasons.

    Raises:
        TrainedError: they were trained over another.
    """
    from penname.train.folder import open_trained

    trained = open_trained(personal.path)
    if trained.model_fingerprint != reasoning.model.fingerprint:
        raise TrainedError(
            f"{personal.path} was trained over {trained.model!r}, not over the model of {reasoning.path}: "
            f"train it with --model {reasoning.path / 'model'}"
        )


def _open_personal(folder: Path, model: LanguageModel) -> Personal:
    """The run, over `model`'s own files and settings where `model` is the run's base: they may have moved.

    A model on a server is taken to serve the run.
    """
    from penname.lm import ModelConfig
    from penname.methods.prlhf.method import open_personal
    from penname.train.base import base_fingerprint
    from penname.train.folder import open_trained

    config = getattr(model, "config", None)  # what is loaded by name has one
    if isinstance(config, ModelConfig):
        if config.remote:
            return open_personal(folder, config)
        bare = replace(config, adapter=None)
        if base_fingerprint(bare) == open_trained(folder, "p-dpo").model_fingerprint:
            return open_personal(folder, bare)
    return open_personal(folder)
