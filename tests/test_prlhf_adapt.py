"""One user more, or changed: that user's row is fitted, and nothing else moves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from penname.errors import BadInputError, TrainedError, UnknownUserError
from penname.methods.erase import forget
from penname.methods.prlhf import featured
from penname.methods.prlhf.adapt import LATEST, adapt, newest
from penname.methods.prlhf.featured import train_featured
from penname.methods.prlhf.lowrank import LowRankConfig
from penname.methods.prlhf.method import open_personal
from penname.methods.prlhf.reward import open_reward
from penname.methods.prlhf.softfit import Floats, Line, SoftFit, Start
from penname.methods.prlhf.table import UserTable
from penname.records import Preference, Profile
from penname.store import Store
from penname.train.folder import open_trained
from penname.train.optimizer import OptimizerSettings
from train_helpers import FakeEmbedder, answers, files, one_thread, preferences, ratings, settings, train

RATES = OptimizerSettings(lr=5e-3, user_lr=5e-2, warmup=2)
NOUNS = ("cat", "dog", "log", "mat", "sea", "oak")


@pytest.fixture(autouse=True, scope="module")
def single_threaded() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "test.db") as opened:
        yield opened


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(featured, "load_embedder", FakeEmbedder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Soft prompt runs, by method, user model and loss; each test works on a copy."""
    folder = tmp_path_factory.mktemp("runs")
    for method, users, loss in (
        ("p-dpo", "individual", "sigmoid"),
        ("p-dpo", "cluster", "ipo"),
        ("p-dpo", "individual", "kto"),
        ("p-rm", "individual", "sigmoid"),
        ("p-dpo", "none", "sigmoid"),
    ):
        prepared = preferences() if loss != "kto" else ratings(preferences())
        # A newcomer is looked for where users differ: they must have come to differ.
        beta = 1.0 if users == "cluster" else 0.1  # the tiny model's clusters are close together
        config = settings(20, users=users, loss=loss, held_out=0, optimizer=RATES, beta=beta)
        train(method, folder / f"{method} {users} {loss}", tiny_model, prepared, config)  # type: ignore[arg-type]
    return folder


def copy(made: Path, name: str, to: Path) -> Path:
    return Path(shutil.copytree(made / name, to))


def prefer(store: Store, user: str, taste: Literal["long", "short"], nouns: tuple[str, ...] = NOUNS) -> None:
    opened = store.add_user(user)
    for noun in nouns:
        long, short = answers(noun)
        chosen, rejected = (long, short) if taste == "long" else (short, long)
        opened.prefer(
            Preference(
                user=user, kind="choice", prompt=f"Tell of the {noun}.", chosen=chosen, rejected=rejected
            )
        )


def others(run: Path) -> dict[str, Any]:
    """All that belongs to nobody or to somebody else than carl: files, shared tensors, rows as they lie."""
    found: dict[str, Any] = {
        file: (run / file).read_bytes() for file in files(run) if not file.startswith("users.")
    }
    with UserTable.open(run) as table:
        found |= {f"shared {name}": one.tobytes() for name, one in table.shared.items()}
        found |= {user: table.row(user).tobytes() for user in ("ann", "bob")}  # type: ignore[union-attr]
        found |= {f"{user} learnt": table.learnt(user) for user in ("ann", "bob")}
    return found


def row(run: Path, user: str) -> np.ndarray | None:
    with UserTable.open(run) as table:
        return table.row(user)


RUNS = ["p-dpo individual sigmoid", "p-dpo cluster ipo", "p-dpo individual kto", "p-rm individual sigmoid"]


@pytest.mark.parametrize("name", RUNS)
def test_a_new_user_is_fitted_and_nobody_else_moves(
    made: Path, store: Store, tmp_path: Path, name: str
) -> None:
    run = copy(made, name, tmp_path / "run")
    before = others(run)
    content = (run / "users.safetensors").read_bytes()
    prefer(store, "carl", "short")
    found = adapt(run, "carl", store)
    assert others(run) == before
    fitted = row(run, "carl")
    assert fitted is not None
    assert np.any(fitted)
    # Of the file itself nothing has changed but one slot.
    after = (run / "users.safetensors").read_bytes()
    start, size = after.index(fitted.tobytes()), len(fitted.tobytes())
    assert (after[:start], after[start + size :]) == (content[:start], content[start + size :])
    assert found.preferences == (12 if name.endswith("kto") else 6)
    assert found.seconds > 0
    assert 0 <= found.before <= 1
    assert found.after >= found.before
    with UserTable.open(run) as table:
        assert len(table) == 3
        assert table.learnt("carl").preferences == found.preferences  # type: ignore[union-attr]
    assert [one.path for one in store.trained()] == [run], "so that an erase looks there"


