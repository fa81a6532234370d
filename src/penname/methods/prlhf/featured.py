"""P-RM on fixed features: an answer is read once, and only small heads are trained.

    low-rank   r_u = w_u · R_φ, w_u on the simplex, R_φ shared by all users (LoRe, arXiv 2504.14439)
    pooled     one linear reward for everybody
    alone      a linear reward per user, from that user's preferences and nobody else's

The features of an answer are those of the sentence embedder for the prompt with the answer, and the logarithm
of its words, as embeddings know no length; or the model's hidden state at the answer's end.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from penname.errors import TrainedError
from penname.lm import ModelConfig, load_embedder
from penname.lm.files import fingerprint
from penname.methods.prlhf.answers import Question
from penname.methods.prlhf.card import model_card
from penname.methods.prlhf.comparisons import Pairs
from penname.methods.prlhf.config import HEAD
from penname.methods.prlhf.lowrank import LowRankConfig, LowRankReward, fit
from penname.methods.prlhf.table import UserTable
from penname.methods.prlhf.users import GENERIC
from penname.records import Prompt
from penname.tasks import PromptTexts
from penname.train.base import checked_base
from penname.train.checkpoint import load_tensors, save_tensors
from penname.train.folder import CARD, Trained, check_free, finish, workshop
from penname.train.index import create_index
from penname.train.loop import Progress
from penname.train.preferences.data import Prepared, split
from penname.train.preferences.prompts import as_prompt

if TYPE_CHECKING:
    from penname.train.preferences.data import Pair

Kind = Literal["low-rank", "pooled", "alone"]
Floats = NDArray[np.float64]

FLOORS = (1e-3, 1.0, 1e3)
"""What `LowRankConfig.floor` is chosen from on held-out pairs: a small one where many users judged few texts,
which may then lie anywhere; a large one where few judged many, known by the features' main directions."""

_RIDGE = 1.0  # C of the logistic regressions of pooled and alone; features are of length 1


