"""Settings of PIT's reinforcement learning (arXiv 2310.00898, section 3)."""

from __future__ import annotations

from dataclasses import dataclass, field

from penname.errors import BadInputError
from penname.lm.config import DType
from penname.train.loop import LoopSettings
from penname.train.model import LoraSettings
from penname.train.optimizer import OptimizerSettings


@dataclass(frozen=True)
class RLConfig:
    """How the policy learns from the gap reward by RLOO (arXiv 2402.14740).

    It is trained by LoRA alone: with the adapter set aside it is the reference, π_SFT, of the penalty.
    Advantages are not standardised (RLOO does not, and Adam is blind to a common scale).

    Raises:
        BadInputError: a setting has a value that it cannot have.
    """

    samples: int = 4  # k texts of each case in a step (arXiv 2402.14740 tries 2 and 4)
    temperature: float = 1.0  # of these; 1: the gradient is of the very policy that wrote them
    max_tokens: int = 256  # of a sample at most
    beta: float = 0.05  # β, of log π − log π_SFT of a whole text, in units of the gap reward; ours
    lora: LoraSettings = LoraSettings()
    dtype: DType | None = None  # None: bfloat16 where the processor is fast at it
    portion: int = 4096  # tokens read at once: bounds memory; a case's samples are read together
    optimizer: OptimizerSettings = OptimizerSettings(lr=8e-4, warmup=10)  # of each stage; ours, for LoRA
    loop: LoopSettings = field(  # of each stage; a batch counts cases, each with its k samples
        default_factory=lambda: LoopSettings(batch=8, checkpoint_every=5)
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, low in (("samples", 2), ("max_tokens", 1), ("portion", 1)):
            if getattr(self, name) < low:
                raise BadInputError(f"{name}: {getattr(self, name)}; at least {low}")
        if not self.temperature > 0:
            raise BadInputError(f"temperature: {self.temperature}: all samples would be one; above 0")
        if not self.beta >= 0:
            raise BadInputError(f"beta: {self.beta}; at least 0")
