"""Ours against a step written plainly (naive_preferences.py): the same losses and gradients in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from naive_preferences import Naive, Text, last_states, sums
from penname.methods.prlhf import jobs
from penname.methods.prlhf.answers import Answers, Question
from penname.methods.prlhf.jobs import (
    Example,
    PreferenceJob,
    judge_pairs,
    judge_ratings,
    judge_sparse,
)
from penname.methods.prlhf.losses import gap, sparse_gap
from penname.methods.prlhf.users import GENERIC, Kind, SoftUsers
from penname.train import likelihood
from penname.train.likelihood import token_log_probs
from penname.train.model import Trainable, load_trainable
from penname.train.packed import PackedReader, Tree

VOCABULARY = 250  # ids below it are drawn
USERS, ROWS, CLUSTERS = 3, 4, 2
BETA, ALPHA = 0.3, 0.4
LARGE = 10**6  # tokens: everything in one portion


@pytest.fixture(scope="module")
def lora(tiny_model: Path) -> Trainable:
    """LoRA over the tiny model with values that matter: at the start B is 0, and A has no gradient."""
    model = load_trainable(str(tiny_model), dtype="float32")
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for one in model.parameters.values():
            one.add_(torch.randn(one.shape, generator=chance) * 0.1)
    return model


@contextmanager
def plain(reader: PackedReader) -> Iterator[Any]:
    """The same model with transformers' own attention, which takes padding masks."""
    own = reader.base.config._attn_implementation
    reader.base.set_attn_implementation("sdpa")
    try:
        yield reader.model
    finally:
        reader.base.set_attn_implementation(own)


def drawn(chance: np.random.Generator, most: int = 9) -> tuple[int, ...]:
    return tuple(int(one) for one in chance.integers(0, VOCABULARY, size=chance.integers(1, most + 1)))


def pairs(count: int = 7, seed: int = 0) -> list[Example]:
    """Every second one asks what the one before it asks, one has no user, answers may be of one token."""
    chance = np.random.default_rng(seed)
    made: list[Example] = []
    for place in range(count):
        prompt = made[-1].prompt if place % 2 else drawn(chance, 12)
        user = GENERIC if place == 2 else int(chance.integers(USERS))
        made.append(Example(user, prompt, (drawn(chance), drawn(chance)), (0.0, 0.0)))
    # An answer that was both chosen and rejected: read once by ours.
    return [*made, replace(made[0], answers=made[0].answers[::-1])]


def ratings(count: int = 7, seed: int = 1) -> list[Example]:
    rated = []
    for place, pair in enumerate(pairs(count, seed)):
        other = pair.answers[1]
        liked, weight = place % 3 > 0, 1 - place / 20
        rated.append(Example(pair.user, pair.prompt, pair.answers[:1], (0.0,), liked, weight, other=other))
    return rated


