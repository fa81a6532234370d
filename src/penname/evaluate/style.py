"""How far a draft's manner lies from its author's: function words, punctuation, lengths.

Burrows' Delta (J. Burrows, 2002, Literary and Linguistic Computing 17.3) is the mean, over the commonest
words, of the absolute difference of two texts' z-scored frequencies. Here it is taken over three families of
marks, and the style distance is their mean, so that some hundred function words do not drown ten marks of
punctuation:

    Δ_F(a, b) = 1/|F| Σ_{f ∈ F} min(|z_f(a) − z_f(b)|, 4)        D = (Δ_words + Δ_punctuation + Δ_lengths) / 3

with z_f(x) = (x_f − μ_f) / σ_f, where μ and σ are the mean and the standard deviation of f over all documents
of all users. 0 is just as the author's documents are together. Topic words are not among the marks. The words
are English: in other languages the other two families carry the distance. A short text uses few of the words,
so even an author's own is some way off: compare distances of drafts of like length.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penname.errors import BadInputError
from penname.tasks.facts import sentences, words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

WORST = 4.0
"""The most that a mark may differ, in standard deviations, and so the distance of a draft without a word."""

# Fixed: a word more would change every figure. Grammar, not subject; "i" and contractions are manner.
_WORDS = tuple(
    """a about after again all almost also although always am among an and another any are as at be
    because been before being between both but by can can't cannot could did didn't do does doesn't
    don't down during each either enough even ever every few first for from had has have he her here his
    how however i i'd i'll i'm i've if in indeed instead into is isn't it it's its itself just least
    less like many may maybe me might more moreover most much must my never no nor not nothing now of
    off often on once one only onto or other our out over own perhaps quite rather really same several
    shall she should since so some something soon still such than that that's the their them then there
    therefore these they this those though through thus to together too toward towards under unless
    until up upon us very was we we're well were what when where whereas whether which while who whom
    whose why will with within without won't would yet you your""".split()
)
_PLACE = {word: i for i, word in enumerate(_WORDS)}
_MARKS = tuple(
    re.compile(mark)
    for mark in (
        ",", r"\.", "[;:]", r"\?", "!", r"\(", "[\"“«]", r"[–—]|(?<=\s)-{1,2}(?=\s)", r"…|\.\.\.", r"\n+",
    )
)  # fmt: skip
_LENGTHS = 3  # letters a word, share of words of 7 letters or more, words a sentence
_N = len(_WORDS) + len(_MARKS) + _LENGTHS


