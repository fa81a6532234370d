"""Rewards: each part against a plain calculation, weighted sums, and values that are computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate_helpers import Judge, Letters, day, document, request
from models import ToldModel, flat
from penname.errors import BadInputError, ModelError, PromptTooLongError, TrainedError, UnknownMetricError
from penname.evaluate.judges import ANCHORS, check_independent
from penname.evaluate.metrics import chrf, rouge, similarity
from penname.evaluate.reward_parts import Helpfulness, Lexical, Liked, Similarity
from penname.evaluate.rewards import BATCH, PARTS, SumReward, Term, parse_reward, reward_of
from penname.evaluate.scoring import learn_manner
from penname.lm.base import Prefix, Score, Shape
from penname.methods.restpg.examples import Answer, Reward
from penname.records import Prompt, Request
from penname.store import Store
from penname.tasks import PromptTexts, task
from stores import fresh

MANNERS = {
    "calm": "It is a quiet day; the sea is still, and we rest at home, as we like to do on day {}.",
    "loud": "WOW! What a day!! Did you see it?! I did! Number {}!!!",
    "dry": "Day {}. Rain. Wind. Nothing. Tea.",
}
REQUESTS = tuple(
    request(user, user, task="post", gold=manner.format(9), before=day(20))
    for user, manner in MANNERS.items()
)
WORDS = st.text("abc d.!", max_size=12)


class Overlap(ToldModel):
    """Finds each word of a completion the likelier, the more often its prompt has it."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.scored: list[tuple[str, str]] = []

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> list[Score]:
        pairs = [(flat(prompt), completion) for prompt, completion in zip(prompts, completions, strict=True)]
        self.scored += pairs
        return [score_of(*pair) for pair in pairs]


def score_of(prompt: str, completion: str) -> Score:
    per = tuple(-3.0 / (1 + prompt.split().count(word)) for word in completion.split())
    return Score(sum(per), len(per), per)


class Taste:
    """Likes exclamation marks, and the user `dry` the absence of them."""

    fingerprint = "taste-1"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.keys = ""

    def key(self, user: str) -> str:
        return self.keys

    def knows(self, user: str) -> bool:
        return True

    def rewards(
        self,
        prompts: Sequence[Prompt],
        texts: Sequence[str],
        users: Sequence[str | None],
        abouts: Sequence[str] | None = None,
    ) -> list[float]:
        self.asked += zip(map(flat, prompts), texts, strict=True)
        return [
            (-1 if user == "dry" else 1) * text.count("!") / 2
            for text, user in zip(texts, users, strict=True)
        ]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(fresh("sqlite", tmp_path)) as opened:
        for user, manner in MANNERS.items():
            opened.add_user(user).add(document(user, n, text=manner.format(n)) for n in range(1, 9))
        yield opened


@pytest.fixture
def make(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SumReward]:
    """A reward of the requests, with stand-ins for all models."""
    monkeypatch.setattr("penname.methods.prlhf.reward.open_reward", lambda folder: Taste())

    def made(spec: str, **more: Any) -> SumReward:
        given = {"model": Overlap(fingerprint="overlap-1"), "embedder": Letters(), "judge": Judge()}
        given |= {"store": store, "requests": REQUESTS, "kept": tmp_path / "kept.sqlite"}
        return reward_of(spec, **{**given, **more})

    return made


def answers(*texts: str, of: Request = REQUESTS[0]) -> list[Answer]:
    return [Answer(of, text) for text in texts]


def test_each_part_is_as_computed_naively(make: Callable[..., SumReward], store: Store) -> None:
    asked = [*answers("Quiet sea, quiet day.", "we rest", "WOW!"), *answers("Rain. Tea!", of=REQUESTS[2])]
    pairs = [(one.text, one.request.gold or "") for one in asked]
    manner = learn_manner(store, REQUESTS, task("post"))
    users = [one.request.users[0] for one in asked]
    texts = [one.text for one in asked]
    expected = {
        "rouge1": rouge(pairs)["rouge1"],
        "rougeL": rouge(pairs)["rougeL"],
        "chrf": [value / 100 for value in chrf(pairs)],
        "similarity": [max(0.0, value) for value in similarity(pairs, Letters())],
        "style": [
            1 / (1 + manner.style.distance(text, manner.texts[user]))
            for text, user in zip(texts, users, strict=True)
        ],
        "authorship": [manner.authorship.score(text, user) for text, user in zip(texts, users, strict=True)],
        "judge": [ANCHORS[2]] * 4,
        "p-rm": [1.0, 1.0, 1.0, 2 / (1 + math.exp(0.5))],
        "pmi": [],
    }
    for text, gold in pairs:
        alone = score_of("The text itself:", gold)
        after = score_of(f"A draft: {text}\n\nThe text itself:", gold)
        gain = (after.total - alone.total) / after.tokens
        expected["pmi"].append(1 - math.exp(-max(0.0, gain)))
    assert set(expected) == set(PARTS)
    for part, values in expected.items():
        assert make(part).rewards(asked) == pytest.approx(values), part


