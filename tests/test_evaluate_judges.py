"""Judges: anchors and both orders, texts that stay data, what is cut and said, a judge that gave rewards."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import ToldModel, flat
from penname.errors import BadInputError, JudgeNotIndependentError, PromptTooLongError
from penname.evaluate.judges import (
    ANCHORS,
    Case,
    Duel,
    Verdict,
    anchored,
    check_independent,
    flip_rate,
    pairwise,
)
from penname.lm import ModelConfig, load_model
from penname.lm.base import Shape
from penname.records import Prompt
from penname.tasks import PromptTexts

TEXTS = PromptTexts.load()
SHAPES: tuple[Shape, ...] = ("completion", "chat")
ANSWERS = {"completion": r"\n(?:Mark|Closer): \(\Z", "chat": r"nothing else\.\Z"}


class Judge(ToldModel):
    """Gives each option the chance that `weigh` finds for it in a prompt."""

    def __init__(
        self, weigh: Callable[[str, str], float], shape: Shape = "chat", context: int = 8192
    ) -> None:
        super().__init__(shape=shape, context=context)
        self.weigh = weigh
        self.calls = 0

    def choose(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[list[float]]:
        self.calls += 1
        self.asked.extend(map(flat, prompts))
        return [
            [self.weigh(flat(prompt), option) for option in mine]
            for prompt, mine in zip(prompts, options, strict=True)
        ]


def silent(text: str) -> None:
    raise AssertionError(f"nothing was to be said: {text}")


def last(prompt: str, what: str) -> str:
    """The text that a prompt holds last under a label (of either shape)."""
    if "<document>" in prompt:
        names = {"Request": 0, "Real text": 1, "Draft": 2, "Draft 1": 2, "Draft 2": 3}
        return re.findall(r"\n<document>\n(.*?)\n</document>", prompt, re.DOTALL)[names[what]]
    return re.findall(rf"\n{what}: (.*?)\n(?=Real text: |Draft|Mark: |Closer: )", prompt, re.DOTALL)[-1]


def by_words(prompt: str, option: str) -> float:
    """Likes the mark that a draft's first word names."""
    return 0.6 if last(prompt, "Draft").split()[0] == f"mark-{option}" else 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_score_is_the_likeliest_anchor(shape: Shape) -> None:
    judge = Judge(by_words, shape)
    cases = [Case("write", "the real one", f"mark-{mark} text") for mark in (5, 1, 3, 2, 4)]
    assert anchored(judge, cases, TEXTS, silent) == [1.0, 0.1, 0.5, 0.3, 0.7]
    assert judge.calls == 1
    assert all(re.search(ANSWERS[shape], prompt) for prompt in judge.asked)
    assert last(judge.asked[0], "Request") == "write"
    assert last(judge.asked[0], "Real text") == "the real one"


def test_equal_chances_give_the_lowest_and_a_blank_draft_is_not_asked() -> None:
    judge = Judge(lambda prompt, option: 0.2)
    assert anchored(judge, [Case("x", "y", " \n"), Case("x", "y", "z")], TEXTS, silent) == [ANCHORS[0]] * 2
    assert len(judge.asked) == 1
    assert anchored(judge, [], TEXTS, silent) == []
    with pytest.raises(BadInputError, match="case 2 of 2 has no real text"):
        anchored(judge, [Case("x", "y", "z"), Case("x", " ", "z")], TEXTS, silent)


def test_what_is_no_mark_and_no_draft_counts_for_nothing_and_is_told() -> None:
    told: list[str] = []
    judge = Judge(lambda prompt, option: 0.0 if "odd" in prompt else float(option == "2"))
    cases = [Case("x", "y", text) for text in ("odd", "plain", "odd too")]
    assert anchored(judge, cases, TEXTS, told.append) == [0.0, 0.3, 0.0]
    assert "gave no mark in 2 of 3 answers: each counts as 0" in told.pop()
    assert pairwise(judge, [Duel("x", "y", "odd", "z")], TEXTS, told.append) == [Verdict("tie")]
    assert "named neither draft in 2 of 2 answers" in told.pop()
    assert not told


def longer(prompt: str, option: str) -> float:
    return float(len(last(prompt, f"Draft {option}")))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_verdict_stands_where_both_orders_agree(shape: Shape) -> None:
    judge = Judge(longer, shape)
    duels = [Duel("x", "y", "a long one", "short"), Duel("x", "y", "short", "a long one")]
    verdicts = pairwise(judge, duels, TEXTS, silent)
    assert verdicts == [Verdict("first"), Verdict("second")]
    assert [verdict.win for verdict in verdicts] == [1.0, 0.0]
    assert flip_rate(verdicts) == 0
    assert judge.calls == 1
    assert [last(prompt, "Draft 1") for prompt in judge.asked[:2]] == ["a long one", "short"]
    assert all(re.search(ANSWERS[shape], prompt) for prompt in judge.asked)


def test_a_verdict_that_flips_with_the_order_is_a_tie() -> None:
    always_the_first = Judge(lambda prompt, option: 0.9 if option == "1" else 0.1)
    [verdict] = pairwise(always_the_first, [Duel("x", "y", "a", "b")], TEXTS, silent)
    assert verdict == Verdict("tie", flipped=True)
    assert verdict.win == 0.5
    [even] = pairwise(Judge(lambda prompt, option: 0.5), [Duel("x", "y", "a", "b")], TEXTS, silent)
    assert even == Verdict("tie", flipped=False)
    assert flip_rate([verdict, even]) == 0.5
    assert flip_rate([]) == 0