@dataclass(frozen=True)
class StyleSpace:
    """Where texts lie by their manner, in standard deviations of the documents it was fitted on.

    `mean` and `deviation` are (d,), `used` which of the d marks vary between the documents.
    """

    mean: Floats
    deviation: Floats
    used: NDArray[np.bool_]
    _authors: dict[tuple[str, ...], Floats] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def fit(cls, texts_by_user: Mapping[str, Sequence[str]]) -> StyleSpace:
        """The space of these documents; a text that several users share counts once.

        A mark that fewer than 2 and 2 % of the documents have is left out: its deviation says nothing.

        Raises:
            BadInputError: fewer than two different texts with words in them, or nothing varies among them.
        """
        import numpy as np

        texts = dict.fromkeys(text for texts in texts_by_user.values() for text in texts)
        measured = [counts for counts in map(_counts, texts) if counts[-1]]
        if len(measured) < 2:
            raise BadInputError(
                f"a style distance needs two different texts to see what varies; there are {len(measured)}"
            )
        found = np.stack([_marks(counts) for counts in measured])
        deviation = found.std(axis=0)
        used = (deviation > 1e-9) & ((found > 0).sum(axis=0) >= max(2, 0.02 * len(found)))
        if not used.any():
            raise BadInputError(f"the {len(measured)} texts do not differ in style: nothing to measure by")
        return cls(found.mean(axis=0), np.where(used, deviation, 1.0), used)

    def distance(self, draft: str, author_texts: Sequence[str]) -> float:
        """The style distance of a draft to its author's documents, from 0 to `WORST`; lower is better.

        Raises:
            BadInputError: no text of the author has a word.
        """
        return self.distances([draft], [author_texts])[0]

    def distances(self, drafts: Sequence[str], author_texts: Sequence[Sequence[str]]) -> list[float]:
        """The style distance of each draft to the documents beside it; each author is measured once and kept.

        The author's frequencies are those of all the documents together. A draft without a word is `WORST`.

        Raises:
            BadInputError: as `distance`, or there are not as many authors as drafts.
        """
        if len(drafts) != len(author_texts):
            raise BadInputError(f"{len(drafts)} drafts and {len(author_texts)} authors: give one a draft")
        for texts in dict.fromkeys(map(tuple, author_texts)):
            if texts not in self._authors:
                self._authors[texts] = self._author(texts)
        return [
            self._delta(self._place(counts), self._authors[tuple(texts)]) if counts[-1] else WORST
            for counts, texts in zip(map(_counts, drafts), author_texts, strict=True)
        ]

    def _author(self, texts: Sequence[str]) -> Floats:
        """(d,) z-scores of the texts taken together."""
        counts = sum(map(_counts, texts), start=_counts(""))
        if not counts[-1]:
            raise BadInputError("none of the author's texts has a word: there is no style to compare with")
        return self._place(counts)

    def _place(self, counts: Floats) -> Floats:
        """(d,) z-scores of what was counted."""
        return (_marks(counts) - self.mean) / self.deviation

    def _delta(self, a: Floats, b: Floats) -> float:
        """The mean of the families' Deltas; a family in which nothing varies is left out."""
        import numpy as np

        apart = np.minimum(abs(a - b), WORST)
        ends = (0, len(_WORDS), len(_WORDS) + len(_MARKS), _N)
        families = [slice(start, end) for start, end in itertools.pairwise(ends)]
        deltas = [apart[f][self.used[f]].mean() for f in families if self.used[f].any()]
        return float(np.mean(deltas))


def minority(texts_by_user: Mapping[str, Sequence[str]], share: float = 0.25) -> dict[str, str]:
    """The group of each user for `groups.by_group`: "like most", or "unlike most" for those farthest out.

    Far out are the `share` of the users (rounded down) whose own texts lie farthest from all users' texts
    taken together. Made of real texts alone, so no arm can move a user.

    Raises:
        BadInputError: as `StyleSpace.fit`, or a user has no text with a word.
    """
    space = StyleSpace.fit(texts_by_user)
    centre = space._author([text for texts in texts_by_user.values() for text in texts])
    far = {user: space._delta(space._author(texts), centre) for user, texts in texts_by_user.items()}
    outside = sorted(far, key=lambda user: (-far[user], user))[: int(share * len(far))]
    return {user: "unlike most" if user in outside else "like most" for user in texts_by_user}


def _counts(text: str) -> Floats:
    """(d + 2,) what is counted in a text, last its sentences and words; counts of texts may be added."""
    import numpy as np

    found, counts = words(text), np.zeros(_N + 2)
    for word, count in Counter(found).items():
        if word in _PLACE:
            counts[_PLACE[word]] = count
    for i, mark in enumerate(_MARKS, start=len(_WORDS)):
        counts[i] = len(mark.findall(text.strip()))
    letters, long = sum(map(len, found)), sum(len(word) >= 7 for word in found)
    counts[len(_WORDS) + len(_MARKS) :] = letters, long, len(found), len(sentences(text)), len(found)
    return counts


def _marks(counts: Floats) -> Floats:
    """(d,) rates: function words and punctuation per word, then the lengths."""
    rates: Floats = counts[:_N] / counts[-1]
    rates[_N - 1] = counts[-1] / max(counts[-2], 1)  # words a sentence
    return rates
