"""Preferences as a model's token ids: the same in training, fitting, scoring and evaluating."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penname.methods.prlhf.jobs import Example
from penname.methods.prlhf.users import GENERIC
from penname.records import Prompt
from penname.tasks import PromptTexts
from penname.train.model import Trainable
from penname.train.preferences.data import Pair, Rated
from penname.train.preferences.prompts import as_completion, as_prompt


class TextReader:
    """Preferences as token ids."""

    def __init__(self, model: Trainable, task: str | None) -> None:
        self._model = model
        self._task = task
        self._texts = PromptTexts.load()

    def prompt(self, prompt: Prompt, about: str) -> tuple[int, ...]:
        shape = self._model.shape
        return self._model.prompt(as_prompt(prompt, shape, task=self._task, about=about, texts=self._texts))

    def answer(self, text: str) -> tuple[int, ...]:
        return self._model.answer(as_completion(text, self._model.shape))

    def lengths(self, item: Pair | Rated) -> list[int]:
        return [
            len(self.prompt(item.prompt, item.about)),
            *(len(self.answer(answer)) for answer in item.answers),
        ]

    def examples(self, items: Sequence[Pair | Rated], numbers: Mapping[str, int]) -> list[Example]:
        """Each item, with the answer of the item after it as KTO's answer to another prompt."""
        answers = [tuple(self.answer(answer) for answer in item.answers) for item in items]
        found = []
        for place, item in enumerate(items):
            rated = isinstance(item, Rated)
            found.append(
                Example(
                    user=numbers.get(item.user or "", GENERIC),
                    prompt=self.prompt(item.prompt, item.about),
                    answers=answers[place],
                    reference=(0.0,) * len(answers[place]),
                    liked=item.liked if isinstance(item, Rated) else True,
                    weight=item.weight if isinstance(item, Rated) else 1.0,
                    other=answers[(place + 1) % len(items)][0] if rated else (),
                )
            )
        return found
