"""`train sft`, `sft-reasoning`, `rest-em`, `rest-pg`: from a store's texts to a model that writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from cli_helpers import Cli
from penname.cli.app import app
from penname.lm import load_model
from penname.methods.restpg.config import RestPGConfig
from penname.methods.restpg.method import open_reasoning
from penname.methods.restpg.reasoning import Reasoned, Reasoner
from penname.records import Document, Request
from penname.store import Store
from penname.train.folder import open_trained
from penname.writer import Writer
from tiny import save_tiny_model
from train_helpers import one_thread

NOUNS = ("cat", "dog", "log", "mat", "hat", "sun")
FAST = (
    *("--task", "write", "--k", "1", "--dtype", "float32", "--weights", "full", "--lr", "1e-2"),
    *("--epochs", "12", "--batch", "4", "--every", "50", "--held-out", "0", "--answer-tokens", "16"),
)
ITERATED = (
    *("--iterations", "1", "--samples", "4", "--temperature", "1"),
    *("--threshold", "0", "--reward", "chrf"),
)


@pytest.fixture(autouse=True, scope="module")
def single_threaded() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", template=False)


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, base: Path
) -> Cli:
    monkeypatch.chdir(tmp_path)
    made = Cli(capsys, monkeypatch, tmp_path)
    monkeypatch.setenv("PENNAME_MODEL", str(base))
    with Store(made.db) as store:
        for user, did in (("ann", "sat on the mat"), ("bob", "lay on the log")):
            store.add_user(user).add(
                [
                    Document(title=noun, text=f"the {noun} {did}", written_at=f"2024-0{month}-01")
                    for month, noun in enumerate(NOUNS, start=1)
                ]
            )
    return made


def test_sft_learns_every_document_that_has_a_history(cli: Cli) -> None:
    outcome = cli("train", "sft", *FAST, "--out", "run")
    assert outcome.status == 0, outcome.err
    assert outcome.out.splitlines()[0].endswith("/tiny: run")
    assert "10 texts of 2 users" in outcome.err, "the first document of each has nothing before it"
    trained = open_trained("run")
    assert (trained.method, trained.settings["context"]) == ("sft", {"stages": "retrieval", "k": 1})
    assert open_reasoning("run").format is None


def test_rest_em_learns_from_its_own_outputs(cli: Cli) -> None:
    outcome = cli("train", "rest-em", *FAST, *ITERATED, "--before", "2024-05-01", "--out", "run", "--json")
    assert outcome.status == 0, outcome.err
    [card] = outcome.rows
    assert (card["method"], card["data"]["texts"], card["settings"]["reward"]) == ("rest-em", 6, "chrf")
    assert [line["samples"] for line in card["iterations"]] == [24]
    assert "iteration 1: 24 outputs of 6 inputs" in outcome.err
    assert set(card["left_out"]) == {
        "requests left out: dated 2024-05-01 or later",
        "requests left out: no author has 1 documents to learn from",
    }
    again = cli("train", "rest-em", *FAST, *ITERATED, "--out", "run")
    assert (again.status, "is there already" in again.err) == (1, True)


def test_sft_reasoning_reasons_and_writes_and_is_compared(
    cli: Cli, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tiny model's context does not hold the question.
    monkeypatch.setattr(Reasoner, "batches", lambda _, some: [[(one, Reasoned("- cats"))] for one in some])
    trained = cli("train", "sft-reasoning", *FAST, "--budget", "110", "--limit", "4", "--out", "run")
    assert trained.status == 0, trained.err
    assert "4 texts of" in trained.err
    with Store(cli.db) as store:
        writer = Writer(store, load_model(str(base)), "rest-pg:run", max_tokens=16)
        draft = writer.write(Request(input="owl", users=("ann",)))
        assert draft.documents
        store.user("ann").add_request(  # of a benchmark of one's own
            Request(id="held", input="owl", users=("ann",), before=None, gold="the owl sat on the mat")
        )
    asked = ("evaluate", "store", "--task", "write", "--method", "retrieval", "--method", "rest-pg:run")
    compared = cli(*asked, "--max-tokens", "16", "--metric", "bits_per_byte", "--metric", "chrf", "--k", "1")
    assert compared.status == 0, compared.err
    rows = [json.loads(line) for line in Path("penname-run/rows.jsonl").read_text("utf-8").splitlines()]
    found = {row["arm"]: row for row in rows}
    assert found["rest-pg:run"]["scores"]["bits_per_byte"] > 0
    assert found["retrieval"]["reasoning"] == ""


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("rest-pg", "--threshold", "0.5", "--quantile", "0.5"), "not both"),
        (("rest-pg", "--reward", "similarty"), "did you mean 'similarity'"),
        (("rest-em", "--judge", "other"), "--judge without the reward"),
        (("sft", "--context", "p-rm"), "p-rm is trained itself"),
        (("sft", "--before", "2020-01-01"), "holds no text to learn"),
        (("sft", "--before", "soon"), "no ISO 8601"),
        (("rest-pg", "--model", "http://localhost/v1#m"), "is a server"),
    ],
)
def test_what_cannot_be_meant_is_an_error(cli: Cli, args: tuple[str, ...], why: str) -> None:
    outcome = cli("train", args[0], "--task", "write", *args[1:], "--out", "run")
    assert outcome.status == 1
    assert why in outcome.err
    assert not Path("run").exists()


def test_a_baseline_has_no_options_of_what_it_does_not_do(cli: Cli) -> None:
    assert cli("train", "sft", "--task", "write", "--reward", "chrf").status == 2
    assert cli("train", "rest-em", "--task", "write", "--budget", "9").status == 2


def test_from_python_the_defaults_are_the_commands() -> None:
    command = typer.main.get_command(app).commands["train"].commands["rest-pg"]  # type: ignore[attr-defined]
    default = {option.name: option.default for option in command.params}
    config = RestPGConfig()
    loop, optimizer = config.sft.loop, config.sft.optimizer
    assert (default["epochs"], default["batch"]) == (loop.epochs, loop.batch)
    assert (default["lr"], default["warmup"]) == (optimizer.lr, optimizer.warmup)
    assert (default["samples"], default["iterations"]) == (config.samples, config.iterations)
    assert default["temperature"] == config.temperature