def with_reference(examples: Sequence[Example], model: Trainable) -> list[Example]:
    """The reference read our way: packed, once, without soft prompts."""
    answers = Answers(model.reader)

    def ask(prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
        return float(answers.values([Question(GENERIC, prompt, answer)]))

    with torch.no_grad(), model.reader.model.disable_adapter():
        return [
            replace(
                one,
                reference=tuple(ask(one.prompt, answer) for answer in one.answers),
                other_reference=ask(one.prompt, one.other) if one.other else 0.0,
            )
            for one in examples
        ]


def soft_users(kind: Kind, model: Trainable) -> SoftUsers:
    """Users who differ."""
    users = SoftUsers(kind, USERS, model.reader.embeddings.weight, ROWS, CLUSTERS, seed=1)
    chance = torch.Generator().manual_seed(4)
    with torch.no_grad():
        users.own.weight.copy_(torch.randn(users.own.weight.shape, generator=chance) * 0.5)
        if kind == "cluster":
            users.generic.copy_(torch.randn(users.generic.shape, generator=chance))
    return users


def gradients(parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """What the last backward passes left, which is then forgotten."""
    found = {}
    for name, one in parameters.items():
        grad = torch.zeros_like(one) if one.grad is None else one.grad
        found[name] = grad.to_dense() if grad.is_sparse else grad
        one.grad = None
    return found


def assert_close(ours: torch.Tensor, naive: torch.Tensor, name: str = "") -> None:
    """Within 1e-4 of the largest value."""
    apart, size = (float(one.detach().abs().max()) for one in (ours - naive, naive))
    assert apart <= 1e-4 * size + 1e-9, f"{name}: {apart:.2e} apart, of at most {size:.2e}"


def assert_same(ours: Mapping[str, torch.Tensor], naive: Mapping[str, torch.Tensor]) -> None:
    assert ours.keys() == naive.keys()
    for name, grad in naive.items():
        assert_close(ours[name], grad, name)


def step(job: PreferenceJob) -> dict[str, float]:
    total: dict[str, float] = {}
    for portion in job.backward(range(job.size)):
        for name, value in portion.items():
            total[name] = total.get(name, 0.0) + value
    return total


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "kto"])
@pytest.mark.parametrize("kind", ["individual", "cluster", "vanilla"])
def test_losses_and_gradients_are_those_of_the_plain_step(
    lora: Trainable, kind: Any, loss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "CHUNK", 5)  # several chunks, the last one not full
    examples = with_reference(ratings() if loss == "kto" else pairs(), lora)
    users = None if kind == "vanilla" else soft_users(kind, lora)
    if users is None:
        examples = [replace(one, user=GENERIC) for one in examples]
    parameters = {**lora.parameters, **(users.trained() if users else {})}
    judge = judge_ratings(BETA) if loss == "kto" else judge_pairs(BETA, loss)
    job = PreferenceJob(Answers(lora.reader, users), judge, examples, (), alpha=ALPHA, portion=LARGE)
    found = step(job)
    ours = gradients(parameters)
    with plain(lora.reader) as model:
        naive = Naive(model, users=users and users.trained(), tokens=ROWS)
        expected = naive.loss(examples, loss=loss, alpha=ALPHA, beta=BETA)
        expected.backward()
    assert found["loss"] == pytest.approx(float(expected.detach()), rel=1e-4)
    naive_gradients = gradients(parameters)
    assert all(float(grad.abs().max()) > 0 for grad in naive_gradients.values())
    assert_same(ours, naive_gradients)


@pytest.mark.parametrize("kind", ["individual", "cluster", "vanilla"])
def test_a_reward_model_is_that_of_the_plain_step(lora: Trainable, kind: Any) -> None:
    examples = pairs()
    users = None if kind == "vanilla" else soft_users(kind, lora)
    head = torch.nn.Parameter(
        torch.randn(lora.reader.width, generator=torch.Generator().manual_seed(5)) * 0.1
    )
    parameters = {**lora.parameters, **(users.trained() if users else {}), "head": head}
    answers = Answers(lora.reader, users, head)
    job = PreferenceJob(answers, judge_pairs(1.0, "sigmoid"), examples, (), alpha=ALPHA, portion=60)
    found = step(job)
    ours = gradients(parameters)
    with plain(lora.reader) as model:
        naive = Naive(model, users=users and users.trained(), tokens=ROWS, head=head)
        expected = naive.loss(examples, alpha=ALPHA, beta=1.0)
        expected.backward()
    assert found["loss"] == pytest.approx(float(expected.detach()), rel=1e-4)
    assert_same(ours, gradients(parameters))


def test_all_weights_trained_have_the_plain_steps_gradients(tiny_model: Path) -> None:
    """Those of the head, too, and after a step, when policy and reference differ."""
    model = load_trainable(str(tiny_model), dtype="float32", weights="full")
    frozen = deepcopy(model.reader.model)
    frozen.set_attn_implementation("sdpa")
    examples = pairs()
    naive = Naive(frozen)
    filled = []
    for one in examples:
        texts = [Text(GENERIC, one.prompt, answer) for answer in one.answers]
        with torch.no_grad():
            filled.append(replace(one, reference=tuple(naive.log_probs(texts).tolist())))
    with torch.no_grad():  # one step on, so that policy and reference differ
        chance = torch.Generator().manual_seed(6)
        for weights in model.parameters.values():
            weights.add_(torch.randn(weights.shape, generator=chance) * 0.02)
    users = soft_users("individual", model)
    parameters = {**model.parameters, **users.trained()}
    judge = judge_pairs(BETA, "sigmoid")
    job = PreferenceJob(Answers(model.reader, users), judge, filled, (), alpha=ALPHA, portion=50)
    found = step(job)
    ours = gradients(parameters)
    with plain(model.reader) as trained:
        other = Naive(trained, reference=frozen, users=users.trained(), tokens=ROWS)
        expected = other.loss(examples, alpha=ALPHA, beta=BETA)
        expected.backward()
    assert found["loss"] == pytest.approx(float(expected.detach()), rel=1e-4)
    assert_same(ours, gradients(parameters))