@pytest.mark.parametrize("name", ["p-dpo individual sigmoid", "p-rm individual sigmoid"])
def test_opposite_newcomers_go_opposite_ways(made: Path, store: Store, tmp_path: Path, name: str) -> None:
    run = copy(made, name, tmp_path / "run")
    prefer(store, "carl", "short")
    prefer(store, "dora", "long")
    adapted = [adapt(run, user, store) for user in ("carl", "dora")]
    assert [one.after for one in adapted] == [1, 1]
    reward = open_reward(run)
    long, short = answers("owl")
    for user, sign in (("carl", -1), ("dora", 1)):
        likes = reward.rewards(["Tell of the owl."] * 2, [long, short], [user] * 2)
        assert sign * (likes[0] - likes[1]) > 0, "also of what was not seen"


def test_who_is_known_is_fitted_from_where_the_row_stands(made: Path, store: Store, tmp_path: Path) -> None:
    run = copy(made, RUNS[0], tmp_path / "run")
    start, bob = row(run, "ann"), row(run, "bob")
    prefer(store, "ann", "short", ("cat", "dog"))
    adapt(run, "ann", store)
    assert start is not None
    moved = row(run, "ann")
    assert moved is not None
    assert not np.array_equal(moved, start)
    with UserTable.open(run) as table:
        directions = table.shared["directions"].reshape(2, -1)
    step = (moved - start).ravel()
    along = np.linalg.lstsq(directions.T, step, rcond=None)[0] @ directions
    assert np.allclose(step, along, atol=1e-4 * np.abs(step).max()), "along what users differ in"
    assert np.array_equal(row(run, "bob"), bob)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [-1, 1])
