"""PIT's reinforcement learning: its loss is a naive implementation's, and a tiny model learns by it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penname.errors import BadInputError, TrainedError
from penname.lm import Generation, ModelConfig, Sampling, load_model
from penname.lm.local import TransformersLM
from penname.methods.pit import rl
from penname.methods.pit.config import RLConfig
from penname.methods.pit.form import Case, Form
from penname.methods.pit.rl import train_rl
from penname.methods.pit.rl_job import RLJob, merged
from penname.methods.pit.rloo import advantages, penalised, rewards
from penname.tasks import PromptTexts
from penname.train.folder import Trained, open_trained, rewards_behind
from penname.train.index import saw
from penname.train.loop import LoopSettings
from penname.train.model import LoraSettings, Trainable, load_trainable
from penname.train.optimizer import Optimizer, OptimizerSettings
from penname.train.sft import SFTConfig, Written, train_sft
from tiny import save_tiny_model
from train_helpers import one_thread

NOUNS = ("cat", "dog", "log", "mat", "hat", "sun")
CASES = [Case(f"Tell of the {noun}.", f"the {noun} sat on the {noun}") for noun in NOUNS]
OTHERS = [Case(case.request, "on the log lay the mat") for case in CASES]
FORM = Form("completion", PromptTexts.load())


@pytest.fixture(autouse=True, scope="module")
def single_threaded() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of pit-sft that writes a short text or a longer one, and ends it."""
    folder = tmp_path_factory.mktemp("sft")
    base = save_tiny_model(folder / "base", template=False)
    written = [
        Written(FORM.prompt(case), FORM.answer(text))
        for case in CASES + OTHERS
        for text in ("the dog", "the cat sat on the mat")
    ]
    config = SFTConfig(
        weights="full",
        dtype="float32",
        held_out=0.0,
        optimizer=OptimizerSettings(lr=5e-3, warmup=2),
        loop=LoopSettings(epochs=25, batch=6, checkpoint_every=100),
    )
    return train_sft(written, folder / "sft", model=str(base), config=config, method="pit-sft").path


