"""REST-PG: learn to reason and write, then learn from one's own best outputs (arXiv 2501.04167).

    OUT.training/seen/reasoning.jsonl       what the model was to say of each writer, and what was left out
    OUT.training/iterations/0, 1, …         the models, each a whole result by itself
    OUT.training/seen/samples-T.jsonl       outputs as they come, then, scored and marked, iteration-T.jsonl

Each part is written down as soon as it is there: a kill loses the batch in flight, and the same call goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from penname.errors import BadInputError
from penname.lm import Generation, LanguageModel, ModelConfig, Sampling, load_model
from penname.methods.restpg.card import iteration_figures, model_card, reasoning_figures
from penname.methods.restpg.config import RestPGConfig
from penname.methods.restpg.examples import Answer, Example, Material, Reward
from penname.methods.restpg.reasoning import Reasoner
from penname.methods.restpg.select import Sample, best, sample_of, summary
from penname.records import Prompt, digest, prompt_values
from penname.tasks import Task, continuation
from penname.train import seen
from penname.train.folder import CARD, METRICS, Trained, check_free, finish, link_weights, workshop
from penname.train.index import create_index
from penname.train.sft import Written, train_sft

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""Called with what is being done, how much of it is done and of how much, and the newest figures."""

REASONING = "reasoning.jsonl"
BATCH = 16  # inputs whose outputs are sampled together: what a kill can lose


