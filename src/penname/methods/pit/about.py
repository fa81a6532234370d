"""Text about the users for whom a draft is improved: their profiles, as the store has them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from penname.records import Profile
from penname.store import Store


def newest_profiles(
    store: Store, users: Sequence[str], before: datetime | None = None, exclude: Collection[str] = ()
) -> list[Profile]:
    """The newest profile of each user, in order; nothing for those who have none that may be used.

    Where only what was written before a moment may be used, or not all documents, it is the newest that
    cannot know more: made of documents of before that moment, of none of those left out, and not by hand.

    Raises:
        UnknownUserError: no such user.
    """
    found = [_newest(store, user, before, frozenset(exclude)) for user in users]
    return [profile for profile in found if profile is not None]


def _newest(store: Store, user: str, before: datetime | None, exclude: frozenset[str]) -> Profile | None:
    opened = store.user(user)
    if before is None and not exclude:
        return opened.profile()
    for profile in reversed(opened.profiles()):
        late = before is not None and (profile.before is None or profile.before > before)
        if not late and not profile.edited and exclude.isdisjoint(profile.documents):
            return profile
    return None


def joined(profiles: Sequence[Profile]) -> str:
    """Several authors' profiles as one text about them, a blank line between them."""
    return "\n\n".join(profile.text.strip() for profile in profiles)
