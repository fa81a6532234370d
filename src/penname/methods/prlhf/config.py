"""The settings of P-RLHF, each with its unit and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from penname.errors import BadInputError
from penname.methods.prlhf.losses import Loss
from penname.train.loop import LoopSettings
from penname.train.model import LoraSettings, Weights
from penname.train.optimizer import OptimizerSettings

FEATURED = ("low-rank", "pooled", "alone")
"""The user models of P-RM on fixed features, where no language model is trained."""

HEAD = "head.safetensors"
"""Where a result of P-RM keeps its scalar head."""

Users = Literal["individual", "cluster", "none"]


@dataclass(frozen=True)
class PDPOConfig:
    """Settings of P-DPO and of P-RM with soft prompts. Source: arXiv 2402.05133, where nothing else is said.

    Raises:
        BadInputError: a setting has a value that it cannot have.
    """

    users: Users = "individual"  # the user model; "none": one model for all (vanilla)
    loss: Loss = "sigmoid"  # sigmoid (DPO), ipo, or kto for single ratings; P-RM has but one
    alpha: float = 0.5  # share of the user's own loss, the rest is the generic user's
    beta: float = 0.1  # 0.1 to 0.5 in the paper
    anchor: float = 0.0  # what texts may not lose against the reference counts so much: λ of DPOP; ours
    sparse: int = 0  # tokens of a rejected text that count, those that lost most; 0: all, as published; ours
    lean: float = 0.0  # how far from e_0 users start, towards what they chose; 0: at it, as published; ours
    user_tokens: int = 10  # T_u, rows of a soft prompt
    clusters: int = 5  # K, 5 or 10
    weights: Weights = "lora"  # what of the model is trained
    lora: LoraSettings = LoraSettings()
    dtype: Literal["float32", "bfloat16"] | None = None  # None: bfloat16 where the processor is fast at it
    max_tokens: int = 1024  # of a prompt with its longer answer; pairs above it are left out, and counted
    portion: int = 4096  # tokens read at once: bounds memory; ours
    held_out: float = 0.1  # share of each user's pairs held out for evaluation while training; ours
    optimizer: OptimizerSettings = OptimizerSettings()
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, before anything is loaded."""
        for name, allowed in (("users", get_args(Users)), ("loss", get_args(Loss))):
            if getattr(self, name) not in allowed:
                raise BadInputError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        if (self.anchor or self.sparse) and self.loss == "kto":
            raise BadInputError("anchor, sparse: KTO's single ratings have no pair; leave them out")
        if self.lean and self.users != "individual":
            raise BadInputError(f"lean: with users {self.users!r} there are no rows of users' own to start")
        self._check_numbers()

    def _check_numbers(self) -> None:
        most = {
            "alpha": (self.alpha, 1.0),
            "held_out": (self.held_out, 0.99),
            "anchor": (self.anchor, 1e3),
            "lean": (self.lean, 1e2),
        }
        for name, (value, top) in most.items():
            if not 0 <= value <= top:
                raise BadInputError(f"{name}: {value} is not from 0 to {top:g}")
        least = {"beta": self.beta, "epochs": self.loop.epochs, "lr": self.optimizer.lr}
        for name, value in least.items():
            if not value > 0:
                raise BadInputError(f"{name}: {value} is not above 0")
        counts = {
            "user_tokens": (self.user_tokens, 1),
            "clusters": (self.clusters, 1),
            "max_tokens": (self.max_tokens, 1),
            "batch": (self.loop.batch, 1),
            "lora rank": (self.lora.rank, 1),
            "sparse": (self.sparse, 0),
        }
        for name, (count, lowest) in counts.items():
            if count < lowest:
                raise BadInputError(f"{name}: {count} is too small; at least {lowest}")
