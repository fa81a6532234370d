"""`penname serve`: the HTTP service; and `penname mcp`: the same operations as an assistant's tools."""

from __future__ import annotations

from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penname.cli.options import Db, Model, Prompts, open_model, open_store
from penname.cli.output import note
from penname.errors import BadInputError, MissingPackageError

if TYPE_CHECKING:
    from penname.serve.settings import ServeSettings

_GRACE = 120  # seconds that requests in flight have to finish when the server is told to stop


def serve(
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; others need a key to exist.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="The port; 0: any that is free.")
    ] = 8000,
    adapt: Annotated[
        list[str] | None,
        typer.Option(
            "--adapt",
            metavar="RUN",
            help="The name of a run that learns from each preference at once; again for more.",
        ),
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            "--run",
            metavar="DIR",
            help="Serve this trained run too; again for more. Those trained from the store are known.",
        ),
    ] = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(
            "--report",
            metavar="DIR",
            help="Show the report of this evaluation to services; again for more.",
        ),
    ] = None,
    per_minute: Annotated[
        int, typer.Option("--per-minute", min=1, metavar="N", help="Requests of one key in a minute.")
    ] = 120,
    concurrent: Annotated[
        int,
        typer.Option("--concurrent", min=1, metavar="N", help="Requests in flight, of all keys together."),
    ] = 32,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, metavar="N", help="Of a draft, whatever a client asks for.")
    ] = 1024,
    share_prompts: Annotated[
        bool,
        typer.Option("--share-prompts", help="Let OpenVINO find what prompts begin with by content: faster."),
    ] = False,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Whether / answers with the page.")] = True,
    db: Db = None,
    model: Model = None,
    prompts: Prompts = None,
) -> None:
    """Serve an OpenAI-compatible endpoint that knows its users.

    Requests need a key: `penname keys create` makes one. Ctrl-C stops the server when requests in flight are
    finished.

    Example: penname serve --port 8000
    """
    _check_installed("`penname serve`", "fastapi", "uvicorn", "prometheus_client")
    from penname.serve.settings import ServeSettings

    settings = ServeSettings(
        db=db,
        model=model,
        prompts=None if prompts is None else Path(prompts),
        adapt=tuple(adapt or ()),
        runs=tuple(run or ()),
        reports=tuple(report or ()),
        per_minute=per_minute,
        concurrent=concurrent,
        max_tokens=max_tokens,
        share_prompts=share_prompts,
        page=page,
    )
    _check_keys(db, host)
    _run(settings, host, port)


def mcp(
    user: Annotated[
        str, typer.Option("--user", "-u", metavar="USER", help="Whom the tools act for: this user alone.")
    ],
    method: Annotated[
        str, typer.Option("--method", metavar="METHOD", help="How to write: as in `penname write`.")
    ] = "step-back+retrieval",
    adapt: Annotated[
        Path | None,
        typer.Option(
            "--adapt", metavar="DIR", help="Fit the user's vector in this trained run to each preference."
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="DIR",
            help="The result of `penname train pit` to improve with. Default: its own.",
        ),
    ] = None,
    db: Db = None,
    model: Model = None,
    prompts: Prompts = None,
) -> None:
    """Give an assistant tools to write as one user (MCP over stdio).

    An assistant's program starts it, with this command in its settings. The tools are write_as, remember,
    profile, prefer and improve.

    Example: penname mcp --user alice
    """
    _check_installed("`penname mcp`", "mcp")
    from penname.methods.pit.improve import open_improver
    from penname.paths import trained_dir
    from penname.serve.mcp import Tools, make_server
    from penname.tasks import PromptTexts

    with open_store(db) as store:
        tools = Tools(
            store,
            open_model(model),
            user,
            method=method,
            texts=PromptTexts.load(prompts),
            open_improver=lambda: open_improver(run or trained_dir("pit")),
            run=adapt,
        )
        make_server(tools).run()


def _check_installed(needed_for: str, *packages: str) -> None:
    """Refuse to start without the extra.

    Raises:
        MissingPackageError: the first package that is not there.
    """
    for package in packages:
        if find_spec(package) is None:
            raise MissingPackageError(package, needed_for, "pip install 'penname[serve]'")


def _check_keys(db: str | None, host: str) -> None:
    """Say how to make a key where there is none; refuse to be open to others without any.

    Raises:
        BadInputError: `host` is not loopback, and no key exists.
    """
    with open_store(db, create=True) as store:
        if store.keys():
            return
    how = "`penname keys create --user USER`, or `--service` for an application with users of its own"
    if not _is_loopback(host):
        raise BadInputError(
            f"--host {host} is open to others, and the store has no key yet: {how}, makes one"
        )
    note(f"the store has no key yet, so the API will refuse every request: {how}, makes one")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _run(settings: ServeSettings, host: str, port: int) -> None:
    """Serve until the process is told to stop."""
    import uvicorn

    from penname.serve.app import create_app

    uvicorn.run(
        create_app(settings),
        host=host,
        port=port,
        access_log=False,  # penname.serve logs requests, without what a URL may hold
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )
