"""Drawing the next token: against a naive implementation, and refusing settings that mean nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penname.errors import BadInputError, PromptTooLongError
from penname.lm.base import Sampling
from penname.lm.config import ModelConfig
from penname.lm.sampling import check, check_fits, context_of, draw, nucleus


def naive_nucleus(row: list[float], top_p: float) -> set[int]:
    """The tokens of the smallest set that holds `top_p`, most likely first."""
    kept: set[int] = set()
    mass = 0.0
    for token in sorted(range(len(row)), key=lambda t: -row[t]):
        if mass >= top_p:
            break
        kept.add(token)
        mass += row[token]
    return kept


@given(seed=st.integers(0, 10_000), top_p=st.floats(0.05, 0.99), size=st.sampled_from([2, 7, 1500]))
def test_the_nucleus_is_the_smallest_set_that_holds_top_p(seed: int, top_p: float, size: int) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, size)))
    probabilities = logits.softmax(dim=-1)
    found = nucleus(probabilities, top_p)
    for row, kept in zip(probabilities.tolist(), found.tolist(), strict=True):
        assert {t for t, p in enumerate(kept) if p > 0} == naive_nucleus(row, top_p)


def test_even_numbers_draw_each_token_as_often_as_it_is_likely() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    uniform = (torch.arange(1000) + 0.5) / 1000
    logits = probabilities.log().expand(1000, 4)
    drawn = draw(logits, Sampling(temperature=1.0, top_p=1.0), uniform)
    assert drawn.bincount(minlength=4).tolist() == [500, 300, 150, 50]
    drawn = draw(logits, Sampling(temperature=1.0, top_p=0.8), uniform)
    assert drawn.bincount(minlength=4).tolist() == [625, 375, 0, 0]
    sharper = draw(logits, Sampling(temperature=0.5, top_p=1.0), uniform).bincount(minlength=4)
    assert sharper[0] == round(1000 * 0.25 / (0.25 + 0.09 + 0.0225 + 0.0025))


def test_temperature_zero_takes_the_likeliest_and_a_tiny_one_does_not_overflow() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    for temperature in (0.0, 1e-30):
        assert draw(logits, Sampling(temperature=temperature), torch.tensor([0.999])).tolist() == [1]


@pytest.mark.parametrize(
    ("sampling", "part"),
    [
        (Sampling(max_tokens=0), "max_tokens"),
        (Sampling(temperature=-0.1), "temperature"),
        (Sampling(temperature=float("nan")), "temperature"),
        (Sampling(top_p=0), "top_p"),
        (Sampling(top_p=1.1), "top_p"),
        (Sampling(stop=("",)), "stop"),
    ],
)
def test_settings_that_mean_nothing_are_refused(sampling: Sampling, part: str) -> None:
    with pytest.raises(BadInputError, match=part):
        check(sampling)


def test_n_below_one_and_a_prompt_beyond_the_context_are_refused() -> None:
    with pytest.raises(BadInputError, match="n: 0"):
        check(Sampling(), n=0)
    check_fits(90, 10, 100)
    with pytest.raises(PromptTooLongError, match=r"91 tokens.*10.*100"):
        check_fits(91, 10, 100)


def test_the_context_is_what_is_set_and_never_more_than_the_model_has() -> None:
    assert context_of(ModelConfig("m"), 512) == 512
    assert context_of(ModelConfig("m", context=100), 512) == 100
    with pytest.raises(BadInputError, match=r"1,024 tokens; m has 512"):
        context_of(ModelConfig("m", context=1024), 512)
    with pytest.raises(BadInputError, match="set 'context'"):
        context_of(ModelConfig("m"), None)
