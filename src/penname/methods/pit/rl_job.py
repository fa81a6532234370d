"""A step of PIT's reinforcement learning: sample, ask the gap reward, make the better texts likelier."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from penname.lm import Generation, Sampling
from penname.lm.local import TransformersLM
from penname.methods.pit.config import RLConfig
from penname.methods.pit.form import Case, Form
from penname.methods.pit.rloo import advantages, penalised, rewards, rloo_loss
from penname.train.loop import Metrics
from penname.train.lora import whole
from penname.train.model import Trainable
from penname.train.packed import Tree
from penname.train.portions import portions


class GapReward(Protocol):
    """By how much a text is better than its case's draft."""

    def gaps(self, cases: Sequence[Case], texts: Sequence[str]) -> list[float]:
        """r(x, y, y_ref) of each text."""
        ...

    def fits(self, case: Case, text: str) -> bool:
        """Whether the reward can read the text."""
        ...


def merged(model: Trainable, masters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights W + s B A of each layer under LoRA (arXiv 2106.09685, equation 3), by plain names.

    Args:
        masters: the LoRA's values, by their names in the peft model.
    """
    from peft.tuners.lora import Linear

    found = {}
    for name, layer in model.reader.model.named_modules():
        if isinstance(layer, Linear):
            [adapter] = layer.active_adapters
            down, up = (masters[f"{name}.lora_{side}.{adapter}.weight"] for side in "AB")
            found[f"{name.removeprefix('base_model.model.')}.weight"] = whole(layer, down, up)
    return found


@dataclass(frozen=True)
class _Drawn:
    """A case's samples: its prompt with the samples as branches, and what each is worth."""

    tree: Tree
    gaps: tuple[float, ...]  # faulty samples have their penalty

    @property
    def tokens(self) -> int:
        return len(self.tree.prompt) + sum(map(len, self.tree.branches))


class RLJob:
    """−Σ A_i log π(y_i) / samples over a batch of cases. A `train.loop.Job`.

    Args:
        model: what is trained, under LoRA; with the adapter set aside it is π_SFT.
        masters: the newest values of the LoRA.
        sampler: a plain model of the same base, which writes the samples; its weights are replaced.
        cases: drafts to learn to improve, no two alike.
    """

    def __init__(
        self,
        model: Trainable,
        masters: Mapping[str, torch.Tensor],
        sampler: TransformersLM,
        reward: GapReward,
        form: Form,
        cases: Sequence[Case],
        config: RLConfig,
    ) -> None:
        self._model, self._masters, self._sampler = model, masters, sampler
        self._reward, self._form, self._cases, self._config = reward, form, cases, config

    @property
    def size(self) -> int:
        """Cases to train on."""
        return len(self._cases)

    def evaluate(self) -> Metrics:
        """Nothing is held out: every step's samples are new."""
        return {}

    def backward(self, batch: Sequence[int]) -> Iterator[Metrics]:
        """As `train.loop.Job.backward`.

        Yields "loss"; means over samples: "reward" (the gap, or the penalty), "kl" (log π − log π_SFT of the
        text, in nats), "better" (gap above 0), "cut", "blank", "unlike", "words", "tokens"; "spread", the
        mean of a case's best reward less its worst; and seconds of sampling, scoring and updating.
        """
        cases = [self._cases[place] for place in batch]
        began = time.perf_counter()
        texts = self._sample(cases)
        sampled = time.perf_counter()
        values, sound = self._judge(cases, texts)
        yield {
            **self._seen(texts),
            "reward": float(values.mean()),
            "better": float(((values > 0) & sound).double().mean()),
            "spread": float((values.amax(dim=1) - values.amin(dim=1)).mean()),
            "seconds_sampling": sampled - began,
            "seconds_scoring": time.perf_counter() - sampled,
        }
        drawn = [
            _Drawn(Tree(self._model.prompt(self._form.prompt(case)), self._branches(some)), tuple(row))
            for case, some, row in zip(cases, texts, values.tolist(), strict=True)
        ]
        for portion in portions(drawn, lambda one: one.tokens, self._config.portion):
            yield self._learn(portion, values.numel())

    def _sample(self, cases: Sequence[Case]) -> list[list[Generation]]:
        """k texts of each case, by the policy as it is now."""
        self._sampler.take(merged(self._model, self._masters))
        sampling = Sampling(
            max_tokens=self._config.max_tokens,
            temperature=self._config.temperature,
            top_p=1.0,  # what is learnt from is to come from the whole policy
            stop=tuple(self._form.stop),
            seed=int(torch.randint(2**31 - 1, ())),
        )
        prompts = [self._form.prompt(case) for case in cases]
        return self._sampler.generate(prompts, self._config.samples, sampling)

    def _judge(
        self, cases: Sequence[Case], texts: Sequence[Sequence[Generation]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What each sample is worth, and whether it is sound: (cases, k) each."""
        flat = [(case, one) for case, some in zip(cases, texts, strict=True) for one in some]
        sound = [
            one.finish == "stop" and bool(one.text.strip()) and self._reward.fits(case, one.text)
            for case, one in flat
        ]
        read = [pair for pair, good in zip(flat, sound, strict=True) if good]
        found = iter(self._reward.gaps([case for case, _ in read], [one.text for _, one in read]))
        gaps = torch.tensor([next(found) if good else 0.0 for good in sound]).view(len(cases), -1)
        marks = torch.tensor(sound).view(len(cases), -1)
        return penalised(gaps, marks), marks

    def _branches(self, texts: Sequence[Generation]) -> tuple[tuple[int, ...], ...]:
        """Token ids of samples; one that was cut did not end, and does not learn to end there."""
        ids = [(self._model.answer(one.text), one.finish) for one in texts]
        return tuple(own if finish == "stop" else own[:-1] or own for own, finish in ids)

    def _seen(self, texts: Sequence[Sequence[Generation]]) -> Metrics:
        flat = [one for some in texts for one in some]
        sums = {
            "cut": sum(one.finish == "length" for one in flat),
            "blank": sum(not one.text.strip() for one in flat),
            "unlike": sum(len(self._model.codec.completion(one.text)) != one.tokens for one in flat),
            "words": sum(len(one.text.split()) for one in flat),
            "tokens": sum(one.tokens for one in flat),
        }
        return {name: value / len(flat) for name, value in sums.items()}

    def _learn(self, drawn: Sequence[_Drawn], samples: int) -> Metrics:
        """Add the gradient of some cases' part of the loss over `samples` samples."""
        began = time.perf_counter()
        trees = [one.tree for one in drawn]
        reader = self._model.reader
        with torch.no_grad(), reader.model.disable_adapter():
            reference = reader.log_probs(trees).view(len(trees), -1)
        policy = reader.log_probs(trees).view(len(trees), -1)
        gaps = torch.tensor([one.gaps for one in drawn], device=policy.device)
        worth = rewards(gaps, policy, reference, self._config.beta)
        loss = rloo_loss(policy, advantages(worth)) / samples
        loss.backward()  # type: ignore[no-untyped-call]
        return {
            "loss": float(loss.detach()),
            "kl": float((policy.detach() - reference).sum()) / samples,
            "seconds_updating": time.perf_counter() - began,
        }
