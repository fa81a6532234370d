"""Where users start: towards the words of what they chose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from penname.errors import BadInputError
from penname.methods.prlhf.config import PDPOConfig
from penname.methods.prlhf.jobs import Example
from penname.methods.prlhf.leaning import leanings
from penname.methods.prlhf.soft import SoftTable
from penname.methods.prlhf.users import GENERIC, SoftUsers
from penname.train.model import load_trainable
from penname.train.optimizer import OptimizerSettings
from train_helpers import settings, train

WORDS = torch.randn(12, 5, generator=torch.Generator().manual_seed(3))


def pair(user: int, chosen: tuple[int, ...], rejected: tuple[int, ...]) -> Example:
    return Example(user, (1, 2), (chosen, rejected), (0.0, 0.0))


def rating(user: int, answer: tuple[int, ...], *, liked: bool) -> Example:
    return Example(user, (1, 2), (answer,), (0.0,), liked)


def plain(rows: list[torch.Tensor]) -> torch.Tensor:
    """As long as an embedding in the mean of those users who have any."""
    found = torch.stack(rows)
    sizes = [float(row.norm()) for row in rows if row.any()]
    return found / (sum(sizes) / len(sizes)) * sum(float(word.norm()) for word in WORDS) / len(WORDS)


def test_pairs_lean_to_the_words_of_what_was_chosen() -> None:
    examples = [
        pair(0, (3, 4), (5,)),
        pair(1, (5, 6, 6), (3, 4, 7)),
        pair(GENERIC, (9,), (8,)),
        pair(0, (7,), (8, 8, 9)),
    ]
    first = ((WORDS[3] + WORDS[4]) / 2 - WORDS[5] + WORDS[7] - (2 * WORDS[8] + WORDS[9]) / 3) / 2
    second = (WORDS[5] + 2 * WORDS[6]) / 3 - (WORDS[3] + WORDS[4] + WORDS[7]) / 3
    wanted = plain([first, second, torch.zeros(5)])  # the third has no example
    torch.testing.assert_close(leanings(examples, 3, WORDS), wanted)


def test_ratings_lean_from_the_middle_of_all() -> None:
    examples = [rating(0, (3,), liked=True), rating(0, (4, 5), liked=False), rating(1, (6,), liked=True)]
    means = [WORDS[3], (WORDS[4] + WORDS[5]) / 2, WORDS[6]]
    middle = sum(means) / 3
    wanted = plain([((means[0] - middle) - (means[1] - middle)) / 2, means[2] - middle])
    torch.testing.assert_close(leanings(examples, 2, WORDS), wanted)


@pytest.mark.parametrize("examples", [[], [pair(0, (3, 4), (4, 3))], [rating(0, (3,), liked=True)]])
def test_who_says_nothing_leans_nowhere(examples: list[Example]) -> None:
    assert not leanings(examples, 2, WORDS).any()


def test_opposite_tastes_start_apart_and_nobody_stays_where_they_were() -> None:
    answers = [((3, 4, 5, 6, 7), (8,)), ((9, 4, 10, 6), (8,)), ((5, 9, 10), (8,))]
    examples = [pair(user, *answer) for user in (0, 1) for answer in answers]
    examples += [replace(one, user=2, answers=one.answers[::-1]) for one in examples[:3]]
    users = SoftUsers("individual", 3, WORDS, tokens=2, clusters=1, seed=0)
    generic = users([GENERIC])
    users.lean(2 * leanings(examples, 3, WORDS))
    apart = users([0, 1, 2]) - users([GENERIC])
    assert torch.equal(users([GENERIC]), generic)
    torch.testing.assert_close(apart[0], apart[1])
    torch.testing.assert_close(apart[0], -apart[2])
    torch.testing.assert_close(apart.norm(dim=2), torch.full((3, 2), 2 * float(WORDS.norm(dim=1).mean())))


@pytest.mark.parametrize("method", ["p-dpo", "p-rm"])
def test_a_training_starts_there(tmp_path: Path, tiny_model: Path, method: Any) -> None:
    still = OptimizerSettings(lr=1e-9, user_lr=1e-9)
    trained = train(method, tmp_path / "run", tiny_model, config=settings(1, lean=2.0, optimizer=still))
    model = load_trainable(str(tiny_model), dtype="float32")
    users = SoftTable.open(trained, model.reader.width)
    assert users is not None
    ann, bob = (torch.tensor(users.own(user)) for user in ("ann", "bob"))
    for rows in (ann, bob):
        torch.testing.assert_close(rows, rows[:1].expand_as(rows))
    lengths = torch.stack([ann[0], bob[0]]).norm(dim=1)
    size = model.reader.embeddings.weight.norm(dim=1).mean()
    torch.testing.assert_close(lengths.mean(), 2 * size)
    assert float(torch.nn.functional.cosine_similarity(ann[0], bob[0], dim=0)) < -0.9


@pytest.mark.parametrize("users", ["cluster", "none"])
def test_without_rows_of_their_own_users_cannot_lean(users: Any) -> None:
    with pytest.raises(BadInputError, match="there are no rows of users' own to start"):
        PDPOConfig(users=users, lean=1.0)
