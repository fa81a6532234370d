"""Writing with trained runs, alone and in evaluations: soft prompts (p-dpo), best of n (p-rm)."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from evaluate_helpers import EXAMPLES, CountingModel, club, run
from models import ToldModel
from penname import paths
from penname.errors import BadInputError, EmptyHistoryError, TrainedError, UnknownUserError
from penname.evaluate.arms import Cast, personal, plan
from penname.evaluate.results import Arm
from penname.evaluate.run import Settings
from penname.lm import ModelConfig, load_model
from penname.lm.base import Generation, Prefix, Sampling
from penname.methods.prlhf import method as module
from penname.methods.prlhf.method import Personal
from penname.methods.prlhf.rerank import best_of
from penname.methods.prlhf.soft import SoftTable
from penname.methods.prlhf.table import UserTable
from penname.methods.stages import run_folder, stages
from penname.records import Document, Prompt, Request
from penname.store import Store
from penname.tasks import task
from penname.writer import Material, Writer
from trained_runs import ROWS, WIDTH, rows, save_card, save_run

FAST = Settings(k=2, max_tokens=32, metrics=("rouge1", "bits_per_byte"))


def run_of(folder: Path, *users: str, model: ToldModel | None = None) -> Personal:
    """An open run that knows these users, over a told model."""
    folder.mkdir(parents=True, exist_ok=True)
    vectors = [(user, rows(10 + i, ROWS, WIDTH), 3) for i, user in enumerate(users)]
    table = UserTable.create(folder, {"generic": rows(0, ROWS, WIDTH)}, vectors, (ROWS, WIDTH))
    return Personal(folder, model or ToldModel(fingerprint="run-1"), SoftTable("individual", table))


def key(run: Personal, *users: str) -> str | None:
    prefix = run.prefix(*users)
    return prefix and prefix.key


class Likes:
    """A reward: how often a text has the first letter of the user's id."""

    fingerprint = "likes-1"

    def __init__(self, *known: str) -> None:
        self.known = known
        self.prompts: list[Prompt] = []

    def key(self, user: str) -> str:
        return user

    def knows(self, user: str) -> bool:
        return user in self.known

    def rewards(
        self, prompts: Sequence[Prompt], texts: Sequence[str], users: Sequence[str | None]
    ) -> list[float]:
        self.prompts.extend(prompts)
        return [float(text.count((user or " ")[0])) for text, user in zip(texts, users, strict=True)]


class Several(ToldModel):
    """Writes these texts, one for each sample."""

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self.texts = texts

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int = 1,
        sampling: Sampling = Sampling(),
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> list[list[Generation]]:
        super().generate(prompts, 1, sampling, prefixes)
        return [[Generation(text, 1, 1, "stop") for text in self.texts[:n]] for _ in prompts]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "test.db") as opened:
        for name in ("alice", "bob"):
            opened.add_user(name).add(
                Document(
                    id=f"{name}{day}",
                    title=f"bees {day}",
                    text=f"{name}, day {day}.",
                    written_at=datetime(2025, 1, day, tzinfo=UTC),
                )
                for day in range(1, 5)
            )
        opened.add_user("newcomer")
        yield opened


def request(*users: str, text: str = "bees", **more: object) -> Request:
    return Request.model_validate({"task": "post", "input": text, "users": users, **more})


# --- p-dpo


def test_a_draft_comes_of_the_runs_model_after_the_users_prefix(store: Store, tmp_path: Path) -> None:
    base, trained = ToldModel(), run_of(tmp_path / "run", "alice", "newcomer")
    writer = Writer(store, base, "p-dpo:run", personal=trained)
    drafts = writer.write_many([request("alice"), request("newcomer"), request("bob")])
    assert not base.asked
    assert isinstance(trained.model, ToldModel)
    assert trained.model.prefixed == [key(trained, user) for user in ("alice", "newcomer", "bob")]
    assert len(set(trained.model.prefixed)) == 3
    assert [draft.notes for draft in drafts[:2]] == [(), ()], "who has no documents needs none"
    assert drafts[2].notes == ("p-dpo: the run does not know 'bob'; the generic user stands in",)
    assert [draft.dropped for draft in drafts] == [(), (), ()]
    trained.model.prefixed.clear()
    assert "".join(writer.stream(request("alice"))) == "an answer"
    assert trained.model.prefixed == [key(trained, "alice")]
    with pytest.raises(UnknownUserError):
        writer.write(request("alise"))


