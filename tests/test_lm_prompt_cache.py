"""What prompts begin with is kept for its owner alone, and changes no text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penname.lm import ModelConfig
from penname.lm.base import Asked, Generation, Owner, Prefix, Sampling
from penname.lm.local import TransformersLM
from penname.lm.network import Network
from penname.lm.prompt_cache import PromptCache
from penname.lm.session import Session

GREEDY = Sampling(max_tokens=6, temperature=0)
DRAWN = Sampling(max_tokens=6, temperature=1, top_p=0.9, seed=5)
SOFT = {
    key: Prefix(key, np.random.default_rng(seed).normal(0, 0.6, (4, 32)).astype(np.float32))
    for seed, key in enumerate(("soft", "softer"))
}
ONE = 2 * 2 * 4  # bytes of one token: keys and values of two heads, one number each


# --- without a model


def layers(ids: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of a layer whose keys are the ids."""
    keys = torch.tensor(ids, dtype=torch.float32)[None, :, None].expand(2, -1, 1)
    return [(keys, -keys)]


def owner(*users: str) -> Owner:
    return frozenset((user, len(user)) for user in users)


def known(cache: PromptCache, user: str, ids: Sequence[int], soft: str = "") -> int:
    """How many tokens of the prompt are known; they are what was kept."""
    found = cache.find(owner(user), soft, ids)
    if found is None:
        return 0
    [(keys, values)] = found.layers
    assert keys[0, : found.tokens, 0].tolist() == list(ids[: found.tokens])
    assert torch.equal(values, -keys)
    return found.tokens


def keep(cache: PromptCache, user: str, ids: Sequence[int], soft: str = "") -> None:
    cache.keep(owner(user), soft, ids, layers(ids))


def test_the_longest_common_beginning_is_found_and_a_token_is_left() -> None:
    cache = PromptCache()
    keep(cache, "ann", [1, 2, 3, 4, 5, 6])
    keep(cache, "ann", [1, 2, 8, 9, 9, 9, 9])
    assert known(cache, "ann", [1, 2, 3, 4, 7]) == 4
    assert known(cache, "ann", [1, 2, 8, 9, 7]) == 4
    assert known(cache, "ann", [1, 2, 3, 4, 5, 6]) == 5
    assert known(cache, "ann", [1]) == 0
    assert known(cache, "ann", [5, 6]) == 0
    assert cache.find(owner(), "", [1, 2, 3]) is None
    cache.keep(owner(), "", [7, 8, 9], layers([7, 8, 9]))
    assert cache.size == 13 * ONE


def test_owners_groups_and_soft_prompts_share_nothing() -> None:
    cache = PromptCache()
    ids = [1, 2, 3, 4]
    cache.keep(owner("ann", "bob"), "", ids, layers(ids))
    keep(cache, "eve", ids, "soft")
    assert known(cache, "ann", ids) == known(cache, "bob", ids) == known(cache, "eve", ids) == 0
    assert cache.find(owner("bob", "ann"), "", ids) is not None


def test_what_a_prompt_repeats_is_kept_once() -> None:
    cache = PromptCache()
    keep(cache, "ann", [1, 2, 3, 4, 5, 6])
    keep(cache, "ann", [1, 2, 3, 9])  # half of it is the same
    assert cache.size == 4 * ONE
    assert known(cache, "ann", [1, 2, 3, 4, 5]) == 3
    keep(cache, "ann", [1, 2])
    assert known(cache, "ann", [1, 2, 3, 9, 9]) == 4
    keep(cache, "ann", [1, 7, 7, 7])
    assert cache.size == 8 * ONE


def test_what_was_used_longest_ago_goes_first_and_the_limit_holds() -> None:
    cache = PromptCache(limit=10 * ONE)
    for user in ("ann", "bob", "eve"):
        keep(cache, user, [1, 2, 3])
    assert known(cache, "ann", [1, 2, 3, 4]) == 3  # used
    keep(cache, "zoe", [1, 2, 3])
    assert [known(cache, user, [1, 2, 3, 4]) for user in ("ann", "bob", "eve", "zoe")] == [3, 0, 3, 3]
    keep(cache, "ann", range(20))  # larger than all that may be kept
    assert cache.size == 9 * ONE
    nothing = PromptCache(limit=0)
    keep(nothing, "ann", [1, 2, 3])
    assert nothing.size == 0


def test_forgotten_is_gone_and_does_not_come_back() -> None:
    cache = PromptCache()
    group = owner("ann", "bobby")
    keep(cache, "ann", [1, 2, 3])
    keep(cache, "bobby", [1, 2, 3])
    cache.keep(group, "", [1, 2, 3], layers([1, 2, 3]))
    cache.forget("ann", 3)
    assert cache.find(group, "", [1, 2, 3]) is None
    assert known(cache, "bobby", [1, 2, 3]) == 2
    keep(cache, "ann", [1, 2, 3])  # was being written
    cache.keep(group, "", [1, 2, 3], layers([1, 2, 3]))
    assert cache.size == 3 * ONE
    namesake = frozenset({("ann", 77)})
    cache.keep(namesake, "", [1, 2, 3], layers([1, 2, 3]))
    assert cache.find(namesake, "", [1, 2, 3]) is not None
    cache.clear()
    assert cache.size == 0
    keep(cache, "bobby", [1, 2, 3])
    assert known(cache, "bobby", [1, 2, 3]) == 2


def test_who_was_erased_elsewhere_is_swept_out() -> None:
    cache = PromptCache()
    for users in (("ann",), ("bobby",), ("ann", "bobby"), ("eve",)):
        cache.keep(owner(*users), "", [1, 2, 3], layers([1, 2, 3]))
    asked_of: list[object] = []

    def there(users: object) -> dict[str, int]:
        asked_of.append(users)
        return {"bobby": 5, "eve": 99}  # who is called eve now is another one

    cache.sweep(there)
    assert asked_of == [{"ann", "bobby", "eve"}]
    assert known(cache, "bobby", [1, 2, 3]) == 2
    assert cache.size == 3 * ONE


def test_what_is_kept_is_a_copy() -> None:
    cache = PromptCache()
    keys = torch.arange(3.0)[None, :, None].repeat(2, 1, 1)
    cache.keep(owner("ann"), "", [0, 1, 2], [(keys, -keys)])
    keys.zero_()
    assert known(cache, "ann", [0, 1, 2]) == 2


@given(
    asked=st.lists(
        st.tuples(
            st.sampled_from(["ann", "bob"]),
            st.sampled_from(["", "soft"]),
            st.lists(st.integers(0, 2), min_size=1, max_size=6),
        ),
        max_size=20,
    ),
    limit=st.integers(0, 12),
)
def test_what_is_found_was_kept_of_the_same_owner(
    asked: list[tuple[str, str, list[int]]], limit: int
) -> None:
    cache = PromptCache(limit * ONE)
    for number, (user, soft, ids) in enumerate(asked):
        tokens = known(cache, user, ids, soft)
        own = [kept for who, what, kept in asked[:number] if (who, what) == (user, soft)]
        assert tokens < len(ids)
        assert not tokens or any(kept[:tokens] == ids[:tokens] for kept in own)
        keep(cache, user, ids, soft)
        assert cache.size <= limit * ONE
        assert (known(cache, user, ids, soft) == len(ids) - 1) or len(ids) > limit


# --- with a model


@pytest.fixture(scope="module")
def weights(tiny_model: Path) -> TransformersLM:
    model = TransformersLM(ModelConfig(str(tiny_model), dtype="float32"))
    assert model._network.plain  # looked at before anything is counted
    return model


@pytest.fixture
def model(weights: TransformersLM) -> TransformersLM:
    """With nothing kept."""
    weights.prompts = PromptCache()
    return weights


def asked(
    model: TransformersLM, prompt: str, *users: str, sampling: Sampling = GREEDY, soft: str | None = None
) -> Asked:
    prefix = None if soft is None else SOFT[soft]
    return Asked(prompt, sampling, prefix, owner=owner(*users))


