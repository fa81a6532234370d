"""Training PIT's gap reward (arXiv 2310.00898): by how much a text is better than a draft.

A scalar head on the hidden state of a text's last token, read after `Form.prompt` of the draft, over a model
with LoRA. A pair's four values come of two readings: after the rejected text as the draft, and after the
chosen one, each with both texts as branches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from penname.errors import BadInputError
from penname.files import put
from penname.methods.pit.calibration import Calibration, calibrate, draw
from penname.methods.pit.form import Case, Form
from penname.methods.pit.losses import five_terms
from penname.records import digest
from penname.tasks import PromptTexts
from penname.train.checkpoint import save_tensors
from penname.train.folder import Trained, check_free, finish, workshop
from penname.train.index import create_index
from penname.train.loop import LoopSettings, Metrics, Progress, steps_of, train
from penname.train.model import LoraSettings, Trainable, Weights, load_trainable, save_weights
from penname.train.optimizer import Optimizer, OptimizerSettings
from penname.train.packed import PackedReader, Tree
from penname.train.portions import portions
from penname.train.preferences.data import Pair
from penname.train.preferences.prompts import as_text

METHOD = "pit-gap"
HEAD = "head.safetensors"
RELIABILITY = "reliability"  # .json and .png

Found = list[tuple[Pair, "Example"]]


@dataclass(frozen=True)
class GapConfig:
    """Settings of the gap reward; ours, where nothing else is said.

    Raises:
        BadInputError: a setting has a value that it cannot have.
    """

    weights: Weights = "lora"  # what of the model is trained, beside the head
    lora: LoraSettings = LoraSettings()
    dtype: Literal["float32", "bfloat16"] | None = None  # None: bfloat16 where the processor is fast at it
    max_tokens: int = 1024  # of a draft's prompt with its longer text; pairs above are left out, and counted
    portion: int = 4096  # tokens read at once: bounds memory
    held_out: float = 0.1  # share of the prompts held out, for evaluation and to calibrate by
    optimizer: OptimizerSettings = OptimizerSettings(lr=2e-4)  # user_lr is the head's
    loop: LoopSettings = field(default_factory=LoopSettings)  # a batch counts pairs

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, before anything is loaded."""
        if not 0 <= self.held_out < 1:
            raise BadInputError(f"held_out: {self.held_out} is not from 0 to below 1")
        for name, value in (("epochs", self.loop.epochs), ("lr", self.optimizer.lr)):
            if not value > 0:
                raise BadInputError(f"{name}: {value} is not above 0")
        counts = {"max_tokens": self.max_tokens, "portion": self.portion, "batch": self.loop.batch}
        for name, count in counts.items():
            if count < 1:
                raise BadInputError(f"{name}: {count} is too small; at least 1")


@dataclass(frozen=True)
class Example:
    """A pair in token ids."""

    after_worse: tuple[int, ...]  # the prompt with y_l as the draft
    after_better: tuple[int, ...]  # with y_w
    better: tuple[int, ...]  # y_w with the token that ends it
    worse: tuple[int, ...]  # y_l

    @property
    def tokens(self) -> int:
        """Tokens that reading it costs."""
        texts = len(self.better) + len(self.worse)
        return len(self.after_worse) + len(self.after_better) + 2 * texts

    @property
    def longest(self) -> int:
        """Tokens of its longer prompt with its longer text."""
        prompts, texts = (self.after_worse, self.after_better), (self.better, self.worse)
        return max(map(len, prompts)) + max(map(len, texts))


