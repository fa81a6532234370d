"""How a server is set up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from penname.errors import BadInputError


@dataclass(frozen=True)
class ServeSettings:
    """What `penname serve` is told.

    Raises:
        BadInputError: a limit that would let nothing through.
    """

    db: str | Path | None = None  # the store; None: PENNAME_DB, or the user's data folder
    model: str | None = None  # as `--model`; None: the embedded one
    prompts: Path | None = None  # the user's own prompt texts, in TOML; None: penname's
    adapt: tuple[str, ...] = ()  # names of runs in which each preference fits the user's vector at once
    max_body: int = 1_000_000  # bytes of a request's body
    max_input: int = 50_000  # characters of what is to be written about
    max_tokens: int = 1024  # of a draft, whatever a client asks for
    per_minute: int = 120  # requests of one key
    concurrent: int = 32  # requests in flight, of all keys together
    runs: tuple[Path, ...] = ()  # folders of trained runs, besides those that the store names
    reports: tuple[Path, ...] = ()  # folders of evaluations whose reports are shown
    share_prompts: bool = False  # let OpenVINO find prompts by their tokens, whoever sent them: faster
    page: bool = True  # whether / answers with the page

    def __post_init__(self) -> None:
        for name in ("max_body", "max_input", "max_tokens", "per_minute", "concurrent"):
            if getattr(self, name) < 1:
                raise BadInputError(f"{name} is {getattr(self, name)}: at least 1 is needed")
