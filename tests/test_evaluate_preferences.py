"""Held-out pairs put in order: by a base model, by known preferences, by trained runs; what is reported."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_helpers import Cli
from evaluate_helpers import CountingModel
from models import flat
from penname.errors import BadInputError, TrainedError, UnknownControlError, UnknownMethodError
from penname.evaluate import preferences
from penname.evaluate.folder import load_results
from penname.evaluate.held import HeldOut, read
from penname.evaluate.preferences import Settings, evaluate, plan, shares
from penname.evaluate.results import Results
from penname.evaluate.tables import GAINS, summary
from penname.lm import ModelConfig
from penname.lm.base import Prefix, Score
from penname.records import Preference, Prompt
from penname.store import Store

LONG, SHORT = "a long answer of many more words, on and on", "brief"
LONGER, SHORTER = [f"long{i}" for i in range(7)], [f"short{i}" for i in range(3)]


class Lengths(CountingModel):
    """Finds every further word unlikely; after "Preferred: brief" in the prompt, the opposite."""

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> list[Score]:
        if self.breaks_after is not None and len(self.scored) >= self.breaks_after:
            raise KeyboardInterrupt
        super().score(prompts, completions, prefixes)
        each = [-1.0 if "Preferred: brief" in flat(prompt) else -3.0 for prompt in prompts]
        return [
            Score(each[i] * (1 if len(text.split()) == 1 else 2), len(text.split()), ())
            for i, text in enumerate(completions)
        ]


class Taste:
    """A reward that knows its users: those called short… like brief texts, strangers what most like."""

    def __init__(self, path: Path) -> None:
        self.fingerprint = path.name
        self.asked = 0

    def knows(self, user: str) -> bool:
        return user != "new"

    def key(self, user: str) -> str:
        return user

    def rewards(
        self,
        prompts: Sequence[Prompt],
        texts: Sequence[str],
        users: Sequence[str],
        abouts: Sequence[str] | None = None,
    ) -> list[float]:
        self.asked += len(texts)
        return [
            len(text) * (-1.0 if user.startswith("short") else 1.0)
            for text, user in zip(texts, users, strict=True)
        ]


def rows(users: Sequence[str], pairs: int = 4, start: int = 0, **more: Any) -> list[dict[str, Any]]:
    found = []
    for user in users:
        for number in range(start, start + pairs):
            sides = [f"{LONG} {number}", SHORT + f"-{number}"]
            chosen, rejected = sides[::-1] if user.startswith("short") else sides
            group = "shorter" if user.startswith("short") else "longer"
            prompt = f"Write about {number}."
            found.append(
                {"prompt": prompt, "chosen": chosen, "rejected": rejected, "user_id": user, "group": group}
                | more
            )
    return found


def write(file: Path, values: Sequence[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(one) + "\n" for one in values), encoding="utf-8")
    return str(file)


def trained(folder: Path, method: str, model: str = "m", weights: str = "w", users: bool = True) -> Path:
    """A folder of a run with its card alone."""
    folder.mkdir(parents=True)
    settings = {"users": "individual" if users else "none", "beta": 0.5, "portion": 512, "dtype": "float32"}
    card = {"method": method, "model": model, "model_fingerprint": weights, "settings": settings}
    (folder / "penname.json").write_text(json.dumps({**card, "data": {}, "version": "1"}))
    return folder


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Lengths:
    told = Lengths()
    monkeypatch.setattr(preferences, "base_model", lambda config: told)
    return told


@pytest.fixture
def tastes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Taste]:
    """The rewards that are opened, by the names of their folders."""
    import sys
    import types

    opened: dict[str, Taste] = {}
    module = types.ModuleType("penname.methods.prlhf.reward")
    module.open_reward = lambda path, model=None: opened.setdefault(path.name, Taste(path))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "penname.methods.prlhf.reward", module)
    return opened


@pytest.fixture
def held(tmp_path: Path) -> HeldOut:
    known = write(tmp_path / "known.jsonl", rows([*LONGER, *SHORTER], start=100))
    return read(write(tmp_path / "held.jsonl", rows([*LONGER, *SHORTER])), history=known)


def go(held: HeldOut, folder: Path, *methods: str, controls: Sequence[str] = (), **more: Any) -> Results:
    return evaluate(held, ModelConfig("m"), plan(methods, controls), folder, **more)


def by_arm(results: Results, part: str = "") -> dict[str, float]:
    return {one.arm: one.right for one in shares(results) if one.part == part}


def test_pairs_are_put_right_by_user_and_by_group(
    held: HeldOut, model: Lengths, tastes: dict[str, Taste], tmp_path: Path
) -> None:
    run = f"p-rm:{trained(tmp_path / 'rm', 'p-rm')}"
    results = go(held, tmp_path / "out", "none:total", run, controls=["swap-vector"])
    control = f"{run} · swap-vector"
    assert by_arm(results) | {control: 0} == {"none:total": 0.3, run: 1.0, control: 0}
    assert by_arm(results, "users of the majority (longer)")["none:total"] == 0
    assert by_arm(results, "users of a minority (shorter)")["none:total"] == 1
    base = next(one for one in shares(results) if one.arm == "none:total" and not one.part)
    assert (base.worst, base.by_user, base.pairs, base.users) == (0, pytest.approx(0.3), 40, 10)
    assert base.low < 0.3 < base.high
    [table] = summary(results)
    assert (table.task, table.main) == ("preferences", ["preferred"])
    assert {part for part, _ in table.parts()} == {
        "users of the majority (longer)",
        "users of a minority (shorter)",
    }
    swapped = {row.example: row.scores["preferred"] for row in results.rows if row.arm == control}
    assert set(swapped.values()) == {0.0, 1.0}, "somebody else's taste, which may be alike"
    assert table.verdicts_of(run) == {GAINS: ["preferred"]}
    assert load_results(tmp_path / "out").rows == results.rows


def test_rows_say_what_came_first(held: HeldOut, model: Lengths, tmp_path: Path) -> None:
    results = go(held, tmp_path / "out", "none:total", "none")
    row = next(row for row in results.rows if row.users == ("long0",))
    assert (row.gold, row.text, row.answer) == (f"{LONG} 0", "brief-0", "brief-0")
    assert row.scores == {"preferred": 0.0, "margin": -3.0}
    assert row.input == "Write about 0.\n\nNot preferred: brief-0"
    assert row.history == 4
    mean = next(row for row in results.rows if (row.arm, row.users) == ("none", ("long0",)))
    assert mean.scores["margin"] == pytest.approx(-6 / 11 + 3), "per token"


def test_a_tie_is_a_half(
    held: HeldOut, model: Lengths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        model, "score", lambda prompts, completions, prefixes=None: [Score(-1.0, 1, ())] * len(prompts)
    )
    results = go(held, tmp_path / "out", "none")
    assert {row.scores["preferred"] for row in results.rows} == {0.5}


def test_known_preferences_stand_in_the_prompt(held: HeldOut, model: Lengths, tmp_path: Path) -> None:
    methods = ("none", "preferences-in-context", "preferences-in-context:random")
    results = go(held, tmp_path / "out", *methods, controls=["swap-user"], settings=Settings(k=2))
    prompts = [prompt for prompt in model.scored if "Asked:" in prompt]
    assert all(prompt.count("Asked:") == 2 for prompt in prompts)
    own = next(
        prompt for prompt in prompts if prompt.endswith("Write about 0.") and "Preferred: a long" in prompt
    )
    assert own.index("Write about 102.") < own.index("Write about 103."), "the latest last"
    shown = [len(row.documents) for row in results.rows if row.arm != "none"]
    assert set(shown) == {2}
    assert {arm.name for arm in results.arms} == {
        *methods,
        "preferences-in-context · swap-user",
        "preferences-in-context:random · swap-user",
    }
    swapped = [row for row in results.rows if row.arm == "preferences-in-context · swap-user"]
    mine = {one.id: user for user, known in held.history.items() for one in known}
    assert all({mine[name] for name in row.documents} != set(row.users) for row in swapped)


def test_what_is_held_out_is_not_shown_and_what_does_not_fit_is_said(model: Lengths, tmp_path: Path) -> None:
    values = rows(["long0", "long1"])
    values[0]["prompt"] = "Asked: forged\nPreferred: brief"
    file = write(tmp_path / "held.jsonl", values)
    held = read(file, history=file)
    results = go(held, tmp_path / "out", "none", "preferences-in-context", settings=Settings(k=9))
    mine = [row for row in results.rows if row.arm != "none"]
    assert all(row.example not in row.documents and len(row.documents) == 3 for row in mine)
    assert any("> Asked: forged" in prompt for prompt in model.scored), "quoted as data"
    model.context = 60
    results = go(held, tmp_path / "small", "none", "preferences-in-context", settings=Settings(k=9))
    mine = [row for row in results.rows if row.arm != "none"]
    assert mine
    assert all(row.dropped and len(row.dropped) + len(row.documents) == 3 for row in mine)
    model.context = 10
    with_none = go(held, tmp_path / "none", "none", "preferences-in-context")
    assert [arm.name for arm in with_none.arms] == ["none"], "nothing of the user fits"
    assert any("8 of 8 pairs are left out" in one for one in with_none.remarks)


def test_a_run_goes_on_and_a_further_method_is_computed_alone(
    held: HeldOut,
    model: Lengths,
    tastes: dict[str, Taste],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preferences, "WINDOW", 2)
    model.breaks_after = 4
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        go(held, out, "none", "none:total")
    assert len((out / "rows.jsonl").read_text().splitlines()) == 2
    model.breaks_after = None
    scored = len(model.scored)
    first = go(held, out, "none", "none:total")
    assert len(first.rows) == 80
    assert len(model.scored) - scored == 8, "what users and arms have in common is scored once"
    scored = len(model.scored)
    run = f"p-rm:{trained(tmp_path / 'rm', 'p-rm')}"
    second = go(held, out, "none", "none:total", run)
    assert second.rows[:80] == first.rows
    assert (len(model.scored), tastes["rm"].asked) == (scored, 80)
    go(held, out, "none", run)
    assert tastes["rm"].asked == 80
    with pytest.raises(BadInputError, match="k was 3 and is 5"):
        go(held, out, "none", settings=Settings(k=5))


def test_a_pooled_run_has_no_vectors_to_swap(
    held: HeldOut, model: Lengths, tastes: dict[str, Taste], tmp_path: Path
) -> None:
    pooled = f"p-rm:{trained(tmp_path / 'pooled', 'p-rm', users=False)}"
    with pytest.raises(BadInputError, match="swap-vector' changes nothing"):
        plan([pooled], ["swap-vector"])
    own = f"p-rm:{trained(tmp_path / 'own', 'p-rm')}"
    names = [arm.name for arm in plan(["none", pooled, own], ["swap-vector"])]
    assert names == ["none", pooled, own, f"{own} · swap-vector"]


def test_a_run_is_asked_as_it_was_trained(
    held: HeldOut, model: Lengths, tastes: dict[str, Taste], tmp_path: Path
) -> None:
    run = trained(tmp_path / "rm", "p-rm")
    card = json.loads((run / "penname.json").read_text())
    card["settings"]["task"] = "title"
    (run / "penname.json").write_text(json.dumps(card))
    with pytest.raises(BadInputError, match="trained with --task title and is asked with no --task"):
        go(held, tmp_path / "out", f"p-rm:{run}")
    asked = read(str(tmp_path / "held.jsonl"), task="title")
    assert by_arm(go(asked, tmp_path / "title", "none:total", f"p-rm:{run}"))[f"p-rm:{run}"] == 1
    assert all(prompt.endswith("Title:") for prompt in model.scored)


def test_one_run_for_each_user(
    held: HeldOut, model: Lengths, tastes: dict[str, Taste], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        trained(tmp_path / "runs" / name, "p-rm", users=False)
    index = tmp_path / "runs" / "runs.json"
    index.write_text(json.dumps({"long0": "a", "short0": "b"}))
    method = f"one-per-user:{tmp_path / 'runs'}"
    notes: list[str] = []
    results = go(held, tmp_path / "out", "none", method, controls=["swap-vector"], note=notes.append)
    assert by_arm(results)[method] == 1
    assert {row.users for row in results.rows if row.arm == method} == {("long0",), ("short0",)}
    assert any("8 of 10 users are unknown to it" in one for one in notes)
    assert any("8 of 10 users are unknown to it" in one for one in results.remarks)
    swapped = [row for row in results.rows if row.arm == f"{method} · swap-vector"]
    assert len(swapped) == 40, "for everybody there is somebody else's run"
    for bad in ("../runs/a", "/a", ".", "c", 3):
        index.write_text(json.dumps({"long0": bad}))
        with pytest.raises(TrainedError, match=r"no name of a folder|no folder"):
            plan([method])
    index.write_text("{")
    with pytest.raises(TrainedError, match="cannot be read"):
        plan([method])


def test_names_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownMethodError, match="did you mean 'p-dpo'"):
        plan(["p-dop"])
    with pytest.raises(UnknownControlError):
        plan(["none"], ["history=3"])
    with pytest.raises(BadInputError, match="changes nothing"):
        plan(["none"], ["swap-user"])
    with pytest.raises(TrainedError, match="no result of training"):
        plan([f"p-dpo:{tmp_path / 'none'}"])
    with pytest.raises(BadInputError, match="one-per-user:DIR"):
        plan(["one-per-user"])
    with pytest.raises(BadInputError, match="no method"):
        plan([])


def test_in_context_needs_known_preferences(model: Lengths, tmp_path: Path) -> None:
    held = read(write(tmp_path / "held.jsonl", rows(LONGER)))
    with pytest.raises(BadInputError, match="--history"):
        go(held, tmp_path / "out", "none", "preferences-in-context")


def test_what_is_read(tmp_path: Path) -> None:
    values = rows(["long0", "long1"])
    nobody = {key: value for key, value in values[0].items() if key != "user_id"}
    equal = values[1] | {"rejected": values[1]["chosen"]}
    notes: list[str] = []
    file = write(tmp_path / "held.jsonl", [*values, nobody, equal, {"prompt": "x"}])
    held = read(file, note=notes.append)
    assert (len(held.pairs), held.users) == (8, ["long0", "long1"])
    assert len(notes) == 1
    assert any("pairs without a user" in one for one in held.remarks)
    assert any("equal" in one for one in held.remarks)
    some, more = read(file, limit=3), read(file, limit=5)
    assert {one.id for one in some.pairs} < {one.id for one in more.pairs}
    with pytest.raises(BadInputError, match="no pair of a user"):
        read(write(tmp_path / "nobody.jsonl", [nobody]))
    two = write(tmp_path / "two.jsonl", [*values, values[0] | {"prompt": "y", "group": "other"}])
    with pytest.raises(BadInputError, match=r"user 'long0' is in the groups 'longer' and 'other'"):
        read(two)
    with Store(tmp_path / "store.db") as store:
        store.add_user("ann").prefer(
            Preference(user="ann", kind="choice", prompt="p", chosen="a", rejected="b")
        )
    stored = read(str(tmp_path / "store.db"))
    assert [(one.user, one.chosen) for one in stored.pairs] == [("ann", "a")]


def adapted(tiny: Path, folder: Path) -> Path:
    """A run of P-DPO over the tiny model: a random adapter, and soft prompts for long0 and short0."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from penname.methods.prlhf.table import UserTable
    from penname.train.base import base_fingerprint

    trained(folder, "p-dpo", str(tiny), base_fingerprint(ModelConfig(str(tiny))))
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), lora)
        model.save_pretrained(folder / "adapter")
    draw = np.random.default_rng(0)
    soft = [draw.normal(size=(2, 32)).astype(np.float32) for _ in range(3)]
    own = [("long0", soft[1], 3), ("short0", soft[2], 3)]
    UserTable.create(folder, {"generic": soft[0]}, own, (2, 32)).close()
    return folder


