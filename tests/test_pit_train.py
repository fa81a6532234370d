"""PIT as a whole: the thirds, what each stage learns from, and stages that go on after a kill."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stores
from models import ToldModel
from penname.errors import BadInputError, TrainedError
from penname.lm import Generation, Sampling
from penname.lm.base import Prefix
from penname.methods.erase import forget, knows
from penname.methods.pit import train as pit
from penname.methods.pit.config import RLConfig
from penname.methods.pit.data import BATCH, DraftConfig, drafts, references, revisions
from penname.methods.pit.form import Case, Form
from penname.methods.pit.gap import GapConfig, open_gap
from penname.methods.pit.improve import open_improver
from penname.methods.pit.thirds import thirds
from penname.methods.pit.train import PITConfig, train_pit, train_pit_gap, train_pit_rl, train_pit_sft
from penname.records import Message, Prompt
from penname.store import Store
from penname.tasks import PromptTexts
from penname.train import seen
from penname.train.folder import open_trained, workshop_of
from penname.train.loop import LoopSettings
from penname.train.model import LoraSettings
from penname.train.optimizer import OptimizerSettings
from penname.train.preferences.data import Pair, Prepared
from penname.train.sft import SFTConfig
from tiny import save_tiny_model
from train_helpers import files, metrics, one_thread, preferences

USERS = st.sampled_from([None, "ann", "bob", "cy"])


@pytest.fixture(autouse=True, scope="module")
def single_threaded() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", template=False)


def pair(user: str | None, prompt: Prompt, number: int = 0) -> Pair:
    return Pair(user, prompt, f"better {number}", f"worse {number}")


@given(
    st.lists(st.tuples(USERS, st.integers(0, 30)), min_size=1, max_size=80),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_thirds_hold_everything_once_and_no_prompt_crosses(
    rows: list[tuple[str | None, int]], seed: int, random: Any
) -> None:
    pairs = [
        # A message of the user is the same prompt as its text.
        pair(user, f"p{prompt}" if place % 2 else (Message(role="user", content=f"p{prompt}"),), place)
        for place, (user, prompt) in enumerate(rows)
    ]
    if len({prompt for _, prompt in rows}) < 3:
        with pytest.raises(BadInputError, match="at least 3 prompts"):
            thirds(Prepared(tuple(pairs)), seed)
        return
    parts = thirds(Prepared(tuple(pairs)), seed)
    found = [{rows[pairs.index(one)][1] for one in part.pairs} for part in parts]
    assert all(found), "no part is empty"
    assert sum(map(len, found)) == len(set.union(*found)), "no prompt is in two parts"
    assert sorted(map(pairs.index, (one for part in parts for one in part.pairs))) == list(range(len(pairs)))
    assert all([*map(pairs.index, part.pairs)] == sorted(map(pairs.index, part.pairs)) for part in parts)
    random.shuffle(shuffled := list(pairs))
    assert [set(part.pairs) for part in thirds(Prepared(tuple(shuffled)), seed)] == [
        set(part.pairs) for part in parts
    ], "the order of the source does not matter"


@given(st.lists(st.lists(st.integers(1, 4), max_size=9), min_size=1, max_size=5), st.integers(0, 3))
def test_each_part_has_a_third_of_every_user(counts: list[list[int]], seed: int) -> None:
    """`counts` has for each user how many pairs each prompt has; no prompt is of two users."""
    pairs = tuple(
        pair(f"u{user}", f"{user} {prompt}", number)
        for user, prompts in enumerate(counts)
        for prompt, pairs in enumerate(prompts)
        for number in range(pairs)
    )
    if sum(map(len, counts)) < 3:
        return
    parts = thirds(Prepared(pairs), seed)
    for user, prompts in enumerate(counts):
        mine = [sum(one.user == f"u{user}" for one in part.pairs) for part in parts]
        assert max(mine) - min(mine) <= max(prompts, default=0)
    if all(number == 1 for prompts in counts for number in prompts):
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_users_who_share_all_prompts_are_dealt_out_alike_and_the_seed_decides() -> None:
    prepared = preferences()
    parts = thirds(prepared)
    assert [Counter(one.user for one in part.pairs) for part in parts] == [{"ann": 4, "bob": 4}] * 3
    assert thirds(prepared) == parts
    assert thirds(prepared, seed=1) != parts
    with pytest.raises(BadInputError, match="--all"):
        thirds(Prepared())


def test_what_sft_and_the_first_half_of_the_curriculum_learn_from() -> None:
    prepared = Prepared((Pair("ann", "Say hello.", "Hi there.", "Hello.", "Ann is brief."),))
    form = Form("completion", PromptTexts.load())
    [written] = revisions(prepared, form)
    assert written.prompt == form.prompt(Case("Say hello.", "Hello.", "Ann is brief."))
    assert (written.answer.strip(), written.weight) == ("Hi there.", 1.0)
    assert [case.draft for case in references(prepared)] == ["Hello.", "Hi there."]
    assert {case.about for case in references(prepared)} == {"Ann is brief."}


class Drafter(ToldModel):
    """Stops after so many batches, as a kill does."""

    batches = 100

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int = 1,
        sampling: Sampling = Sampling(),
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> list[list[Generation]]:
        if not self.batches:
            raise KeyboardInterrupt
        self.batches -= 1
        return super().generate(prompts, n, sampling, prefixes)


def test_drafts_are_kept_batch_by_batch_and_counted(tmp_path: Path) -> None:
    prompts = [f"Tell of {number}." for number in range(BATCH + 5)]
    pairs = [pair(user, prompt) for prompt in prompts for user in ("ann", None)]
    pairs += [replace(pairs[0], chosen="another"), pair("ann", "long " * 300)]
    prepared, file = Prepared(tuple(pairs)), tmp_path / "drafts.jsonl"
    drafter = Drafter(lambda prompt: "" if "of 3." in prompt else f" of {prompt} ", context=200)
    drafter.batches = 1
    config, notes = DraftConfig(max_tokens=50, temperature=0.4), list[str]()
    with pytest.raises(KeyboardInterrupt):
        drafts(prepared, file, drafter, config, 7)
    assert len(seen.read(file)) == BATCH
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"id": "cut sh')
    drafter.batches, told = 100, list[tuple[int, int]]()
    found = drafts(
        prepared, file, drafter, config, 7, progress=lambda *at: told.append(at), note=notes.append
    )
    wanted = 2 * (BATCH + 5)
    assert len(drafter.asked) == wanted, "none twice, though one prompt has two pairs, and the long one never"
    assert told[-1] == (wanted + 1, wanted + 1)
    assert len(found) == wanted - 2
    assert found[0] == Case("Tell of 0.", "of Tell of 0.")
    assert notes == ["drafts left out: 2 blank ones; 1 prompts too long for the drafter's context"]
    assert drafter.samplings[0] == Sampling(50, 0.4, 0.95, (), 7)
    assert {tuple(row["users"]) for row in seen.read(file)} == {("ann",), ()}
    assert drafts(prepared, file, drafter, config, 7) == found
    with pytest.raises(BadInputError, match=r"no draft to improve: 1 blank ones"):
        drafts(Prepared(prepared.pairs[:1]), tmp_path / "other", Drafter(lambda _: " "), config)


def test_drafts_are_asked_for_as_penname_write_does(tmp_path: Path) -> None:
    drafter = Drafter()
    prepared = Prepared((Pair("ann", "the tide", "b", "a", "Ann is brief."),))
    drafts(prepared, tmp_path / "drafts", drafter, DraftConfig(task="email"))
    assert "Ann is brief." in drafter.asked[0]
    assert drafter.asked[0] != "the tide"
    assert drafter.samplings[0].stop
    assert drafter.samplings[0].max_tokens == DraftConfig(task="email").limit


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"max_tokens": 0}])
def test_settings_of_drafts_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match=r"at least|above"):
        DraftConfig(**wrong)


def config(**changes: Any) -> PITConfig:
    """Of a training of the tiny model that learns to end its texts, and takes a few steps of the rest."""
    loop = LoopSettings(epochs=2, batch=4, evaluate_every=2, checkpoint_every=2)
    shared: dict[str, Any] = {
        "dtype": "float32",
        "lora": LoraSettings(4, 8),
        "optimizer": OptimizerSettings(lr=2e-3, user_lr=2e-2, warmup=2),
        "loop": loop,
    }
    learns: dict[str, Any] = {
        "weights": "full",
        "optimizer": OptimizerSettings(lr=1e-2, warmup=2),
        "loop": replace(loop, epochs=30, evaluate_every=100, checkpoint_every=20),
    }
    found = PITConfig(
        sft=SFTConfig(**{**shared, **learns}, held_out=0),
        gap=GapConfig(**shared, held_out=0.2),
        rl=RLConfig(**{**shared, "loop": replace(loop, epochs=1)}, samples=2, max_tokens=24),
        drafts=DraftConfig(max_tokens=8, temperature=1.0),
    )
    return replace(found, **changes)


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    train_pit(preferences(about="likes it so"), out, model=str(base), config=config())
    return out


def test_the_result(whole: Path, base: Path) -> None:
    trained = open_trained(whole, "pit")
    card = json.loads((whole / "penname.json").read_text("utf-8"))
    assert {entry.name for entry in whole.iterdir()} == {
        *("model", "gap", "sft", "seen", "users.db", "metrics.jsonl", "penname.json", "README.md")
    }
    assert not workshop_of(whole).exists()
    assert open_trained(whole / "sft", "pit-sft").data["texts"]
    assert card["rewards"] == [open_gap(whole / "gap").fingerprint]
    assert open_improver(whole).model.shape == "completion"
    assert card["data"]["thirds"] == [8, 8, 8]
    assert trained.model == str(base)
    assert (trained.settings["shape"], trained.settings["about"]) == ("completion", True)
    assert card["stages"]["rl"]["data"]["first"]
    assert metrics(whole)
    readme = (whole / "README.md").read_text("utf-8")
    assert "| gap |" in readme
    assert "ann" not in readme.replace("penname", "")
    rows = seen.read(whole / "seen" / "drafts.jsonl")
    assert {user for row in rows for user in row["users"]} == {"ann", "bob"}


def test_the_stages_one_after_the_other_are_the_whole(whole: Path, base: Path, tmp_path: Path) -> None:
    settings = config()
    first, second, last = thirds(preferences(about="likes it so"), settings.seed)
    sft, gap, rl = (tmp_path / name for name in ("sft", "gap", "rl"))
    train_pit_sft(first, sft, model=str(base), config=settings.sft)
    train_pit_gap(second, gap, model=str(base), config=settings.gap)
    train_pit_rl(last, rl, sft=sft, gap=gap, config=settings.rl, drafts_config=settings.drafts)
    for name in ("model/model.safetensors", "gap/head.safetensors", "seen/drafts.jsonl"):
        assert (rl / name).read_bytes() == (whole / name).read_bytes()
    assert files(rl) == files(whole)
    assert open_trained(rl, "pit-rl").settings["curriculum"] == "both"


def test_it_goes_on_after_a_kill_in_each_stage(
    whole: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, out = preferences(about="likes it so"), tmp_path / "run"
    begun = list[str]()
    for name in ("train_sft", "train_gap", "train_rl"):

        def begin(*args: Any, real: Any = getattr(pit, name), name: str = name, **more: Any) -> Any:
            begun.append(name)
            return real(*args, **more)

        monkeypatch.setattr(pit, name, begin)
    for moment in (("sft", 30), ("gap", 3), ("second", 2)):

        def kill(at: str, done: int, *_: Any, moment: tuple[str, int] = moment) -> None:
            if (at, done) == moment:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train_pit(prepared, out, model=str(base), config=config(), progress=kill)
        assert not out.exists()
    with pytest.raises(BadInputError, match=r"settings\.seed 0 then, 1 now"):
        train_pit(prepared, out, model=str(base), config=config(seed=1))
    train_pit(prepared, out, model=str(base), config=config())
    assert begun == ["train_sft"] * 2 + ["train_gap"] * 2 + ["train_rl"] * 2, "what was done is kept"
    for name in ("model/model.safetensors", "seen/drafts.jsonl", "penname.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_half_a_curriculum(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class BegunError(Exception):
        pass

    given = list[tuple[int, int]]()

    def begun(first: Sequence[Case], second: Sequence[Case], *_: Any, **__: Any) -> None:
        given.append((len(first), len(second)))
        raise BegunError

    monkeypatch.setattr(pit, "train_rl", begun)
    for curriculum in ("data", "policy"):
        with pytest.raises(BegunError):
            train_pit_rl(
                preferences(nouns=("cat", "dog", "log")),
                tmp_path / curriculum,
                sft=whole / "sft",
                gap=whole / "gap",
                curriculum=curriculum,
                drafter=Drafter(fingerprint=f"told {curriculum}"),
            )
    assert given == [(12, 0), (0, 6)]
    with pytest.raises(TrainedError, match="pit-sft"):
        train_pit_rl(preferences(), tmp_path / "x", sft=whole / "gap", gap=whole / "gap")


def test_a_user_is_erased_from_the_drafts_and_the_weights_are_named(whole: Path, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(whole, run)
    inside = run / "sft" / "seen"
    inside.mkdir()
    seen.write(inside / "rows.jsonl", [{"users": ["ann"], "text": "x"}, {"users": [], "text": "y"}])
    with Store(stores.fresh("sqlite", tmp_path)) as store:
        store.add_trained(run, "pit")
        done = forget(store, "ann")
        assert done.weights == (run,)
        assert done.lines == 1 + 4
        assert forget(store, "ann").lines == 0
    assert knows(run, "ann")
    for folder in (run, run / "sft"):
        assert not any("ann" in row["users"] for file in folder.glob("seen/*") for row in seen.read(file))


def test_the_users_of_what_a_policy_began_as_are_its_users(whole: Path, tmp_path: Path) -> None:
    import shutil

    from penname.train.index import INDEX, create_index

    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "sft" / INDEX).unlink()
    create_index(run / "sft", ["eve"])
    with Store(stores.fresh("sqlite", tmp_path)) as store:
        store.add_trained(run, "pit-rl")
        assert forget(store, "eve").weights == (run,)
