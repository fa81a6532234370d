"""What each stage learns from, and the drafts of the second half of the curriculum, which are sampled here.

Each pair (x, y_w, y_l) is for SFT the writing of y_w with y_l as the draft, for the gap reward the pair as it
is, and for RL two drafts to improve: y_l and y_w (arXiv 2310.00898, section 3). An edit of a store is such a
pair: the revision was chosen, the draft rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penname.errors import BadInputError
from penname.lm import LanguageModel, Sampling
from penname.methods.pit.form import Case, Form
from penname.records import digest, prompt_values
from penname.tasks import PromptTexts
from penname.tasks import task as find_task
from penname.train import seen
from penname.train.preferences.data import Pair, Prepared, plain
from penname.train.preferences.prompts import as_prompt, as_text
from penname.train.sft import Written

BATCH = 16  # prompts whose drafts are sampled together: what a kill can lose
TOKENS = 256  # of a draft, where no task says how long it becomes


@dataclass(frozen=True)
class DraftConfig:
    """How the drafts are sampled that RL learns to improve last.

    Raises:
        BadInputError: a setting has a value that it cannot have.
    """

    task: str | None = None  # how prompts are put to the drafter, as `as_prompt` does; None: as they stand
    temperature: float = 0.7  # as `penname write` draws them
    top_p: float = 0.95
    max_tokens: int | None = None  # of a draft; None: the task's limit, 256 without a task

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.temperature < 0:
            raise BadInputError(f"the temperature of drafts: {self.temperature}; at least 0")
        if not 0 < self.top_p <= 1:
            raise BadInputError(f"top_p of drafts: {self.top_p}; above 0, at most 1")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise BadInputError(f"the tokens of a draft: {self.max_tokens}; at least 1")

    @property
    def limit(self) -> int:
        """Tokens of a draft at most."""
        if self.max_tokens is not None:
            return self.max_tokens
        return TOKENS if self.task is None else find_task(self.task).max_tokens


def revisions(prepared: Prepared, form: Form) -> list[Written]:
    """What SFT learns to write: the chosen text, with the rejected one as the draft."""
    return [
        Written(form.prompt(Case.of(pair, pair.rejected)), form.answer(pair.chosen))
        for pair in prepared.pairs
    ]


def references(prepared: Prepared) -> list[Case]:
    """What RL learns to improve first: both texts of each pair, the rejected one before the chosen."""
    return [Case.of(pair, draft) for pair in prepared.pairs for draft in (pair.rejected, pair.chosen)]


def drafts(
    prepared: Prepared,
    file: Path,
    drafter: LanguageModel,
    config: DraftConfig,
    seed: int = 0,
    *,
    progress: Callable[[int, int], None] = lambda *_: None,
    note: Callable[[str], None] = lambda _: None,
) -> list[Case]:
    """What RL learns to improve last: a draft of each user's every prompt, by the policy to be improved.

    They are written to the file batch by batch, and what is there already is not sampled again. Left out,
    and counted: a prompt that leaves the drafter's context no room for a draft, and a blank draft.

    Args:
        file: JSON Lines, each with the user of its text.
        drafter: writes them; its prompts are those of `penname write` with the task, or as they stand.
        progress: called with prompts done, and in all.
        note: told what a person should know.

    Raises:
        BadInputError: no draft is left; the message has the counts.
        TrainedError: the file cannot be read.
    """
    pairs = _each_prompt(prepared)
    rows = seen.read(file)
    known = {row["id"]: row for row in rows}
    missing = [(key, pair) for key, pair in pairs.items() if key not in known]
    for batch in _sampled(missing, drafter, config, seed):
        seen.append(file, batch)
        known.update({row["id"]: row for row in batch})
        progress(len(known), len(pairs))
    left_out = [why for key in pairs if (why := known[key]["why"])]
    counts = "; ".join(f"{left_out.count(why):,} {why}" for why in dict.fromkeys(left_out))
    if len(left_out) == len(pairs):
        raise BadInputError(
            f"there is no draft to improve: {counts}; name another --drafter, or train without this half of "
            "the curriculum (--curriculum data)"
        )
    if left_out:
        note(f"drafts left out: {counts}")
    return [Case.of(pair, known[key]["draft"]) for key, pair in pairs.items() if not known[key]["why"]]


def _each_prompt(prepared: Prepared) -> dict[str, Pair]:
    """A pair of each user's every prompt, by what stands for these."""
    found: dict[str, Pair] = {}
    for pair in prepared.pairs:
        found.setdefault(digest([pair.user, prompt_values(plain(pair.prompt)), pair.about]), pair)
    return found


def _sampled(
    wanted: Sequence[tuple[str, Pair]], drafter: LanguageModel, config: DraftConfig, seed: int
) -> Iterator[list[dict[str, Any]]]:
    """The rows of the file, in batches as they come."""
    texts = PromptTexts.load()
    stop = find_task(config.task).stop() if config.task and drafter.shape == "completion" else ()
    sampling = Sampling(config.limit, config.temperature, config.top_p, tuple(stop), seed)
    for start in range(0, len(wanted), BATCH):
        batch = wanted[start : start + BATCH]
        prompts = [
            as_prompt(pair.prompt, drafter.shape, task=config.task, about=pair.about, texts=texts)
            for _, pair in batch
        ]
        fits = [drafter.count(prompt) + config.limit <= drafter.context for prompt in prompts]
        asked = [prompt for prompt, room in zip(prompts, fits, strict=True) if room]
        written = iter(drafter.generate(asked, 1, sampling) if asked else [])
        yield [
            _row(key, pair, next(written)[0].text.strip() if room else None)
            for (key, pair), room in zip(batch, fits, strict=True)
        ]


def _row(key: str, pair: Pair, draft: str | None) -> dict[str, Any]:
    """A line of the file; without a draft where there was no room for one."""
    why = "prompts too long for the drafter's context" if draft is None else "" if draft else "blank ones"
    return {
        "id": key,
        "users": [] if pair.user is None else [pair.user],
        "request": as_text(pair.prompt),
        "draft": draft or "",
        "why": why,
    }