def test_a_policy_orders_by_its_implicit_reward(tiny_model: Path, tmp_path: Path) -> None:
    from penname.lm import load_model
    from penname.methods.prlhf.reward import open_reward

    run = adapted(tiny_model, tmp_path / "run")
    base = ModelConfig(str(tiny_model), dtype="float32", shape="completion")
    held = read(write(tmp_path / "held.jsonl", rows(["long0", "short0", "new"], pairs=2)))
    notes: list[str] = []
    method = f"p-dpo:{run}"
    results = evaluate(
        held, base, plan(["none", method], ["swap-vector"]), tmp_path / "out", note=notes.append
    )
    assert any("1 of 3 users are unknown to it" in one for one in notes)
    plain, reward = load_model(base), open_reward(run, base)

    stands_in = {"long0": "short0", "short0": "long0"}
    for row in results.rows:
        one = next(one for one in held.pairs if one.id == row.example)
        prompt = str(one.prompt)
        if row.arm == "none":
            scores = plain.score([prompt] * 2, [f" {one.chosen}", f" {one.rejected}"])
            expected = [score.total / score.tokens for score in scores]
        else:
            user = one.user if row.arm == method else stands_in.get(one.user, "")
            if not user:
                continue
            expected = reward.rewards([prompt] * 2, [one.chosen, one.rejected], [user] * 2)
        assert row.scores["margin"] == pytest.approx(expected[0] - expected[1], abs=1e-3)
    assert len(results.rows) == 18
    again = evaluate(held, base, plan(["none", method], ["swap-vector"]), tmp_path / "out")
    assert again.rows == results.rows