@pytest.fixture(scope="module")
def gap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a folder of the gap reward may hold; it is opened by a fake."""
    folder = tmp_path_factory.mktemp("gap") / "gap"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "reliability.json").write_text("{}")
    return folder


class FakeGap:
    """A gap reward by a rule; notes what it reads."""

    fingerprint = "gap-1"

    def __init__(self, rule: Callable[[str], float], most: int = 1000) -> None:
        self.rule, self.most = rule, most
        self.read: list[str] = []

    def gaps(self, cases: Sequence[Case], texts: Sequence[str]) -> list[float]:
        self.read += texts
        return [self.rule(text) - self.rule(case.draft) for case, text in zip(cases, texts, strict=True)]

    def fits(self, case: Case, text: str) -> bool:
        return len(text) <= self.most


def shorter() -> FakeGap:
    """The fewer words, the better."""
    return FakeGap(lambda text: -float(len(text.split())))


def settings(epochs: float = 4, **changes: Any) -> RLConfig:
    config = RLConfig(
        samples=4,
        max_tokens=20,
        dtype="float32",
        lora=LoraSettings(4, 8),
        optimizer=OptimizerSettings(lr=2e-3, warmup=0),
        loop=LoopSettings(epochs=epochs, batch=3, checkpoint_every=2),
    )
    return replace(config, **changes)


def run(
    out: Path,
    sft: Path,
    gap: Path,
    fake: FakeGap,
    monkeypatch: pytest.MonkeyPatch,
    config: RLConfig | None = None,
    first: Sequence[Case] = CASES,
    second: Sequence[Case] = (),
    **more: Any,
) -> Trained:
    monkeypatch.setattr(rl, "open_gap", lambda folder: fake)
    return train_rl(first, second, out, sft=sft, gap=gap, config=config or settings(), **more)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, without what the clock says."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith("seconds")}
        for line in lines
    ]


# The loss


@given(st.lists(st.lists(st.floats(-9, 9), min_size=4, max_size=4), min_size=1, max_size=5))
def test_an_advantage_is_over_the_mean_of_the_others(rows: list[list[float]]) -> None:
    found = advantages(torch.tensor(rows, dtype=torch.float64))
    for row, ours in zip(rows, found.tolist(), strict=True):
        for i, value in enumerate(row):
            others = row[:i] + row[i + 1 :]
            assert ours[i] == pytest.approx(value - sum(others) / len(others), abs=1e-9)


def test_the_penalty_of_drifting_has_no_gradient() -> None:
    policy = torch.tensor([[-3.0, -5.0]], requires_grad=True)
    found = rewards(torch.tensor([[1.0, 2.0]]), policy, torch.tensor([[-4.0, -4.0]]), 0.5)
    assert found.tolist() == [[0.5, 2.5]]
    assert not found.requires_grad


def test_a_faulty_sample_is_worse_than_the_sound_ones_of_its_case() -> None:
    gaps = torch.tensor([[2.0, 3.0, 9.0], [-4.0, 0.0, 1.0], [9.0, 9.0, 9.0]])
    sound = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    assert penalised(gaps, sound).tolist() == [[2.0, 3.0, 1.0], [-4.0, 0.0, 1.0], [-5.0, -5.0, -5.0]]
    assert penalised(gaps, torch.zeros_like(sound)).tolist() == [[-1.0] * 3] * 3


class Says:
    """A sampler that writes what it is told to."""

    def __init__(self, texts: Sequence[Sequence[Generation]]) -> None:
        self.texts = texts
        self.sampling: list[Sampling] = []

    def take(self, weights: Mapping[str, torch.Tensor]) -> None:
        pass

    def generate(self, prompts: Sequence[Any], n: int, sampling: Sampling) -> list[list[Generation]]:
        self.sampling.append(sampling)
        assert [len(some) for some in self.texts] == [n] * len(prompts)
        return [list(some) for some in self.texts]


def wrote(text: str, *, cut: bool = False) -> Generation:
    return Generation(text, 10, len(text), "length" if cut else "stop")


TEXTS = [
    [wrote(" the dog"), wrote(" a cat lay"), wrote(" the mat", cut=True)],
    [wrote(" on"), wrote(""), wrote(" the log on the log")],
]


def drifted(sft: Path, size: float = 0.05) -> Trainable:
    """A model with LoRA whose policy is no longer the reference."""
    model = load_trainable(ModelConfig(str(sft / "model"), dtype="float32"), lora=LoraSettings(4, 8), seed=1)
    torch.manual_seed(5)
    with torch.no_grad():
        for one in model.parameters.values():
            one.add_(size * torch.randn_like(one))
    return model


@pytest.mark.parametrize("portion", [1, 10_000])
def test_loss_and_gradient_are_the_naive_ones(sft: Path, portion: int) -> None:
    model = drifted(sft)
    config = settings(samples=3, portion=portion, beta=0.3)
    says: Any = Says(TEXTS)
    job = RLJob(model, model.parameters, says, shorter(), FORM, CASES[:2], config)
    total: dict[str, float] = {}
    for part in job.backward([0, 1]):
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    ours = {name: one.grad.clone() for name, one in model.parameters.items() if one.grad is not None}

    network: Any = model.reader.model
    for layer in network.modules():
        vars(layer).pop("forward", None)  # peft's own again
    model.reader.base.set_attn_implementation("eager")
    network.zero_grad()

    def likelihood(prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        logits = network(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        return -torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")

    # By hand: words of the draft less words of the text; a faulty one gets 1 less than the worst of its case.
    gaps = [[4.0, 3.0, 2.0], [5.0, 0.0, 1.0]]
    loss, drift = torch.tensor(0.0), []
    for case, some, row in zip(CASES, TEXTS, gaps, strict=False):
        prompt = model.codec.prompt(FORM.prompt(case))
        policy, worth = [], []
        for one, value in zip(some, row, strict=True):
            ids = model.codec.completion(one.text) + ([model.end] if one.finish == "stop" else [])
            policy.append(likelihood(prompt, ids))
            with torch.no_grad(), network.disable_adapter():
                reference = float(likelihood(prompt, ids))
            drift.append(float(policy[-1].detach()) - reference)
            worth.append(value - 0.3 * drift[-1])
        for i in range(3):
            advantage = worth[i] - (sum(worth) - worth[i]) / 2
            loss = loss - advantage * policy[i] / 6
    loss.backward()  # type: ignore[no-untyped-call]

    assert total["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert total["kl"] == pytest.approx(sum(drift) / 6, rel=1e-4)
    assert abs(total["kl"]) > 0.01
    assert total["reward"] == pytest.approx(15 / 6)
    assert (total["cut"], total["blank"], total["better"]) == pytest.approx((1 / 6, 1 / 6, 4 / 6))
    assert len(ours) == len(model.parameters)
    for name, one in model.parameters.items():
        assert one.grad is not None
        assert torch.allclose(ours[name], one.grad, atol=1e-4), name


def test_it_samples_from_the_whole_policy_and_the_reward_reads_sound_texts_alone(sft: Path) -> None:
    model = drifted(sft)
    fake = FakeGap(lambda text: 0.0, most=12)
    says: Any = Says(TEXTS)
    job = RLJob(model, model.parameters, says, fake, FORM, CASES[:2], settings(samples=3))
    list(job.backward([0, 1]))
    assert fake.read == [" the dog", " a cat lay", " on"]  # not cut, not blank, not too long for it
    [sampling] = says.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (1.0, 1.0, 20)
    assert sampling.stop == FORM.stop


# The sampler


def test_the_sampler_takes_the_newest_policy(sft: Path, tmp_path: Path) -> None:
    model = drifted(sft)
    optimizer = Optimizer(model.parameters, {}, OptimizerSettings(), 1)
    config = ModelConfig(str(sft / "model"), dtype="float32")
    sampler = TransformersLM(config)
    prompts, sampling = [FORM.prompt(case) for case in CASES], Sampling(20, 1.0, 1.0, seed=1)
    before = sampler.generate(prompts, 2, sampling)
    sampler.take(merged(model, optimizer.masters))
    after = sampler.generate(prompts, 2, sampling)
    assert after != before
    rl.save_merged(model, optimizer, tmp_path)
    saved = load_model(replace(config, model=str(tmp_path / "model")))
    assert saved.generate(prompts, 2, sampling) == after
    [ours], [theirs] = (one.score(prompts[:1], [" the cat sat"]) for one in (sampler, saved))
    assert ours.per_token == pytest.approx(theirs.per_token, abs=1e-5)


# Whole trainings


def test_the_reward_rises_and_the_result_writes_so(
    sft: Path, gap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    trained = run(
        tmp_path / "out",
        sft,
        gap,
        shorter(),
        monkeypatch,
        settings(epochs=6, samples=8),
        second=OTHERS,
        users=["bob", "ann", "bob"],
        about={"note": "a test"},
        progress=lambda name, done, total, figures: told.append((name, done, total)),
    )
    lines = metrics(trained.path)
    assert [line["stage"] for line in lines] == ["first"] * 12 + ["second"] * 12
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-5)  # it begins as the reference
    words = [line["words"] for line in lines]
    assert words[0] > 3.2, words
    assert sum(words[-6:]) / 6 < 2.5, words
    # The second stage goes on from the first, and measures from π_SFT.
    assert sum(line["kl"] for line in lines[12:15]) / 3 > 0.1
    assert (told[0], told[-1]) == (("first", 1, 12), ("second", 12, 12))

    card = json.loads((trained.path / "penname.json").read_text(encoding="utf-8"))
    assert card["method"] == "pit-rl"
    assert card["rewards"] == ["gap-1"]
    assert rewards_behind(trained.path) == {"gap-1"}
    assert card["settings"]["note"] == "a test"
    assert (card["data"]["first"], card["data"]["second"], card["data"]["users"]) == (6, 6, 2)
    assert card["stages"]["second"]["end"]["reward"] > card["stages"]["first"]["beginning"]["reward"]
    assert saw(trained.path, "ann")
    assert not saw(trained.path, "eve")
    weights = trained.path / "gap" / "adapter" / "adapter_model.safetensors"
    assert weights.samefile(gap / "adapter" / "adapter_model.safetensors")
    assert not (trained.path / "gap" / "reliability.json").samefile(gap / "reliability.json")
    readme = (trained.path / "README.md").read_text(encoding="utf-8")
    assert "pit-rl" in readme
    assert CASES[0].draft not in readme

    sampling = Sampling(20, 1.0, 1.0, seed=9)
    texts = load_model(str(trained.path / "model")).generate([FORM.prompt(CASES[0])], 8, sampling)[0]
    assert sum(len(one.text.split()) for one in texts) / 8 < 2.5


def test_a_large_beta_keeps_the_policy_near_the_reference(
    sft: Path, gap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drift = []
    for beta in (0.0, 20.0):
        out = tmp_path / f"{beta}"
        run(out, sft, gap, shorter(), monkeypatch, settings(epochs=7, beta=beta))
        drift.append(sum(line["kl"] for line in metrics(out)[-3:]) / 3)
    assert drift[1] < 0.5 * drift[0]


class KilledError(Exception):
    pass


def test_a_killed_training_goes_on_with_the_same_samples(
    sft: Path, gap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In bfloat16 what is computed with is not what is trained: the second stage needs the float32 values.
    config = settings(epochs=2, dtype="bfloat16")
    whole = run(tmp_path / "whole", sft, gap, shorter(), monkeypatch, config, second=OTHERS)

    def kill_at(stage: str, step: int) -> Callable[[str, int, int, Mapping[str, float]], None]:
        def progress(name: str, done: int, total: int, figures: Mapping[str, float]) -> None:
            if (name, done) == (stage, step):
                raise KilledError

        return progress

    out = tmp_path / "killed"
    for stage, step in (("first", 3), ("second", 1)):
        with pytest.raises(KilledError):
            run(out, sft, gap, shorter(), monkeypatch, config, second=OTHERS, progress=kill_at(stage, step))
    killed = run(out, sft, gap, shorter(), monkeypatch, config, second=OTHERS)
    assert metrics(killed.path) == metrics(whole.path)
    kept = [(one.path / "model" / "model.safetensors").read_bytes() for one in (killed, whole)]
    assert kept[0] == kept[1]


# What cannot be learnt from


def test_a_reward_that_tells_nothing_apart_is_told(
    sft: Path, gap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with pytest.raises(BadInputError, match="told no samples of a case apart in 2 steps of the first stage"):
        run(
            tmp_path / "out",
            sft,
            gap,
            FakeGap(lambda text: 0.0),
            monkeypatch,
            settings(epochs=1),
            note=told.append,
        )
    assert told == ["first: the gap reward tells no samples of the first step's cases apart"]
    assert not (tmp_path / "out").exists()


def test_samples_that_are_all_cut_are_told(
    sft: Path, gap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInputError, match="100% of the samples were cut at their limit"):
        run(tmp_path / "out", sft, gap, shorter(), monkeypatch, settings(epochs=1, max_tokens=1))


def test_cases_that_cannot_be_learnt_from_are_left_out_and_told(
    sft: Path, gap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    fake = FakeGap(lambda text: float(len(text)), most=100)
    cases = [*CASES, Case("x", " \n"), CASES[0], Case("the dog " * 200, "the dog"), Case("", "the dog " * 20)]
    trained = run(
        tmp_path / "out",
        sft,
        gap,
        fake,
        monkeypatch,
        settings(epochs=1),
        first=(),
        second=cases,
        note=told.append,
    )
    assert trained.data["left_out"] == {
        "cases left out: an empty draft": 1,
        "cases left out: said twice": 1,
        "cases left out: no room for 20 tokens to write in the context": 1,
        "cases left out: too long for the gap reward": 1,
    }
    assert told[0] == "1 cases left out: an empty draft"
    assert {line["stage"] for line in metrics(trained.path)} == {"second"}
    with pytest.raises(BadInputError, match="no draft to learn to improve"):
        run(tmp_path / "none", sft, gap, fake, monkeypatch, first=(), second=cases[6:7])


def test_only_a_result_of_pit_sft_is_gone_on_from(
    gap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainedError, match="no result of training"):
        run(tmp_path / "out", tmp_path / "nothing", gap, shorter(), monkeypatch)


def test_a_place_that_is_taken_is_refused_before_anything_is_loaded(
    sft: Path, gap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInputError, match="is there already"):
        run(sft, sft, gap, shorter(), monkeypatch)
    assert open_trained(sft).method == "pit-sft"


@pytest.mark.parametrize(
    "changes",
    [{"samples": 1}, {"temperature": 0.0}, {"max_tokens": 0}, {"beta": -0.1}, {"beta": float("nan")}],
)
def test_settings_that_cannot_be_meant_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match=next(iter(changes))):
        RLConfig(**changes)