def written(session: Session, texts: Sequence[Asked]) -> list[Generation]:
    for text in texts:
        session.add(text)
    whole: dict[Asked, Generation] = {}
    while len(session):
        whole.update((text, came) for text, came in session.step() if isinstance(came, Generation))
    return [whole[text] for text in texts]


HEAD = "the cat sat on the mat and the dog lay on the log. " * 3


def test_only_the_rest_is_read_of_an_owners_own(model: TransformersLM, read: list[tuple[int, int]]) -> None:
    def tokens(end: str, *users: str, soft: str | None = None) -> int:
        read.clear()
        written(model.session(), [asked(model, HEAD + end, *users, soft=soft)])
        [(_, tokens)] = read
        return tokens

    whole = model.count(HEAD + "zebra")
    assert tokens("zebra", "ann") == whole
    assert tokens("zebra", "ann") == 1
    assert tokens("zebra", "bob") == whole
    assert tokens("zebra", "ann", "bob") == whole
    assert tokens("zebra") == tokens("zebra") == whole
    assert tokens("zebra", "ann", soft="soft") == whole + 4
    assert tokens("zebra", "ann", soft="softer") == whole + 4
    assert 1 < tokens("zebra and zebra", "ann", soft="soft") < 10


@settings(max_examples=15)
@given(
    rounds=st.lists(
        st.lists(
            st.tuples(
                st.sampled_from([HEAD, HEAD[:40], "zebra "]),
                st.sampled_from(["", "dog", "the cat and the dog", HEAD[3:50]]),
                st.sampled_from([("ann",), ("bob",), ("ann", "bob"), ()]),
                st.sampled_from([GREEDY, DRAWN]),
                st.sampled_from([None, None, "soft", "softer"]),
            ),
            min_size=1,
            max_size=4,
        ),
        max_size=4,
    ),
    limit=st.sampled_from([0, 30_000, 10**9]),  # a token takes 256 bytes
)
def test_texts_are_the_same_with_and_without(weights: TransformersLM, rounds: Any, limit: int) -> None:
    model = weights
    model.prompts = PromptCache(limit)
    session = model.session()
    for texts in rounds:
        mine = [
            asked(model, head + end, *users, sampling=sampling, soft=soft)
            for head, end, users, sampling, soft in texts
        ]
        alone = [model.generate([one.prompt], 1, one.sampling, [one.prefix])[0][0] for one in mine]
        assert written(session, mine) == alone
        assert model.prompts.size <= limit


def test_logits_are_the_same_up_to_rounding(model: TransformersLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    forward = Network.forward

    def watched(*rest: Any, **options: Any) -> Any:
        logits, cache = forward(*rest, **options)
        seen.append(logits[:, -1])
        return logits, cache

    texts = [asked(model, HEAD + end, "ann", soft=soft) for end, soft in (("dog", None), ("a log", "soft"))]
    written(model.session(), texts)
    monkeypatch.setattr(Network, "forward", watched)
    longer = [
        asked(model, f"{HEAD}{end}", "ann", soft=soft)
        for end, soft in (("dog lay", None), ("a cat sat on a log", "soft"), ("zebra", None))
    ]
    written(model.session(), longer)
    [with_it] = seen
    seen.clear()
    written(
        model.session(), [asked(model, str(one.prompt), soft=one.prefix and one.prefix.key) for one in longer]
    )
    [without] = seen
    assert torch.allclose(with_it, without, atol=1e-4)


def test_new_weights_know_nothing_of_the_old_ones(model: TransformersLM) -> None:
    written(model.session(), [asked(model, HEAD, "ann")])
    assert model.prompts.size
    name, weight = next(iter(model._network.model.named_parameters()))
    model.take({name: weight.detach()})
    assert not model.prompts.size


def test_a_model_that_is_not_plain_keeps_nothing(tiny_model: Path) -> None:
    model = TransformersLM(ModelConfig(str(tiny_model), dtype="float32"))
    model._network.__dict__["plain"] = False
    first, second = (written(model.session(), [asked(model, HEAD, "ann")]) for _ in range(2))
    assert first == second == model.generate([HEAD], 1, GREEDY)[0]
    assert not model.prompts.size