def test_a_run_over_another_base_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "p-dpo", str(tiny_model), "of other weights")
    held = read(write(tmp_path / "held.jsonl", rows(["long0"])))
    with pytest.raises(TrainedError, match="was trained over"):
        evaluate(held, ModelConfig(str(tiny_model)), plan([f"p-dpo:{run}"]), tmp_path / "out")


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Lengths
) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(capsys, monkeypatch, tmp_path)


def test_from_the_command_line(cli: Cli, tastes: dict[str, Taste], tmp_path: Path) -> None:
    write(tmp_path / "known.jsonl", rows([*LONGER, *SHORTER], start=100))
    write(tmp_path / "held.jsonl", rows([*LONGER, *SHORTER]))
    trained(tmp_path / "rm", "p-rm")
    ask = ("evaluate", "preferences", "--data", "held.jsonl", "--history", "known.jsonl", "--out", "out")
    methods = ("--method", "none:total", "--method", "preferences-in-context", "--method", "p-rm:rm")
    outcome = cli(*ask, *methods, "--control", "swap-vector", "--k", "2")
    assert outcome.status == 0, outcome.err
    assert "40 pairs of 10 users, 4 ways of ordering; results in out" in outcome.err
    lines = [line.split("\t") for line in outcome.out.splitlines() if "\t" in line]
    assert lines[1][:3] == ["all", "none:total", "30.0"]
    assert lines[3] == ["all", "p-rm:rm", "100.0", "100.0 to 100.0", "100.0", "100.0", "40", "10"]
    assert ["users of a minority (shorter)", "none:total", "100.0"] in [line[:3] for line in lines]
    assert "p-rm:rm — pairs right: gains" in outcome.out
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "users of a minority (shorter)" in page
    again = cli("report", "out")
    assert again.status == 0, again.err


def test_options_of_writing_are_refused_and_the_other_way_round(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "held.jsonl", rows(LONGER))
    ask = ("evaluate", "preferences", "--data", "held.jsonl")
    outcome = cli(*ask, "--users", "one", "--temperature", "0")
    assert (outcome.status, "leave --users, --temperature out" in outcome.err) == (1, True)
    assert "leave --history out" in cli("evaluate", "sample", "--history", "held.jsonl").err
    assert "with --data" in cli("evaluate", "preferences").err
    assert "one --task" in cli(*ask, "--task", "title", "--task", "email").err
    assert "none.jsonl" in cli("evaluate", "preferences", "--data", "none.jsonl").err
    assert "did you mean 'preferences'" in cli("evaluate", "preference").err
    assert cli(*ask, "--method", "none").status == 0
    assert "results of preferences" in cli("evaluate", "sample", "--out", "penname-run").err
