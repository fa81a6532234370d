"""The loop of a training: what it sees and when, how it ends, and that a kill changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from penname.errors import BadInputError, TrainedError
from penname.train.checkpoint import BEST, load_tensors, newest_checkpoint, save_tensors
from penname.train.loop import LoopSettings, Metrics, steps_of, train
from penname.train.optimizer import Optimizer, OptimizerSettings, schedule
from train_helpers import curve, metrics, one_thread

SETTINGS = LoopSettings(epochs=4, batch=4, evaluate_every=4, checkpoint_every=4, seed=3)
STEPS = 16  # of SIZE examples in batches of 4, four times; a batch is two portions
SIZE = 14


@pytest.fixture(autouse=True, scope="module")
def single_threaded() -> Iterator[None]:
    with one_thread():
        yield


class Line:
    """A line through noisy points, with a table of offsets whose gradients are sparse. A `Job`."""

    def __init__(self, held: Callable[[int], float | None] = lambda _: None) -> None:
        chance = torch.Generator().manual_seed(0)
        self.points = torch.randn(SIZE, 3, generator=chance)
        self.wanted = self.points @ torch.tensor([1.0, -2.0, 0.5]) + torch.randn(SIZE, generator=chance)
        self.slope = torch.nn.Parameter(torch.zeros(3))
        self.offsets = torch.nn.Embedding(SIZE, 1, sparse=True)
        torch.nn.init.zeros_(self.offsets.weight)
        self.held = held
        self.seen: list[list[int]] = []
        self.evaluations = 0

    @property
    def size(self) -> int:
        return SIZE

    def backward(self, batch: Sequence[int]) -> Iterator[Metrics]:
        self.seen.append(list(batch))
        for portion in (batch[:2], batch[2:]):
            if not portion:
                continue
            index = torch.tensor(portion)
            guess = self.points[index] @ self.slope + self.offsets(index)[:, 0]
            loss = (guess - self.wanted[index]).square().sum() / len(batch)
            loss.backward()
            yield {"loss": float(loss.detach()), "share": len(portion) / len(batch)}

    def evaluate(self) -> Metrics:
        self.evaluations += 1
        told = self.held(self.evaluations)
        return {} if told is None else {"loss": told, "other": 2 * told}

    def optimizer(self) -> Optimizer:
        users = dict(self.offsets.named_parameters(prefix="own"))
        rates = OptimizerSettings(lr=0.1, user_lr=0.05, warmup=2)
        return Optimizer({"slope": self.slope}, users, rates, STEPS)


def go(
    folder: Path,
    job: Line | None = None,
    settings: LoopSettings = SETTINGS,
    progress: Callable[..., None] = lambda *_: None,
) -> tuple[Metrics, Line]:
    folder.mkdir(exist_ok=True)
    job = job or Line()
    return train(job, job.optimizer(), settings, folder, progress=progress), job


def stop_at(step: int, how: Callable[[], object]) -> Callable[..., None]:
    def progress(done: int, *_: object) -> None:
        if done == step:
            how()

    return progress


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_epoch_sees_every_example_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    _, job = go(tmp_path / "run")
    assert steps_of(SIZE, SETTINGS) == len(job.seen) == STEPS
    epochs = [[place for batch in job.seen[at : at + 4] for place in batch] for at in range(0, STEPS, 4)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(SIZE))] * 4
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert go(tmp_path / "same")[1].seen == job.seen
    other = LoopSettings(epochs=4, batch=4, evaluate_every=4, checkpoint_every=4, seed=4)
    assert go(tmp_path / "other", settings=other)[1].seen != job.seen


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 2), (1, 4), (0.01, 1), (2.25, 9)])
def test_steps_of_parts_of_an_epoch(epochs: float, steps: int) -> None:
    assert steps_of(SIZE, LoopSettings(epochs=epochs, batch=4)) == steps


def test_what_is_told_of_a_step_is_the_mean_of_the_whole_batch(tmp_path: Path) -> None:
    shown: list[tuple[int, int, dict[str, float]]] = []
    go(tmp_path / "run", progress=lambda *told: shown.append((*told[:2], dict(told[2]))))
    assert [(done, total) for done, total, _ in shown] == [(n, STEPS) for n in range(1, STEPS + 1)]
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(line["share"] == pytest.approx(1) for line in lines)
    assert all(set(line) == {"step", "loss", "share", "norm"} for line in lines)
    first = Line()
    batch = torch.tensor(go(tmp_path / "again")[1].seen[0])
    assert lines[0]["loss"] == pytest.approx(float(first.wanted[batch].square().mean()))
    assert curve(tmp_path / "run")[-1] < curve(tmp_path / "run")[0]


@pytest.mark.parametrize("step", [1, 3, 4, 6, 11, 15, 16])
@pytest.mark.parametrize("held", [False, True])
def test_an_interrupted_training_goes_on_with_the_same_losses(tmp_path: Path, step: int, held: bool) -> None:
    def job() -> Line:
        # What is held out does best in the middle.
        line = Line()
        line.evaluate = lambda: {"loss": abs(float(line.slope[1].detach()) + 1)} if held else {}  # type: ignore[method-assign]
        return line

    found, whole = go(tmp_path / "whole", job())
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", job(), progress=stop_at(step, interrupt))
    again, resumed = go(tmp_path / "cut", job())
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert again == found
    assert torch.equal(resumed.slope, whole.slope)
    assert torch.equal(resumed.offsets.weight, whole.offsets.weight)


def test_all_that_came_after_the_newest_checkpoint_may_be_lost(tmp_path: Path) -> None:
    # What lies on the disk when the machine goes down in step 7, the last line half written.
    left = tmp_path / "left"
    found, _ = go(tmp_path / "run", progress=stop_at(7, lambda: shutil.copytree(tmp_path / "run", left)))
    with (left / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 8, "lo')
    again, job = go(left)
    assert len(job.seen) == STEPS - 4, "from the checkpoint on"
    assert (metrics(left), again) == (metrics(tmp_path / "run"), found)


def test_ctrl_c_ends_the_step_and_keeps_a_checkpoint(tmp_path: Path) -> None:
    def ctrl_c() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", progress=stop_at(6, ctrl_c))
    assert signal.getsignal(signal.SIGINT) is before
    kept = newest_checkpoint(tmp_path / "cut")
    assert kept is not None
    assert kept[1]["position"]["step"] == 6, "no step of the four is lost"
    _, job = go(tmp_path / "cut")
    assert len(job.seen) == STEPS - 6
    go(tmp_path / "whole")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_checkpoint_cut_short_is_named_and_the_one_before_serves(tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        go(folder, progress=stop_at(14, interrupt))
    files = sorted(folder.glob("checkpoint-*"))
    assert [file.name for file in files] == [
        "checkpoint-00000008.safetensors",
        "checkpoint-00000012.safetensors",
    ]
    files[-1].write_bytes(files[-1].read_bytes()[:-5])
    with pytest.raises(TrainedError, match=r"checkpoint-00000012\.safetensors is cut short .* remove it"):
        go(folder)
    files[-1].unlink()
    go(folder)
    go(tmp_path / "whole")
    assert metrics(folder) == metrics(tmp_path / "whole")


def test_a_checkpoint_without_its_metrics_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, progress=stop_at(6, interrupt))
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(TrainedError, match=r"metrics\.jsonl"):
        go(tmp_path)


def test_the_values_that_did_best_are_kept(tmp_path: Path) -> None:
    losses = [3.0, 1.0, 2.0, 4.0]
    values: list[torch.Tensor] = []

    def held(time: int) -> float:
        values.append(job.slope.detach().clone())
        return losses[time - 1]

    job = Line(held)
    found, _ = go(tmp_path, job)
    assert found == {"step": 8, "loss": 1.0}
    assert torch.equal(job.slope, values[1])
    assert not torch.equal(job.slope, values[3])
    told = [line for line in metrics(tmp_path) if "held_out_loss" in line]
    assert [(line["step"], line["held_out_loss"], line["held_out_other"]) for line in told] == [
        (4, 3, 6),
        (8, 1, 2),
        (12, 2, 4),
        (16, 4, 8),
    ]


@pytest.mark.parametrize(
    ("patience", "losses", "steps", "best"),
    [
        (1, [3, 1, 2, 0], 12, 8),
        (2, [3, 1, 2, 0], 16, 16),
        (2, [3, 1, 2, 2], 16, 8),
        (1, [5, 5, 5, 5], 8, 4),  # a loss that stands still
        (1, [float("nan")] * 4, 4, 4),
        (0, [1, 2, 3, 4], 16, 4),
    ],
)
def test_patience_ends_a_training(
    tmp_path: Path, patience: int, losses: list[float], steps: int, best: int
) -> None:
    settings = LoopSettings(4, 4, evaluate_every=4, checkpoint_every=4, patience=patience, seed=3)
    job = Line(lambda time: losses[time - 1])
    found, _ = go(tmp_path, job, settings)
    assert len(job.seen) == steps
    assert found["step"] == best
    again = Line(lambda time: losses[time - 1])
    assert go(tmp_path, again, settings)[0] == found
    assert not again.seen, "what has ended stays so"
    assert torch.equal(again.slope, job.slope)


def test_without_held_out_examples_the_last_values_are_kept(tmp_path: Path) -> None:
    found, _ = go(tmp_path)
    assert found == {"step": STEPS}
    assert not (tmp_path / BEST).exists()


def test_a_loss_that_is_no_number_stops_and_says_so(tmp_path: Path) -> None:
    job = Line()
    job.wanted[go(tmp_path / "look")[1].seen[2]] = float("nan")
    with pytest.raises(BadInputError, match="the loss of step 3 is no number: lower the learning rate"):
        go(tmp_path / "run", job)
    assert all(line["loss"] == line["loss"] for line in metrics(tmp_path / "run"))


def test_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    class Nothing(Line):
        @property
        def size(self) -> int:
            return 0

    with pytest.raises(BadInputError, match="nothing to train on"):
        go(tmp_path, Nothing())


def test_leavings_without_a_checkpoint_are_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 9}) + "\n")
    save_tensors(tmp_path / BEST, {"model/slope": torch.ones(3)}, {})
    job = Line()
    go(tmp_path, job)
    assert len(curve(tmp_path)) == STEPS
    assert not torch.equal(job.slope, torch.ones(3))


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"x": torch.arange(3)}, {"step": 4})
    tensors, state = load_tensors(tmp_path / "a.safetensors")
    assert (tensors["x"].tolist(), state) == ([0, 1, 2], {"step": 4})
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    for damage in (b"", b"\xff" * 20):
        (tmp_path / "a.safetensors").write_bytes(damage)
        with pytest.raises(TrainedError, match=r"a\.safetensors is cut short or damaged"):
            load_tensors(tmp_path / "a.safetensors")


# --- the optimizer


def test_steps_too_small_for_bfloat16_add_up_in_the_masters() -> None:
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = Optimizer({"w": weight}, {}, OptimizerSettings(lr=1e-4, warmup=0), 1000)
    for step in range(60):
        weight.grad = torch.ones_like(weight)
        optimizer.collect()
        optimizer.step(step)
        if step == 5:
            assert torch.equal(weight, torch.ones_like(weight)), "the next number below 1 is 0.996"
    master = optimizer.masters["w"]
    assert master.dtype == torch.float32
    assert master[0].item() == pytest.approx(1 - 60e-4, abs=2e-4)
    assert torch.equal(weight, master.to(torch.bfloat16))
    assert optimizer.tensors()["model/w"].dtype == torch.float32


def test_gradients_of_portions_add_up_in_float32() -> None:
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = Optimizer({"w": weight}, {}, OptimizerSettings(clip=0), 10)
    for _ in range(300):
        weight.grad = torch.ones_like(weight)
        optimizer.collect()
    assert optimizer.step(0) == 300, "in bfloat16 it would stop at 256"


def test_only_rows_of_the_batch_move_and_the_norm_is_clipped() -> None:
    rows = torch.nn.Embedding(4, 2, sparse=True)
    before = rows.weight.detach().clone()
    optimizer = Optimizer(
        {},
        dict(rows.named_parameters(prefix="own")),
        OptimizerSettings(user_lr=0.1),
        10,
    )
    (100 * rows(torch.tensor([1, 1])).sum()).backward()
    assert optimizer.step(0) == pytest.approx(200 * 2**0.5)
    moved = (rows.weight != before).any(dim=1)
    assert moved.tolist() == [False, True, False, False]


def test_the_rate_rises_and_falls_to_nothing() -> None:
    rates = [schedule(step, 100, 150) for step in range(100)]
    assert rates[:10] == pytest.approx([(n + 1) / 11 for n in range(10)]), "a tenth of all steps"
    assert rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 1e-3
    assert schedule(0, 5, 0) == 1
