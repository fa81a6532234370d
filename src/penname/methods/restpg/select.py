"""The best of a model's own outputs: which of them the next model learns from (arXiv 2501.04167, eq. 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penname.methods.restpg.config import RestPGConfig


@dataclass(frozen=True)
class Sample:
    """One output of a model, and the reward of its answer."""

    reasoning: str
    answer: str
    cut: bool  # ended by the limit, not by the model
    reward: float = 0.0

    @property
    def row(self) -> dict[str, Any]:
        """As it is written down."""
        return vars(self)


def best(samples: Sequence[Sample], config: RestPGConfig) -> list[int]:
    """Places of the outputs of one input to learn from, the best first: at most `config.most`.

    Of several that say the same the first counts. What was cut at the limit, and what is blank, never is: the
    model would learn not to end. What reaches the threshold, or its own input's quantile, is kept; where all
    of an input's rewards are one number, nothing tells its outputs apart, and a quantile keeps none.
    """
    whole = [place for place, one in enumerate(samples) if not one.cut and one.answer.strip()]
    rewards = [samples[place].reward for place in whole]
    if not rewards:
        return []
    if config.threshold is not None:
        least = config.threshold
    elif min(rewards) == max(rewards):
        return []
    else:
        least = float(np.quantile(rewards, config.quantile))
    found: dict[tuple[str, str], int] = {}
    for place in sorted(whole, key=lambda place: -samples[place].reward):
        one = samples[place]
        if one.reward >= least and one.reward > 0:
            found.setdefault((one.reasoning, one.answer), place)
    return list(found.values())[: config.most]


def summary(inputs: Sequence[Sequence[Sample]], kept: Sequence[Sequence[int]]) -> dict[str, float]:
    """What an expectation step saw: counts and means; "above" is the share of inputs with anything kept."""
    every = [one for samples in inputs for one in samples]
    tops = [max((one.reward for one in samples), default=0.0) for samples in inputs]
    return {
        "inputs": len(inputs),
        "samples": len(every),
        "cut": sum(one.cut for one in every),
        "blank": sum(not one.answer.strip() for one in every),
        "unrewarded": sum(not one.reward and bool(one.answer.strip()) for one in every),
        "distinct": sum(len({(one.reasoning, one.answer) for one in samples}) for samples in inputs),
        "reward": _mean([one.reward for one in every]),
        "best_reward": _mean(tops),
        "kept_reward": _mean(
            [samples[i].reward for samples, places in zip(inputs, kept, strict=True) for i in places]
        ),
        "kept": sum(map(len, kept)),
        "above": _mean([float(bool(places)) for places in kept]),
        "words": _mean([float(len(one.answer.split())) for one in every]),
        "kept_words": _mean(
            [
                float(len(samples[i].answer.split()))
                for samples, places in zip(inputs, kept, strict=True)
                for i in places
            ]
        ),
    }


def sample_of(row: Mapping[str, Any]) -> Sample:
    """The sample that a row was made of."""
    return Sample(row["reasoning"], row["answer"], row["cut"], row["reward"])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
