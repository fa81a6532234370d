"""What a user wrote, and what was learnt of it in words: documents and the profile."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field, JsonValue

from penname.errors import BadInputError, EmptyHistoryError
from penname.methods.stepback import edit_profile
from penname.records import MAX_TEXT, Document, Moment, Profile, Text
from penname.serve.common import (
    After,
    BackgroundOf,
    HouseOf,
    Limit,
    OwnUser,
    errors,
    named,
    not_found,
    page,
)
from penname.serve.errors import Refusal
from penname.store import UserStore

MAX_DOCUMENTS = 1000  # of one request
MAX_PROFILE = 20_000  # characters
MAX_ID = 256  # characters of a document's id
_MAX_AUTHORS = 10_000

router = APIRouter(prefix="/v1/users/{user}", tags=["material"])


class NewDocument(BaseModel):
    """A text that the user wrote."""

    id: Text = Field("", max_length=MAX_ID, description="Where there is none, the content's hash is the id.")
    title: Text = Field("", max_length=1000)
    text: Text = Field(min_length=1, max_length=MAX_TEXT)
    written_at: Moment | None = Field(None, description="An ISO date or time; null: not known.")
    position: int = Field(0, ge=0, le=_MAX_AUTHORS, description="The user's place among the authors, from 0.")
    n_authors: int = Field(1, ge=1, le=_MAX_AUTHORS)
    fields: dict[Text, JsonValue] = Field({}, description="What else is known of it.")


class NewDocuments(BaseModel):
    """Documents to add. One that is there under the same id is replaced where its content differs."""

    documents: list[NewDocument] = Field(min_length=1, max_length=MAX_DOCUMENTS)


class AddedDocuments(BaseModel):
    """What became of them."""

    ids: list[str] = Field(description="In the order of the request.")
    new: int
    changed: int
    same: int = Field(description="Were there already, with the same content.")


class Documents(BaseModel):
    """Some of a user's documents, oldest first; those without a date before all others."""

    data: list[Document]
    next: str | None = Field(description="Give this as `after` for more; null: there are no more.")


class RemovedDocument(BaseModel):
    """The document is gone."""

    id: str
    deleted: Literal[True] = True


class ProfileShown(Profile):
    """A profile, and whether a newer one is being made."""

    refreshing: bool = False


class ProfileText(BaseModel):
    """The profile as its user wants it."""

    text: Text = Field(min_length=1, max_length=MAX_PROFILE)


class Refresh(BaseModel):
    """The profile is made anew in the background."""

    state: Literal["queued"] = "queued"


DocumentId = Annotated[str, Path(max_length=MAX_ID, description="A document's id. A slash is written %2F.")]


@router.post("/documents", status_code=201, summary="Add documents", responses=errors(404))
def add_documents(body: NewDocuments, user: OwnUser, background: BackgroundOf) -> AddedDocuments:
    """They count in the next request. The profile follows in the background."""
    documents = [Document.model_validate(one.model_dump()) for one in body.documents]
    added = user.add(documents)
    if added.new or added.changed:
        background.profile(user.id)
    ids = [document.id for document in documents]
    return AddedDocuments(ids=ids, new=added.new, changed=added.changed, same=added.same)


@router.get("/documents", summary="List documents", responses=errors(404))
def list_documents(user: OwnUser, limit: Limit = 100, after: After = None) -> Documents:
    """Oldest first, with their texts."""
    shown, more = page(
        lambda most: user.documents(after=after, limit=most), limit, lambda document: document.id
    )
    return Documents(data=shown, next=more)


@router.get("/documents/{document}", summary="Read a document", responses=errors(404))
def read_document(document: DocumentId, user: OwnUser) -> Document:
    """As it was added."""
    return _found(user, named(document))


@router.delete("/documents/{document}", summary="Remove a document", responses=errors(404))
def remove_document(document: DocumentId, user: OwnUser, background: BackgroundOf) -> RemovedDocument:
    """It does not count any more from the next request on. The profile follows in the background."""
    found = _found(user, named(document))
    user.remove(found.id)
    background.profile(user.id)
    return RemovedDocument(id=found.id)


@router.get("/profile", summary="Read the profile", responses=errors(404))
def read_profile(user: OwnUser, background: BackgroundOf) -> ProfileShown:
    """The newest one. Where there is none yet, `POST …/profile/refresh` makes one."""
    refreshing = background.waits(user.id)
    found = user.profile()
    if found is None:
        hint = "it is being made" if refreshing else "POST to profile/refresh makes one"
        raise Refusal(404, f"The user has no profile yet: {hint}.", "not_found")
    return _shown(found, refreshing=refreshing)


@router.put("/profile", summary="Edit the profile", responses=errors(404))
def write_profile(body: ProfileText, user: OwnUser, house: HouseOf) -> ProfileShown:
    """It is in use from the next request on, and stays so until the profile is refreshed on purpose."""
    current = user.profile()
    if current is None or current.text.strip() != body.text.strip():
        current = edit_profile(house.store, user.id, body.text)
    return _shown(current)


@router.post("/profile/refresh", status_code=202, summary="Make the profile anew", responses=errors(404))
def refresh_profile(user: OwnUser, background: BackgroundOf) -> Refresh:
    """In the background, also where it was edited: that version is kept."""
    if not user.has_documents():
        raise EmptyHistoryError(f"user {user.id!r} has no documents: add some first")
    if not background.profile(user.id, refresh=True):
        text = "Too many profiles wait to be made: try again later."
        raise Refusal(503, text, "overloaded", retry_after=60)
    return Refresh()


def _found(user: UserStore, name: str) -> Document:
    """The user's document of this name, or a 404."""
    try:
        return user.document(name)
    except BadInputError:
        not_found("document", name)


def _shown(profile: Profile, *, refreshing: bool = False) -> ProfileShown:
    return ProfileShown.model_construct(**dict(profile), refreshing=refreshing)
