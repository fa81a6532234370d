"""From preferences to what P-RLHF trains on (arXiv 2402.05133), by stated rules, with counts.

    prepared = prepare(read_preferences("preferences.jsonl"), bad=print)
    train, held = split(prepared, share=0.1, seed=0)
    train = fit(train, lengths, limit=2048)

The rules, in this order. What a rule leaves out is counted under its reason in `Prepared.left_out`.

1. A row that cannot be read is told to `bad`. Where `only` names a user, all others' preferences are left
   out.
2. Left out: an empty prompt, an empty answer, a chosen text equal to the rejected one. Blanks around an
   answer do not count, as models never see them.
3. Kept and counted in `Prepared.remarks`: a preference without a user, which trains the generic user alone;
   a user with one preference.
4. For pairs, two ratings by one user of two texts for the same prompt make a pair where they differ, the
   higher one chosen; of one prompt at most ten, those that differ most. All other ratings are left out.
5. For ratings, the chosen text of a pair is liked and the rejected one disliked; a rating of 0 is left out.
6. What one user says twice counts once. What one user says in both ways is left out both times: a pair and
   the same pair swapped; a text that is liked and disliked (of A over B and B over C that is B); in rule 4, a
   text with two different ratings. Preferences without a user may come from different people, so this rule
   and rule 4's pairs pass over them.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from heapq import nlargest
from itertools import combinations, compress
from typing import Literal, TypeVar

from penname.errors import BadInputError, UnknownUserError
from penname.records import BadRow, Prompt, digest
from penname.train.preferences.prompts import as_completion, as_prompt
from penname.train.preferences.read import Feedback, Pair, Rating, read_preferences, read_user

__all__ = [
    "Pair",
    "Prepared",
    "Rated",
    "Rating",
    "as_completion",
    "as_prompt",
    "fit",
    "plain",
    "prepare",
    "read_preferences",
    "read_user",
    "split",
]

MOST_PAIRS = 10  # pairs made of one user's ratings of one prompt
LEAST_TO_HOLD_OUT = 5  # pairs of a user, for any of them to be held out

BAD_ROW = "rows that cannot be read"
OTHERS = "preferences of other users"
NO_PROMPT = "an empty prompt"
NO_ANSWER = "an empty answer"
EQUAL = "the chosen text equal to the rejected one"
TWICE = "said by the same user before"
BOTH_WAYS = "said by the same user in both ways"
ALONE = "ratings with no different one by the same user of another text for the same prompt"
TOO_MANY = f"pairs of ratings beyond the {MOST_PAIRS} of one user and prompt"
NEITHER = "ratings of 0"
TOO_LONG = "a prompt with its longest answer past the limit in tokens"
NO_USER = "preferences without a user: they train the generic user only"
ONE = "users with one preference"

T = TypeVar("T")


@dataclass(frozen=True)
class Rated:
    """One text that a user liked or not, as KTO trains on it.

    `weight` in (0, 1] is how strongly: the size of the rating, and 1 where it comes from a pair.
    """

    user: str | None
    prompt: Prompt
    completion: str
    liked: bool
    weight: float = 1.0
    about: str = ""

    @property
    def answers(self) -> tuple[str, ...]:
        """The text that is rated."""
        return (self.completion,)


@dataclass(frozen=True)
class Prepared:
    """What is trained on: pairs or rated texts, as was asked for. They are in the order of their source,
    those pairs that were made of ratings last.

    `left_out` maps a reason, in words, to how often it applies.
    """

    pairs: tuple[Pair, ...] = ()
    rated: tuple[Rated, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pairs) + len(self.rated)

    @property
    def items(self) -> tuple[Pair | Rated, ...]:
        """The pairs or the rated texts, whichever there are."""
        return self.pairs or self.rated

    @cached_property
    def users(self) -> list[str]:
        """The users, in the order in which they are first seen."""
        return list(dict.fromkeys(item.user for item in self.items if item.user is not None))

    @property
    def remarks(self) -> dict[str, int]:
        """What is kept and yet worth telling where users are learnt, in words, and how often it applies."""
        each = Counter(item.user for item in self.items)
        nobody = each.pop(None, 0)
        counts = {NO_USER: nobody, ONE: sum(number == 1 for number in each.values())}
        return {remark: number for remark, number in counts.items() if number}

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over all that is kept, in its order."""
        content = hashlib.sha256()
        for item in self.items:
            values = {**vars(item), "prompt": _messages(item.prompt)}
            content.update(digest([type(item).__name__, values]).encode())
        return content.hexdigest()[:32]


