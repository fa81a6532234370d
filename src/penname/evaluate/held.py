"""Preferences that are held out, and those that are known before, from files in TRL's form or stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penname.errors import BadInputError
from penname.records import BadRow, Prompt, digest, prompt_values
from penname.sources._each import data_files, each
from penname.sources._rows import id_of
from penname.tasks import task as find_task
from penname.train.preferences.data import prepare, read_preferences
from penname.train.preferences.read import is_store


@dataclass(frozen=True)
class Held:
    """A pair whose order is known: `user` preferred `chosen`. `id` is the hash of all of it."""

    id: str
    user: str
    prompt: Prompt
    chosen: str
    rejected: str
    about: str = ""  # what is said of the user in words


@dataclass(frozen=True)
class HeldOut:
    """Pairs to put in order, and what is known of their users before."""

    pairs: tuple[Held, ...]  # those of a user side by side
    version: str  # 12 hex digits of what was read
    task: str = ""  # in whose form answers are asked for; "": prompts as they stand
    history: Mapping[str, tuple[Held, ...]] = field(default_factory=dict)  # by user, the oldest first
    history_version: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)  # what the rows say of users, by user
    remarks: tuple[str, ...] = ()  # what a reader of the figures must know

    @property
    def users(self) -> list[str]:
        """In the order in which they first occur."""
        return list(dict.fromkeys(one.user for one in self.pairs))


def read(
    source: str,
    *,
    history: str | None = None,
    task: str = "",
    limit: int | None = None,
    seed: int = 0,
    note: Callable[[str], None] = lambda _: None,
) -> HeldOut:
    """The held-out pairs of a file in TRL's form, or of a store, by the rules of `train.preferences.data`.

    Rows of a file may name a `group` for their user: users of the largest group are the majority.

    Args:
        history: a file or store with the preferences that are known before.
        task: in whose form prompts are put to models; "": as they stand.
        limit: pairs, drawn by `seed`; a larger limit keeps those of a smaller one.
        note: called with a sentence for each row that cannot be used.

    Raises:
        UnknownTaskError: no such task.
        BadInputError: there is no pair of a user, or a user is said to be in two groups. Also as
            `read_preferences` does.
    """
    if task:
        find_task(task)
    pairs, version, remarks = _pairs(source, "held out", note)
    if limit is not None:
        drawn = {one.id for one in sorted(pairs, key=lambda one: digest([seed, one.id]))[:limit]}
        pairs = [one for one in pairs if one.id in drawn]
    known, known_version, more = _pairs(history, "known", note) if history else ([], "", [])
    return HeldOut(
        pairs=tuple(one for mine in _by_user(pairs).values() for one in mine),
        version=version,
        task=task,
        history={user: tuple(mine) for user, mine in _by_user(known).items()},
        history_version=known_version,
        groups=_groups(source),
        remarks=(*remarks, *more),
    )


def _pairs(source: str, what: str, note: Callable[[str], None]) -> tuple[list[Held], str, list[str]]:
    """(the pairs of users, 12 hex digits of them, what was left out in sentences)."""
    prepared = prepare(read_preferences(source), users=False, bad=lambda row: note(str(row)))
    found = [
        Held(
            digest([one.user, prompt_values(one.prompt), one.chosen, one.rejected, one.about]),
            one.user,
            one.prompt,
            one.chosen,
            one.rejected,
            one.about,
        )
        for one in prepared.pairs
        if one.user is not None
    ]
    if not found:
        raise BadInputError(f"{source} holds no pair of a user: there is nobody to be put right")
    left_out = dict(prepared.left_out)
    if nobody := len(prepared.pairs) - len(found):
        left_out["pairs without a user"] = nobody
    remarks = [f"left out of the {what} preferences: {count} × {why}" for why, count in left_out.items()]
    return found, prepared.fingerprint[:12], remarks


def _by_user(pairs: Sequence[Held]) -> dict[str, list[Held]]:
    found: dict[str, list[Held]] = {}
    for one in pairs:
        found.setdefault(one.user, []).append(one)
    return found


def _groups(source: str) -> dict[str, str]:
    """The `group` that rows name for their users; nothing for a store."""
    if is_store(source):
        return {}
    path = Path(source).expanduser()
    found: dict[str, str] = {}

    def group(row: Mapping[str, Any]) -> list[tuple[str, str]]:
        user, name = id_of(row.get("user_id"), "user_id"), id_of(row.get("group"), "group")
        return [(user, name)] if user and name else []

    for file in data_files(path):
        for one in each(file, group):
            if isinstance(one, BadRow):
                continue  # it was told when the pairs were read
            user, name = one
            if found.setdefault(user, name) != name:
                raise BadInputError(f"{source}: user {user!r} is in the groups {found[user]!r} and {name!r}")
    return found


def group_names(held: HeldOut) -> dict[str, str]:
    """What each user's group is called in the report: the largest is the majority."""
    users = set(held.users)
    groups = {user: group for user, group in held.groups.items() if user in users}
    sizes = Counter(groups.values()).most_common(2)
    if len(sizes) < 2:
        return {}
    majority = sizes[0][0] if sizes[0][1] > sizes[1][1] else None
    names = {
        group: f"of the majority ({group})" if group == majority else f"of a minority ({group})"
        for group in set(groups.values())
    }
    if majority is None:
        names = {group: f"of the group {group}" for group in names}
    return {user: names[group] for user, group in groups.items()}


def words(prompt: Prompt) -> str:
    """A prompt as text for people, and for quotation: the content of a single message is its own."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt)
