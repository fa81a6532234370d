"""Users: adding them, listing them, everything of one of them, and erasing it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from itertools import chain
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from penname.methods.erase import forget
from penname.records import check_user_id
from penname.serve.common import (
    After,
    BackgroundOf,
    CallerOf,
    HouseOf,
    LearnerOf,
    Limit,
    OwnUser,
    errors,
    nothing_after,
    own_user,
    page,
    user_named,
)
from penname.store import UserStore

JSON_LINES = "application/x-ndjson"

router = APIRouter(prefix="/v1/users", tags=["users"])


class PutUser(BaseModel):
    """A user's name, for people to read."""

    name: str = Field("", max_length=200)


class UserShown(BaseModel):
    """A user in short."""

    id: str
    name: str
    documents: int
    first: datetime | None = Field(description="When the first dated document was written.")
    last: datetime | None = Field(description="When the last dated document was written.")


class Users(BaseModel):
    """Some of the users, by id."""

    data: list[UserShown]
    next: str | None = Field(description="Give this as `after` for more; null: there are no more.")


class ErasedRuns(BaseModel):
    """What trained runs had of the user."""

    rows: int = Field(description="Tables that had a row of the user; it is zeroed.")
    lines: int = Field(description="Lines of what trainings saw, taken out.")
    weights: list[str] = Field(
        description="Runs whose shared weights were trained on the user's data: only training anew helps."
    )


class ErasedUser(BaseModel):
    """How much was erased."""

    user: str
    documents: int
    vectors: int
    gists: int
    profiles: int
    preferences: int
    requests: int
    keys: int
    drafts: int = Field(description="Drafts that were kept in memory.")
    trained: ErasedRuns


@router.get("", summary="List the key's users", responses=errors())
def list_users(caller: CallerOf, house: HouseOf, limit: Limit = 100, after: After = None) -> Users:
    """By id: the user of a user's key, or all those of a service key."""
    key, store = caller.key_id, house.store
    if after is not None and not store.key_users(key, [check_user_id(after)]):
        nothing_after()
    shown, more = page(lambda most: store.key_users(key, after=after, limit=most), limit, str)
    return Users(data=[_shown(house.store.user(user)) for user in shown], next=more)


@router.put("/{user}", summary="Add a user, or change the name", responses=errors(404))
def put_user(
    body: PutUser, user: Annotated[str, Depends(user_named)], caller: CallerOf, house: HouseOf
) -> UserShown:
    """A service key adds users, who are its own from then on; a user's key changes its user's name.

    A name that is left away changes nothing.
    """
    if caller.service:
        house.store.add_key_user(caller.key_id, user, body.name)
    else:
        mine = own_user(user, caller, house)
        user = house.store.add_user(mine.id, body.name).id
    return _shown(house.store.user(user))


@router.get("/{user}", summary="Read a user in short", responses=errors(404))
def read_user(user: OwnUser) -> UserShown:
    """Its name, and how many documents there are."""
    return _shown(user)


@router.delete("/{user}", summary="Erase a user", responses=errors(404, 500))
def erase_user(user: OwnUser, house: HouseOf, background: BackgroundOf, learner: LearnerOf) -> ErasedUser:
    """Everything of the user, for good, with counts; the user's keys too.

    Models whose shared weights were trained on the user's data are named: only training anew takes it out.
    """
    forgotten = forget(house.store, user.id, list(house.runs().values()))
    try:
        erased = user.erase()
    finally:  # where the store is busy with its files, the rows may be gone already
        background.forget(user.id)
        learner.forget(user.id)
        drafts = house.forget(user)
    trained = ErasedRuns(
        rows=len(forgotten.rows), lines=forgotten.lines, weights=[folder.name for folder in forgotten.weights]
    )
    return ErasedUser(user=user.id, **asdict(erased), drafts=drafts, trained=trained)


@router.get(
    "/{user}/export",
    summary="Everything of a user",
    response_class=StreamingResponse,
    responses={200: {"content": {JSON_LINES: {"schema": {"type": "string"}}}}, **errors(404)},
)
def export_user(user: OwnUser) -> Response:
    """As JSON Lines that `penname import jsonl` reads back as they were."""
    rows = user.export()
    first = next(rows)  # read now: an error is an answer of its own only before the first byte
    headers = {"Content-Disposition": 'attachment; filename="penname.jsonl"'}
    return StreamingResponse(_lines(chain([first], rows)), media_type=JSON_LINES, headers=headers)


def _lines(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield json.dumps(row, ensure_ascii=False, default=str) + "\n"


def _shown(user: UserStore) -> UserShown:
    span = user.span
    return UserShown(id=user.id, name=user.name, documents=span.documents, first=span.first, last=span.last)
