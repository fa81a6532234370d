"""A language model that answers what a test tells it to, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from penname.lm.base import Generation, Sampling, Score, Shape
from penname.records import Prompt


def flat(prompt: Prompt) -> str:
    """A prompt as one text, whichever its shape."""
    return prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)


class ToldModel:
    """Implements `LanguageModel`; a token is a word, and `answer` maps a prompt's text to what is written."""

    name = "told"

    def __init__(
        self,
        answer: Callable[[str], str] = lambda prompt: "an answer",
        shape: Shape = "completion",
        context: int = 8192,
        fingerprint: str = "told-1",
    ) -> None:
        self.answer = answer
        self.shape = shape
        self.context = context
        self.fingerprint = fingerprint
        self.asked: list[str] = []
        self.samplings: list[Sampling] = []

    def count(self, prompt: Prompt) -> int:
        return len(flat(prompt).split())

    def generate(
        self, prompts: Sequence[Prompt], n: int = 1, sampling: Sampling = Sampling()
    ) -> list[list[Generation]]:
        self.asked.extend(flat(prompt) for prompt in prompts)
        self.samplings.append(sampling)
        return [[self._write(prompt)] * n for prompt in prompts]

    def _write(self, prompt: Prompt) -> Generation:
        text = self.answer(flat(prompt))
        return Generation(text, self.count(prompt), len(text.split()), "stop")

    def stream(self, prompt: Prompt, sampling: Sampling = Sampling()) -> Iterator[str]:
        self.asked.append(flat(prompt))
        yield from self.answer(flat(prompt)).partition(" ")

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        return [Score(-1.0 * len(text.split()), len(text.split()), ()) for text in completions]

    def choose(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[list[float]]:
        return [[1 / len(mine) for _ in mine] for mine in options]
