"""The pairs and the cases of the benchmark of improvement, from real proposals and what became of them.

Three kinds of pairs, the chosen text being a real one in all of them:

    revisions     the first wording of a section and the final one
    corruptions   a real section, and the same one spoilt by a rule
    own drafts    a real abstract, and what the base model writes under its title

Who learns from what goes by proposal: half of those to learn from, by a hash of their id, are the judge's
alone, and what is evaluated on is in neither half, nor is anything of the same title.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from penname.lm import LanguageModel, Sampling
from penname.records import Prompt
from penname.train.preferences.data import as_prompt

Kind = Literal["revisions", "corruptions", "own drafts"]
KINDS: tuple[Kind, ...] = ("revisions", "corruptions", "own drafts")
JUDGED: tuple[Kind, ...] = ("revisions", "own drafts")
"""The kinds of drafts that are improved."""

DATES = {
    "train": ("0", "2024-01-01"),
    "validation": ("2024-01-01", "2024-07-01"),
    "test": ("2024-07-01", "9"),
}
LEAST = 20  # words of a text
TASKS = {"abstract": "abstract", "motivation": "P-2"}  # what the base model is asked for, by section
FRESH_STOP = ("\nTitle:", "\nProposal:")
BATCH = 32  # drafts that are sampled together, and then kept
FILLERS = (
    "It is important to note that this matters in many ways.",
    "As everybody knows, this has been discussed a lot in the past.",
    "There are many things that could be said about this topic.",
    "In today's world such questions are more relevant than ever.",
    "This section describes what this document is about.",
    "More details will be added here later.",
)
SOFTENERS = ("basically", "of course", "in a way", "so to speak", "as it were", "to be honest")
_END = re.compile(r"(?<=[.!?])\s+(?=[^a-z\s])")


@dataclass(frozen=True)
class Text:
    """A real text of one section of a proposal, shortened."""

    id: str  # of the proposal
    title: str
    section: str
    text: str

    @property
    def key(self) -> str:
        """Names it among all."""
        return f"{self.id} {self.section}"


@dataclass(frozen=True)
class Example:
    """A worse and a better text for one request: to learn from, to judge by, or a case to improve."""

    id: str  # of the proposal
    section: str
    title: str
    kind: Kind
    chosen: str
    rejected: str

    @property
    def prompt(self) -> str:
        """x: what both texts were written for."""
        return f"Title: {self.title}\nSection: {self.section}"

    @property
    def key(self) -> str:
        """Names it among all."""
        return f"{self.kind} {self.id} {self.section}"

    @property
    def shorter(self) -> bool:
        """Whether the better text is the shorter one: no length can tell it."""
        return len(self.chosen.split()) < len(self.rejected.split())

    @property
    def lot(self) -> str:
        """By which the cases come in a mixed order, the same at every size."""
        return hashlib.sha256(self.key.encode()).hexdigest()

    @classmethod
    def of(cls, text: Text, kind: Kind, rejected: str) -> Example:
        """The real text, and a worse one."""
        return cls(text.id, text.section, text.title, kind, text.text, rejected)


@dataclass(frozen=True)
class Side:
    """What one side may learn from."""

    revisions: list[Example]
    texts: list[Text]  # in an order drawn by lot


def shorten(text: str, limit: int) -> str:
    """The first whole sentences of the text, of `limit` words at most; "" where none ends in time."""
    kept: list[str] = []
    for sentence in sentences(text):
        if sum(len(one.split()) for one in kept) + len(sentence.split()) > limit:
            break
        kept.append(sentence)
    return " ".join(kept)


def sentences(text: str) -> list[str]:
    """The text's sentences, blanks made plain."""
    return [one for one in _END.split(" ".join(text.split())) if one]


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a gzipped JSON Lines file."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def half(name: str) -> Literal["judge", "pit"]:
    """Whose the proposal is, if it is one to learn from."""
    return "judge" if hashlib.sha256(name.encode()).digest()[0] % 2 else "pit"


def plain(title: str) -> str:
    """A title as it is compared."""
    return " ".join(re.findall(r"\w+", title.lower()))


