"""`penname write`: the draft on stdout, the way it came about on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_helpers import Cli
from models import ToldModel
from penname.cli import write as command
from penname.errors import StreamCutError
from penname.methods.prlhf.method import Personal
from penname.methods.prlhf.soft import SoftTable
from penname.methods.prlhf.table import UserTable
from penname.records import Authored, Document
from penname.store import Store
from trained_runs import ROWS, WIDTH, rows


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ToldModel:
    told = ToldModel(
        lambda prompt: "tea, kettle" if prompt.endswith("Keywords:") else "Dear all,\nthe draft."
    )
    monkeypatch.setattr("penname.lm.load_model", lambda spec=None: told)
    return told


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: ToldModel
) -> Cli:
    run = Cli(capsys, monkeypatch, tmp_path)
    texts = ["Tea is best from a kettle.", "No kettle, no tea.", "A kettle of tea, please."]
    with Store(run.db) as store:
        for user in ("ann", "bob"):
            store.add(
                Authored(
                    user=user,
                    document=Document(
                        id=f"{user}{n}",
                        title=f"Tea {n}",
                        text=f"{text} {user}",
                        written_at=f"2024-0{n + 1}-01",
                    ),
                )
                for n, text in enumerate(texts)
            )
        store.add_user("new")
    return run


def test_only_the_draft_is_on_stdout(cli: Cli) -> None:
    outcome = cli("write", "--user", "ann", "About tea")
    assert (outcome.status, outcome.out) == (0, "Dear all,\nthe draft.\n")


def test_the_request_may_come_from_stdin(cli: Cli, model: ToldModel) -> None:
    assert cli("write", "--user", "ann", "-", stdin="About green tea").status == 0
    assert "About green tea" in model.asked[-1]


def test_the_json_holds_all_that_went_into_it(cli: Cli) -> None:
    [draft] = cli("write", "--user", "ann", "--k", "2", "--seed", "7", "--json", "About tea").rows
    assert draft["text"] == "Dear all,\nthe draft."
    assert draft["request"]["users"] == ["ann"]
    assert draft["method"] == "step-back+retrieval"
    assert len(draft["documents"]) == 2
    assert draft["profiles"][0]["user"] == "ann"
    assert draft["seed"] == 7
    assert set(draft["seconds"]) == {"retrieve", "profile", "write"}


def test_several_users_in_their_order(cli: Cli) -> None:
    [draft] = cli("write", "--user", "bob", "-u", "ann", "--json", "About tea").rows
    assert draft["request"]["users"] == ["bob", "ann"]
    assert [profile["user"] for profile in draft["profiles"]] == ["bob", "ann"]


def test_explain_shows_the_way_on_stderr(cli: Cli, model: ToldModel) -> None:
    outcome = cli("write", "--user", "ann", "--explain", "About tea")
    assert outcome.out == "Dear all,\nthe draft.\n"
    assert "profile of ann, version 1" in outcome.err
    with Store(cli.db) as store:
        profile = store.user("ann").profile()
    assert profile is not None
    assert profile.text in outcome.err
    assert "score\tuser\tdate\tid\tdocument" in outcome.err
    assert "ann\t2024-01-01\tann0\tTea 0" in outcome.err
    assert model.asked[-1] in outcome.err, "the prompt as sent"
    assert "of the prompt" in outcome.err
    assert "write " in outcome.err


@pytest.mark.parametrize("method", ["none", "retrieval", "step-back", "step-back+retrieval"])
def test_methods(cli: Cli, method: str) -> None:
    [draft] = cli("write", "--user", "ann", "--method", method, "--json", "About tea").rows
    assert bool(draft["documents"]) == ("retrieval" in method)
    assert bool(draft["profiles"]) == ("step-back" in method)


@pytest.mark.parametrize("name", ["recency", "random"])
def test_retrievers(cli: Cli, name: str) -> None:
    [draft] = cli("write", "--user", "ann", "--retriever", name, "--k", "1", "--json", "About tea").rows
    assert len(draft["documents"]) == 1
    if name == "recency":
        assert draft["documents"][0]["document"]["id"] == "ann2"


def test_nothing_after_the_date_is_used(cli: Cli) -> None:
    [draft] = cli("write", "--user", "ann", "--before", "2024-02-01", "--json", "About tea").rows
    assert [hit["document"]["id"] for hit in draft["documents"]] == ["ann0"]
    assert draft["profiles"][0]["documents"] == ["ann0"]


def test_sampling(cli: Cli, model: ToldModel) -> None:
    cli("write", "--user", "ann", "--temperature", "0.1", "--max-tokens", "9", "--seed", "3", "About tea")
    assert (model.samplings[-1].temperature, model.samplings[-1].max_tokens, model.samplings[-1].seed) == (
        0.1,
        9,
        3,
    )


def test_on_a_terminal_the_draft_is_streamed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penname.writer.Writer.write", None)
    outcome = cli("write", "--user", "ann", "About tea", terminal=True)
    assert (outcome.status, outcome.out) == (0, "Dear all,\nthe draft.\n")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_hostile_draft_is_shown_as_text(cli: Cli, model: ToldModel, terminal: bool) -> None:
    model.answer = lambda prompt: "x\x1b[31m y\x9b"
    outcome = cli("write", "--user", "ann", "--method", "none", "About tea", terminal=terminal)
    assert outcome.out == "x\\x1b[31m y\\x9b\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_an_empty_draft_is_told(cli: Cli, model: ToldModel, terminal: bool) -> None:
    model.answer = lambda prompt: ""
    outcome = cli("write", "--user", "ann", "--method", "none", "About tea", terminal=terminal)
    assert outcome.status == 0
    assert not outcome.out.strip()
    assert "the model wrote nothing" in outcome.err


def test_a_cut_stream_keeps_its_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: object) -> Iterator[str]:
        yield "Dear Tom, this"
        raise StreamCutError("the answer is not whole")

    monkeypatch.setattr("penname.writer.Writer.stream", cut)
    outcome = cli("write", "--user", "ann", "About tea", terminal=True)
    assert (outcome.status, outcome.out) == (1, "Dear Tom, this\n")
    assert outcome.err.endswith("penname: the answer is not whole\n")


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        (("--user", "anm", "About tea"), 1, "unknown user 'anm' (did you mean 'ann'?)"),
        (
            ("--user", "ann", "--task", "emial", "About tea"),
            1,
            "unknown task 'emial' (did you mean 'email'?)",
        ),
        (("--user", "ann", "--method", "stepback", "About tea"), 1, "unknown method 'stepback'"),
        (("--user", "ann", "--retriever", "lexcal", "About tea"), 1, "(did you mean 'lexical'?)"),
        (("--user", "ann", "--before", "soon", "About tea"), 1, "'soon' is no ISO 8601 date"),
        (("--user", "ann", "  "), 1, "the request is empty"),
        (("--user", "ann", "--user", "ann", "About tea"), 1, "named twice"),
        (("--user", "new", "About tea"), 1, "no documents of 'new'"),
        (("About tea",), 2, "--user"),
        (("--user", "ann", "--k", "0", "About tea"), 2, "--k"),
        (("--user", "ann", "--temperature", "-1", "About tea"), 2, "--temperature"),
        (("--user", "ann", "--temperature", "inf", "About tea"), 2, "finite"),
        (("--user", "ann", "--retriever", "bm25", "About tea"), 1, "'bm25'; there are lexical, dense"),
    ],
)
def test_errors(cli: Cli, args: tuple[str, ...], status: int, told: str) -> None:
    outcome = cli("write", *args)
    assert (outcome.status, outcome.out) == (status, "")
    assert told in outcome.err


def test_what_is_not_there_is_told_before_a_model_is_loaded(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penname.lm.load_model", None)
    assert "unknown user" in cli("write", "--user", "anm", "About tea").err
    assert "unknown task" in cli("write", "--user", "ann", "--task", "x", "About tea").err


def test_the_model_is_the_one_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str | None] = []

    def load(spec: str | None = None) -> ToldModel:
        named.append(spec)
        return ToldModel()

    monkeypatch.setattr("penname.lm.load_model", load)
    cli("write", "--user", "ann", "--model", "some.gguf", "About tea")
    monkeypatch.setenv("PENNAME_MODEL", "other.gguf")
    cli("write", "--user", "ann", "About tea")
    assert named == ["some.gguf", "other.gguf"]


def test_the_defaults_are_the_writer_s() -> None:
    import inspect

    from penname.writer import DEFAULT_K, DEFAULT_METHOD, Writer

    ours = inspect.signature(command.write).parameters
    writers = inspect.signature(Writer).parameters
    assert (ours["method"].default, DEFAULT_K) == (DEFAULT_METHOD, 5)  # as --help says of --k
    for name in ("temperature", "seed", "max_tokens"):
        assert ours[name].default == writers[name].default


def test_tasks(cli: Cli) -> None:
    from penname.tasks import TASKS

    assert [row["name"] for row in cli("tasks", "--json").rows] == list(TASKS)
    assert [line.split("\t")[0] for line in cli("tasks").out.splitlines()[1:]] == list(TASKS)


def test_prompt_texts_of_one_s_own(cli: Cli, model: ToldModel, tmp_path: Path) -> None:
    from importlib import resources

    own = resources.files("penname.tasks").joinpath("prompts.toml").read_text("utf-8")
    mine = tmp_path / "mine.toml"
    mine.write_text(own.replace("About the writer.", "This is how they write."), "utf-8")
    cli("write", "--user", "ann", "--prompts", str(mine), "About tea")
    assert "This is how they write." in model.asked[-1]
    outcome = cli("write", "--user", "ann", "--prompts", "absent.toml", "About tea")
    assert (outcome.status, outcome.out) == (1, "")
    assert "absent.toml" in outcome.err


def test_every_method_needs_a_user(cli: Cli) -> None:
    outcome = cli("write", "--method", "none", "About tea")
    assert outcome.status == 2
    assert "--user" in outcome.err


@pytest.mark.parametrize("option", [("--k", "3"), ("--retriever", "recency")])
def test_an_option_that_would_do_nothing_is_refused(cli: Cli, option: tuple[str, str]) -> None:
    outcome = cli("write", "--user", "ann", "--method", "step-back", *option, "About tea")
    assert outcome.status == 2
    assert "retrieves nothing" in outcome.err


def test_a_request_that_is_no_text_is_refused(cli: Cli) -> None:
    assert "NUL" in cli("write", "--user", "ann", "-", stdin="a\x00b").err
    assert "surrogate" in cli("write", "--user", "ann", "a\udcff").err


def test_a_trained_run_writes_and_says_whom_it_does_not_know(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shape = (ROWS, WIDTH)
    UserTable.create(run, {"generic": rows(0, *shape)}, [("ann", rows(1, *shape), 2)], shape).close()
    told = ToldModel(lambda _: "A draft of the run's.")
    monkeypatch.setattr(
        "penname.methods.prlhf.method.open_personal",
        lambda folder, base=None: Personal(folder, told, SoftTable("individual", UserTable.open(folder))),
    )
    known = cli("write", "--user", "ann", "--method", f"p-dpo:{run}", "About tea")
    assert (known.status, known.out, known.err) == (0, "A draft of the run's.\n", "")
    for more in ((), ("--explain",)):
        unknown = cli("write", "--user", "bob", "--method", f"p-dpo:{run}", "About tea", *more)
        assert "does not know 'bob'; the generic user stands in" in unknown.err
    assert cli("write", "--user", "new", "--method", f"p-dpo:{run}", "Tea", terminal=True).status == 0
    assert len(told.asked) == len(set(told.prefixed)) + 2 == 4


@pytest.mark.parametrize(
    ("method", "status", "said"),
    [
        ("p-dpo:nowhere", 1, "no result of training at nowhere"),
        ("step-back:nowhere", 1, "takes no name after a colon"),
        ("step-back", 2, "has no p-rm"),
    ],
)
def test_what_cannot_write_is_refused(cli: Cli, method: str, status: int, said: str) -> None:
    options = ["--candidates", "3"] if status == 2 else []
    refused = cli("write", "--user", "ann", "--method", method, *options, "About tea")
    assert (refused.status, refused.out) == (status, "")
    assert said in " ".join(refused.err.split())


def test_the_retriever_that_the_method_names_is_used(cli: Cli) -> None:
    named = cli("write", "--user", "ann", "--method", "retrieval:recency", "--k", "1", "--json", "No kettle")
    assert named.rows[0]["documents"][0]["document"]["id"] == "ann2"
