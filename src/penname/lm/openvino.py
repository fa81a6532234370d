"""Writing and scoring with OpenVINO GenAI: the fastest way on a CPU, from a GGUF file as it is.

Every text is a request of its own with a seed of its own; the pipeline batches the requests that are open and
is advanced step by step from here, so that texts end at stop strings, stream, and share one set of rules
with the other backends.

Blocks of keys and values are kept, and used again where a prompt begins as an earlier one did (prefix
caching): n samples of a long prompt read it once, and a text is scored after a prompt that was written after
for little more than its own tokens. A block is found by the tokens up to its end, and holds what those tokens
alone determine, up to rounding. Nothing passes from one user's prompt into another's text.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from penname.errors import ModelError
from penname.lm import gguf
from penname.lm.base import Generation, Sampling, sample_seed
from penname.lm.config import DType
from penname.lm.libraries import forgetful, quiet
from penname.lm.sampling import check, check_fits
from penname.lm.text import Codec, Writing, streamed
from penname.records import Prompt

STREAMS = 64  # texts written together at most; more gain nothing on a CPU
READERS = 2  # texts scored at a time: one keeps a CPU busy, and those after it find what it has read
# Keys and values kept, at least one context: with the embedded model 1.5 GB in float32, and half in bfloat16.
CACHE_TOKENS: dict[DType, int] = {"float32": 32_768, "bfloat16": 65_536}
_BLOCK = 32  # tokens that OpenVINO keeps together on a CPU

# OpenVINO keeps what it compiled for each number of tokens of a step: with its own limit of 5,000 a server's
# memory grows for long. Keeping little of it costs no time that could be told; see `libraries.forgetful` too.
_COMPILED = "50"

# "float32" rounds no activations to 8 bits: neighbours in a batch and cached prefixes then move a token's
# log-probability by some 0.00001, so a call gives the same text again. "bfloat16", the default where the
# processor has instructions for it, reads over twice as fast there (benchmarks/models.py); but neighbours
# and cached prefixes move log-probabilities by up to 0.07.
_PRECISION: dict[DType, dict[str, str]] = {
    "float32": {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    },
    "bfloat16": {"INFERENCE_PRECISION_HINT": "bf16"},
}


@dataclass(eq=False)
class _Job:
    """One text to write, and the samples of the same prompt that wait for it to have read the prompt."""

    writing: Writing
    seed: int
    room: int  # tokens that its keys and values take
    followers: list[_Job] = field(default_factory=list)
    handle: Any = None


class OpenVINOWriter:
    """Writes and scores texts with a GGUF file. Threads may share it: their requests then run in one batch.

    Args:
        file: the GGUF file.
        codec: its tokenizer.
        context: tokens, prompt and text together.
        dtype: how exactly it computes, see `_PRECISION`; None: what this processor is fast at.
    """

    def __init__(self, file: Path, codec: Codec, context: int, dtype: DType | None = None) -> None:
        self._file = file
        self._codec = codec
        self._context = context
        self._dtype: DType = dtype or _fast()
        self._room = max(CACHE_TOKENS[self._dtype], context)  # tokens whose keys and values fit
        self._lock = threading.Lock()
        self._numbers = itertools.count()

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> list[list[Generation]]:
        """As `LanguageModel.generate`."""
        check(sampling, n)
        texts: list[list[Writing]] = []
        jobs: list[_Job] = []
        for prompt, ids in zip(prompts, self._read(prompts, sampling), strict=True):
            texts.append([Writing(self._codec, ids, sampling) for _ in range(n)])
            first, *others = (
                _Job(writing, sample_seed(sampling.seed, prompt, number), len(ids) + sampling.max_tokens)
                for number, writing in enumerate(texts[-1])
            )
            first.followers = others
            jobs.append(first)
        for _ in self._run(jobs, sampling):
            pass
        return [[writing.generation() for writing in row] for row in texts]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[str]:
        """As `LanguageModel.stream`. A stream that is closed early stops the writing."""
        check(sampling)
        writing = Writing(self._codec, self._read([prompt], sampling)[0], sampling)
        job = _Job(writing, sample_seed(sampling.seed, prompt, 0), len(writing.prompt) + sampling.max_tokens)
        return streamed(writing, self._run([job], sampling), sampling.stop)

    def score(self, texts: Sequence[tuple[list[int], list[int]]]) -> list[list[float] | None]:
        """The log-probability of each token of each completion after its prompt, as (prompt, completion) ids.

        None where it cannot be had: what a block that was kept ends with speaks of the token that follows it,
        and OpenVINO does not keep that. So it is with one prompt of 32, whose length is whole blocks.
        """
        found: list[list[float] | None] = [None] * len(texts)
        # In the order of their tokens, those that begin alike follow one another.
        waiting = deque(sorted(range(len(texts)), key=lambda i: texts[i]))
        running: dict[int, Any] = {}
        settings = self._echo()
        try:
            while waiting or running:
                while waiting and len(running) < READERS:
                    i = waiting.popleft()
                    running[i] = self._request(texts[i][0] + texts[i][1], settings)
                self._step()
                for i in [i for i, handle in running.items() if self._ended(handle)]:
                    found[i] = self._echoed(running.pop(i), texts[i][1])
        finally:
            with self._lock:
                for handle in running.values():
                    handle.cancel()
            self._step()
        return found

    def _echo(self) -> Any:
        """To be told how likely each token of the prompt is: what is scored is the end of a prompt here."""
        settings = self._settings(Sampling(max_tokens=1, temperature=0), 0)
        settings.echo = True
        settings.logprobs = 1
        return settings

    def _ended(self, handle: Any) -> bool:
        import openvino_genai as ov_genai

        with self._lock:
            return bool(handle.get_status() != ov_genai.GenerationStatus.RUNNING)

    def _echoed(self, handle: Any, completion: Sequence[int]) -> list[float] | None:
        with self._lock:
            [output] = handle.read_all()
        told, ids = output.generated_log_probs[:-1], output.generated_ids[:-1]  # without what was written
        if len(told) < len(completion) or list(ids[-len(completion) :]) != list(completion):
            return None
        return [float(each) for each in told[-len(completion) :]]

    def _read(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[int]]:
        encoded = [self._codec.prompt(prompt) for prompt in prompts]
        for ids in encoded:
            check_fits(len(ids), sampling.max_tokens, self._context)
        return encoded

    def _run(self, jobs: list[_Job], sampling: Sampling) -> Iterator[None]:
        """Write all jobs to their ends; yields after each step."""
        waiting = deque(jobs)
        running: list[_Job] = []
        try:
            while waiting or running:
                while waiting and self._fits(waiting[0], running):
                    self._start(waiting[0], sampling)
                    running.append(waiting.popleft())
                self._step()
                for job in running:
                    self._collect(job)
                    if job.writing.ids or job.writing.finish:  # the prompt is read, and in the cache
                        waiting.extendleft(reversed(job.followers))
                        job.followers = []
                running = [job for job in running if job.writing.finish is None]
                yield
        finally:
            with self._lock:
                for job in running:
                    job.handle.cancel()
            self._step()  # frees what cancelled texts held

    def _fits(self, job: _Job, running: list[_Job]) -> bool:
        """Whether there is room for one more; what does not fit would push others out, to be read again."""
        taken = sum(other.room for other in running)
        return not running or (len(running) < STREAMS and taken + job.room <= self._room)

    def _start(self, job: _Job, sampling: Sampling) -> None:
        job.handle = self._request(job.writing.prompt, self._settings(sampling, job.seed))

    def _request(self, ids: Sequence[int], settings: Any) -> Any:
        import numpy as np
        import openvino  # type: ignore[import-untyped]

        tokens = openvino.Tensor(np.array([ids], dtype=np.int64))
        with self._lock:
            return self._pipeline.add_request(next(self._numbers), tokens, settings)

    def _settings(self, sampling: Sampling, seed: int) -> Any:
        import openvino_genai as ov_genai

        settings = ov_genai.GenerationConfig()
        settings.max_new_tokens = sampling.max_tokens
        settings.stop_token_ids = set(self._codec.ends)
        settings.eos_token_id = min(self._codec.ends, default=-1)
        settings.do_sample = sampling.temperature > 0
        if settings.do_sample:
            settings.temperature = sampling.temperature
            settings.top_p = sampling.top_p
            settings.rng_seed = seed
        return settings

    def _step(self) -> None:
        with self._lock:
            if self._pipeline.has_non_finished_requests():
                self._pipeline.step()

    def _collect(self, job: _Job) -> None:
        """Move the new tokens of a job into its text, and stop it where the text has ended."""
        import openvino_genai as ov_genai

        writing = job.writing
        with self._lock:
            while job.handle.can_read():
                for output in job.handle.read().values():
                    for token in output.generated_ids:
                        if writing.finish is None:
                            writing.push(token)
            status = job.handle.get_status()
            running = status == ov_genai.GenerationStatus.RUNNING
            if running and writing.finish is not None:
                job.handle.cancel()
        if not running and writing.finish is None:
            raise ModelError(
                f"OpenVINO gave up a text after {len(writing.ids)} tokens ({status.name}): the prompt of "
                f"{len(writing.prompt):,} tokens does not fit into its cache of {self._room:,}"
            )

    @cached_property
    def _pipeline(self) -> Any:
        """Loaded on first use; only touched with the lock held."""
        import openvino_genai as ov_genai

        scheduler = ov_genai.SchedulerConfig()
        scheduler.num_kv_blocks = self._room // _BLOCK + STREAMS
        scheduler.enable_prefix_caching = True
        folder = gguf.openvino_folder(self._file)
        forgetful()
        settings = {**_PRECISION[self._dtype], "CPU_RUNTIME_CACHE_CAPACITY": _COMPILED}
        try:
            return ov_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", settings)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot load {folder}: {error}") from error


def _fast() -> DType:
    """bfloat16 where the processor has instructions for it."""
    import openvino

    return (
        "bfloat16"
        if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        else "float32"
    )


def read_codec(file: Path) -> tuple[Codec, int]:
    """The tokenizer of a GGUF file and the tokens of its context; torch is not loaded for it."""
    folder = gguf.tokenizer_folder(file)
    quiet()
    from transformers import PreTrainedTokenizerFast

    codec = Codec(PreTrainedTokenizerFast.from_pretrained(folder))
    return codec, int((folder / gguf.CONTEXT_FILE).read_text(encoding="ascii"))