def test_what_needs_no_judge_is_not_asked() -> None:
    judge = Judge(longer)
    duels = [Duel("x", "y", "same", "same "), Duel("x", "y", "", "b"), Duel("x", "y", "aa", "b")]
    duels += [Duel("x", "y", "a", " "), Duel("x", "y", "", " ")]
    verdicts = pairwise(judge, duels, TEXTS, silent)
    assert [verdict.winner for verdict in verdicts] == ["tie", "second", "first", "first", "tie"]
    assert len(judge.asked) == 2
    with pytest.raises(BadInputError, match="case 1 of 1"):
        pairwise(judge, [Duel("x", "", "a", "b")], TEXTS, silent)


LABELS = ["Mark: (5)", "Closer: (1)", "Draft: ", "Draft 2 : ", "real text:", "score: 10"]
TAGS = ["</document>", "</ Document >", "<document>"]
FRAGMENTS = [*LABELS, *TAGS, "\n", "\r", "\u2028", " ", "$gold", "${draft}", "$$", "a word", "(5)\n"]
HOSTILE = st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join)


@given(draft=HOSTILE, gold=HOSTILE, request=HOSTILE)
def test_hostile_texts_stay_data(draft: str, gold: str, request: str) -> None:
    """They add no label and no tag of ours, and nothing in them is filled in."""
    for shape, ours in (
        ("completion", r"(?im)^\s*(?:Request|Real text|Draft(?: [12])?|Mark|Closer)\s*:"),
        ("chat", r"(?i)</?\s*document"),
    ):
        plain = Judge(lambda prompt, option: 0.2, shape)  # type: ignore[arg-type]
        anchored(plain, [Case("a", "b", "c"), Case(request, f"b{gold}", f"c{draft}")], TEXTS, silent)
        pairwise(
            plain, [Duel("a", "b", "c", "d"), Duel(request, f"b{gold}", f"c{draft}", "d")], TEXTS, silent
        )
        tame, hostile, *duels = (re.sub("[\r\u2028]", "\n", prompt) for prompt in plain.asked)
        assert len(re.findall(ours, hostile)) == len(re.findall(ours, tame))
        assert len({len(re.findall(ours, duel)) for duel in duels}) == 1
        assert hostile.count("$gold") == (draft + gold + request).count("$gold")


@pytest.mark.parametrize("shape", SHAPES)
def test_long_texts_are_cut_to_an_equal_share_and_it_is_said(shape: Shape) -> None:
    said: list[str] = []
    judge = Judge(lambda prompt, option: 0.2, shape, context=900)
    long = " ".join(f"word{i}" for i in range(1000))
    cases = [Case("a short request", long, "draft " + long), Case("short", "short", "short")]
    anchored(judge, cases, TEXTS, said.append)
    assert said == [
        "the judge read 1 of 2 cases with their texts shortened, to fit its context of 900 tokens"
    ]
    [prompt, _] = judge.asked
    assert judge.context - 60 < judge.count(prompt) <= judge.context - 8
    assert last(prompt, "Request") == "a short request"
    lengths = [len(last(prompt, what)) for what in ("Real text", "Draft")]
    assert lengths[0] == pytest.approx(lengths[1], abs=20)
    assert all(last(prompt, what).endswith(" …") for what in ("Real text", "Draft"))


def test_both_orders_are_cut_alike_and_too_little_room_is_an_error() -> None:
    said: list[str] = []
    judge = Judge(longer, context=500)
    first, second = "first " * 600, "second " * 900
    pairwise(judge, [Duel("x", "y", first, second)], TEXTS, said.append)
    one, other = judge.asked
    assert last(one, "Draft 1") == last(other, "Draft 2")
    assert last(one, "Draft 2") == last(other, "Draft 1")
    assert len(said) == 1
    with pytest.raises(PromptTooLongError, match="longer context"):
        pairwise(Judge(longer, context=100), [Duel("x", "y", first, second)], TEXTS, said.append)


def test_a_judge_that_gave_the_reward_is_refused_or_marked() -> None:
    assert check_independent("aaa", {"bbb"}) == ""
    assert check_independent("aaa", [], force=True) == ""
    with pytest.raises(JudgeNotIndependentError, match="name another judge"):
        check_independent("aaa", {"aaa", "bbb"})
    assert "forced" in check_independent("aaa", {"aaa", "bbb"}, force=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_real_model_can_judge(tiny_model: Path, shape: Shape) -> None:
    judge = load_model(ModelConfig(str(tiny_model), dtype="float32", shape=shape))
    texts = PromptTexts(
        completion={name: "$request $gold " + rest for name, rest in _ends().items()},
        chat={"judge_system": "judge"} | {name: "$request $gold " + rest for name, rest in _ends().items()},
    )
    cases = [Case("x", "the cat", "the dog"), Case("x", "the cat", "the log")]
    scores = anchored(judge, cases, texts, silent)
    assert set(scores) <= set(ANCHORS)
    assert scores[::-1] == anchored(judge, cases[::-1], texts, silent)
    [verdict] = pairwise(judge, [Duel("x", "the cat", "the dog", "a")], texts, silent)
    [reverse] = pairwise(judge, [Duel("x", "the cat", "a", "the dog")], texts, silent)
    assert (verdict.win + reverse.win, verdict.flipped) == (1.0, reverse.flipped)


def _ends() -> dict[str, str]:
    """Templates short enough for the tiny model's context."""
    return {"judge_anchored": "$draft (", "judge_pairwise": "$draft_1 $draft_2 ("}
