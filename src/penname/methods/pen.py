"""How a draft is written: by which model, after which soft prompt; and what follows."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penname.lm.base import Generation, LanguageModel, Prefix, Sampling
from penname.records import Draft
from penname.tasks import task as find_task

if TYPE_CHECKING:
    from penname.methods.pit.improve import Improving
    from penname.methods.prlhf.rerank import Reward
    from penname.methods.restpg.format import Format

_THINKS, _THOUGHT = "<think>", "</think>"


@dataclass(frozen=True)
class Pen:
    """What writes one draft, what chooses it where there are several, and what improves it."""

    model: LanguageModel
    prefix: Prefix | None = None  # stands before the prompt
    reward: Reward | None = None  # chooses among the candidates
    candidates: int = 1
    users: tuple[str, ...] = ()  # whose reward it is
    format: Format | None = None  # how reasoning and answer are told apart, where it reasons first
    improving: Improving | None = None  # what is done to the draft then

    @property
    def trained(self) -> list[object]:
        """What of a trained run decides the text, beside the model itself: part of every cache key."""
        own: list[object] = [] if self.prefix is None else [self.prefix.key]
        if self.reward is not None:
            keys = [self.reward.key(user) for user in self.users]
            own += [self.reward.fingerprint, keys, self.candidates]
        return own if self.improving is None else [*own, *self.improving.key]


def written(drafts: Sequence[Draft], pens: Sequence[Pen], sampling: Sampling) -> list[Draft]:
    """The drafts with their texts, each written and improved by its pen; those of one model are together."""
    options: list[list[Draft]] = [[] for _ in drafts]
    for _, places in _grouped([(id(pen.model), pen.candidates) for pen in pens]):
        pen = pens[places[0]]
        prefixes = [pens[i].prefix for i in places]
        prompts = [drafts[i].prompt for i in places]
        answers = pen.model.generate(prompts, pen.candidates, sampling, prefixes)
        for i, some in zip(places, answers, strict=True):
            options[i] = [finished(drafts[i], answer, pen.format) for answer in some]
    chosen = [some[place] for some, place in zip(options, _chosen(options, pens), strict=True)]
    return _improved(chosen, pens, sampling.seed)


def _chosen(options: Sequence[Sequence[Draft]], pens: Sequence[Pen]) -> list[int]:
    """The place of the best of each request's drafts: the first, where no reward chooses."""
    best = [0] * len(options)
    for _, places in _grouped([id(pen.reward) for pen in pens]):
        reward = pens[places[0]].reward
        if reward is None:
            continue
        from penname.methods.prlhf.rerank import best_of

        texts = [[draft.text for draft in options[i]] for i in places]
        inputs = [options[i][0].request.input for i in places]
        for i, place in zip(
            places, best_of(reward, inputs, texts, [pens[i].users for i in places]), strict=True
        ):
            best[i] = place
    return best


def _improved(drafts: Sequence[Draft], pens: Sequence[Pen], seed: int) -> list[Draft]:
    """The drafts after their rounds of improvement; those without a stage that improves stay as they are."""
    found = list(drafts)
    ways = [
        None if pen.improving is None else (id(pen.improving.improver), pen.improving.config) for pen in pens
    ]
    for _, places in _grouped(ways):
        improving = pens[places[0]].improving
        if improving is None:
            continue
        from penname.methods.pit.about import joined
        from penname.methods.pit.form import Case

        abouts = [pen.improving.about if pen.improving is not None else "" for pen in pens]
        cases = [
            Case(drafts[i].request.input, drafts[i].text, joined(drafts[i].profiles) or abouts[i])
            for i in places
        ]
        for i, one in zip(places, improving.improver.improve(cases, improving.config, seed), strict=True):
            update = {
                "text": one.text,
                "first": drafts[i].text,
                "rounds": one.rounds,
                "notes": (*drafts[i].notes, f"pit: {one.stopped}"),
                # A text that was taken ended by itself, whatever the first one did.
                "finish": "stop" if any(made.taken for made in one.rounds) else drafts[i].finish,
            }
            found[i] = drafts[i].model_copy(update=update)
    return found


def _grouped(keys: Sequence[Hashable]) -> list[tuple[Hashable, list[int]]]:
    """The places of each key, in the order in which keys come."""
    places: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return list(places.items())


def finished(draft: Draft, answer: Generation, form: Format | None = None) -> Draft:
    """`draft` with what the model wrote; what it reasoned first is no part of the text."""
    reasoning, text = ("", answer.text) if form is None else form.split(answer.text)
    update = {
        "text": "".join(cleaned([text], find_task(draft.request.task).one_line)),
        "reasoning": reasoning,
        "finish": answer.finish,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.tokens,
    }
    return draft.model_copy(update=update)


def cleaned(pieces: Iterable[str], one_line: bool) -> Iterator[str]:
    """The answer alone, piece by piece: no blanks around it, nothing of a reasoning model's thinking aloud
    before it, and its first line where the task wants one."""
    held = ""  # what cannot be shown yet, or never
    shown = False
    for piece in pieces:
        held += piece
        while not shown:
            held = held.lstrip()
            if not held.startswith(_THINKS) or _THOUGHT not in held:
                break
            held = held.partition(_THOUGHT)[2]
        if not shown and (_THINKS.startswith(held) or held.startswith(_THINKS)):
            continue
        first, line_end, _ = held.partition("\n")
        if one_line and line_end:
            yield first.rstrip()
            return
        if ready := held.rstrip():
            yield ready
            shown = True
            held = held[len(ready) :]
    if not shown and held and not held.startswith(_THINKS):
        yield held.rstrip()