def prepare(
    preferences: Iterable[Feedback | BadRow],
    *,
    wanted: Literal["pairs", "ratings"] = "pairs",
    users: bool = True,
    only: str | None = None,
    bad: Callable[[BadRow], None] | None = None,
) -> Prepared:
    """The preferences as pairs (for pairwise losses) or as rated texts (for KTO), by the rules above.

    Args:
        preferences: what `read_preferences` gives.
        users: False where the training knows no users (vanilla), so that none need be named.
        only: this user's preferences alone, as for one model per user.
        bad: told of each row that cannot be read.

    Raises:
        UnknownUserError: nothing is of the user that `only` names; the message offers the nearest.
        BadInputError: nothing is left, with the counts in the message; or users are to be learnt and none
            is named. Also as `read_preferences` does.
    """
    left_out: Counter[str] = Counter()
    found = _sound(_readable(preferences, left_out, bad), left_out, only)
    pairs = [item for item in found if isinstance(item, Pair)]
    ratings = [item for item in found if isinstance(item, Rating)]
    if wanted == "pairs":
        prepared = Prepared(pairs=tuple(_settled([*pairs, *_paired(ratings, left_out)], _sides, left_out)))
    else:
        rated = _rated(found, left_out)
        prepared = Prepared(rated=tuple(_settled(rated, _verdict, left_out)))
    if not len(prepared):
        raise BadInputError(_nothing(left_out))
    if users and not prepared.users:
        raise BadInputError(
            "no preference that can be trained on names a user: say which field does, or train without users"
        )
    return replace(prepared, left_out={why: number for why, number in left_out.items() if number})


def fit(prepared: Prepared, length: Callable[[Pair | Rated], Sequence[int]], limit: int) -> Prepared:
    """Without what does not fit into `limit` tokens: a prompt with its longer answer. Nothing is cut.

    Args:
        length: the tokens of the prompt, with all that stands before it, and of each of `item.answers`.

    Raises:
        BadInputError: there was something and nothing is left; the message has the counts.
    """

    def fits(item: Pair | Rated) -> bool:
        prompt, *answers = length(item)
        return prompt + max(answers) <= limit

    pairs = tuple(pair for pair in prepared.pairs if fits(pair))
    rated = tuple(one for one in prepared.rated if fits(one))
    long = len(prepared) - len(pairs) - len(rated)
    left_out = dict(prepared.left_out)
    if long:
        left_out[TOO_LONG] = left_out.get(TOO_LONG, 0) + long
    if long and long == len(prepared):
        raise BadInputError(_nothing(left_out))
    return replace(prepared, pairs=pairs, rated=rated, left_out=left_out)


def split(prepared: Prepared, share: float, seed: int = 0) -> tuple[Prepared, Prepared]:
    """(what is trained on, what is held out of it to evaluate on during training).

    Each prompt of a user is on one side, chosen by a hash of seed, user and prompt: about `share` of a user's
    prompts are held out. A user with fewer than 5 pairs (or rated texts), or with nothing else to learn from,
    has none held out. Further rows move no prompt, but for a user who had none held out so far.

    Args:
        share: from 0 (nothing is held out) to below 1.

    Raises:
        BadInputError: such a share there cannot be.
    """
    if not 0 <= share < 1:
        raise BadInputError(f"the share held out is from 0 to below 1, not {share}")
    draws = [_drawn(item, seed) < share for item in prepared.items]
    of_user: dict[str | None, list[bool]] = defaultdict(list)
    for item, drawn in zip(prepared.items, draws, strict=True):
        of_user[item.user].append(drawn)
    open_to = {user for user, mine in of_user.items() if len(mine) >= LEAST_TO_HOLD_OUT and not all(mine)}
    held = [drawn and item.user in open_to for item, drawn in zip(prepared.items, draws, strict=True)]
    sides = [
        Prepared(pairs=tuple(compress(prepared.pairs, chosen)), rated=tuple(compress(prepared.rated, chosen)))
        for chosen in ([not one for one in held], held)
    ]
    return replace(sides[0], left_out=prepared.left_out), sides[1]


def plain(prompt: Prompt) -> Prompt:
    """The prompt, for comparing: one message of the user is the same as its text."""
    if not isinstance(prompt, str) and len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return prompt


def _drawn(item: Pair | Rated, seed: int) -> float:
    """A number in [0, 1) that seed, user and prompt decide."""
    return int(digest([seed, item.user, _messages(plain(item.prompt))])[:13], 16) / 16**13


