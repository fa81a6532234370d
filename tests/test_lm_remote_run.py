"""A run of P-DPO whose weights a server holds, through the command line and through the service."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import stores
from cli_helpers import Cli
from model_server import Answering, Scripted
from penname.serve.app import create_app
from penname.serve.house import House
from penname.serve.settings import ServeSettings
from penname.store import Store
from trained_runs import ROWS, WIDTH, rows, save_run
from vllm_server import LORA, VLLM

USERS = ("alice", "bob")
REQUEST = "the cat sat on the mat"


@pytest.fixture
def base(tmp_path: Path, tiny_model: Path) -> Path:
    """The tiny model with room for a whole request."""
    shutil.copytree(tiny_model, tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 1024}))
    return tmp_path / "base"


@pytest.fixture
def run(tmp_path: Path, base: Path) -> Path:
    vectors = {user: rows(place, ROWS, WIDTH) for place, user in enumerate(USERS, 11)}
    return save_run(tmp_path / "run", base, "individual", vectors)


def test_the_command_line_writes_with_a_run_on_a_server(
    serve: Callable[[Answering], Scripted],
    run: Path,
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cli = Cli(capsys, monkeypatch, tmp_path)
    with Store(cli.db) as store:
        for user in USERS:
            store.add_user(user)
    server = serve(VLLM(base, run / "adapter"))
    here = tmp_path / "here.toml"
    here.write_text(f'model = "{base}"\ndtype = "float32"\n')
    models = (str(here), f"http://127.0.0.1:{server.port}/v1#{LORA}")
    asked = ("--method", f"p-dpo:{run}", "--temperature", "0", "--max-tokens", "9", "--json", REQUEST)
    texts = []
    for user in USERS:
        drafts = [cli("write", "--user", user, "--model", model, *asked) for model in models]
        assert [one.status for one in drafts] == [0, 0], drafts[1].err
        local, remote = (json.loads(one.out) for one in drafts)
        assert remote["text"] == local["text"]
        assert remote["prompt_tokens"] == local["prompt_tokens"]
        texts.append(remote["text"])
    assert texts[0] != texts[1]
    assert server.paths.count("/completions") == len(USERS)

    terminal = cli("write", "--user", "bob", "--model", models[1], *asked[:-2], REQUEST, terminal=True)
    assert terminal.out.strip() == texts[1]
    assert server.bodies[-1]["stream"]


def test_the_service_writes_with_a_run_on_a_server(
    serve: Callable[[Answering], Scripted], run: Path, base: Path, tmp_path: Path
) -> None:
    server = serve(VLLM(base, run / "adapter"))
    settings = ServeSettings(
        db=stores.fresh("sqlite", tmp_path),
        model=f"http://127.0.0.1:{server.port}/v1#{LORA}",
        runs=(run,),
        page=False,
    )
    house = House(settings)
    keys = {}
    for user in USERS:
        house.store.add_user(user)
        keys[user] = house.store.create_key(user=user, service=False)[1]
    with TestClient(create_app(settings, house)) as client:

        def answer(user: str, **more: bool) -> str:
            body = {"model": "penname/p-dpo:run", "temperature": 0, "max_tokens": 9, **more}
            asked = body | {"messages": [{"role": "user", "content": REQUEST}]}
            headers = {"Authorization": f"Bearer {keys[user]}"}
            got = client.post("/v1/chat/completions", json=asked, headers=headers)
            assert got.status_code == 200, got.text
            if not more:
                return str(got.json()["choices"][0]["message"]["content"])
            events = [line.removeprefix("data: ") for line in got.text.splitlines() if line]
            chunks = [json.loads(event) for event in events if event != "[DONE]"]
            return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)

        texts = [answer(user) for user in USERS]
        assert texts[0] != texts[1]
        assert [answer(user, stream=True) for user in USERS] == texts
    house.close()
    assert all("prompt_embeds" in body for body in server.bodies if body)