def test_several_authors_share_the_mean_and_are_told(store: Store, tmp_path: Path) -> None:
    trained = run_of(tmp_path / "run", "alice", "bob")
    told = list[str]()
    writer = Writer(store, ToldModel(), "p-dpo", personal=trained, note=told.append)
    draft = writer.write(request("alice", "bob"))
    assert isinstance(trained.model, ToldModel)
    assert trained.model.prefixed == [key(trained, "alice", "bob")]
    assert draft.notes == ("p-dpo: the soft prompt is the mean of the 2 authors'",)
    assert not told
    list(writer.stream(request("alice", "bob")))
    assert told == list(draft.notes)


def test_the_profile_of_a_stack_is_the_base_models(store: Store, tmp_path: Path) -> None:
    base, trained = ToldModel(lambda _: "Topics: bees"), run_of(tmp_path / "run", "alice")
    stacked = Writer(store, base, "step-back+p-dpo", personal=trained).write(request("alice"))
    asked = len(base.asked)
    plain = Writer(store, base, "step-back").write(request("alice"))
    assert stacked.profiles == plain.profiles
    assert len(base.asked) == asked + 1, "the profile is made once, for both"
    assert isinstance(trained.model, ToldModel)
    assert len(trained.model.asked) == 1
    with pytest.raises(EmptyHistoryError):
        Writer(store, base, "step-back+p-dpo", personal=trained).write(request("newcomer"))


def test_the_rows_take_room_from_the_prompt(store: Store, tmp_path: Path) -> None:
    def shown(context: int, method: str) -> list[str]:
        trained = run_of(tmp_path / f"{method}{context}", "alice", model=ToldModel(context=context))
        writer = Writer(store, ToldModel(context=context), method, personal=trained, max_tokens=9)
        [draft] = writer.prompts([request("alice")])
        return [hit.document.id for hit in draft.documents]

    [whole] = Writer(store, ToldModel(), "retrieval").prompts([request("alice")])
    most = ToldModel().count(whole.prompt) + 9
    contexts = range(most - 25, most + 2, 3)
    plain = [shown(context, "retrieval") for context in contexts]
    with_prefix = [shown(context + ROWS, "retrieval+p-dpo") for context in contexts]
    assert with_prefix == plain
    assert len(set(map(len, plain))) > 1


def test_another_users_vector_can_stand_in(store: Store, tmp_path: Path) -> None:
    trained = run_of(tmp_path / "run", "alice", "bob")
    pen = Writer(store, ToldModel(), "p-dpo", personal=trained).pen(
        request("alice"), Material(vectors_of=("bob",))
    )
    assert pen.prefix is not None
    assert pen.prefix.key == key(trained, "bob")


