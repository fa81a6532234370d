"""Settings of REST-PG and of the baselines that it contains (arXiv 2501.04167)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from penname.errors import BadInputError
from penname.methods.restpg import Method
from penname.methods.restpg.format import Format
from penname.train.loop import LoopSettings
from penname.train.optimizer import OptimizerSettings
from penname.train.sft import SFTConfig

SFT = SFTConfig(optimizer=OptimizerSettings(lr=1e-3), loop=LoopSettings(epochs=2, batch=4))
"""For some hundred texts: in one pass of larger batches at gentler rates next to nothing changes."""


@dataclass(frozen=True)
class RestPGConfig:
    """How a model learns to reason and write, and then from its own best outputs.

    Without reasoning it is ReST-EM (arXiv 2312.06585), and without iterations it is fine-tuning.

    Raises:
        BadInputError: a setting has a value that it cannot have.
    """

    reasoning: Format | None = field(default_factory=Format)  # None: the answer alone
    iterations: int = 3  # of expectation and maximisation (section 4)
    samples: int = 32  # outputs of each input in an expectation step; m of section 3.3
    temperature: float = 0.7  # of these
    top_p: float = 0.95  # of these; ours, the paper says nucleus and no more
    threshold: float | None = None  # τ: least reward of what is learnt from; None: `quantile` says it
    quantile: float = 0.75  # of an input's own rewards: least that is learnt from; ours, for soft rewards
    most: int = 10  # outputs of an input that are learnt from at most
    answer_tokens: int = 256  # of an output, without its reasoning
    start: Literal["base", "previous"] = "base"  # of each maximisation; from the previous: only to compare
    seed: int = 0
    sft: SFTConfig = SFT  # of the first model, and of each maximisation

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        least = {"iterations": 0, "samples": 2, "most": 1, "answer_tokens": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise BadInputError(f"{name}: {getattr(self, name)}; at least {low}")
        if self.iterations and self.temperature <= 0:
            raise BadInputError(f"temperature: {self.temperature}: all samples would be one; above 0")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise BadInputError(f"threshold: {self.threshold}; a reward lies from 0 to 1")
        if not 0 <= self.quantile < 1:
            raise BadInputError(f"quantile: {self.quantile}; from 0 and below 1")

    @property
    def method(self) -> Method:
        """What it is called."""
        if self.reasoning is None:
            return "rest-em" if self.iterations else "sft"
        return "rest-pg" if self.iterations else "sft-reasoning"
