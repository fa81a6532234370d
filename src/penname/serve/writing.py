"""One draft while it is written: its pieces as they come, then the whole of it with all that went into it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

from penname.lm.base import Sampling
from penname.lm.stops import stop_at
from penname.methods.pen import cleaned, finished, written
from penname.records import Draft, Request
from penname.serve.engine import Heard, owned
from penname.tasks import task as find_task
from penname.writer import Writer


class Drafting:
    """A draft that is to be written. Retrieval and profile are done when it is made; nothing is written yet.

    Args:
        seed: the writer's own where None.
        top_p: of the nucleus; the writer's own where None.
        stop: the text ends before the first of these too.
        prepared: the same request as another `Drafting` has prepared it.

    Raises:
        As `Writer.prompts` does.
    """

    def __init__(
        self,
        writer: Writer,
        request: Request,
        *,
        seed: int | None = None,
        top_p: float | None = None,
        stop: Sequence[str] = (),
        prepared: Draft | None = None,
    ) -> None:
        self.numbers = writer.store.numbers(request.users)
        """Of the users, before anything of theirs was read; see `House.keep`."""
        self.draft = prepared or writer.prompts([request])[0]
        """As far as it is; whole when `pieces` have all come."""
        pen = writer.pen(request)
        there = self.numbers if len(self.numbers) == len(set(request.users)) else {}
        self._pen = replace(pen, model=owned(pen.model, there))
        self._stop = tuple(stop)
        sampling = writer.sampling(find_task(request.task))
        self._sampling: Sampling = replace(
            sampling,
            seed=sampling.seed if seed is None else seed,
            top_p=sampling.top_p if top_p is None else top_p,
            stop=(*sampling.stop, *self._stop),
        )
        self.draft = self.draft.model_copy(update={"seed": self._sampling.seed})

    def pieces(self, gone: Callable[[], bool] = lambda: False) -> Generator[str]:
        """The text as it is written. Closing the iterator stops the writing.

        What is chosen from several drafts, or improved in rounds, comes at once.

        Args:
            gone: asked at each piece of what the model writes, shown or not: whether nobody waits for the
                text any more. It then ends there.
        """
        if self._pen.reward is not None or self._pen.improving is not None:
            if text := self.write().text:
                yield text
            return
        started = time.perf_counter()
        prepared, pen = self.draft, self._pen
        heard = Heard(pen.model, prepared.prompt, self._sampling, pen.prefix)
        raw = heard.pieces(gone)
        try:
            answer = raw if pen.format is None else pen.format.answer(raw)
            yield from cleaned(answer, find_task(prepared.request.task).one_line)
        finally:
            raw.close()
        self._finish(finished(prepared, heard.generation, pen.format), started)

    def write(self) -> Draft:
        """The whole draft at once."""
        started = time.perf_counter()
        [draft] = written([self.draft], [self._pen], self._sampling)
        return self._finish(draft, started)

    def _finish(self, draft: Draft, started: float) -> Draft:
        seconds = {**draft.seconds, "write": time.perf_counter() - started}
        text = draft.text[: stop_at(draft.text, self._stop)]  # an improved text knows nothing of them
        self.draft = draft.model_copy(update={"text": text, "seconds": seconds})
        return self.draft