@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_portions_do_not_change_a_step(lora: Trainable, loss: Any) -> None:
    examples = with_reference(ratings() if loss == "kto" else pairs(), lora)
    judge = judge_ratings(BETA) if loss == "kto" else judge_pairs(BETA, loss)
    users = soft_users("individual", lora)
    parameters = {**lora.parameters, **users.trained()}
    outcomes = []
    for portion in (1, 80, LARGE):
        answers = Answers(lora.reader, users)
        job = PreferenceJob(answers, judge, examples, (), alpha=ALPHA, portion=portion)
        outcomes.append((step(job), gradients(parameters)))
    for figures, grads in outcomes[:-1]:
        assert figures == pytest.approx(outcomes[-1][0], rel=1e-4)
        assert_same(grads, outcomes[-1][1])


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_side_without_a_share_is_left_out_rightly(lora: Trainable, alpha: float) -> None:
    examples = with_reference(pairs(), lora)
    users = soft_users("individual", lora)
    parameters = {**lora.parameters, **users.trained()}
    answers = Answers(lora.reader, users)
    job = PreferenceJob(answers, judge_pairs(BETA, "sigmoid"), examples, (), alpha=alpha, portion=LARGE)
    found = step(job)
    ours = gradients(parameters)
    with plain(lora.reader) as model:
        naive = Naive(model, users=users.trained(), tokens=ROWS)
        expected = naive.loss(examples, alpha=alpha, beta=BETA)
        expected.backward()
    assert found["loss"] == pytest.approx(float(expected.detach()), rel=1e-4)
    assert_same(ours, gradients(parameters))


def test_held_out_figures_are_the_plain_steps(lora: Trainable) -> None:
    examples = with_reference(pairs(), lora)
    users = soft_users("individual", lora)
    judge = judge_pairs(BETA, "sigmoid")
    job = PreferenceJob(Answers(lora.reader, users), judge, (), examples, alpha=ALPHA, portion=40)
    with torch.no_grad():
        found = job.evaluate()
        with plain(lora.reader) as model:
            naive = Naive(model, users=users.trained(), tokens=ROWS)
            expected = float(naive.loss(examples, alpha=ALPHA, beta=BETA))
            right = [float(naive.loss([one], alpha=1.0, beta=BETA)) < float(np.log(2)) for one in examples]
    assert found["loss"] == pytest.approx(expected, rel=1e-4)
    assert found["accuracy"] == pytest.approx(np.mean(right))


ids = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=7).map(tuple)
trees = st.builds(Tree, ids, st.lists(ids, min_size=1, max_size=3).map(tuple))


@settings(max_examples=40)
@given(st.lists(trees, min_size=1, max_size=4), st.booleans())
def test_trees_are_read_as_plain_texts_are(lora: Trainable, read: list[Tree], soft: bool) -> None:
    """With soft rows before each prompt, or without; branches of one token among them."""
    reader = lora.reader
    extra = torch.randn((ROWS, reader.width), generator=torch.Generator().manual_seed(7)) if soft else None
    rows = range(reader.vocabulary, reader.vocabulary + ROWS) if soft else ()
    laid = [Tree((*rows, *tree.prompt), tree.branches) for tree in read]
    texts = [Text(GENERIC, tree.prompt, branch) for tree in read for branch in tree.branches]
    before = None if extra is None else extra.expand(len(texts), -1, -1)
    with torch.no_grad():
        found = reader.log_probs(laid, extra), reader.last_hidden(laid, extra)
        with plain(reader) as model:
            expected = sums(model, before, texts, len(rows)), last_states(model, before, texts, len(rows))
    for ours, naive in zip(found, expected, strict=True):
        assert_close(ours, naive)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_log_probs_of_tokens_have_autograds_gradients(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "CHUNK", chunk)
    chance = torch.Generator().manual_seed(8)
    hidden = torch.randn((11, 6), generator=chance, requires_grad=True)
    head = torch.randn((20, 6), generator=chance, requires_grad=True)
    tokens = torch.randint(0, 20, (11,), generator=chance)
    weights = torch.randn(11, generator=chance)
    ours = token_log_probs(hidden, head, tokens)
    naive = (hidden @ head.T).log_softmax(-1)[torch.arange(11), tokens]
    assert_close(ours, naive)
    grads = [torch.autograd.grad(weights @ values, (hidden, head)) for values in (ours, naive)]
    for one, other in zip(*grads, strict=True):
        assert_close(one, other)


