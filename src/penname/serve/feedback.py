"""What a user thinks of texts: preferences, and what is learnt of them at once; texts made better; drafts."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from penname.methods.pit.about import joined, newest_profiles
from penname.methods.pit.form import Case
from penname.methods.pit.improve import ImproveConfig, Improver
from penname.records import Draft, Preference, Round, Text
from penname.serve.auth import Caller
from penname.serve.common import (
    After,
    CallerOf,
    HouseOf,
    LearnerOf,
    Limit,
    OwnUser,
    errors,
    named,
    not_found,
    nothing_after,
    page,
)
from penname.serve.drafts import Kept
from penname.serve.errors import Refusal
from penname.serve.house import House
from penname.serve.learning import Refinement, State
from penname.store import UserStore
from penname.train.folder import open_trained

MAX_TEXT = 50_000  # characters of a prompt, or of a text that is judged or improved
_PIT = ("pit", "pit-rl")

router = APIRouter(prefix="/v1/users/{user}", tags=["feedback"])
explanations = APIRouter(prefix="/v1/explanations", tags=["feedback"])

DraftId = Annotated[str, Path(max_length=256, description="The id of the answer; see `penname.request_id`.")]

Judged = Annotated[Text, Field(min_length=1, max_length=MAX_TEXT, pattern=r"\S")]


class Choice(BaseModel):
    """One text is better than another."""

    kind: Literal["choice"]
    prompt: Judged = Field(description="What the texts were written for.")
    chosen: Judged
    rejected: Judged


class Rating(BaseModel):
    """How good a text is, from -1 (bad) to 1 (good)."""

    kind: Literal["rating"]
    prompt: Judged = Field(description="What the text was written for.")
    completion: Judged
    rating: float = Field(ge=-1, le=1, allow_inf_nan=False)


class Edit(BaseModel):
    """A draft, and what the user made of it."""

    kind: Literal["edit"]
    prompt: Judged = Field(description="What the text was written for.")
    draft: Judged
    revision: Judged


NewPreference = Annotated[Choice | Rating | Edit, Field(discriminator="kind")]


class LearntShown(BaseModel):
    """What a run made of a preference."""

    run: str
    state: State = Field(
        description="`learnt`: the next draft is written with it; `nothing`: the run cannot use any of the "
        "user's preferences yet, as a single rating makes no pair; or `failed`."
    )
    preferences: int = Field(description="The user's part was fitted to so many of them.")
    seconds: float
    refinement: Refinement | None = Field(
        description="`queued`: all of the user's latest preferences are fitted anew in the background; "
        "`refined`: there is no more exact fit; null: neither."
    )


class KeptPreference(BaseModel):
    """The preference is stored, under this id."""

    id: str
    kind: Literal["choice", "rating", "edit"]
    learnt: list[LearntShown]


class Preferences(BaseModel):
    """Some of a user's preferences, in the order in which they came.

    An edit's `rejected` is the draft, and its `chosen` the revision.
    """

    data: list[Preference]
    next: str | None = Field(description="Give this as `after` for more; null: there are no more.")


class ToImprove(BaseModel):
    """A text to improve, and how."""

    text: Judged
    request: Text = Field("", max_length=MAX_TEXT, description="What the text was written for.")
    run: str | None = Field(None, max_length=256, description="A run of PIT; null: the one that is served.")
    rounds: int = Field(3, ge=1, le=8, description="At most.")
    threshold: float = Field(0, allow_inf_nan=False, description="A round counts if its gain is above it.")
    candidates: int | None = Field(
        None,
        ge=1,
        le=4,
        description="New texts of each round to choose from; null: 4, and 1 at temperature 0.",
    )
    temperature: float = Field(0.5, ge=0, le=2, allow_inf_nan=False)
    max_tokens: int | None = Field(None, ge=1, le=4096, description="Of a new text; null: twice the old one.")
    seed: int = Field(0, ge=0, lt=2**31)


class ImprovedText(BaseModel):
    """The text of the last round that was better; the text as it was where none was."""

    text: str
    rounds: list[Round]
    stopped: str = Field(description="Why there are no more rounds, in words.")
    run: str


class DraftsShown(BaseModel):
    """What was written for one request, in short."""

    id: str = Field(description="The request's id, as its answer had it.")
    made_at: datetime
    users: list[str] = Field(description="Whom it was written for, in author order.")
    task: str
    input: str
    method: str
    texts: list[str] = Field(description="The drafts, in the order of the answer's choices.")


class LatestDrafts(BaseModel):
    """A user's latest drafts, the newest first. They are kept in memory only."""

    data: list[DraftsShown]
    next: str | None = Field(description="Give this as `after` for more; null: there are no more.")


class Explained(BaseModel):
    """How the drafts of a request came about: profile, documents, prompt, reasoning, rounds, tokens."""

    id: str
    made_at: datetime
    drafts: list[Draft]