@dataclass(frozen=True)
class Source:
    """What the files hold, shortened, by split."""

    revisions: Mapping[str, list[Example]]
    texts: Mapping[str, list[Text]]
    equal: int  # revisions that shortening made equal, or that have no sentence of a usable length

    @classmethod
    def read(cls, folder: Path, limit: int) -> Source:
        """Both files; every text of `limit` words at most."""
        revisions: dict[str, list[Example]] = {split: [] for split in DATES}
        texts: dict[str, list[Text]] = {split: [] for split in DATES}
        equal = 0
        for row in rows(folder / "revisions.jsonl.gz"):
            draft, revision = (shorten(row[name], limit) for name in ("draft", "revision"))
            if draft == revision or min(len(draft.split()), len(revision.split())) < LEAST:
                equal += 1
                continue
            real = Text(row["id"], row["title"], row["section"], revision)
            revisions[_split(row["drafted"])].append(Example.of(real, "revisions", draft))
        for row in rows(folder / "proposals.jsonl.gz"):
            for section in TASKS:
                text = shorten(row[section] or "", limit)
                if len(text.split()) >= LEAST:
                    texts[_split(row["created"])].append(Text(row["id"], row["title"], section, text))
        return cls(revisions, texts, equal)

    def sides(self, seed: int) -> dict[str, Side]:
        """What PIT and what the judge learns from: nothing that is evaluated on, no title on both sides."""
        later = {
            (one.id, plain(one.title))
            for kind in (self.revisions, self.texts)
            for split in ("validation", "test")
            for one in kind[split]
        }
        ids, titles = {name for name, _ in later}, {title for _, title in later}
        found: dict[str, Side] = {}
        for side in ("judge", "pit"):  # the judge's titles are taken when PIT's turn comes
            taken = frozenset(titles)
            mine = [one for one in self.texts["train"] if _free(one, side, ids, taken)]
            random.Random(f"{seed} {side}").shuffle(mine)
            revised = [one for one in self.revisions["train"] if _free(one, side, ids, taken)]
            found[side] = Side(revised, mine)
            titles |= {plain(one.title) for one in mine} | {plain(one.title) for one in revised}
        return found

    def held(self, split: str) -> Side:
        """What is evaluated on, always in the same order."""
        chance = random.Random(split)
        revisions, texts = list(self.revisions[split]), list(self.texts[split])
        chance.shuffle(revisions)
        chance.shuffle(texts)
        return Side(revisions, texts)


def _free(one: Text | Example, side: str, ids: Set[str], titles: Set[str]) -> bool:
    return half(one.id) == side and one.id not in ids and plain(one.title) not in titles


def _split(date: str) -> str:
    return next(split for split, (first, last) in DATES.items() if first <= date < last)


def corrupt(text: str, others: Sequence[str], chance: random.Random) -> str:
    """The text spoilt by one rule or two, drawn by lot; never the text itself.

    Args:
        others: texts of other proposals, from which a sentence may come.
    """
    while True:
        spoilt = text
        for rule in chance.sample(RULES, chance.choice((1, 2))):
            spoilt = rule(spoilt, others, chance)
        if spoilt.split() != text.split():
            return spoilt


def drop_sentence(text: str, _: Sequence[str], chance: random.Random) -> str:
    """Without one of its sentences, where it has two."""
    parts = sentences(text)
    if len(parts) > 1:
        del parts[chance.randrange(len(parts))]
    return " ".join(parts)


def swap_sentences(text: str, _: Sequence[str], chance: random.Random) -> str:
    """Two of its sentences in each other's place."""
    parts = sentences(text)
    if len(parts) > 1:
        one, other = chance.sample(range(len(parts)), 2)
        parts[one], parts[other] = parts[other], parts[one]
    return " ".join(parts)


def foreign_sentence(text: str, others: Sequence[str], chance: random.Random) -> str:
    """A sentence of another text put in, or put in the place of one."""
    parts = sentences(text)
    foreign = chance.choice(sentences(chance.choice(others)))
    place = chance.randrange(len(parts))
    parts[place : place + chance.randrange(2)] = [foreign]
    return " ".join(parts)


def stumble(text: str, _: Sequence[str], chance: random.Random) -> str:
    """One word in ten doubled or dropped."""
    found: list[str] = []
    for word in text.split():
        drawn = chance.random()
        found += [word] * (0 if drawn < 0.05 else 2 if drawn < 0.1 else 1)
    return " ".join(found)


