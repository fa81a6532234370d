"""What the benchmark of improvement compares: each makes texts of cases."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from penname.lm import LanguageModel, ModelConfig, Sampling, load_model
from penname.methods.pit.form import Case, Form
from penname.methods.pit.gap import open_gap
from penname.methods.pit.improve import ImproveConfig, Improver, open_improver
from penname.methods.pit.refine import RefineConfig, Refiner, best_by_reward, best_of
from penname.methods.pit.rounds import Improved
from penname.methods.prlhf.reward import open_reward
from penname.tasks import PromptTexts
from revisions_data import FRESH_STOP, Example, fresh, trim

System = Callable[[Sequence[Example]], Mapping[str, Sequence[str]]]
"""The cases' texts by name: of one system, or of several that are made together."""

Pick = Callable[[Case, Sequence[str]], str]
"""The best of several texts for a case."""

EACH = -math.inf  # the threshold by which every round is taken


def systems(out: Path, given: argparse.Namespace) -> dict[str, tuple[Sequence[Path], System]]:
    """What is compared, by name, with the results that it rests on. Left out: those whose results lack."""
    base = load_model(given.model)
    texts = PromptTexts.load()
    form = Form(base.shape, texts)
    sft, gap, n = out / "sft", out / "gap", given.best_of

    def improved(folder: Path, name: str, config: ImproveConfig) -> System:
        return improving(name, cache(lambda: opened(folder, gap, form)), config, given.seed)

    def fresh_best(name: str, pick: Pick) -> System:
        return best(name, base, n, pick, 2 * given.max_words, given.seed)

    once = ImproveConfig(rounds=1, threshold=EACH, candidates=1, temperature=given.temperature)
    fixed = replace(once, rounds=given.rounds, candidates=given.candidates)
    stopped = replace(fixed, threshold=0.0)
    found: dict[str, tuple[Sequence[Path], System]] = {
        "original": ([], lambda cases: {"original": [one.rejected for one in cases]}),
        "real": ([], lambda cases: {"real": [one.chosen for one in cases]}),
        "self-refine": ([], refining(Refiner(base, texts), given.rounds, given.seed)),
        f"best of {n}": ([gap], fresh_best(f"best of {n}", by_gap(gap))),
        f"best of {n}, plain": ([out / "plain"], fresh_best(f"best of {n}, plain", by_reward(out / "plain"))),
        "sft": ([sft, gap], improved(sft, "sft", once)),
        f"sft, best of {n}": ([sft, gap], improved(sft, f"sft, best of {n}", replace(once, candidates=n))),
        "pit": ([out / "rl"], improved(out / "rl", "pit", fixed)),
    }
    for folder, name in (("rl", "pit"), ("rl-first", "first"), ("rl-second", "second")):
        name += ", stopped"
        found[name] = ([out / folder], improved(out / folder, name, stopped))
    return {name: one for name, one in found.items() if all(folder.exists() for folder in one[0])}


def refining(refiner: Refiner, rounds: int, seed: int) -> System:
    """Critique and rewriting by prompt."""

    def run(cases: Sequence[Example]) -> Mapping[str, Sequence[str]]:
        found = refiner.improve([case(one) for one in cases], RefineConfig(rounds=rounds), seed)
        return by_round("self-refine", cases, found, rounds)

    return run


def improving(name: str, improver: Callable[[], Improver], config: ImproveConfig, seed: int) -> System:
    """Rounds of a policy; where several are all taken, the text after each of them is a system."""

    def run(cases: Sequence[Example]) -> Mapping[str, Sequence[str]]:
        found = improver().improve([case(one) for one in cases], config, seed)
        if config.threshold > EACH or config.rounds == 1:
            return {name: [one.text for one in found]}
        return by_round(name, cases, found, config.rounds)

    return run


def by_round(
    name: str, cases: Sequence[Example], found: Sequence[Improved], rounds: int
) -> dict[str, Sequence[str]]:
    """The texts as they stood after each round."""
    return {
        f"{name}, {number} round{'s' * (number > 1)}": [
            after(one.rejected, result, number) for one, result in zip(cases, found, strict=True)
        ]
        for number in range(1, rounds + 1)
    }


def best(name: str, model: LanguageModel, n: int, pick: Pick, tokens: int, seed: int) -> System:
    """Of `n` texts that the model writes from the title alone, as long as the draft, the best."""
    sampling = Sampling(max_tokens=tokens, stop=FRESH_STOP, seed=seed)

    def run(cases: Sequence[Example]) -> Mapping[str, Sequence[str]]:
        written = model.generate([fresh(model, one.title, one.section) for one in cases], n, sampling)
        options = [
            [trim(each.text, len(one.rejected.split())) for each in some]
            for one, some in zip(cases, written, strict=True)
        ]
        return {name: [pick(case(one), some) for one, some in zip(cases, options, strict=True)]}

    return run


def by_gap(folder: Path) -> Pick:
    """By the gap reward over the draft."""
    gap = cache(lambda: open_gap(folder))
    return lambda one, options: best_of(gap(), one, options)


def by_reward(folder: Path) -> Pick:
    """By a plain reward model."""
    reward = cache(lambda: open_reward(folder))
    return lambda one, options: best_by_reward(reward(), one, options)


def case(one: Example) -> Case:
    """The worse text as the draft."""
    return Case(one.prompt, one.rejected)


def opened(folder: Path, gap: Path, form: Form) -> Improver:
    """The policy of a result, with its own gap reward or with that of the folder."""
    if (folder / "gap").exists():
        return open_improver(folder)
    return Improver(load_model(ModelConfig(str(folder / "model"), shape=form.shape)), gap, form, folder)


def after(draft: str, improved: Improved, number: int) -> str:
    """The text as it stood after so many rounds."""
    taken = [one.text for one in improved.rounds[:number] if one.taken]
    return taken[-1] if taken else draft
