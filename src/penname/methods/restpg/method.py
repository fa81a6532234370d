"""How REST-PG writes (arXiv 2501.04167, section 3.2): reasoning and answer in one pass, the answer cut out.

The same opens what it is compared with: fine-tuned models, with reasoning and without, and ReST-EM's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from penname.errors import TrainedError
from penname.lm import LanguageModel, ModelConfig, load_model
from penname.methods.restpg import METHODS
from penname.methods.restpg.format import Format
from penname.train.folder import open_trained


@dataclass(frozen=True)
class Reasoning:
    """A trained run, ready to write. Nothing of the model is loaded yet."""

    path: Path
    model: LanguageModel
    format: Format | None  # None: it writes without reasoning
    task: str  # that it was trained on
    k: int | None  # documents of each author that its prompts showed; None: it does not say


def open_reasoning(folder: Path | str, device: str | None = None) -> Reasoning:
    """The run in `folder`: of `penname train rest-pg`, or of one of its baselines.

    Raises:
        TrainedError: no such run, or it is cut short, or of another method.
    """
    trained = open_trained(folder, *METHODS)
    if not (trained.path / "model").is_dir():
        raise TrainedError(f"{trained.path} is cut short: its model/ is gone")
    settings = trained.settings
    try:
        form = None if settings.get("reasoning") is None else Format(**settings["reasoning"])
        k = (settings.get("context") or {}).get("k")
    except (TypeError, AttributeError) as error:
        raise TrainedError(f"{trained.path}: its card cannot be read ({error})") from None
    config = ModelConfig(str(trained.path / "model"), shape=settings.get("shape"), device=device)
    return Reasoning(trained.path, load_model(config), form, str(settings.get("task") or ""), k)