@pytest.mark.parametrize("part", PARTS)
def test_the_real_text_itself_has_the_highest_reward(make: Callable[..., SumReward], part: str) -> None:
    reward = make(part)
    for one in REQUESTS:
        gold, *others = reward.rewards(
            [Answer(one, text) for text in (one.gold or "", "Something else.", "Oh! Sea 7", "tea")]
        )
        assert gold >= max(others)
        if part in ("rouge1", "rougeL", "chrf", "similarity", "authorship", "p-rm"):
            assert gold == pytest.approx(1.0)


def test_words_are_compared_as_each_tasks_evaluation_does(make: Callable[..., SumReward]) -> None:
    gold = "hens wander in"
    plain, stems = (request("e", "ann", task=name, gold=gold) for name in ("LongLaMP-topic", "post"))
    found = make("rouge1").rewards([Answer(one, "the hens wandered") for one in (plain, stems)])
    pair = [("the hens wandered", gold)]
    assert found == [rouge(pair, stemmed=False)["rouge1"][0], rouge(pair)["rouge1"][0]]
    assert found[0] < found[1]


def test_a_sum_is_the_weighted_mean(make: Callable[..., SumReward]) -> None:
    asked = answers("Quiet sea.", "we rest at home")
    near, runs = make("similarity").rewards(asked), make("chrf").rewards(asked)
    reward = make(" similarity + 0.5 * chrf")
    assert reward.rewards(asked) == pytest.approx(
        [(a + 0.5 * b) / 1.5 for a, b in zip(near, runs, strict=True)]
    )
    assert reward.name == "similarity+0.5*chrf"
    protocol: Reward = reward
    assert protocol.judges == ("letters-1",)


@pytest.mark.parametrize(
    ("spec", "terms"),
    [
        ("judge", (Term("judge"),)),
        ("2*pmi + .5*style", (Term("pmi", 2.0), Term("style", 0.5))),
        ("p-rm", (Term("p-rm"),)),
        ("0.1*p-rm:a/b*c+rougeL", (Term("p-rm", 0.1, "a/b*c"), Term("rougeL"))),
        ("p-rm:a*b", (Term("p-rm", 1.0, "a*b"),)),
        ("p-rm:a+p-rm:b", (Term("p-rm", folder="a"), Term("p-rm", folder="b"))),
    ],
)
def test_what_is_asked_for_is_read(spec: str, terms: tuple[Term, ...]) -> None:
    assert parse_reward(spec) == terms
    assert parse_reward("+".join(map(str, terms))) == terms


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "lacks a part"),
        ("chrf+", "lacks a part"),
        ("0.5*", "lacks a part"),
        ("chrf+chrf", "names 'chrf' twice"),
        ("0*chrf", "the weight '0' of 'chrf' is no number above 0"),
        ("-1*chrf", "the weight '-1'"),
        ("nan*chrf", "the weight 'nan'"),
        ("inf*chrf", "the weight 'inf'"),
        ("half*chrf", "the weight 'half'"),
    ],
)
def test_what_cannot_be_read_is_said(spec: str, says: str) -> None:
    with pytest.raises(BadInputError, match=says):
        parse_reward(spec)


def test_an_unknown_part_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownMetricError, match=r"'similarty' \(did you mean 'similarity'"):
        parse_reward("chrf+similarty")
    with pytest.raises(UnknownMetricError, match="'judge:x'"):
        parse_reward("judge:x")


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(spec: str) -> None:
    try:
        terms = parse_reward(spec)
    except (BadInputError, UnknownMetricError):
        return
    assert all(term.part in PARTS and 0 < term.weight < math.inf for term in terms)


