"""The command line. `main` runs it: it decides what an error looks like and which status the shell gets.

Nothing heavy is imported here or in any of its modules at import time, so that `penname --help` answers
at once; commands import what they need when they run.

Status: 0 all went well, 1 an error (told on stderr), 2 a wrong use of the command line, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import NoReturn

from penname.cli.app import app
from penname.cli.output import clean, note
from penname.errors import PennameError

__all__ = ["app", "main"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `penname` with `argv` (default: the process's) and leave with its status.

    Raises:
        SystemExit: always, with the status; with `--debug` errors come through as they are.
    """
    debug, args = _take_debug(sys.argv[1:] if argv is None else argv)
    _write_utf8()
    try:
        try:
            app(args=args, prog_name="penname")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has enough of it (`penname export x | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        note(f"penname: {_told(error)}")
        sys.exit(1)
    sys.exit(0)


def _take_debug(args: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether `--debug` is given, before or after the command, and the arguments without it."""
    args = list(args)
    end = args.index("--") if "--" in args else len(args)
    options = [arg for arg in args[:end] if arg != "--debug"]
    asked = len(options) < end or os.environ.get("PENNAME_DEBUG", "") not in ("", "0")
    return asked, options + args[end:]


def _write_utf8() -> None:
    """Output to files and pipes is UTF-8 everywhere; a terminal shows what its encoding can."""
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, TextIOWrapper):
            continue
        if stream.isatty():
            stream.reconfigure(errors="backslashreplace")
        else:
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _told(error: Exception) -> str:
    """What a person reads of `error`, on one or few lines."""
    if isinstance(error, PennameError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    name = type(error).__name__
    return clean(f"unexpected {name}: {error} (a bug; --debug shows where it happened)")