class GapJob:
    """The loss of five terms over batches of pairs, the mean of the pairs' sums. A `train.loop.Job`.

    Args:
        head: (width,), float32: a value is its product with the hidden state.
        train, held: examples to train on, and those held out.
        portion: tokens read at once; a pair is never cut in two.
    """

    def __init__(
        self,
        reader: PackedReader,
        head: torch.Tensor,
        train: Sequence[Example],
        held: Sequence[Example],
        *,
        portion: int,
    ) -> None:
        self._reader = reader
        self._head = head
        self._train = train
        self._held = held
        self._portion = portion

    @property
    def size(self) -> int:
        """Pairs to train on."""
        return len(self._train)

    def backward(self, batch: Sequence[int]) -> Iterator[Metrics]:
        """As `train.loop.Job.backward`; figures as of `evaluate`."""
        examples = [self._train[place] for place in batch]
        for some in self._portions(examples):
            values = self.values(some)
            loss = five_terms(*values.T).sum() / len(examples)
            loss.backward()  # type: ignore[no-untyped-call]
            yield {name: total / len(examples) for name, total in _totals(values.detach()).items()}

    def evaluate(self) -> Metrics:
        """As `train.loop.Job.evaluate`.

        "accuracy": share of the better texts with a gap above 0; "worse_accuracy": of the worse ones with a
        gap below 0; "margin": the mean of r(w, l) and −r(l, w).
        """
        if not self._held:
            return {}
        found = _totals(torch.cat([self.values(some).detach() for some in self._portions(self._held)]))
        return {name: total / len(self._held) for name, total in found.items()}

    @torch.no_grad()
    def held_gaps(self) -> tuple[list[float], list[float]]:
        """r(w, l) and r(l, w) of every pair held out, of which there must be one."""
        better, worse = _gaps(torch.cat([self.values(some) for some in self._portions(self._held)]))
        return better.tolist(), worse.tolist()

    def values(self, examples: Sequence[Example]) -> torch.Tensor:
        """s of (w, l), (w, w), (l, l) and (l, w), as `five_terms` takes them: (n, 4), float32."""
        trees = [
            Tree(prompt, (one.better, one.worse))
            for one in examples
            for prompt in (one.after_worse, one.after_better)
        ]
        read = (self._reader.last_hidden(trees).float() @ self._head).view(-1, 4)
        return read[:, [0, 2, 1, 3]]  # as read: (w, l), (l, l), (w, w), (l, w)

    def _portions(self, examples: Sequence[Example]) -> Iterator[list[Example]]:
        return portions(examples, lambda one: one.tokens, self._portion)


