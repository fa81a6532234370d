"""The options that several commands share, and what they open."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penname.errors import BadInputError

if TYPE_CHECKING:
    from penname.lm import LanguageModel
    from penname.store import Store

Db = Annotated[
    str | None,
    typer.Option(
        "--db",
        envvar="PENNAME_DB",
        metavar="FILE|URL",
        help="The store: an SQLite file or a database URL. Without it: penname.db in your data folder.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        envvar="PENNAME_MODEL",
        metavar="MODEL",
        help="A model's folder, FILE.gguf, http://HOST/v1#NAME or FILE.toml. Without it: the embedded one.",
    ),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        envvar="PENNAME_PROMPTS",
        metavar="FILE",
        help="Your copy of penname's prompt texts, in TOML. Without it: penname's own.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
UserArgument = Annotated[str, typer.Argument(metavar="USER", help="A user's id.")]


def read_text(source: str) -> str:
    """The text of a file, or of stdin for `-`.

    Raises:
        BadInputError: it is not UTF-8.
        OSError: the file is not there, or may not be read.
    """
    try:
        return sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInputError(f"{source}: no UTF-8 text (byte {error.start + 1})") from None


def open_store(db: str | None, *, create: bool = False) -> Store:
    """The store that `--db` names. Only what fills a store makes one: elsewhere it is a mistyped name."""
    from penname.store import Store

    return Store(db, create=create)


def open_model(spec: str | None) -> LanguageModel:
    """The model that `--model` names; says on stderr that it is loading where somebody watches."""
    from penname.cli.output import progress
    from penname.lm import load_model

    with progress("loading the model"):
        return load_model(spec)
