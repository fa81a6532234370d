"""PersonalLLM (arXiv 2409.20296): eight responses to each prompt, scored by ten reward models.

A row of the published table, here as JSON Lines or as a JSON array, has

    prompt, prompt_id, subset, response_1 … response_8, response_1_model … response_8_model, and
    response_{i}_{reward model}: the score of response i, for each of the ten models below

Its users are simulated, as the paper does: a user is a vector of weights over the reward models, drawn from a
symmetric Dirichlet distribution (small `alpha`: nearly one model each), and prefers the response with the
larger weighted sum of scores, each score first brought to mean 0 and deviation 1 over the data set. Each user
meets 25 to 49 prompts, and two of the responses to each. The draws come from `seed`, but are not the authors'
own. A user's name tells the weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from penname.errors import BadInputError
from penname.records import BadRow, Item, Preference, User, check_user_id
from penname.sources._arrays import objects
from penname.sources._each import Row, data_files, needed
from penname.sources._rows import bad, id_of, text_of

if TYPE_CHECKING:
    import numpy as np

# Mean and standard deviation of each model's scores over the data set, as the authors publish them with their
# code (`constants.py`); rounded.
_MODELS = {
    "beaver_7b": (6.2335, 3.0126),
    "gemma_2b": (4.3304, 2.0386),
    "gemma_7b": (1.6260, 2.6097),
    "llama3_sfairx": (1.0638, 2.9530),
    "mistral_raft": (8.3092, 3.0729),
    "mistral_ray": (3.0136, 1.6903),
    "mistral_weqweasdas": (7.0711, 2.5786),
    "oasst_deberta_v3": (2.8977, 1.7208),
    "oasst_pythia_1b": (4.2939, 2.3018),
    "oasst_pythia_7b": (4.7064, 1.3659),
}
_RESPONSES = 8
_FEWEST, _MOST = 25, 49  # prompts that a user meets
_MAX_USERS = 100_000


@dataclass(frozen=True)
class _Meeting:
    """A user meets two of a prompt's responses (numbers from 1)."""

    user: str
    weights: np.ndarray  # (10,), in the order of _MODELS
    responses: tuple[int, int]


def read(
    path: Path,
    *,
    users: int = 100,
    alpha: float = 0.01,
    seed: int = 0,
    split: str | None = None,
    prefix: str = "",
) -> Iterator[Item]:
    """The Users, then a Preference (a choice) for each pair of responses that a user meets.

    The rows are read twice: to count them, and to make the preferences. The same rows, users, alpha and seed
    give the same items.

    Args:
        path: a file, or a folder with one file for each split (train.jsonl, test.jsonl).
        users: how many to simulate.
        alpha: concentration of the Dirichlet distribution, above 0.
        seed: of all draws.
        split: which file of a folder; all by default.
        prefix: put before every user's id ("user-0000", …).

    Raises:
        BadInputError: a number out of range, no such file or split, or it is no JSON.
    """
    if not 1 <= users <= _MAX_USERS:
        raise BadInputError(f"from 1 to {_MAX_USERS:,} users can be simulated, not {users}")
    if not 0 < alpha <= 1000:
        raise BadInputError(f"alpha lies above 0 and up to 1000, and is not {alpha}")
    if seed < 0:
        raise BadInputError(f"a seed is 0 or more, not {seed}")
    files = data_files(path, split)
    rows = sum(not isinstance(found, BadRow) for file in files for found in objects(file))
    if not rows:
        for file in files:
            yield from (found for found in objects(file) if isinstance(found, BadRow))
        return
    people = list(_simulated(users, alpha, seed, prefix))
    for user, weights in people:
        yield User(id=user, name=_told(weights))
    meetings = _meetings(people, rows, seed)
    number = 0
    for file in files:
        for found in objects(file):
            if isinstance(found, BadRow):
                yield found
                continue
            line, row = found
            yield from _choices(file, line, row, meetings.get(number, []))
            number += 1


def _simulated(users: int, alpha: float, seed: int, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    """Each user's id and weights (10,), which sum to 1."""
    import numpy as np

    drawn = np.random.default_rng((seed, 0)).dirichlet([alpha] * len(_MODELS), size=users)
    for number, weights in enumerate(drawn):
        yield check_user_id(f"{prefix}user-{number:04d}"), weights


def _told(weights: np.ndarray) -> str:
    """The weights of at least half a hundredth, largest first, in words."""
    named = sorted(zip(weights.tolist(), _MODELS, strict=True), reverse=True)
    return ", ".join(f"{name} {weight:.2f}" for weight, name in named if weight >= 0.005)


def _meetings(people: list[tuple[str, np.ndarray]], rows: int, seed: int) -> dict[int, list[_Meeting]]:
    """Who meets which responses, by the row's number."""
    import numpy as np

    met: dict[int, list[_Meeting]] = defaultdict(list)
    for place, (user, weights) in enumerate(people):
        draw = np.random.default_rng((seed, 1, place))  # a user's draws do not depend on the others'
        number = min(int(draw.integers(_FEWEST, _MOST + 1)), rows)
        for row in draw.choice(rows, size=number, replace=False).tolist():
            first, second = draw.choice(_RESPONSES, size=2, replace=False).tolist()
            met[row].append(_Meeting(user, weights, (first + 1, second + 1)))
    return met


def _choices(file: Path, line: int, row: Row, meetings: list[_Meeting]) -> Iterator[Item]:
    """What each of the users who meet this prompt prefers; one BadRow where the row cannot be used."""
    import numpy as np

    try:
        needed(row, "prompt", *(f"response_{number}" for number in range(1, _RESPONSES + 1)))
        scores = {number: np.array(_scores(row, number)) for number in range(1, _RESPONSES + 1)}
        name = id_of(row.get("prompt_id"), "prompt_id")
        choices = [choice for each in meetings if (choice := _choice(row, name, scores, each)) is not None]
    except (BadInputError, ValidationError) as error:
        yield bad(file, line, error)
    else:
        yield from choices


def _scores(row: Row, number: int) -> list[float]:
    """The ten normalised scores of a response."""
    scores = []
    for model, (mean, deviation) in _MODELS.items():
        name = f"response_{number}_{model}"
        needed(row, name)
        value = row[name]
        if not isinstance(value, int | float) or isinstance(value, bool) or not -1e6 < value < 1e6:
            raise BadInputError(f"the field {name!r} is no score")
        scores.append((value - mean) / deviation)
    return scores


def _choice(row: Row, name: str, scores: dict[int, np.ndarray], meeting: _Meeting) -> Preference | None:
    """The user's choice; None where the two responses are the same, or as good as each other."""
    first, second = meeting.responses
    rewards = [float(meeting.weights @ scores[number]) for number in (first, second)]
    texts = [text_of(row[f"response_{number}"], f"response_{number}") for number in (first, second)]
    if texts[0] == texts[1] or rewards[0] == rewards[1]:
        return None
    better = int(rewards[1] > rewards[0])
    return Preference(
        id=f"personalllm:{name}:{meeting.responses[better]}>{meeting.responses[1 - better]}" if name else "",
        user=meeting.user,
        kind="choice",
        prompt=text_of(row["prompt"], "prompt"),
        chosen=texts[better],
        rejected=texts[1 - better],
    )
