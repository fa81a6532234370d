"""How somebody writes, measured: counted over the texts, not asked of a model.

Even a model too small to describe a style has something true to follow in these. Words, sentences and
paragraphs are found by plain rules that hold for most languages written with spaces.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from penname.records import StyleFacts

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SENTENCE = re.compile(r"[^.!?…\n]*[^\W_][^.!?…\n]*[.!?…]*")
_LIST_LINE = re.compile(r"^\s*(?:[-*•–]|\d{1,2}[.)])\s+\S", re.MULTILINE)
_EMOJI = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]")
_DASH = re.compile(r"[–—]|(?<=\s)-{1,2}(?=\s)")
_CONTRACTION = re.compile(r"^[^\W\d_]+['’](?:t|s|m|d|re|ve|ll)$", re.IGNORECASE)
_FIRST = frozenset("i me my mine myself i'm i've i'd i'll".split())
_PLURAL = frozenset("we us our ours ourselves we're we've we'd we'll".split())
_SECOND = frozenset("you your yours yourself yourselves you're you've you'd you'll".split())

# The commonest English function words: they show grammar, not a writer's taste.
FUNCTION_WORDS = frozenset(
    """a about above after again against all also although always am an and another any are as at be
    because been before being below between both but by can cannot could did do does doing done down
    during each either else even ever every few for from further get gets got had has have having he
    her here hers him his how however i if in into is it its itself just let like made make makes
    many may me might more most much must my myself neither never no nor not now of off often on
    once one only or other others our ours out over own per rather s same shall she should since so
    some still such t than that the their theirs them then there therefore these they thing things
    this those though through thus to together too two under until up upon us use used very via was
    way we well were what when where whether which while who whom whose why will with within without
    would yet you your yours yourself""".split()
)


def words(text: str) -> list[str]:
    """The words of `text` in lower case, typographic apostrophes made plain."""
    return [word.replace("’", "'").lower() for word in _WORD.findall(text)]


def sentences(text: str) -> list[str]:
    """The sentences of `text`: ended by a full stop, question or exclamation mark, ellipsis or line end."""
    return [found.strip() for found in _SENTENCE.findall(text)]


def measure(texts: Sequence[str]) -> StyleFacts:
    """The style facts of `texts`; all zero where they hold no word."""
    counts = [len(words(text)) for text in texts]
    total = sum(counts)
    if not total:
        return StyleFacts(documents=len(texts))
    everything = [word for text in texts for word in words(text)]
    split = [sentence for text in texts for sentence in sentences(text)]
    ordered = sorted(counts)

    def share(test: Callable[[str], object]) -> float:
        return _round(sum(1 for word in everything if test(word)) / total)

    def per_hundred(pattern: re.Pattern[str]) -> float:
        return _round(100 * sum(len(pattern.findall(text)) for text in texts) / total)

    def of_sentences(test: Callable[[str], object]) -> float:
        return _round(sum(1 for sentence in split if test(sentence)) / max(len(split), 1))

    return StyleFacts(
        documents=len(texts),
        words=_round(total / len(texts)),
        words_low=float(ordered[len(ordered) // 10]),
        words_high=float(ordered[(9 * (len(ordered) - 1) + 9) // 10]),
        sentence_words=_round(total / max(len(split), 1)),
        paragraphs=_round(sum(_paragraphs(text) for text in texts) / len(texts)),
        word_letters=_round(sum(map(len, everything)) / total),
        contractions=share(_CONTRACTION.match),
        first_person=share(_FIRST.__contains__),
        first_plural=share(_PLURAL.__contains__),
        second_person=share(_SECOND.__contains__),
        questions=of_sentences(lambda s: s.endswith("?")),
        exclamations=of_sentences(lambda s: s.endswith("!")),
        commas=per_hundred(re.compile(",")),
        semicolons=per_hundred(re.compile("[;:]")),
        dashes=per_hundred(_DASH),
        parentheses=per_hundred(re.compile(r"\(")),
        lists=_round(sum(1 for text in texts if _LIST_LINE.search(text)) / len(texts)),
        lowercase_starts=of_sentences(lambda s: s[:1].islower()),
        emoji=per_hundred(_EMOJI),
    )


def describe_length(facts: StyleFacts) -> str:
    """How long the texts and their sentences are, in words for a prompt."""
    low, high = round(facts.words_low), round(facts.words_high)
    spread = f" (mostly {low} to {high})" if high > low else ""
    sentence = max(1, round(facts.sentence_words))
    return f"about {round(facts.words)} words{spread}, in sentences of about {sentence} words"


def describe_manner(facts: StyleFacts) -> str:
    """What stands out in how the texts are written; "" where nothing does.

    The thresholds say where a habit begins to be seen by a reader; they are ours.
    """
    seen = [
        (facts.lowercase_starts > 0.5, "sentences begin in lower case"),
        (facts.first_person > 0.03, "writes as I"),
        (facts.first_plural > 0.02, "writes as we"),
        (facts.second_person > 0.02, "speaks to the reader as you"),
        (facts.first_person + facts.first_plural + facts.second_person < 0.004, "impersonal"),
        (facts.contractions > 0.02, "contractions"),
        (facts.exclamations > 0.1, "exclamation marks"),
        (facts.questions > 0.1, "asks questions"),
        (facts.semicolons > 1.5, "semicolons and colons"),
        (facts.dashes > 0.8, "dashes"),
        (facts.parentheses > 0.8, "parentheses"),
        (facts.lists > 0.3, "lists"),
        (facts.emoji > 0.3, "emoji"),
        (facts.word_letters > 5.2, "long words"),
        (facts.word_letters < 4.1, "short words"),
    ]
    return ", ".join(text for here, text in seen if here)


def favoured_words(texts: Sequence[str], limit: int) -> tuple[str, ...]:
    """Content words that come back in at least three documents and a fifth of them, the commonest first."""
    spread = Counter(
        word
        for text in texts
        for word in set(words(text))
        if word.split("'")[0] not in FUNCTION_WORDS and len(word) > 2
    )
    least = max(3, len(texts) / 5)
    often = [(count, word) for word, count in spread.items() if count >= least]
    return tuple(word for _, word in sorted(often, key=lambda pair: (-pair[0], pair[1]))[:limit])


def habits(texts: Sequence[str], limit: int = 60) -> tuple[str, str]:
    """(opening, closing) that at least three documents and a quarter of them share, or "" each.

    An opening is the first two or more words, a closing the last line. At most `limit` characters.
    """
    openings = Counter(" ".join(text.split()[:2]) for text in texts)
    closings = Counter(text.strip().splitlines()[-1].strip() for text in texts if text.strip())
    least = max(3, len(texts) / 4)

    def usual(found: Counter[str]) -> str:
        if not found:
            return ""
        text, count = max(found.items(), key=lambda pair: (pair[1], pair[0]))
        return text if count >= least and len(text) <= limit else ""

    return usual(openings), usual(closings)


def _paragraphs(text: str) -> int:
    return len([block for block in re.split(r"\n\s*\n", text) if block.strip()])


def _round(value: float) -> float:
    """Four digits: enough to tell writers apart, and the same on every machine."""
    return round(value, 4)