@router.post("/preferences", status_code=201, summary="Record a preference", responses=errors(404))
def add_preference(body: NewPreference, user: OwnUser, learner: LearnerOf) -> KeptPreference:
    """Kept, and learnt at once by the runs that the server was told of. Nothing of anybody else's changes."""
    values = body.model_dump()
    if isinstance(body, Edit):
        values["rejected"], values["chosen"] = values.pop("draft"), values.pop("revision")
    kept = user.prefer(Preference.model_validate({**values, "user": user.id, "made_at": datetime.now(UTC)}))
    learnt = [LearntShown(**asdict(one)) for one in learner.learn(user.id, kept)]
    return KeptPreference(id=kept.id, kind=kept.kind, learnt=learnt)


@router.get("/preferences", summary="List preferences", responses=errors(404))
def list_preferences(user: OwnUser, limit: Limit = 100, after: After = None) -> Preferences:
    """In the order in which they came."""
    shown, more = page(
        lambda most: user.preferences(after=after, limit=most), limit, lambda preference: preference.id
    )
    return Preferences(data=shown, next=more)


@router.post("/improve", summary="Improve a text", responses=errors(404))
def improve(body: ToImprove, user: OwnUser, house: HouseOf) -> ImprovedText:
    """In rounds, while the gap reward agrees, towards what the user's profile says. Needs a run of PIT."""
    name, improver = _improver(house, body.run)
    config = ImproveConfig(
        body.rounds,
        body.threshold,
        body.candidates,
        body.temperature,
        max_tokens=min(body.max_tokens, house.settings.max_tokens) if body.max_tokens else None,
    )
    case = Case(body.request, body.text.strip("\r\n"), joined(newest_profiles(house.store, [user.id])))
    [improved] = improver.improve([case], config, body.seed)
    return ImprovedText(text=improved.text, rounds=list(improved.rounds), stopped=improved.stopped, run=name)


@router.get("/drafts", summary="List the latest drafts", responses=errors(404))
def list_drafts(
    user: OwnUser, caller: CallerOf, house: HouseOf, limit: Limit = 20, after: After = None
) -> LatestDrafts:
    """Those of several authors only for who may act for all of them."""
    found = [one for one in house.drafts.latest(_reach(caller, house, user)) if user.id in one.users]
    if after is not None:
        places = [place for place, one in enumerate(found, start=1) if one.id == after]
        found = found[places[0] :] if places else nothing_after()
    shown, more = page(lambda most: found[:most], limit, lambda one: one.id)
    return LatestDrafts(data=[_brief(one) for one in shown], next=more)


@router.get("/drafts/{draft}", summary="Explain a user's draft", responses=errors(404))
def explain_draft(draft: DraftId, user: OwnUser, caller: CallerOf, house: HouseOf) -> Explained:
    """What was retrieved, the profile, the prompt as it was sent, what was reasoned, and each round."""
    kept = house.drafts.get(named(draft), _reach(caller, house, user))
    if kept is None or user.id not in kept.users:
        not_found("draft", draft)
    return Explained(id=kept.id, made_at=kept.made_at, drafts=list(kept.drafts))


@explanations.get("/{draft}", summary="Explain an answer", responses=errors(404))
def explain(draft: DraftId, caller: CallerOf, house: HouseOf) -> Explained:
    """The same by the answer's id alone, for who may act for all its authors."""
    theirs = house.drafts.users_of(named(draft))
    kept = house.drafts.get(named(draft), house.store.key_users(caller.key_id, theirs))
    if kept is None:
        not_found("draft", draft)
    return Explained(id=kept.id, made_at=kept.made_at, drafts=list(kept.drafts))


def _reach(caller: Caller, house: House, user: UserStore) -> tuple[str, ...]:
    """Users whose drafts the caller may see beside this one's."""
    together = house.drafts.together(user.id) if caller.service else ()
    return (user.id, *house.store.key_users(caller.key_id, together))


def _brief(kept: Kept) -> DraftsShown:
    first = kept.drafts[0]
    return DraftsShown(
        id=kept.id,
        made_at=kept.made_at,
        users=list(kept.users),
        task=first.request.task,
        input=first.request.input,
        method=first.method,
        texts=[draft.text for draft in kept.drafts],
    )


def _improver(house: House, run: str | None) -> tuple[str, Improver]:
    """The run of PIT of this name, or the first that is served; a 404 where there is none."""
    served = sorted(name for name, folder in house.runs().items() if open_trained(folder).method in _PIT)
    if run is not None and run not in served:
        not_found("run of PIT", run)
    if not served:
        raise Refusal(404, "No run of PIT is served: `penname train pit` makes one.", "not_found")
    name = run or served[0]
    improver = house.writer(f"pit:{name}").improver
    assert improver is not None
    return name, improver
