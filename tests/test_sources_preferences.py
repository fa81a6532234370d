"""The sources `psoups`, `tldr`, `personalllm` and `trl`, on small files in the official formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penname.errors import BadInputError
from penname.records import BadRow, Item, Preference, User
from penname.sources import read
from penname.sources._conversation import Turn, flatten, turns_of
from sources_helpers import bad, json_lines, of


def pairs(items: list[Item]) -> list[tuple[str, str, str | None, str | None]]:
    return [(each.user, each.prompt, each.chosen, each.rejected) for each in of(Preference, items)]


# --- psoups

SOUP = {"user_input": "Explain rain.", "completion_a": "Clouds cry.", "completion_b": "Condensation."}


@pytest.mark.parametrize(
    ("name", "user"),
    [("P1A.json", "P1A"), ("rm_p3d_10k.jsonl", "P3D"), ("pref2B.json", "P2B"), ("1A.json", "P1A")],
)
def test_psoups_files_are_named_for_their_user(tmp_path: Path, name: str, user: str) -> None:
    (tmp_path / name).write_text(json.dumps([SOUP]) if name.endswith(".json") else json.dumps(SOUP) + "\n")
    for path in (tmp_path, tmp_path / name):
        items = list(read("psoups", path, prefix="s/"))
        assert pairs(items) == [(f"s/{user}", "Explain rain.", "Clouds cry.", "Condensation.")]


def test_psoups_users_of_rows_and_of_the_option(tmp_path: Path) -> None:
    (tmp_path / "allcombo_8_cleaned.json").write_text(json.dumps([SOUP | {"user_id": 3}, SOUP]))
    items = list(read("psoups", tmp_path))
    assert [each.user for each in of(Preference, items)] == ["3"]
    assert "give the author" in bad(items)[0]
    items = list(read("psoups", tmp_path, author="ann"))
    assert [each.user for each in of(Preference, items)] == ["3", "ann"]


def test_psoups_bad_rows(tmp_path: Path) -> None:
    rows = [
        {"user_input": "x"},
        SOUP | {"completion_b": "Clouds cry."},
        SOUP | {"completion_a": 5},
        "{",
        SOUP,
    ]
    items = list(read("psoups", json_lines(tmp_path / "P1A.jsonl", rows)))
    assert [type(item) for item in items] == [BadRow] * 4 + [Preference]
    assert "no field 'completion_a'" in bad(items)[0]
    assert "the same text" in bad(items)[1]
    with pytest.raises(BadInputError, match=r"no \*\.json"):
        list(read("psoups", (tmp_path / "empty", (tmp_path / "empty").mkdir())[0]))


# --- tldr


def comparison(**other: Any) -> dict[str, Any]:
    return {
        "info": {"id": "t3_x", "post": "My clock stopped.", "title": "Clock?", "subreddit": "clocks"},
        "summaries": [
            {"text": " clock stopped", "policy": "sup1", "note": None},
            {"text": " my clock has stopped, what now", "policy": "ref", "note": "A clock."},
        ],
        "choice": 1, "worker": "w1", "batch": "batch3", "split": "train", "extra": {"confidence": 8},
    } | other  # fmt: skip


POST = "SUBREDDIT: r/clocks\n\nTITLE: Clock?\n\nPOST: My clock stopped.\n\nTL;DR:"


def test_tldr_comparisons(tmp_path: Path) -> None:
    news = {"id": "n", "site": "s", "title": "T", "article": "A clock was found."}
    rows = [
        comparison(),
        comparison(choice=0, worker="w2", split="valid1"),
        comparison(info=news, split="valid2"),
    ]
    json_lines(tmp_path / "batch3.json", rows[:2])
    json_lines(tmp_path / "cnndm0.json", rows[2:])
    long, short = "my clock has stopped, what now", "clock stopped"
    assert pairs(list(read("tldr", tmp_path, prefix="t/"))) == [
        ("t/w1", POST, long, short),
        ("t/w2", POST, short, long),
        ("t/w1", "Article:\nA clock was found.\n\nTL;DR:", long, short),
    ]
    assert pairs(list(read("tldr", tmp_path, split="valid1"))) == [("w2", POST, short, long)]
    with pytest.raises(BadInputError, match=r"no row of the split 'test' .*train, valid1, valid2"):
        list(read("tldr", tmp_path, split="test"))


def test_tldr_bad_rows(tmp_path: Path) -> None:
    summary = {"text": "x", "policy": "ref", "note": "", "axes": {"overall": 3}}
    rows = [
        {"info": {"id": "1"}, "split": "test", "summary": summary, "worker": "w"},  # an axis evaluation
        comparison(choice=2),
        comparison(choice=True),
        comparison(choice=None),
        comparison(summaries=[{"text": "x"}]),
        comparison(summaries=[{"text": "x"}, {}]),
        comparison(summaries=[{"text": "x"}, {"text": " x "}]),
        comparison(worker=""),
        comparison(info={"id": "1", "title": "t"}),
        comparison(info="post"),
    ]
    items = list(read("tldr", json_lines(tmp_path / "batch3.json", rows)))
    assert len(bad(items)) == len(items) == len(rows)
    assert [item.line for item in of(BadRow, items)] == list(range(1, len(rows) + 1))
    assert "no field 'summaries'" in bad(items)[0]
    assert "the choice is 0 or 1, not 2" in bad(items)[1]


# --- trl

ASK, GOOD, POOR = ({"role": "user", "content": "Time?"}, {"role": "assistant", "content": "Noon."},
                   {"role": "assistant", "content": "Who knows."})  # fmt: skip
SYSTEM = {"role": "system", "content": "Be kind."}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Time?", "chosen": "Noon.", "rejected": "Who knows."}, ("Time?", "Noon.", "Who knows.")),
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": [POOR]}, ("Time?", "Noon.", "Who knows.")),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, POOR]}, ("Time?", "Noon.", "Who knows.")),
        ({"chosen": "Time? Noon.", "rejected": "Time? No."}, ("", "Time? Noon.", "Time? No.")),
        (
            {"prompt": [SYSTEM, ASK], "chosen": [GOOD, ASK, GOOD], "rejected": [POOR]},
            (
                "system: Be kind.\n\nuser: Time?",
                "assistant: Noon.\n\nuser: Time?\n\nassistant: Noon.",
                "Who knows.",
            ),
        ),
    ],
)
def test_trl_pairs(tmp_path: Path, row: dict[str, Any], expected: tuple[str, str, str]) -> None:
    (tmp_path / "train.json").write_text(json.dumps([row | {"user_id": "u"}]))
    assert pairs(list(read("trl", tmp_path, split="train"))) == [("u", *expected)]


def test_trl_ratings_ids_and_the_users_field(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "prompt": [ASK], "completion": [GOOD], "label": True, "who": 5},
        {"id": 2, "prompt": "Time?", "completion": "Who knows.", "label": False, "who": "ann"},
    ]
    items = of(Preference, read("trl", json_lines(tmp_path / "t.jsonl", rows), user_field="who", prefix="x/"))
    assert [(each.id, each.user, each.prompt, each.completion, each.rating) for each in items] == [
        ("x/1", "x/5", "Time?", "Noon.", 1.0),
        ("x/2", "x/ann", "Time?", "Who knows.", -1.0),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "x", "chosen": "y"}, "no field 'rejected'"),
        ({"prompt": "x", "chosen": "y", "rejected": "y"}, "the same text"),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, GOOD]}, "the same text"),
        ({"prompt": "x", "completion": "y"}, "no field 'label'"),
        ({"prompt": "x", "completion": "y", "label": 1}, "true or false, not 1"),
        ({"prompt": "x"}, "no field 'completion'"),
        ({"prompt": [{"role": "user"}], "chosen": "y", "rejected": "z"}, "has no 'content'"),
        ({"prompt": ["x"], "chosen": "y", "rejected": "z"}, "no object with a 'role'"),
        ({"chosen": [ASK], "rejected": "z"}, "'rejected' is no list of messages"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "y", "rejected": "z"},
            "no text",
        ),
        ({"prompt": "x", "chosen": "y", "rejected": "z", "user_id": None}, "no user"),
    ],
)
def test_trl_bad_rows(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    good = {"prompt": "x", "chosen": "y", "rejected": "z", "user_id": "u"}
    items = list(read("trl", json_lines(tmp_path / "t.jsonl", [{"user_id": "u"} | row, good])))
    assert [type(item) for item in items] == [BadRow, Preference]
    assert reason in bad(items)[0]


TURNS = st.lists(
    st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text("ab\n", max_size=4)), max_size=4
)


@given(turns=TURNS)
def test_a_conversation_keeps_every_word_in_order(turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    read_back = turns_of(messages, "prompt")
    assert read_back == [Turn(*turn) for turn in turns]
    text = flatten(read_back)
    assert text == (turns[0][1] if len(turns) == 1 and turns[0][0] == "user" else text)
    place = 0
    for _, content in turns:
        place = text.index(content, place) + len(content)


# --- personalllm

MODELS = ("beaver_7b", "gemma_2b", "gemma_7b", "llama3_sfairx", "mistral_raft", "mistral_ray",
          "mistral_weqweasdas", "oasst_deberta_v3", "oasst_pythia_1b", "oasst_pythia_7b")  # fmt: skip


def scored(number: int, draw: np.random.Generator) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": f"Question {number}?", "prompt_id": number, "subset": "own"}
    for response in range(1, 9):
        row |= {f"response_{response}": f"Answer {number}.{response}", f"response_{response}_model": "m"}
        row |= {f"response_{response}_{model}": float(draw.normal(3, 2)) for model in MODELS}
    return row


@pytest.fixture
def table(tmp_path: Path) -> Path:
    draw = np.random.default_rng(1)
    return json_lines(tmp_path / "train.jsonl", [scored(number, draw) for number in range(60)])


def test_personalllm_users_choose_by_their_weights(table: Path) -> None:
    items = list(read("personalllm", table, users=30, alpha=0.01, seed=3, prefix="s/"))
    users = of(User, items)
    assert [user.id for user in users] == [f"s/user-{number:04d}" for number in range(30)]
    rows = {row["prompt"]: row for row in map(json.loads, table.read_text().splitlines())}
    checked = 0
    for user in users:
        own = [each for each in of(Preference, items) if each.user == user.id]
        assert 25 <= len(own) <= 49
        assert len({each.id for each in own}) == len(own)
        model, weight = user.name.split(",")[0].split()
        if weight != "1.00":
            continue
        checked += len(own)
        for each in own:  # such a user follows one model's score
            row = rows[each.prompt]
            score = {row[f"response_{n}"]: row[f"response_{n}_{model}"] for n in range(1, 9)}
            assert score[each.chosen] > score[each.rejected]
    assert checked > 100


def test_personalllm_is_the_same_for_the_same_seed(table: Path) -> None:
    first, again, other = (list(read("personalllm", table, users=3, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    more = list(read("personalllm", table, users=5, seed=1))  # further users leave the first ones as they are
    mine = {each.id for each in of(Preference, first) if each.user == "user-0000"}
    assert mine == {each.id for each in of(Preference, more) if each.user == "user-0000"}


def test_personalllm_bad_rows_and_numbers(table: Path) -> None:
    rows = [json.loads(line) for line in table.read_text().splitlines()[:4]]
    del rows[0]["response_3_gemma_2b"]
    rows[1]["response_8_beaver_7b"] = "high"
    rows[2]["prompt"] = None
    json_lines(table, [*rows, "{"])
    items = list(read("personalllm", table, users=2))
    assert ["no field 'response_3_gemma_2b'" in bad(items)[0], *bad(items)[1:]] == [
        True,
        "the field 'response_8_beaver_7b' is no score",
        bad(items)[2],
        bad(items)[3],
    ]
    assert bad(items)[3].startswith("broken JSON")
    assert {each.prompt for each in of(Preference, items)} == {"Question 3?"}
    for options in ({"users": 0}, {"alpha": 0.0}, {"alpha": float("nan")}, {"seed": -1}):
        with pytest.raises(BadInputError):
            list(read("personalllm", table, **options))