@given(
    st.lists(
        st.tuples(st.sampled_from(("rouge1", "chrf", "similarity", "pmi")), st.floats(1e-3, 1e3)), min_size=1
    ),
    st.lists(WORDS, max_size=4),
    WORDS.filter(str.strip),
)
def test_rewards_lie_between_0_and_1(terms: list[tuple[str, float]], texts: list[str], gold: str) -> None:
    one = request("e", "ann", task="post", gold=gold)
    parts = {"similarity": Similarity(Letters()), "pmi": Helpfulness(Overlap(), lambda _: None)}
    reward = SumReward(
        {Term(name, weight): parts.get(name) or Lexical(name) for name, weight in dict(terms).items()}, None
    )
    found = reward.rewards(answers(*texts, gold, of=one))
    assert all(0 <= value <= 1 for value in found)
    assert all(value == 0 for value, text in zip(found, texts, strict=False) if not text.strip())
    assert found[-1] >= max(found) - 1e-6 or "pmi" in dict(terms)


def test_each_value_is_computed_once(make: Callable[..., SumReward]) -> None:
    model = Overlap(fingerprint="overlap-1")
    asked = [*answers("a sea", "a sea ", "", "rest"), *answers("a sea", of=REQUESTS[1])]
    first = make("pmi", model=model).rewards(asked)
    assert first[0] == first[1]
    assert first[2] == 0
    assert len(model.scored) == 3 + 2, "three different answers, and two real texts alone"
    again = Overlap(fingerprint="overlap-1")
    assert make("chrf+pmi", model=again).rewards(asked[:3]) != first[:3]
    assert make("pmi", model=again).rewards(asked) == first
    assert again.scored == []
    assert make("pmi", model=again, kept=None).rewards(asked) == first
    other = Overlap(fingerprint="overlap-2")
    make("pmi", model=other).rewards(asked)
    assert len(other.scored) == 5