def _gaps(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """r(w, l) and r(l, w), (n,) each: what a text has over its draft in the same place."""
    wl, ww, ll, lw = values.T
    return wl - ll, lw - ww


def _totals(values: torch.Tensor) -> Metrics:
    """Sums over pairs."""
    better, worse = _gaps(values)
    return {
        "loss": float(five_terms(*values.T).sum()),
        "accuracy": float((better > 0).sum()),
        "worse_accuracy": float((worse < 0).sum()),
        "margin": float((better - worse).sum()) / 2,
    }


def train_gap(
    pairs: Sequence[Pair],
    out: Path,
    *,
    model: str | None = None,
    config: GapConfig = GapConfig(),
    about: Mapping[str, Any] = {},
    progress: Progress = lambda *_: None,
    note: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train the gap reward, or go on where that was stopped.

    Pairs with an empty text, with two texts that are the same, and those that do not fit into `max_tokens` or
    the model's context are left out, counted and told. All pairs of a prompt are on one side of what is held
    out, and the gaps of those pairs say how far the gap can be believed (`calibration`).

    Args:
        out: the result's folder; must not be there yet.
        model: the base, as `penname.lm.load_model` takes it.
        about: what else its settings are (JSON values).
        progress: called with steps done, steps in all, and the newest figures.
        note: told what a person should know.

    Raises:
        BadInputError: no pair is left, or `out` is there.
        TrainedError: a checkpoint is cut short.
        ModelError: the model cannot be loaded, or not trained here.
    """
    check_free(out.expanduser())
    if not pairs:
        raise BadInputError("there are no pairs of texts to learn from")
    trainable = load_trainable(
        model, weights=config.weights, lora=config.lora, dtype=config.dtype, seed=config.loop.seed
    )
    found, left_out = _examples(pairs, trainable, config.max_tokens)
    for why, number in left_out.items():
        note(f"{number:,} {why}")
    if not found:
        raise BadInputError("there is no pair of texts to learn from: all were left out")
    kept, held = _split(found, config.held_out, config.loop.seed)
    users = sorted({pair.user for pair, _ in found if pair.user is not None})
    asked = {
        "method": METHOD,
        "model_fingerprint": trainable.fingerprint,
        "settings": {
            **asdict(config),
            "shape": trainable.shape,
            "about": any(pair.about for pair, _ in found),
            **about,
        },
        "data": {
            "fingerprint": digest([(pair.user, asdict(example)) for pair, example in found]),
            "pairs": len(kept),
            "held_out": len(held),
            "users": len(users),
            "left_out": left_out,
        },
    }
    with workshop(out, asked) as folder:
        head = torch.nn.Parameter(torch.zeros(trainable.reader.width, device=trainable.reader.device))
        sides = [[example for _, example in side] for side in (kept, held)]
        job = GapJob(trainable.reader, head, *sides, portion=config.portion)
        steps = steps_of(job.size, config.loop)
        optimizer = Optimizer(trainable.parameters, {"head": head}, config.optimizer, steps)
        best = train(job, optimizer, config.loop, folder, progress=progress)
        calibrated = _calibrated(job, [pair for pair, _ in held])
        if calibrated is None:
            note("nothing was held out: the probabilities of this gap reward are not calibrated")
        card = {
            **asked,
            "model": trainable.spec,
            "held_out": best,
            "rewards": [],
            "calibration": _summary(calibrated),
            "version": version("penname"),
        }

        def fill(result: Path) -> None:
            save_weights(trainable, optimizer, result)
            save_tensors(result / HEAD, {"head": head.detach()}, {})
            create_index(result, users)
            put(result / "README.md", _model_card(card))
            if calibrated is not None:
                put(result / f"{RELIABILITY}.json", json.dumps(asdict(calibrated), indent=1) + "\n")
                draw(calibrated, result / f"{RELIABILITY}.png")

        return finish(folder, out, card, fill)


def _examples(pairs: Sequence[Pair], model: Trainable, most: int) -> tuple[Found, dict[str, int]]:
    """What can be learnt from, in token ids, and how many were left out by reason."""
    most = min(most, model.context)
    form = Form(model.shape, PromptTexts.load())
    left_out: dict[str, int] = {}
    found: Found = []
    for pair in pairs:
        example = Example(
            *(model.prompt(form.prompt(Case.of(pair, draft))) for draft in (pair.rejected, pair.chosen)),
            *(model.answer(form.answer(text)) for text in pair.answers),
        )
        if not all(text.strip() for text in pair.answers):
            why = "pairs left out: a text is empty"
        elif example.better == example.worse:
            why = "pairs left out: both texts are the same"
        elif example.longest > most:
            why = f"pairs left out: longer than {most:,} tokens, a draft with its prompt and a text after it"
        else:
            found.append((pair, example))
            continue
        left_out[why] = left_out.get(why, 0) + 1
    return found, left_out


def _split(found: Found, share: float, seed: int) -> tuple[Found, Found]:
    """Those to train on, and those held out: all pairs of a prompt on one side, whoever's they are."""
    prompts = list(dict.fromkeys(as_text(pair.prompt) for pair, _ in found))
    drawn = np.random.default_rng(seed).permutation(len(prompts))[: int(share * len(prompts))]
    held = {prompts[place] for place in drawn}
    sides: tuple[Found, Found] = [], []
    for pair, example in found:
        sides[as_text(pair.prompt) in held].append((pair, example))
    return sides


def _calibrated(job: GapJob, held: Sequence[Pair]) -> Calibration | None:
    if not held:
        return None
    lengths = [[len(pair.answers[side].strip()) for pair in held] for side in (0, 1)]
    return calibrate(*job.held_gaps(), *lengths)


def _summary(found: Calibration | None) -> dict[str, Any]:
    """Of the card: what `Calibration` says, its bins aside."""
    if found is None:
        return {"calibrated": False, "temperature": 1.0}
    return {"calibrated": True, **{name: value for name, value in asdict(found).items() if name != "bins"}}


def _model_card(card: Mapping[str, Any]) -> str:
    """What was trained, on what, and how far it can be believed; no user and no text is named."""
    data = card["data"]
    left_out = "".join(f"- {number:,} {why}\n" for why, number in data["left_out"].items())
    return f"""# {card["method"]} over {card["model"]}

Tells by how much a text is better than a draft: the gap reward of PIT (arXiv 2310.00898). Made by penname \
{card["version"]}.

    from penname.methods.pit.form import Case
    from penname.methods.pit.gap import open_gap
    [gap] = open_gap("THIS_FOLDER").gaps([Case(request, draft)], [text])

- pairs: {data["pairs"]:,} of {data["users"]:,} users, and {data["held_out"]:,} held out
{left_out}- settings: {card["settings"]}
- base model's weights: {card["model_fingerprint"]}
- data: {data["fingerprint"]}

{_believed(card["calibration"])}

`users.db` knows, by hashes of their ids, whom it learnt from; what the weights learnt of their preferences
goes only with the whole folder.
"""


def _believed(found: Mapping[str, Any]) -> str:
    if not found["calibrated"]:
        return "Nothing was held out: how often it is right is unknown; its probabilities are not calibrated."
    length = found["length"]
    sides = ", ".join(
        f"{length[name]['accuracy']:.1%} of {length[name]['pairs']:,} where it is the {name}"
        for name in ("longer", "shorter")
        if length[name]["pairs"]
    )
    correlation = length["correlation"]
    return f"""On the {found["pairs"]:,} pairs held out, by which the training also chose its best step:

- the better text has a gap above 0: {found["accuracy"]:.1%} ({sides or "all texts are of one length"})
- the worse text has a gap below 0: {found["worse_accuracy"]:.1%}
- rank correlation of the gap with the log length ratio: \
{"undefined" if correlation is None else f"{correlation:.2f}"}
- a gap r is the probability σ(r / {found["temperature"]:.4g}) that the text is better: expected calibration \
error {found["error"]:.3f} ({found["error_raw"]:.3f} with T = 1), log loss {found["log_loss"]:.3f} \
({found["log_loss_raw"]:.3f}); T was fitted on these pairs
- `{RELIABILITY}.png`, `{RELIABILITY}.json`: the probabilities in bins"""
