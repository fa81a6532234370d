"""A language model that answers what a test tells it to, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from penname.lm.base import Generation, Prefix, Sampling, Score, Shape
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
        self.prefixed: list[str | None] = []  # the key of the soft prompt of each text written or scored

    def count(self, prompt: Prompt) -> int:
        return len(flat(prompt).split())

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int = 1,
        sampling: Sampling = Sampling(),
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> list[list[Generation]]:
        self._see(prefixes or [None] * len(prompts))
        self.asked.extend(flat(prompt) for prompt in prompts)
        self.samplings.append(sampling)
        return [[self._write(prompt)] * n for prompt in prompts]

    def _write(self, prompt: Prompt) -> Generation:
        text = self.answer(flat(prompt))
        return Generation(text, self.count(prompt), len(text.split()), "stop")

    def _see(self, prefixes: Sequence[Prefix | None]) -> None:
        self.prefixed.extend(prefix and prefix.key for prefix in prefixes)

    def stream(
        self, prompt: Prompt, sampling: Sampling = Sampling(), prefix: Prefix | None = None
    ) -> Iterator[str]:
        self._see([prefix])
        self.asked.append(flat(prompt))
        yield from self.answer(flat(prompt)).partition(" ")

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> list[Score]:
        self._see(prefixes or [None] * len(prompts))
        return [Score(-1.0 * len(text.split()), len(text.split()), ()) for text in completions]

    def choose(self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]) -> list[list[float]]:
        return [[1 / len(mine) for _ in mine] for mine in options]