def test_log_probs_of_no_tokens_are_none() -> None:
    hidden, head = torch.ones((0, 6), requires_grad=True), torch.ones((20, 6), requires_grad=True)
    found = token_log_probs(hidden, head, torch.zeros(0, dtype=torch.long))
    found.sum().backward()
    assert found.shape == (0,)
    assert hidden.grad is not None
    assert head.grad is not None
    assert not head.grad.any()


def test_an_anchor_counts_what_the_chosen_answer_has_lost() -> None:
    examples = [
        Example(0, (1,), ((2, 3), (4,)), (-1.0, -2.0)),
        Example(0, (1,), ((2,), (4, 5)), (-1.5, -3.0)),
    ]
    values = torch.tensor([[-2.0, -1.0], [-0.5, -4.0]])
    plain, margins = judge_pairs(0.5, "sigmoid")(values, examples, 0.0)
    anchored, same = judge_pairs(0.5, "sigmoid", 3.0)(values, examples, 0.0)
    # The first has lost 1 nat: its gap of -2 counts as -5. The second has gained.
    assert float(anchored[0]) == pytest.approx(math.log(1 + math.exp(0.5 * 5)))
    assert float(anchored[1]) == float(plain[1])
    assert torch.equal(margins, same)


@pytest.mark.parametrize(("count", "weight"), [(1, 0.0), (3, 0.5), (100, 2.0)])
@pytest.mark.parametrize("kind", ["individual", "vanilla"])
def test_sparse_losses_and_gradients_are_those_of_plain_loops(
    lora: Trainable, kind: str, count: int, weight: float
) -> None:
    users = None if kind == "vanilla" else soft_users("individual", lora)
    plain_pairs = pairs() if users else [replace(one, user=GENERIC) for one in pairs()]
    answers = Answers(lora.reader, by_token=True)

    def ask(asked: Sequence[Any]) -> list[bytes]:
        questions = [Question(GENERIC, prompt, answer) for prompt, answer in asked]
        found = {place: row for some in answers.each_by_token(questions, 60) for place, row in some.items()}
        return [np.array(found[place], np.float32).tobytes() for place in range(len(questions))]

    with lora.reader.model.disable_adapter():
        examples = jobs.with_reference(plain_pairs, ask)
    for one, other in zip(examples, with_reference(plain_pairs, lora), strict=True):
        assert one.reference == pytest.approx(other.reference, rel=1e-5)
    parameters = {**lora.parameters, **(users.trained() if users else {})}
    judge = judge_sparse(BETA, "sigmoid", count, weight)
    reader = Answers(lora.reader, users, by_token=True)
    found = step(PreferenceJob(reader, judge, examples, (), alpha=ALPHA, portion=60))
    ours = gradients(parameters)
    with plain(lora.reader) as model:
        naive = Naive(model, users=users and users.trained(), tokens=ROWS)
        expected = naive.sparse_loss(examples, count=count, weight=weight, beta=BETA, alpha=ALPHA)
        expected.backward()
    assert found["loss"] == pytest.approx(float(expected.detach()), rel=1e-4)
    assert_same(ours, gradients(parameters))
    job = PreferenceJob(
        Answers(lora.reader, users), judge_pairs(BETA, "sigmoid"), (), examples, alpha=1.0, portion=60
    )
    told = PreferenceJob(reader, judge, (), examples, alpha=1.0, portion=60)
    with torch.no_grad():
        assert told.evaluate()["accuracy"] == job.evaluate()["accuracy"]  # by the gap of all tokens


def test_of_the_rejected_answer_the_tokens_that_lost_most_count() -> None:
    chosen = torch.tensor([[0.5, -1.0, 0.0], [2.0, 0.0, 0.0]])
    rejected = torch.tensor([[-3.0, 0.5, -1.0, -0.5], [-0.25, 0.0, 0.0, 0.0]])
    there = torch.tensor([[True, True, True, True], [True, False, False, False]])
    by_two, lost = sparse_gap(chosen, rejected, there, 2)
    assert by_two.tolist() == [0.5 - 1 + 3 + 1, 2 + 0.25]
    assert lost.tolist() == [1 + 0.5, 0]
    zeros = torch.zeros(2)
    everything = gap(chosen.sum(1), rejected.sum(1), zeros, zeros)
    assert torch.equal(sparse_gap(chosen, rejected, there, 9)[0], everything)
