"""What personalisation changes: held-out requests written in four ways, and scored against the real texts.

The arms: `none`, the request alone; `another user`, the control, with the profile and documents of somebody
who had no part in the text; `one author`, with those of its (first) author; `group`, with those of all its
authors. What the control gains too is not personalisation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path

from penname.errors import BadInputError
from penname.evaluate.metrics import Embedder, bits_per_byte, text_scores
from penname.evaluate.results import Results, Row
from penname.lm.base import LanguageModel
from penname.methods.stepback import History, profile_histories
from penname.records import Draft, Request, digest
from penname.sources import read
from penname.store import Store
from penname.tasks import PromptTexts, continuation
from penname.writer import DEFAULT_METHOD, Writer

NONE, CONTROL, ONE, GROUP = "none", "another user", "one author", "group"
LEAST = 3  # documents that a user must have beside the held-out one
BATCH = 16  # real texts scored at a time: how often progress is told
PER_USER = 2  # requests of each user or group: what two cores do in a few minutes
DEMO_K = 3  # documents of each author in a prompt, and
DEMO_TOKENS = 160  # tokens of a draft at most: for the same reason


def load_sample(store: Store) -> None:
    """Import the built-in sample into `store`; what is there already is left as it is."""
    folder = resources.files("penname.sample")
    for name in ("documents.jsonl", "requests.jsonl"):
        with resources.as_file(folder.joinpath(name)) as path:
            store.add(read("jsonl", Path(path)))


def held_out(store: Store, task: str, limit: int) -> list[Request]:
    """Requests with a known real text: two at most of each of `limit` users and `limit` groups.

    Those that were imported, if there are any (those of groups that one of these users leads); else one for
    each user with enough documents, and for each group that wrote together: the latest titled document, to be
    written anew from its title by those who wrote it, and from nothing that is not earlier.

    Raises:
        BadInputError: there is no such request.
    """
    found: dict[tuple[str, ...], list[Request]] = {}
    for user in store.users():
        for request in store.user(user.id).requests():
            if request.gold and request.users[0] == user.id:
                found.setdefault(request.users, []).append(request)
        if sum(len(users) == 1 for users in found) >= limit:
            break
    if not found:
        found = {request.users: [request] for request in _latest(store, task, limit)}
    if not found:
        raise BadInputError(
            f"there is nothing to hold out: no requests with a real text, and no user with more than {LEAST} "
            "titled documents; import some with `penname import`"
        )
    alone = [requests for users, requests in found.items() if len(users) == 1]
    together = [requests for users, requests in found.items() if len(users) > 1]
    return [request for requests in alone[:limit] + together[:limit] for request in requests[:PER_USER]]


def _latest(store: Store, task: str, limit: int) -> list[Request]:
    """The held-out requests that are made of documents: first of single users, then of groups."""
    alone = (_hold_out(store, (user.id,), task) for user in store.users())
    together = (_hold_out(store, group.users, task) for group in store.groups())
    return [
        *islice((request for request in alone if request), limit),
        *islice((request for request in together if request), limit),
    ]


def _hold_out(store: Store, users: tuple[str, ...], task: str) -> Request | None:
    """The latest titled document that exactly these users wrote, as a request; None without a history."""
    histories = [store.user(user).documents() for user in users]
    shared = set.intersection(*({document.id for document in history} for history in histories))
    theirs = [d for d in histories[0] if d.id in shared and d.title and d.n_authors == len(users)]
    if not theirs:
        return None
    latest = theirs[-1]
    request = Request(
        id=digest([latest.id, users]),
        task=task,
        input=latest.title,
        users=users,
        before=latest.written_at,
        exclude=(latest.id,),
        gold=latest.text,
    )
    earlier = store.user(users[0]).documents(request.before, request.exclude)
    return request if len(earlier) >= LEAST else None


def arms(store: Store, requests: Sequence[Request]) -> dict[str, list[tuple[Request, Request]]]:
    """For each arm the requests it answers, each with what the arm makes of it.

    The control's user is the next in order, among those that requests are held out for, who has a history
    and no part in the text. An arm leaves out the requests for which nobody's history may be used.
    """
    everybody = list(dict.fromkeys(user for request in requests for user in request.users))
    found: dict[str, list[tuple[Request, Request]]] = {NONE: [], CONTROL: [], ONE: [], GROUP: []}
    for request in requests:
        start = everybody.index(request.users[0])
        others = [u for u in everybody[start:] + everybody[:start] if u not in request.users]
        found[NONE].append((request, request))
        for arm, users in ((CONTROL, others), (ONE, list(request.users))):
            has = (u for u in users if store.user(u).has_documents(request.before, request.exclude))
            if user := next(has, None):
                found[arm].append((request, request.model_copy(update={"users": (user,)})))
        if len(request.users) > 1 and found[ONE] and found[ONE][-1][0] is request:
            found[GROUP].append((request, request))
    return {arm: pairs for arm, pairs in found.items() if pairs}


def compare(
    store: Store,
    model: LanguageModel,
    embedder: Embedder,
    requests: Sequence[Request],
    *,
    texts: PromptTexts | None = None,
    seed: int = 0,
    title: str = "What personalisation changed",
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Results:
    """Write every request in every arm and score the drafts.

    Args:
        requests: each with its real text (`gold`).
        progress: called with (stage, done, total) as the work goes on.

    Raises:
        As `Writer.write_many` does.
    """
    seconds: dict[str, float] = {}
    found = arms(store, requests)
    total = sum(map(len, found.values()))
    histories = list(
        dict.fromkeys(
            History(user, asked.before, asked.exclude)
            for arm, pairs in found.items()
            for _, asked in pairs
            for user in asked.users
            if arm != NONE and store.user(user).has_documents(asked.before, asked.exclude)
        )
    )
    started = time.perf_counter()
    progress("profiles", 0, len(histories))
    profiles = profile_histories(
        store, model, histories, texts=texts, progress=lambda done, of: progress("profiles", done, of)
    )
    seconds["profile"] = time.perf_counter() - started

    started = time.perf_counter()
    progress("drafts", 0, total)
    written: list[tuple[str, Request, Draft]] = []
    # A call for each method, not for each arm: the fuller the model's batches, the faster it writes.
    for method, those in (("none", (NONE,)), (DEFAULT_METHOD, (CONTROL, ONE, GROUP))):
        here = [(arm, *pair) for arm in those for pair in found.get(arm, [])]
        writer = Writer(store, model, method, k=DEMO_K, texts=texts, max_tokens=DEMO_TOKENS, seed=seed)
        drafts = writer.write_many([asked for _, _, asked in here])
        written += [(arm, request, draft) for (arm, request, _), draft in zip(here, drafts, strict=True)]
        progress("drafts", len(written), total)
    seconds["write"] = time.perf_counter() - started

    started = time.perf_counter()
    rows = [
        Row(arm, request, draft, scores)
        for (arm, request, draft), scores in zip(
            written, _scores(model, embedder, written, progress), strict=True
        )
    ]
    seconds["score"] = time.perf_counter() - started
    latest = {profile.user: profile for profile in profiles}
    return Results(rows, latest, model.name, seconds, seed, title)


def _scores(
    model: LanguageModel,
    embedder: Embedder,
    written: Sequence[tuple[str, Request, Draft]],
    progress: Callable[[str, int, int], None],
) -> list[dict[str, float]]:
    """The scores of each draft, and the bits per byte of its real text after the same prompt."""
    pairs = [(draft.text, request.gold or "") for _, request, draft in written]
    scores = text_scores(pairs, embedder)
    for start in range(0, len(written), BATCH):
        progress("scores", start, len(written))
        part = written[start : start + BATCH]
        golds = [request.gold or "" for _, request, _ in part]
        likely = model.score(
            [draft.prompt for _, _, draft in part], [continuation(gold, model.shape) for gold in golds]
        )
        for number, bits in enumerate(bits_per_byte(likely, golds), start=start):
            scores[number]["bits_per_byte"] = bits
    return scores