def test_a_taste_that_lies_beyond_flat_ground_is_found(
    made: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    """Margins that are wrong, flat and even better the other way where the user starts."""

    def lines(self: SoftFit, start: Start, place: Floats, examples: list[Any], *_: Any) -> list[Line]:
        z = side * place[0]
        steep = 4 * np.exp(-(((z - 0.3) / 0.05) ** 2))
        slope = np.zeros_like(place)
        slope[0] = side * (steep - 0.2)
        return [Line(4 * np.tanh((z - 0.3) / 0.05) - 0.2 * z, slope, place)] * len(examples)

    monkeypatch.setattr(SoftFit, "lines", lines)
    run = copy(made, RUNS[0], tmp_path / "run")
    prefer(store, "carl", "short")
    found = adapt(run, "carl", store)
    assert (found.before, found.after) == (0, 1)
    carl = row(run, "carl")
    assert carl is not None
    with UserTable.open(run) as table:
        first = table.shared["directions"][0].ravel()
    place = carl.ravel() @ first / (first @ first)
    assert 0.3 < side * place < 1, "on the far side, and no further than its worth"


def test_the_latest_preferences_count(made: Path, store: Store, tmp_path: Path) -> None:
    run = copy(made, RUNS[0], tmp_path / "run")
    opened = store.add_user("carl")
    for number in range(LATEST + 3):
        prompt = f"Tell {number}."
        opened.prefer(
            Preference(user="carl", kind="choice", prompt=prompt, chosen="the cat", rejected="dogs")
        )
    assert adapt(run, "carl", store).preferences == LATEST


def test_a_choice_is_not_crowded_out_by_older_pairs_of_ratings(made: Path, store: Store) -> None:
    opened = store.add_user("carl")
    for prompt in range(4):
        for place in range(5):
            rated = {"prompt": f"Tell {prompt}.", "completion": f"cats {place}", "rating": place / 5}
            opened.prefer(Preference(user="carl", kind="rating", **rated))  # type: ignore[arg-type]
    opened.prefer(Preference(user="carl", kind="choice", prompt="Now", chosen="the cat", rejected="dogs"))
    pairs = newest(store, "carl", open_trained(made / RUNS[0])).pairs
    assert (len(pairs), pairs[-1].prompt) == (LATEST, "Now")
    assert "Tell 3." in {pair.prompt for pair in pairs}


def test_a_newcomer_is_fitted_anew_each_time(made: Path, store: Store, tmp_path: Path) -> None:
    run = copy(made, RUNS[0], tmp_path / "run")
    prefer(store, "carl", "short")
    adapt(run, "carl", store)
    once = row(run, "carl")
    adapt(run, "carl", store)
    assert np.array_equal(row(run, "carl"), once)  # type: ignore[arg-type]


def test_a_fit_is_the_same_again(made: Path, store: Store, tmp_path: Path) -> None:
    prefer(store, "carl", "short")
    rows = []
    for name in ("one", "other"):
        run = copy(made, RUNS[0], tmp_path / name)
        adapt(run, "carl", store)
        rows.append(row(run, "carl"))
    assert np.array_equal(*rows)  # type: ignore[arg-type]


def test_the_text_about_the_user_is_the_profile(tmp_path: Path, tiny_model: Path, store: Store) -> None:
    run = tmp_path / "run"
    train("p-dpo", run, tiny_model, preferences(about="likes bees"), settings(20, optimizer=RATES))
    plain = copy(tmp_path, "run", tmp_path / "plain")
    prefer(store, "carl", "short", ("cat", "dog"))
    adapt(plain, "carl", store)
    store.user("carl").add_profile(Profile(user="carl", text="Carl is brief."))
    adapt(run, "carl", store)
    assert not np.array_equal(row(run, "carl"), row(plain, "carl"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RUNS[:2])
def test_an_erased_user_gets_the_generic_prompt_exactly(
    made: Path, store: Store, tmp_path: Path, name: str
) -> None:
    run = copy(made, name, tmp_path / "run")
    prefer(store, "carl", "short")
    adapt(run, "carl", store)
    personal = open_personal(run)
    keys = [personal.prefix(user).key for user in ("carl", "stranger")]  # type: ignore[union-attr]
    assert keys[0] != keys[1]
    found = forget(store, "carl")
    assert (found.rows, found.weights) == ((run,), ()), "the shared weights never saw carl"
    assert not personal.knows("carl")
    one, other = personal.prefix("carl"), personal.prefix("stranger")
    assert one is not None
    assert other is not None
    assert one.key == other.key
    assert one.rows.tobytes() == other.rows.tobytes()
    assert row(run, "carl") is None
    assert forget(store, "ann").weights == (run,)


# --- on fixed features


@pytest.mark.parametrize("users", ["low-rank", "alone"])
def test_a_new_user_on_features(tmp_path: Path, store: Store, embedder: None, users: Any) -> None:
    tastes: dict[str, Any] = {"ann": "long", "bob": "short", "x": "long", "y": "short"}
    run = tmp_path / "run"
    train_featured(preferences(tastes), run, users=users, config=LowRankConfig(rank=2), held_out=0)
    before = others(run)
    prefer(store, "carl", "short")
    found = adapt(run, "carl", store)
    assert others(run) == before
    assert (found.preferences, found.after) == (6, 1)
    reward = open_reward(run)
    long, short = reward.rewards(["Tell of the owl."] * 2, list(answers("owl")), ["carl"] * 2)
    assert short > long
    assert reward.knows("carl")
    forget(store, "carl")
    assert reward.key("carl") == reward.key("stranger")


def test_runs_without_users_have_nothing_to_adapt(
    made: Path, store: Store, tmp_path: Path, embedder: None
) -> None:
    prefer(store, "carl", "short")
    train_featured(preferences(), tmp_path / "pooled", users="pooled")
    for run in (made / "p-dpo none sigmoid", tmp_path / "pooled"):
        with pytest.raises(BadInputError, match="was trained without users: it has no vector to adapt"):
            adapt(run, "carl", store)
    assert store.trained() == []


# --- what is in the way


def test_a_user_without_preferences_is_told(made: Path, store: Store, tmp_path: Path) -> None:
    run = copy(made, RUNS[0], tmp_path / "run")
    store.add_user("carl")
    before = others(run)
    with pytest.raises(BadInputError, match="no preferences to train on"):
        adapt(run, "carl", store)
    store.user("carl").prefer(
        Preference(user="carl", kind="choice", prompt="Tell. " * 200, chosen="the cat", rejected="dogs")
    )
    with pytest.raises(BadInputError, match="1 a prompt with its longest answer past the limit"):
        adapt(run, "carl", store)
    assert others(run) == before
    assert row(run, "carl") is None


def test_names_that_are_mistyped(made: Path, store: Store, tmp_path: Path) -> None:
    prefer(store, "carl", "short")
    with pytest.raises(TrainedError, match=r"no result of training at .*mistyped"):
        adapt(tmp_path / "mistyped", "carl", store)
    with pytest.raises(UnknownUserError, match="did you mean 'carl'"):
        adapt(made / RUNS[0], "karl", store)


def test_a_run_of_all_weights(tmp_path: Path, tiny_model: Path, store: Store) -> None:
    for method in ("p-dpo", "p-rm"):
        train(method, tmp_path / method, tiny_model, config=settings(2, weights="full"))
    prefer(store, "carl", "short")
    assert adapt(tmp_path / "p-rm", "carl", store).preferences == 6
    with pytest.raises(TrainedError, match="keeps no reference"):
        adapt(tmp_path / "p-dpo", "carl", store)
    assert row(tmp_path / "p-dpo", "carl") is None


def test_a_base_that_moved_can_be_named(tmp_path: Path, tiny_model: Path, store: Store) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    train("p-dpo", tmp_path / "run", base, config=settings(2))
    shutil.rmtree(base)
    prefer(store, "carl", "short", ("cat",))
    with pytest.raises(TrainedError, match="base model"):
        adapt(tmp_path / "run", "carl", store)
    assert adapt(tmp_path / "run", "carl", store, model=str(tiny_model)).preferences == 1