def _readable(
    found: Iterable[Feedback | BadRow], left_out: Counter[str], bad: Callable[[BadRow], None] | None
) -> Iterator[Feedback]:
    for item in found:
        if isinstance(item, BadRow):
            left_out[BAD_ROW] += 1
            if bad:
                bad(item)
        else:
            yield item


def _sound(found: Iterable[Feedback], left_out: Counter[str], only: str | None) -> list[Feedback]:
    """Those of the wanted user that have a prompt and answers that differ."""
    others: set[str] = set()
    seen, kept = False, []
    for item in found:
        if only is not None and item.user != only:
            left_out[OTHERS] += 1
            others.update([item.user] if item.user is not None else [])
            continue
        seen = True
        if why := _fault(item):
            left_out[why] += 1
        else:
            kept.append(item)
    if only is not None and not seen:
        raise UnknownUserError(only, others)
    return kept


def _fault(item: Feedback) -> str:
    prompt = item.prompt if isinstance(item.prompt, str) else item.prompt[-1].content
    answers = [answer.strip() for answer in item.answers]
    if not prompt.strip():
        return NO_PROMPT
    if not all(answers):
        return NO_ANSWER
    return EQUAL if len(set(answers)) < len(answers) else ""


def _settled(
    items: Sequence[T], says: Callable[[T], tuple[str | None, Hashable, Hashable]], left_out: Counter[str]
) -> list[T]:
    """Rule 6. `says` gives the user, what the item is about, and which way it decides that."""
    ways: dict[Hashable, set[Hashable]] = defaultdict(set)
    first = []
    for item in items:
        user, subject, way = says(item)
        if user is not None and way in ways[user, subject]:
            left_out[TWICE] += 1
            continue
        if user is not None:
            ways[user, subject].add(way)
        first.append((item, user is not None and (user, subject)))
    kept = [item for item, key in first if not key or len(ways[key]) == 1]
    left_out[BOTH_WAYS] += len(first) - len(kept)
    return kept


def _sides(pair: Pair) -> tuple[str | None, Hashable, Hashable]:
    chosen, rejected = pair.chosen.strip(), pair.rejected.strip()
    return pair.user, (plain(pair.prompt), frozenset((chosen, rejected))), chosen


def _verdict(rated: Rated) -> tuple[str | None, Hashable, Hashable]:
    return rated.user, (plain(rated.prompt), rated.completion.strip()), rated.liked


def _score(rating: Rating) -> tuple[str | None, Hashable, Hashable]:
    return rating.user, (plain(rating.prompt), rating.completion.strip()), rating.rating


def _paired(ratings: Sequence[Rating], left_out: Counter[str]) -> Iterator[Pair]:
    """Rule 4."""
    of_prompt: dict[Hashable, list[Rating]] = defaultdict(list)
    for place, rating in enumerate(_settled(ratings, _score, left_out)):
        # Those without a user are each alone.
        of_prompt[rating.user, plain(rating.prompt), place if rating.user is None else None].append(rating)
    for group in of_prompt.values():
        differ = [two for two in combinations(group, 2) if two[0].rating != two[1].rating]
        if not differ:
            left_out[ALONE] += len(group)
        left_out[TOO_MANY] += max(0, len(differ) - MOST_PAIRS)
        for two in nlargest(MOST_PAIRS, differ, key=lambda two: abs(two[0].rating - two[1].rating)):
            low, high = sorted(two, key=lambda rating: rating.rating)
            yield Pair(high.user, high.prompt, high.completion, low.completion, high.about)


def _rated(found: Iterable[Feedback], left_out: Counter[str]) -> list[Rated]:
    """Rule 5."""
    rated = []
    for item in found:
        if isinstance(item, Pair):
            rated.append(Rated(item.user, item.prompt, item.chosen, True, about=item.about))
            rated.append(Rated(item.user, item.prompt, item.rejected, False, about=item.about))
        elif item.rating:
            liked, weight = item.rating > 0, abs(item.rating)
            rated.append(Rated(item.user, item.prompt, item.completion, liked, weight, item.about))
        else:
            left_out[NEITHER] += 1
    return rated


def _nothing(left_out: dict[str, int]) -> str:
    why = "; ".join(f"{number:,} {reason}" for reason, number in left_out.items() if number)
    return f"no preferences to train on{f' (left out: {why})' if why else ': the source holds none'}"


def _messages(prompt: Prompt) -> str | list[list[str]]:
    """The prompt as JSON values."""
    return prompt if isinstance(prompt, str) else [[turn.role, turn.content] for turn in prompt]