class Features:
    """From prompts and answers to rows of features.

    Args:
        kind: "embedder", or "model" for the hidden states of `model`.
        task: how prompts are put to the model; as they stand to the embedder.
    """

    def __init__(self, kind: str, model: str | ModelConfig | None, task: str | None) -> None:
        self.kind = kind
        self._task = task
        self._texts = PromptTexts.load()
        self._model = None
        if kind == "model":
            from penname.train.model import load_trainable

            self._model = load_trainable(model, weights=None)
            self.fingerprint = self._model.fingerprint
        else:
            self._embedder = load_embedder()
            self.fingerprint = self._embedder.fingerprint

    def rows(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Floats:
        """(texts, d) of float64."""
        if self._model is not None:
            return self._hidden(prompts, texts)
        flat = [as_prompt(prompt, "completion", task=None, texts=self._texts) for prompt in prompts]
        whole = [f"{prompt}\n\n{text}" for prompt, text in zip(flat, texts, strict=True)]
        words = np.log1p([[len(text.split())] for text in texts])
        return np.concatenate([self._embedder.embed(whole), words], axis=1).astype(np.float64)

    def _hidden(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Floats:
        import torch

        from penname.train.packed import Tree
        from penname.train.preferences.prompts import as_completion

        model = self._model
        assert model is not None
        found = []
        for prompt, text in zip(prompts, texts, strict=True):
            asked = Question(
                GENERIC,
                model.prompt(as_prompt(prompt, model.shape, task=self._task, texts=self._texts)),
                model.answer(as_completion(text, model.shape)),
            )
            with torch.no_grad():
                found.append(model.reader.last_hidden([Tree(asked.prompt, (asked.answer,))])[0].float())
        return torch.stack(found).double().cpu().numpy()


def train_featured(
    prepared: Prepared,
    out: Path,
    *,
    users: Kind = "low-rank",
    features: Literal["embedder", "model"] = "embedder",
    model: str | None = None,
    config: LowRankConfig = LowRankConfig(),
    task: str | None = None,
    held_out: float = 0.1,
    progress: Progress = lambda *_: None,
) -> Trained:
    """Train a reward on fixed features. Pairs without a user count for `pooled` alone.

    Raises:
        BadInputError: `out` is there already, or no pair has a user.
    """
    check_free(out.expanduser())
    made = Features(features, model, task)
    kept, held = split(prepared, held_out, config.seed)
    settings = {"users": users, "features": features, "task": task, "seed": config.seed, **vars(config)}
    asked = {
        "method": "p-rm",
        "model_fingerprint": made.fingerprint,
        "settings": settings,
        "data": {
            "fingerprint": prepared.fingerprint,
            "pairs": len(kept),
            "held_out": len(held),
            "users": len(prepared.users),
            "left_out": prepared.left_out,
        },
    }
    with workshop(out, asked) as folder:
        items, rows = _distinct([*kept.pairs, *held.pairs], made)
        numbers = {user: number for number, user in enumerate(kept.users)}
        floors = FLOORS if users == "low-rank" and held.pairs else (config.floor,)
        best = None
        for number, floor in enumerate(floors):

            def tell(done: int, total: int, loss: float, *, before: int = number) -> None:
                progress(before * total + done, len(floors) * total, {"loss": loss})

            tried = replace(config, floor=floor)
            weights = _Weights.trained(users, kept.pairs, items, rows, numbers, tried, tell)
            found = _held_out(weights, held.pairs, items, rows, numbers)
            if best is None or found["accuracy"] > best[1]["accuracy"]:
                best = weights, found, floor
        assert best is not None
        weights, found, floor = best
        card = {
            **asked,
            "model": "all-minilm-l6-v2" if features == "embedder" else model or "smollm2-135m",
            "held_out": {**found, "floor": floor} if users == "low-rank" else found,
            "rewards": [],
            "version": version("penname"),
        }

        def fill(result: Path) -> None:
            weights.save(result, kept, numbers)
            (result / "README.md").write_text(model_card(card), encoding="utf-8")

        return finish(folder, out, card, fill)


Items = dict[tuple[Prompt, str], int]


def _distinct(pairs: Sequence[Pair], made: Features) -> tuple[Items, Floats]:
    """Each prompt with an answer once, by its place, and its features."""
    items: Items = {}
    for pair in pairs:
        for answer in pair.answers:
            items.setdefault((pair.prompt, answer), len(items))
    return items, made.rows([prompt for prompt, _ in items], [answer for _, answer in items])


class _Weights:
    """What is trained: linear in the features once a user is given."""

    def __init__(self, kind: str, reward: LowRankReward | None, generic: Floats, own: Floats) -> None:
        self.kind = kind
        self.reward = reward
        self.generic = generic  # (B,) weights of the basis, or (d,) of the features
        self.own = own  # (users, B or d)

    @classmethod
    def trained(
        cls,
        kind: Kind,
        pairs: Sequence[Pair],
        items: Items,
        rows: Floats,
        numbers: Mapping[str, int],
        config: LowRankConfig,
        progress: Callable[[int, int, float], None],
    ) -> _Weights:
        sides = np.array([[items[pair.prompt, answer] for answer in pair.answers] for pair in pairs])
        owner = np.array([numbers.get(pair.user or "", -1) for pair in pairs])
        if kind == "low-rank":
            known = owner >= 0
            reward, own = fit(
                rows,
                Pairs(owner[known], sides[known, 0], sides[known, 1]),
                len(numbers),
                config,
                progress=progress,
            )
            return cls(kind, reward, reward.generic, own)
        differences = rows[sides[:, 0]] - rows[sides[:, 1]]
        generic = linear(differences)
        own = np.zeros((0, len(generic)))
        if kind == "alone":
            own = np.stack([linear(differences[owner == number]) for number in range(len(numbers))])
        return cls(kind, None, generic, own)

    def scores(self, rows: Floats, weights: Floats) -> Floats:
        """(n,) rewards of features (n, d)."""
        found: Floats = (rows if self.reward is None else self.reward.basis(rows)) @ weights
        return found

    def save(self, folder: Path, kept: Prepared, numbers: Mapping[str, int]) -> None:
        if self.kind == "pooled":
            from torch import from_numpy

            save_tensors(folder / HEAD, {"head": from_numpy(self.generic.astype(np.float32))}, {})
            create_index(folder, kept.users)
            return
        counts = Counter(item.user for item in kept.items)
        arrays = {"generic": self.generic} if self.reward is None else self.reward.arrays()
        shared = {name: np.asarray(one, dtype=np.float32) for name, one in arrays.items()}
        own = self.own.astype(np.float32)
        rows = [(user, own[number], counts[user]) for user, number in numbers.items()]
        UserTable.create(folder, shared, rows, own.shape[1:]).close()


def linear(differences: Floats) -> Floats:
    """A linear reward (d,) from features(chosen) − features(rejected), (p, d): Bradley-Terry with a ridge."""
    from sklearn.linear_model import LogisticRegression

    both = np.concatenate([differences, -differences])
    which = np.repeat([1, 0], len(differences))
    model = LogisticRegression(C=_RIDGE, fit_intercept=False, max_iter=1000).fit(both, which)
    return np.asarray(model.coef_[0], dtype=np.float64)


def _held_out(
    weights: _Weights, pairs: Sequence[Pair], items: Items, rows: Floats, numbers: Mapping[str, int]
) -> dict[str, float]:
    """Accuracy on held-out pairs, and that of the user who is served worst."""
    right: dict[str, list[float]] = {}
    for pair in pairs:
        number = numbers.get(pair.user or "", -1)
        own = weights.own[number] if number >= 0 and len(weights.own) else weights.generic
        chosen, rejected = weights.scores(rows[[items[pair.prompt, answer] for answer in pair.answers]], own)
        right.setdefault(pair.user or "", []).append(float(chosen > rejected))
    if not right:
        return {}
    everything = [one for some in right.values() for one in some]
    worst = min(sum(some) / len(some) for some in right.values())
    return {"accuracy": sum(everything) / len(everything), "worst_user": worst}


class FeaturedReward:
    """A run's reward on fixed features. Implements `rerank.Reward`."""

    def __init__(self, trained: Trained, features: Features) -> None:
        self._features = features
        self._kind = trained.settings["users"]
        self.fingerprint = fingerprint([trained.path / CARD])
        self._table = None if self._kind == "pooled" else UserTable.open(trained.path)
        self._reward: LowRankReward | None = None
        if self._table is None:
            self._generic = _pooled(trained.path)
        else:
            weakref.finalize(self, self._table.close)
            shared = self._table.shared
            self._generic = shared["generic"].astype(np.float64)
            self._reward = LowRankReward.from_arrays(shared) if self._kind == "low-rank" else None

    def key(self, user: str) -> str:
        """As `Reward.key`."""
        return hashlib.sha256(self._own(user).tobytes()).hexdigest()

    def knows(self, user: str) -> bool:
        """As `Reward.knows`."""
        return self._table is not None and user in self._table

    def rewards(
        self,
        prompts: Sequence[Prompt],
        texts: Sequence[str],
        users: Sequence[str | None],
        abouts: Sequence[str] | None = None,
    ) -> list[float]:
        """As `Reward.rewards`; what `abouts` says is not read."""
        del abouts
        if not texts:
            return []
        own = np.stack([self._own(user) for user in users])
        found: Floats = (self.basis(prompts, texts) * own).sum(1)
        return [float(one) for one in found]

    def basis(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Floats:
        """What users' weights are over: (n, B) of the low-rank form, else the features (n, d)."""
        rows = self._features.rows(prompts, texts)
        return rows if self._reward is None else self._reward.basis(rows)

    def learn(self, user: str, pairs: Sequence[Pair]) -> tuple[float, float]:
        """Fit the user's row; the shares of pairs in the right order before and after."""
        if self._table is None:
            raise TrainedError("a pooled reward knows no users: there is nothing to adapt")
        prompts = [pair.prompt for pair in pairs]
        chosen = self.basis(prompts, [pair.chosen for pair in pairs])
        rejected = self.basis(prompts, [pair.rejected for pair in pairs])
        before = float(((chosen - rejected) @ self._own(user) > 0).mean())
        row = linear(chosen - rejected) if self._reward is None else self._reward.fit_user(chosen, rejected)
        self._table.put(user, row.astype(np.float32), len(pairs))
        return before, float(((chosen - rejected) @ row > 0).mean())

    def _own(self, user: str | None) -> Floats:
        row = None if user is None or self._table is None else self._table.row(user)
        return self._generic if row is None else row.astype(np.float64)


def _pooled(folder: Path) -> Floats:
    return load_tensors(folder / HEAD)[0]["head"].double().numpy()


def open_featured(trained: Trained, model: str | ModelConfig | None = None) -> FeaturedReward:
    """The reward of a run on fixed features.

    Args:
        model: of a run on a model's features: that model, where it is no longer where the run recorded it.

    Raises:
        TrainedError: its table is cut short, or its features were made by another model.
    """
    settings = trained.settings
    base = checked_base(trained, model) if settings["features"] == "model" else None
    made = Features(settings["features"], base, settings["task"])
    if made.fingerprint != trained.model_fingerprint:
        raise TrainedError(f"{trained.path} was trained on features of another version of {trained.model}")
    return FeaturedReward(trained, made)


def adapt_featured(
    trained: Trained, user: str, prepared: Prepared, model: str | ModelConfig | None = None
) -> tuple[float, float]:
    """Fit the user's row to pairs; the shares of them in the right order before and after."""
    return open_featured(trained, model).learn(user, prepared.pairs)