def cut(text: str, _: Sequence[str], chance: random.Random) -> str:
    """Cut off in the middle of a sentence."""
    words = text.split()
    return " ".join(words[: chance.randint(len(words) // 2, len(words) - 2)])


def fill(text: str, _: Sequence[str], chance: random.Random) -> str:
    """A sentence that says nothing, and words that say nothing."""
    parts = sentences(text)
    parts.insert(chance.randint(0, len(parts)), chance.choice(FILLERS))
    words = " ".join(parts).split()
    for softener in chance.sample(SOFTENERS, 2):
        words.insert(chance.randint(1, len(words) - 1), softener)
    return " ".join(words)


Rule = Callable[[str, Sequence[str], random.Random], str]
RULES: tuple[Rule, ...] = (drop_sentence, swap_sentences, foreign_sentence, stumble, cut, fill)


def fresh(model: LanguageModel, title: str, section: str) -> Prompt:
    """The prompt by which a model writes a section from nothing but its title."""
    return as_prompt(title, model.shape, task=TASKS[section])


def trim(text: str, length: int) -> str:
    """What a model went on writing, cut at the end of a sentence, as near to `length` words as that goes.

    Where none ends within half of the length, more or less, it is cut at the length itself.
    """
    ends = list(accumulate(len(one.split()) for one in sentences(text)))
    near = min(ends, key=lambda end: abs(end - length), default=0)
    return " ".join(text.split()[: near if abs(near - length) <= length / 2 else length])


def drafts(
    texts: Sequence[Text],
    lengths: Sequence[int],
    model: LanguageModel,
    file: Path,
    seed: int,
    tell: Callable[[int, int], None],
) -> Iterator[Example]:
    """What the model writes under the texts' titles, beside the real texts.

    The base model does not know where to end: each draft is cut to one of `lengths`, those of other real
    texts, drawn by lot, so that length tells little. Kept in `file` batch by batch, so that a stopped run
    goes on.
    """
    known: dict[str, str] = {}
    if file.is_file():
        known = {row["key"]: row["text"] for row in map(json.loads, file.read_text("utf-8").splitlines())}
    lacking = [one for one in texts if one.key not in known]
    sampling = Sampling(max_tokens=int(1.6 * max(lengths)), stop=FRESH_STOP, seed=seed)
    for start in range(0, len(lacking), BATCH):
        batch = lacking[start : start + BATCH]
        written = model.generate([fresh(model, one.title, one.section) for one in batch], 1, sampling)
        with file.open("a", encoding="utf-8") as stream:
            for one, (generation,) in zip(batch, written, strict=True):
                known[one.key] = generation.text
                row = {"key": one.key, "text": generation.text}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        tell(start + len(batch), len(lacking))
    for one in texts:
        draft = trim(known[one.key], random.Random(f"{seed} {one.key}").choice(lengths))
        if len(draft.split()) >= LEAST // 2:
            yield Example.of(one, "own drafts", draft)


def corruptions(texts: Sequence[Text], n: int, seed: int) -> list[Example]:
    """The first `n` of the texts that have two sentences, spoilt."""
    found: list[Example] = []
    for one in texts:
        if len(found) == n:
            break
        if len(sentences(one.text)) > 1:
            others = [other.text for other in texts if other.id != one.id]
            spoilt = corrupt(one.text, others, random.Random(f"{seed} {one.key}"))
            found.append(Example.of(one, "corruptions", spoilt))
    return found


def to_draft(texts: Sequence[Text], n: int) -> list[Text]:
    """The abstracts among the texts of which the model's own drafts are made: those that come last."""
    return [one for one in reversed(texts) if one.section == "abstract"][:n]


def put(file: Path, found: Sequence[Example]) -> None:
    """The examples as preferences in TRL's form, with what else is known of them."""
    made = [{"prompt": one.prompt, **asdict(one)} for one in found]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")


def take(file: Path) -> list[Example]:
    """The examples of a file that `put` wrote."""
    found = []
    for row in map(json.loads, file.read_text("utf-8").splitlines()):
        del row["prompt"]
        found.append(Example(**row))
    return found
