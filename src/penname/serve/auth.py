"""Who a request is for: its key says so, and nothing else.

A route takes the `caller` and asks it for users. A user who is not the caller's is answered as one who is not
there, in the same words and with no other names in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from penname.errors import BadInputError, UnknownUserError
from penname.records import check_user_id
from penname.serve.errors import Refusal

if TYPE_CHECKING:
    from penname.serve.house import House
    from penname.serve.limits import Limits
    from penname.store import UserStore

ME = "me"  # a user's key may name its user so

_bearer = HTTPBearer(
    scheme_name="key",
    description="A key that `penname keys create` made: `Authorization: Bearer pn-…`.",
    auto_error=False,
)


@dataclass(frozen=True)
class Caller:
    """Who made a request, as its key tells.

    Attributes:
        key_id: the key's; may stand in logs.
        user: the user whose key it is; None for a service's.
    """

    key_id: str
    user: str | None

    @property
    def service(self) -> bool:
        """Whether it is a service, which acts for its users."""
        return self.user is None

    def users(self, house: House, named: Sequence[str] | None) -> tuple[str, ...]:
        """The users that a request is for, each once, in the order in which they were named.

        Args:
            house: whose store is asked.
            named: users that the request names. A user's key need name none, and may name none but its own.

        Raises:
            UnknownUserError: one of them is not there, or not the caller's.
            BadUserIdError: one of them is no id that a user could have.
            BadInputError: a service named nobody.
        """
        if self.user is not None:
            asked = [self.user if name == ME else name for name in named or (self.user,)]
            theirs: Sequence[str] = (self.user,)
        else:
            if not named:
                raise BadInputError(
                    "a service's key acts for its users: say for whom, by `user`, `safety_identifier` or "
                    "metadata.users"
                )
            asked = [check_user_id(name) for name in named]
            theirs = house.store.key_users(self.key_id, asked)
        for name in asked:
            if name not in theirs:
                raise UnknownUserError(check_user_id(name))
        return tuple(dict.fromkeys(asked))

    def user_store(self, house: House, name: str) -> UserStore:
        """The part of the store that is this user's; `me` is the user of a user's key.

        Raises:
            UnknownUserError: the user is not there, or not the caller's.
            BadUserIdError: no id that a user could have.
        """
        [mine] = self.users(house, [name])
        try:
            return house.store.user(mine)
        except UnknownUserError:  # erased since; the store's error offers the names of others
            raise UnknownUserError(mine) from None


def caller(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Iterator[Caller]:
    """FastAPI's dependency: the caller of this request, which holds a place in flight until it is answered.

    Raises:
        Refusal: 401 without a key that is valid; 429 or 503 where a limit is reached.
    """
    house: House = request.app.state.house
    limits: Limits = request.app.state.limits
    if credentials is None:
        raise Refusal(401, "There is no key: send one as `Authorization: Bearer pn-…`.", "invalid_api_key")
    key = house.store.key(credentials.credentials)
    if key is None:
        raise Refusal(401, "Incorrect API key provided: it is unknown, or was revoked.", "invalid_api_key")
    request.state.key_id = key.id
    limits.take(key.id)
    with limits.in_flight():
        yield Caller(key.id, key.user)