def test_a_run_is_opened_by_the_methods_name(
    store: Store, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    folder = save_run(tmp_path / "run", model, "individual", {"alice": rows(10, ROWS, WIDTH)})
    base = load_model(ModelConfig(str(model), dtype="float32"))
    writer = Writer(store, base, f"p-dpo:{folder}", temperature=0, max_tokens=8)
    draft = writer.write(request("alice"))
    assert writer.personal is not None
    assert draft.prompt_tokens == writer.writes.count(draft.prompt) + ROWS
    assert "".join(writer.stream(request("alice"))) == draft.text
    other = Writer(store, ToldModel(), f"p-dpo:{folder}", temperature=0, max_tokens=8)
    assert other.writes.fingerprint == writer.writes.fingerprint
    monkeypatch.setattr(paths, "data_dir", lambda: tmp_path / "data")
    with pytest.raises(TrainedError, match=r"no result of training at .*trained.p-dpo"):
        Writer(store, base, "p-dpo")


def test_names_of_trained_stages() -> None:
    assert stages("step-back+p-dpo:a/b:c") == {"step-back": "", "p-dpo": "a/b:c"}
    assert stages("p-dpo:x+p-rm:y") == {"p-dpo": "x", "p-rm": "y"}
    assert run_folder("p-rm", "~/x") == Path("~/x").expanduser()
    with pytest.raises(BadInputError, match="name the folder"):
        stages("p-dpo:")
    with pytest.raises(BadInputError, match="each stage once"):
        stages("p-dpo:a+p-dpo:b")


# --- p-rm


def test_the_best_of_the_candidates_is_kept(store: Store, tmp_path: Path) -> None:
    model, reward = Several("xx", "", "a bb", "aa b", "aaaa"), Likes("alice", "bob")
    writer = Writer(store, model, "p-rm", reward=reward)
    drafts = writer.write_many([request("alice"), request("bob", text="boats"), request("newcomer")])
    assert [draft.text for draft in drafts] == ["aa b", "a bb", "xx"]
    assert drafts[2].notes == ("p-rm: the run does not know 'newcomer'; the generic user stands in",)
    assert set(reward.prompts) == {"bees", "boats"}
    more = Writer(store, model, "p-rm", reward=reward, candidates=5)
    assert more.write(request("alice")).text == "aaaa"
    assert list(more.stream(request("alice"))) == ["aaaa"]
    assert Writer(store, model, "p-rm", reward=reward, candidates=1).write(request("alice")).text == "xx"


def test_it_stacks_on_a_personal_model(store: Store, tmp_path: Path) -> None:
    model = Several("bb", "aa")
    trained = run_of(tmp_path / "run", "alice", model=model)
    writer = Writer(store, ToldModel(), "p-dpo:x+p-rm:y", personal=trained, reward=Likes("alice"))
    assert writer.write(request("alice")).text == "aa"
    assert model.prefixed == [key(trained, "alice")]
    assert writer.knows("alice")
    assert not writer.knows("bob")


def test_authors_choose_together() -> None:
    options = [["aaa", "ab", ""], ["", ""], ["zz", "bb"]]
    assert best_of(Likes(), ["p"] * 3, options, [("a", "b"), ("a",), ("b", "c")]) == [0, 0, 1]
    assert best_of(Likes(), ["p"], [["ab", "ba"]], [("a", "b")]) == [0]


def test_candidates_that_would_be_alike_are_refused(store: Store) -> None:
    for settings in ({"temperature": 0.0}, {"candidates": 0}):
        with pytest.raises(BadInputError, match="candidates at the temperature"):
            Writer(store, ToldModel(), "p-rm", reward=Likes(), **settings)  # type: ignore[arg-type]


def test_the_reward_is_opened_by_the_methods_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    stand_in: Any = ModuleType("penname.methods.prlhf.reward")
    stand_in.open_reward = lambda folder: opened.append(folder) or Likes("alice")
    monkeypatch.setitem(sys.modules, "penname.methods.prlhf.reward", stand_in)
    assert Writer(store, Several("b", "a"), "p-rm:runs/one").write(request("alice")).text == "a"
    assert opened == [Path("runs/one")]


# --- in evaluations


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Makes a run that is known by its folder; the method's name for it."""
    made: dict[Path, Personal] = {}
    monkeypatch.setattr(module, "open_personal", lambda folder, base=None: made[folder])

    def make(name: str, *users: str) -> str:
        folder = save_card(tmp_path / name, "individual" if users else "none")
        model = CountingModel(fingerprint=f"{name}-1")
        made[folder] = run_of(folder, *users, model=model) if users else Personal(folder, model, None)
        make_models[name] = model
        return f"p-dpo:{folder}"

    make_models: dict[str, CountingModel] = {}
    make.models = make_models  # type: ignore[attr-defined]
    return make


@pytest.fixture
def clubs(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "club.db") as opened:
        club(opened)
        opened.add_user("new")
        yield opened


def test_an_evaluation_writes_and_scores_with_the_runs_model(
    clubs: Store, tmp_path: Path, trained: Callable[..., str]
) -> None:
    p_dpo, pooled = trained("run", "ann", "ben", "cas"), trained("pooled")
    base, model = CountingModel(), trained.models["run"]  # type: ignore[attr-defined]
    methods = ("none", p_dpo, f"retrieval+{p_dpo}", pooled)
    found = run(clubs, tmp_path / "out", base, *methods, controls=["swap-vector"], settings=FAST)
    swapped = [f"{method} · swap-vector" for method in methods[1:3]]
    assert [arm.name for arm in found.arms] == ["none", p_dpo, swapped[0], methods[2], swapped[1], pooled]
    by_place = {(row.arm, row.example): row for row in found.rows}
    for example in EXAMPLES:
        keys = {by_place[place].key for place in by_place if place[1] == example.id}
        assert len(keys) == sum(place[1] == example.id for place in by_place), "each arm's row is its own"
    for arm in swapped:
        for row in (row for row in found.rows if row.arm == arm):
            own = by_place[arm.removesuffix(" · swap-vector"), row.example]
            assert (row.documents, row.profiles) == (own.documents, own.profiles)
    assert base.calls == 2 * len(EXAMPLES), "of the arm without anything of a user"
    assert len(model.samplings) == 1, "all arms of one run are written together"
    assert None not in model.prefixed
    assert set(trained.models["pooled"].prefixed) == {None}  # type: ignore[attr-defined]
    assert any("does not know 1 of 4 users" in remark for remark in found.remarks)
    assert any("the run does not know 'dot'" in said for row in found.rows for said in row.dropped)
    asked = model.calls
    assert (
        run(clubs, tmp_path / "out", base, *methods, controls=["swap-vector"], settings=FAST).rows
        == found.rows
    )
    assert model.calls == asked, "what is there is not made again"


def test_a_changed_vector_makes_its_rows_anew(
    clubs: Store, tmp_path: Path, trained: Callable[..., str]
) -> None:
    p_dpo = trained("run", "ann", "ben", "cas", "dot")
    model = trained.models["run"]  # type: ignore[attr-defined]
    run(clubs, tmp_path / "out", CountingModel(), p_dpo, users=("one",), settings=FAST)
    first = model.calls
    with UserTable.open(tmp_path / "run") as table:
        table.put("ann", rows(99, ROWS, WIDTH), 5)
    run(clubs, tmp_path / "out", CountingModel(), p_dpo, users=("one",), settings=FAST)
    anns = sum(example.users[0] == "ann" for example in EXAMPLES)
    assert 0 < anns < len(EXAMPLES)
    assert model.calls == first + 2 * anns


def test_a_run_without_users_is_not_personal(tmp_path: Path) -> None:
    pooled = f"p-dpo:{save_card(tmp_path / 'pooled', 'none')}"
    own = f"p-dpo:{save_card(tmp_path / 'own', 'individual')}"
    assert [personal(name) for name in (pooled, own, f"retrieval+{pooled}")] == [False, True, True]
    assert [arm.name for arm in plan([pooled, own], ["one", "all"], ["swap-vector"])] == [
        pooled,
        f"{own} · one",
        f"{own} · one · swap-vector",
        own,
        f"{own} · swap-vector",
    ]
    for control, why in (("swap-vector", "a trained vector"), ("swap-user", "anything of a user")):
        with pytest.raises(BadInputError, match=why):
            plan([pooled], ["all"], [control])
    for control in ("history=3", "shuffle-authors"):
        with pytest.raises(BadInputError, match="histor"):
            plan([own], ["all"], [control])
    with pytest.raises(TrainedError):
        plan([f"p-dpo:{tmp_path / 'nowhere'}"], ["all"], [])


def test_who_stands_in_with_a_vector(clubs: Store, tmp_path: Path) -> None:
    method = f"p-dpo:{save_card(tmp_path / 'own', 'individual')}"
    control = Arm(f"{method} · swap-vector", method, "all", "swap-vector", method)
    kite = next(example for example in EXAMPLES if example.users == ("ann", "ben"))

    def made(seed: int, *known: str) -> tuple[Request, Material] | None:
        return Cast(clubs, EXAMPLES, 2, seed).asked(control, kite, task(kite.task), known.__contains__)

    drawn = set()
    for seed in range(20):
        found = made(seed, "ann", "cas", "dot")
        assert found is not None
        assert found == made(seed, "ann", "cas", "dot"), "the same lot with each seed"
        assert found[0].users == ("ann", "ben")
        assert found[1].profiles_of is None
        assert set(found[1].vectors_of or ()) == {"cas", "dot"}
        drawn.add(found[1].vectors_of)
    assert len(drawn) == 2
    assert made(0, "ann", "cas") is None, "too few to stand in"
    assert made(0, "cas", "dot") is None, "nothing to be swapped"
    swap = Arm("x", method, "one", "swap-user", method)
    fresh = Request(task=kite.task, input="kites", users=("new",))
    found = Cast(clubs, [fresh, *EXAMPLES], 2, 0).asked(swap, fresh, task(kite.task))
    assert found is not None, "a method that reads no history needs none"