def train_rest_pg(
    materials: Sequence[Material],
    out: Path,
    *,
    task: Task,
    config: RestPGConfig = RestPGConfig(),
    model: str | None = None,
    reasoner: Reasoner | None = None,
    reward: Reward | None = None,
    context: Mapping[str, Any] = {},
    left_out: Mapping[str, int] = {},
    progress: Progress = lambda *_: None,
    note: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train REST-PG, or what it contains: fine-tuning with or without reasoning, and ReST-EM.

    Args:
        materials: the texts to learn to write, with what their prompts were made of.
        out: the result's folder; must not be there yet.
        task: what all of them are.
        model: the base, as `penname.lm.load_model` takes it: every maximisation starts from it.
        reasoner: makes the reasoning to begin with; needed where `config.reasoning` is given.
        reward: of an answer; needed where there are iterations.
        context: how the prompts were made, for whoever writes with the result: "stages" and "k".
        left_out: what the caller left out before, by reason (`requests_to_learn`): for the result's card.
        progress: called as the work goes on.
        note: told what a person should know.

    Raises:
        BadInputError: nothing is left to learn from; a reward says the same of everything; nothing reaches
            the threshold; `out` is there, or another training's leavings.
        TrainedError, ModelError: as `train_sft`.
    """
    check_free(out.expanduser())
    run = _Run(materials, task, config, model, reasoner, reward, context, left_out, progress, note)
    with workshop(out, run.asked) as folder:
        (folder / seen.SEEN).mkdir(exist_ok=True)
        (folder / "iterations").mkdir(exist_ok=True)
        run.first(folder)
        for number in range(1, config.iterations + 1):
            run.iterate(folder, number)
        return run.finish(folder, out)


class _Run:
    """One training, and its steps."""

    def __init__(
        self,
        materials: Sequence[Material],
        task: Task,
        config: RestPGConfig,
        model: str | None,
        reasoner: Reasoner | None,
        reward: Reward | None,
        context: Mapping[str, Any],
        left_out: Mapping[str, int],
        progress: Progress,
        note: Callable[[str], None],
    ) -> None:
        if config.reasoning is not None and reasoner is None:
            raise BadInputError(f"{config.method} needs a model that makes the reasoning to begin with")
        if config.iterations and reward is None:
            raise BadInputError(f"{config.method} needs a reward")
        self.materials = [one for one in materials if one.example.gold.strip()]
        self.left_out = dict(left_out)
        if blank := len(materials) - len(self.materials):
            note(f"{blank:,} examples left out: their real text is empty")
            self.left_out["examples left out: their real text is empty"] = blank
        # Where prompts show profiles alone, no documents were to be found.
        k = context.get("k", 0) if any(one.hits for one in self.materials) else 0
        self.short = sum(len(one.hits) < k for one in self.materials)
        if self.short:
            note(f"{self.short:,} of {len(self.materials):,} texts have fewer than {k} documents to show")
        if not self.materials:
            raise BadInputError("there is no text to learn from")
        self.task, self.config, self.spec = task, config, model
        self.reasoner, self.reward = reasoner, reward
        self.progress, self.note = progress, note
        self.base = load_model(model)
        self.about = {
            "task": task.name,
            "shape": self.base.shape,
            "reasoning": None if config.reasoning is None else asdict(config.reasoning),
            "context": dict(context),
        }

    @cached_property
    def asked(self) -> dict[str, Any]:
        """What decides the result."""
        examples = [one.example for one in self.materials]
        settings = {name: value for name, value in asdict(self.config).items() if name != "reasoning"}
        return {
            "method": self.config.method,
            "model_fingerprint": self.base.fingerprint,
            "settings": {
                **settings,
                **self.about,
                "reward": self.reward and self.reward.name,
                "reward_fingerprint": self.reward and self.reward.fingerprint,
                "reasoner": self.reasoner.fingerprint if self.reasoner and self.config.reasoning else None,
            },
            "data": {
                "fingerprint": digest(
                    [(one.request.id, prompt_values(one.prompt), one.gold) for one in examples]
                ),
                "texts": len(examples),
                "users": len({user for one in examples for user in one.request.users}),
            },
        }

    def first(self, folder: Path) -> None:
        """The model that the real texts make: iteration 0."""
        if not self._made(folder, 0):
            reasoned = self._reasoned(folder)
            written = [
                Written(
                    one.example.prompt,
                    self._target(reasoned.get(one.example.request.id, ""), one.example.gold),
                )
                for one in self.materials
                if self.config.reasoning is None or one.example.request.id in reasoned
            ]
            self._learn(folder, 0, written)

    def iterate(self, folder: Path, number: int) -> None:
        """One expectation and one maximisation."""
        if self._made(folder, number):
            return
        inputs = self._expect(folder, number)
        kept = [best(samples, self.config) for samples in inputs]
        figures = summary(inputs, kept)
        self._check(inputs, figures)
        _tell(self.note, number, figures)
        rows = [
            {**_named(one.example), "samples": _marked(samples, places)}
            for one, samples, places in zip(self.materials, inputs, kept, strict=True)
        ]
        seen.write(folder / seen.SEEN / f"iteration-{number}.jsonl", rows)
        (folder / seen.SEEN / f"samples-{number}.jsonl").unlink(missing_ok=True)
        written = [
            Written(
                one.example.prompt, self._target(samples[i].reasoning, samples[i].answer), samples[i].reward
            )
            for one, samples, places in zip(self.materials, inputs, kept, strict=True)
            for i in places
        ]
        self._learn(folder, number, written)

    def _reasoned(self, folder: Path) -> dict[str, str]:
        """The reasoning to begin with, by example; made where it is not there yet."""
        if self.config.reasoning is None:
            return {}
        assert self.reasoner is not None  # checked at the beginning
        file = folder / seen.SEEN / REASONING
        rows = seen.read(file)
        known = {row["id"] for row in rows}
        missing = [one for one in self.materials if one.example.request.id not in known]
        for batch in self.reasoner.batches(missing):
            new = [
                {**_named(one.example), "reasoning": found.text, "overlap": found.overlap, "why": found.why}
                for one, found in batch
            ]
            seen.append(file, new)
            rows += new
            self.progress("reasoning", len(rows), len(self.materials), {})
        _tell_reasoning(self.note, reasoning_figures(rows))
        return {row["id"]: row["reasoning"] for row in rows if not row["why"]}

    def _expect(self, folder: Path, number: int) -> list[list[Sample]]:
        """The outputs of the model before, with their rewards."""
        assert self.reward is not None  # checked at the beginning
        found = self._sampled(folder, number)
        flat = [(place, i) for place, samples in enumerate(found) for i in range(len(samples))]
        answers = [Answer(self.materials[place].example.request, found[place][i].answer) for place, i in flat]
        self.progress(f"rewards {number}", 0, len(answers), {})
        values = self.reward.rewards(
            answers, lambda done, total: self.progress(f"rewards {number}", done, total, {})
        )
        for (place, i), value in zip(flat, values, strict=True):
            found[place][i] = replace(found[place][i], reward=value)
        return found

    def _sampled(self, folder: Path, number: int) -> list[list[Sample]]:
        """`config.samples` outputs of each input, by the model of the iteration before."""
        done = folder / seen.SEEN / f"iteration-{number}.jsonl"  # a maximisation that was stopped
        file = done if done.is_file() else folder / seen.SEEN / f"samples-{number}.jsonl"
        rows = seen.read(file)
        known = {row["id"] for row in rows}
        missing = [one.example for one in self.materials if one.example.request.id not in known]
        if missing:
            model = self._model(folder, number - 1)
            for start in range(0, len(missing), BATCH):
                some = missing[start : start + BATCH]
                texts = self._outputs(model, [one.prompt for one in some], number)
                new = [
                    {**_named(one), "samples": [sample.row for sample in samples]}
                    for one, samples in zip(some, texts, strict=True)
                ]
                seen.append(file, new)
                rows += new
                self.progress(f"samples {number}", len(rows), len(self.materials), {})
        by_id = {row["id"]: [sample_of(sample) for sample in row["samples"]] for row in rows}
        return [by_id[one.example.request.id] for one in self.materials]

    def _outputs(self, model: LanguageModel, prompts: Sequence[Prompt], number: int) -> list[list[Sample]]:
        form, config = self.config.reasoning, self.config
        sampling = Sampling(
            max_tokens=config.answer_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            stop=self.task.stop() if model.shape == "completion" else (),
            seed=config.seed * 1000 + number,
            thinking=None if form is None else form.thinking(model.shape),
        )
        return [
            [self._sample(one) for one in texts]
            for texts in model.generate(prompts, config.samples, sampling)
        ]

    def _sample(self, one: Generation) -> Sample:
        form = self.config.reasoning
        reasoning, answer = ("", one.text.strip()) if form is None else form.split(one.text)
        return Sample(reasoning, answer, cut=one.finish == "length")

    def _learn(self, folder: Path, number: int, written: Sequence[Written]) -> None:
        """The model of one iteration, from the base."""
        base = self.spec
        if self.config.start == "previous" and number:
            base = str(self._folder(folder, number - 1) / "model")
        train_sft(
            written,
            self._folder(folder, number),
            model=base,
            config=replace(self.config.sft, loop=replace(self.config.sft.loop, seed=self.config.seed)),
            method=self.config.method if number else replace(self.config, iterations=0).method,
            about={**self.about, "iteration": number},
            progress=lambda done, total, figures: self.progress(f"model {number}", done, total, figures),
            note=self.note,
        )

    def _target(self, reasoning: str, answer: str) -> str:
        form = self.config.reasoning
        return continuation(answer if form is None else form.join(reasoning, answer), self.base.shape)

    def _model(self, folder: Path, number: int) -> LanguageModel:
        path = self._folder(folder, number) / "model"
        return load_model(ModelConfig(str(path), shape=self.base.shape))

    def _folder(self, folder: Path, number: int) -> Path:
        return folder / "iterations" / str(number)

    def _made(self, folder: Path, number: int) -> bool:
        return self._folder(folder, number).is_dir()

    def _check(self, inputs: Sequence[Sequence[Sample]], figures: Mapping[str, float]) -> None:
        """Stop where nothing can be learnt.

        Raises:
            BadInputError: it says why, with the numbers.
        """
        rewards = {one.reward for samples in inputs for one in samples if one.answer.strip()}
        if len(rewards) == 1:
            raise BadInputError(
                f"the reward says {rewards.pop():.3g} of all {figures['samples']:,} outputs: there is "
                "nothing to learn from it; name another with --reward"
            )
        if not figures["kept"]:
            nothing = (
                "every input's outputs have one reward, so nothing tells them apart: raise --temperature or "
                "name another --reward"
                if self.config.threshold is None
                else f"none reaches the threshold, {self.config.threshold:g}: lower it, or give a --quantile"
            )
            raise BadInputError(
                f"of {figures['samples']:,} outputs there is none to learn from. An input's best has the "
                f"reward {figures['best_reward']:.3f} in the mean, and {figures['cut']:,} were cut at their "
                f"limit (--answer-tokens); {nothing}"
            )

    def finish(self, folder: Path, out: Path) -> Trained:
        """The result: the last model, those before it, and what was seen on the way."""
        last = self.config.iterations
        models = [
            json.loads((self._folder(folder, number) / CARD).read_text(encoding="utf-8"))
            for number in range(last + 1)
        ]
        lines = [
            {**iteration_figures(folder, number), "left_out": models[number]["data"]["left_out"]}
            for number in range(1, last + 1)
        ]
        reasoned = seen.read(folder / seen.SEEN / REASONING)
        card = {
            **self.asked,
            "model": self.spec or self.base.name,
            "left_out": {**self.left_out, **models[0]["data"]["left_out"]},
            "short_histories": self.short,
            "reasoning": reasoning_figures(reasoned) if self.config.reasoning else None,
            "iterations": lines,
            "held_out": models[last]["held_out"],
            "rewards": list(self.reward.judges) if self.reward and last else [],
            "version": version("penname"),
        }

        def fill(result: Path) -> None:
            users = {user for one in self.materials for user in one.example.request.users}
            create_index(result, sorted(users))
            shutil.copytree(folder / seen.SEEN, result / seen.SEEN)
            # Hard links: the weights of several models are not written twice.
            shutil.copytree(folder / "iterations", result / "iterations", copy_function=link_weights)
            (result / "iterations" / str(last) / "model").rename(result / "model")
            shutil.copyfile(result / "iterations" / str(last) / METRICS, folder / METRICS)
            shutil.rmtree(result / "iterations" / str(last))
            if not last:
                (result / "iterations").rmdir()
            (result / "README.md").write_text(model_card(card), encoding="utf-8")

        return finish(folder, out, card, fill)


def _tell_reasoning(note: Callable[[str], None], figures: Mapping[str, float]) -> None:
    left_out = "".join(f"; {why}: {number}" for why, number in figures.items() if why.startswith("left out"))
    note(
        f"reasoning: {figures['kept']:,} of {figures['examples']:,} are learnt; overlap with the real text "
        f"alone {figures['overlap']:.1%}, of those learnt {figures['overlap_kept']:.1%}{left_out}"
    )


def _tell(note: Callable[[str], None], number: int, figures: Mapping[str, float]) -> None:
    note(
        f"iteration {number}: {figures['samples']:,} outputs of {figures['inputs']:,} inputs, reward "
        f"{figures['reward']:.3f} in the mean, {figures['best_reward']:.3f} of each input's best; learnt "
        f"from: {figures['kept']:,} of {figures['kept_reward']:.3f}, of {figures['above']:.0%} of the "
        f"inputs; cut at the limit: {figures['cut']:,}; of reward 0: {figures['unrewarded']:,}; words: "
        f"{figures['words']:.0f}, of those learnt from {figures['kept_words']:.0f}"
    )


def _marked(samples: Sequence[Sample], kept: Sequence[int]) -> list[dict[str, Any]]:
    return [{**sample.row, "kept": place in kept} for place, sample in enumerate(samples)]


def _named(example: Example) -> dict[str, Any]:
    request = example.request
    return {"id": request.id, "users": list(request.users), "input": request.input, "gold": example.gold}
