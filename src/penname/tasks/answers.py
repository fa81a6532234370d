"""An answer that is one of a few: which, in what a model wrote; and how the options stand in a prompt.

The published evaluation of LaMP takes an answer only where it is a label and nothing else. Models that were
not trained on the task say more than that, so here a label is also read out of a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_LABELLED = re.compile(r"\s*(\(\w{1,3}\))\s*(.*)", re.DOTALL)
_OPENING = " \t\r\n\"'*`_"  # blanks, quotes and marks of emphasis before an answer
_CLOSING = r"(?=\s*(?:[)\].:,\"'*`_]|$))"
_BRACKETED = re.compile(r"[(\[](.+)[)\]]")


def read_choice(text: str, choices: Sequence[str]) -> str | None:
    """The one of `choices` that `text` answers with, or None.

    It is the one that the answer begins with, or else the only one that occurs in it; both as whole words
    in upper or lower case. A bracketed choice such as "[1]" may lack its brackets where it opens the answer
    and a mark or nothing follows it. A number may have zeros after the point ("4.0"), but no other digits.
    """
    named = {choice.lower(): choice for choice in choices}
    text = text.lstrip(_OPENING)
    found = [(match.start(), named[_key(match[0])]) for match in _pattern(choices).finditer(text)]
    if found and found[0][0] == 0:
        return found[0][1]
    for choice in choices:
        inner = _BRACKETED.fullmatch(choice)
        if inner and re.match(re.escape(inner[1]) + _CLOSING, text, re.IGNORECASE):
            return choice
    return found[0][1] if len({choice for _, choice in found}) == 1 else None


def _pattern(choices: Sequence[str]) -> re.Pattern[str]:
    """Any of the choices as whole words, longer ones before those they contain."""
    longest_first = sorted(choices, key=len, reverse=True)
    names = "|".join(
        re.escape(choice) + (r"(?:\.0+)?" if choice.isdigit() else "") for choice in longest_first
    )
    return re.compile(rf"(?<![\w.])(?:{names})(?!\w|\.\d)", re.IGNORECASE)


def _key(found: str) -> str:
    return re.sub(r"(?<=\d)\.0+$", "", found).lower()


def read_option(text: str, options: Sequence[str]) -> str | None:
    """The label of the option that `text` answers with ("(b)"), or None.

    Read as by `read_choice`; an answer without a label that repeats the words of one option is that one.
    """
    pairs = labelled(options)
    label = read_choice(text, [label for label, _ in pairs])
    if label is not None:
        return label
    said = _words(text)
    same = [label for label, option in pairs if said and _words(option) == said]
    return same[0] if len(same) == 1 else None


def labelled(options: Sequence[str]) -> list[tuple[str, str]]:
    """(label, text) of each option: its own label where all begin with one, else (a), (b) …"""
    found = [_LABELLED.fullmatch(option) for option in options]
    pairs = [(match[1], match[2].strip()) for match in found if match]
    if len(pairs) == len(options) == len({label.lower() for label, _ in pairs}):
        return pairs
    return [(f"({_letters(number)})", option.strip()) for number, option in enumerate(options)]


def _letters(number: int) -> str:
    """a … z, aa, ab …"""
    return (_letters(number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