def test_a_kill_loses_the_batch_in_flight_alone(
    make: Callable[..., SumReward], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaks(Overlap):
        left = 2

        def score(self, *given: Any, **more: Any) -> list[Score]:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return super().score(*given, **more)

    asked = answers(*(f"sea {number}" for number in range(3 * BATCH)))
    broken = Breaks(fingerprint="overlap-1")
    with pytest.raises(KeyboardInterrupt):
        make("pmi", model=broken).rewards(asked)
    rest = Overlap(fingerprint="overlap-1")
    found = make("pmi", model=rest).rewards(asked)
    assert len(rest.scored) == BATCH + 1
    assert found == make("pmi", kept=None).rewards(asked)


def test_what_decides_a_value_decides_the_fingerprint(make: Callable[..., SumReward], store: Store) -> None:
    spec = "+".join(PARTS)

    class Words(Letters):
        fingerprint = "letters-2"

    changed = PromptTexts.load()
    changed.chat["judge_system"] += " Be kind."
    found = [
        make(spec),
        make(spec.replace("chrf", "2*chrf")),
        make(spec.replace("+chrf", "")),
        make(spec, model=Overlap(fingerprint="overlap-2")),
        make(spec, embedder=Words()),
        make(spec, judge=Judge("judge-2")),
        make(spec, texts=changed),
    ]
    same = make(spec)
    store.user("dry").add([document("dry", 9, text="Day 9. Snow.")])
    found.append(make(spec))
    assert len({one.fingerprint for one in found}) == len(found)
    assert same.fingerprint == found[0].fingerprint
    assert found[0].judges == ("letters-1", "overlap-1", "judge-1", "taste-1")
    with pytest.raises(BadInputError, match="also gave the reward"):
        check_independent("judge-1", found[0].judges)


def test_a_request_without_a_real_text_is_refused(make: Callable[..., SumReward]) -> None:
    for gold in (None, " \n"):
        one = request("nameless", "ann", gold=gold)
        with pytest.raises(BadInputError, match="the request 'nameless' has no real text"):
            make("chrf").rewards(answers("a text", of=one))


@pytest.mark.parametrize(
    ("part", "lacks"), [("similarity", "embedder"), ("pmi", "model"), ("judge", "judge")]
)
def test_a_part_without_its_model_is_refused(make: Callable[..., SumReward], part: str, lacks: str) -> None:
    with pytest.raises(BadInputError, match=f"'{part}' needs an? {lacks}"):
        make(part, **{lacks: None})


def test_a_judge_without_an_opinion_gives_all_the_lowest_mark(make: Callable[..., SumReward]) -> None:
    found = make("judge", judge=ToldModel()).rewards(answers("one", "two", " ", REQUESTS[0].gold or ""))
    assert found == [ANCHORS[0], ANCHORS[0], 0.0, ANCHORS[0]]


def test_the_judge_reads_the_instruction_the_input_and_both_texts(make: Callable[..., SumReward]) -> None:
    judge = Judge()
    make("judge", judge=judge).rewards(answers("an answer"))
    [prompt] = judge.asked_to_choose
    for part in (task("post").instruction, REQUESTS[0].input, REQUESTS[0].gold or "?", "an answer"):
        assert part in prompt


def test_what_a_trained_reward_likes_better_than_the_real_text_is_no_better(
    make: Callable[..., SumReward],
) -> None:
    loud, taste = REQUESTS[1], Taste()
    reward = SumReward({Term("p-rm"): Liked(taste)}, None)
    golds = (loud.gold or "").count("!")
    found = reward.rewards(answers("!" * (golds + 9), "!" * golds, "!" * (golds - 4), "none", of=loud))
    below = [2 / (1 + math.exp(apart / 2)) for apart in (4, golds)]
    assert found == pytest.approx([1.0, 1.0, *below])
    assert taste.asked.count((loud.input, loud.gold or "")) == 1
    both = request("both", "loud", "dry", task="post", gold="!!")
    assert reward.rewards(answers("!!!!", "none", of=both)) == [1.0, 1.0], "the users' tastes cancel out"
    far = request("far", "loud", task="post", gold="!" * 3000)
    assert reward.rewards(answers("none", of=far)) == [0.0]


def test_an_adapted_users_values_are_computed_anew(tmp_path: Path) -> None:
    taste = Taste()
    reward = SumReward({Term("p-rm"): Liked(taste)}, tmp_path / "kept.sqlite")
    for key, asked in (("", 2), ("", 2), ("adapted", 4)):
        taste.keys = key
        reward.rewards(answers("an answer"))
        assert len(taste.asked) == asked


def test_users_without_texts_are_left_out_of_manners_and_counted(
    make: Callable[..., SumReward], store: Store
) -> None:
    store.add_user("new").add([document("new", 1)])
    new = request("n", "new", task="post", gold="A real text.", before=day(20))
    group = request("g", "new", "dry", task="post", gold="Rain.", before=day(20))
    told: list[str] = []
    requests = [*REQUESTS, new, group]
    asked = [*answers("Tea.", of=new), *answers("Tea.", of=group), *answers("Tea.", "")]
    mixed = make("chrf+3*style", requests=requests, note=told.append).rewards(asked)
    assert told == [
        "style is left out of the reward of 1 of 3 answers: none of their authors has two texts of that kind "
        "from before"
    ]
    plain = make("chrf").rewards(asked)
    style = make("style", requests=requests).rewards(asked)
    assert mixed[0] == plain[0], "what is left counts in full"
    assert mixed[1] == pytest.approx((plain[1] + 3 * style[1]) / 4)
    assert style[0] == 0
    assert style[1] == make("style", requests=requests).rewards(answers("Tea.", of=REQUESTS[2]))[0], (
        "the first author with texts stands for all"
    )


def test_manners_are_learnt_from_before_the_first_example(
    make: Callable[..., SumReward], store: Store
) -> None:
    before = make("style+authorship").fingerprint
    store.user("calm").add([document("calm", 25, text="!!! WOW !!!")])
    assert make("style+authorship").fingerprint == before
    late = [one.model_copy(update={"before": day(30)}) for one in REQUESTS]
    assert make("style+authorship", requests=late).fingerprint != before


def test_manners_that_nobody_has_are_refused(make: Callable[..., SumReward]) -> None:
    with pytest.raises(BadInputError, match="reward of the task 'post': fewer than two users have 2 texts"):
        make("chrf+style", requests=REQUESTS[:1])


def test_values_are_counted_as_they_come(make: Callable[..., SumReward]) -> None:
    asked = answers(*(f"a text, number {n}" for n in range(70)), "", "a text, number 3")
    seen: list[tuple[int, int]] = []
    make("chrf+similarity").rewards(asked, lambda done, total: seen.append((done, total)))
    assert seen == [(n, 142) for n in (65, 71, 71, 136, 142, 142)]  # a batch is 64, and one text stands twice
    seen.clear()
    make("chrf+similarity").rewards(asked, lambda done, total: seen.append((done, total)))
    assert seen == [(71, 142), (142, 142)]  # all were kept


class Talker(Judge):
    """Says something that is no mark of drafts that mention the tide."""

    def choose(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[list[float]]:
        found = super().choose(prompts, options)
        return [
            [0.0] * len(chances) if "the tide" in flat(prompt) else chances
            for prompt, chances in zip(prompts, found, strict=True)
        ]


def test_what_a_judge_gives_no_mark_has_no_reward(make: Callable[..., SumReward]) -> None:
    told: list[str] = []
    reward = make("judge", judge=Talker(), note=told.append, kept=None)
    assert reward.rewards(answers("a plain one", "of the tide")) == [ANCHORS[2], 0.0]
    assert reward.rewards(answers("the tide again", "the tide at last", "calm")) == [0.0, 0.0, ANCHORS[2]]
    assert len(told) == 1
    assert "gave no mark in 1 of 2 answers: each counts as 0" in told[0]


def test_how_far_authorship_can_be_trusted_is_told(make: Callable[..., SumReward]) -> None:
    told: list[str] = []
    make("authorship", note=told.append)
    assert len(told) == 1
    assert told[0].startswith("post: the authorship classifier knows 3 users")


@pytest.mark.parametrize("shape", ["completion", "chat"])
def test_texts_that_do_not_fit_are_cut_for_pmi(make: Callable[..., SumReward], shape: Shape) -> None:
    told: list[str] = []
    long = request("long", "ann", task="post", gold=" ".join(f"g{n}" for n in range(100)))
    model = Overlap(shape=shape, context=60)
    found = make("pmi", model=model, note=told.append, kept=None).rewards(
        answers(" ".join(f"d{n}" for n in range(100)), "short", of=long)
    )
    assert all(0 <= value <= 1 for value in found)
    assert len(told) == 1
    assert "pmi: texts were cut" in told[0]
    alone, cut, short = model.scored
    assert alone[1] == cut[1] == short[1], "one and the same beginning of the real text"
    assert 40 < sum(len(part.split()) for part in cut) <= 60
    with pytest.raises(PromptTooLongError, match="3 tokens, too few"):
        make("pmi", model=Overlap(shape=shape, context=3), kept=None).rewards(answers("x", of=long))


@pytest.mark.parametrize("shape", ["completion", "chat"])
def test_an_answer_is_data_for_pmi(make: Callable[..., SumReward], shape: Shape) -> None:
    model = Overlap(shape=shape)
    make("pmi", model=model, kept=None).rewards(answers("Hm.\nThe text itself: sea</document> go"))
    prompt = model.scored[1][0]
    if shape == "chat":
        assert prompt.count("</document>") == 1
    else:
        assert prompt.count("\nThe text itself:") == prompt.count("> The text itself:") == 1


def test_what_is_no_number_is_refused_and_not_kept(make: Callable[..., SumReward]) -> None:
    class Broken(Overlap):
        def score(self, prompts: Any, completions: Any, prefixes: Any = None) -> list[Score]:
            return [Score(math.nan, 1, (math.nan,)) for _ in prompts]

    for _ in range(2):
        with pytest.raises(ModelError, match="the reward pmi came out as nan"):
            make("pmi", model=Broken()).rewards(answers("a text"))


def test_a_damaged_file_is_named(make: Callable[..., SumReward], tmp_path: Path) -> None:
    (tmp_path / "kept.sqlite").write_bytes(b"not a database at all, and long enough to be read as one" * 50)
    with pytest.raises(TrainedError, match=r"kept\.sqlite: .*: remove it, and it is made again"):
        make("chrf").rewards(answers("a text"))
    with pytest.raises(TrainedError, match="cannot be read or written now"):
        make("chrf", kept=tmp_path / "no" / "such" / "folder").rewards(answers("a text"))


def test_a_missing_run_is_no_reward(store: Store, tmp_path: Path) -> None:
    with pytest.raises(TrainedError):
        reward_of(f"p-rm:{tmp_path / 'none'}", store=store, requests=REQUESTS)
