"""penname over HTTP: OpenAI's API for each user of a store, penname's own routes, a page, assistants' tools.

    penname keys create --user alice           # the key, told once
    penname serve                              # on http://127.0.0.1:8000, for this machine alone

**Who a request is for** is decided by its key (`auth`). A user's key acts for that user alone; a service's
key for the users that it was given and that it adds. What is another's is answered as what is not there.

**What is bounded**: the size of a body and of an input, requests a minute of each key, requests in flight
(`settings`, `limits`).

**What is logged**: a line a request with the route's template, the status, sizes, milliseconds and the key's
id; of an error its kind and where in the code it came up. Never a text, a header or a key (`errors`).
"""

from __future__ import annotations

from importlib.util import find_spec

from penname.errors import MissingPackageError

_PACKAGES = ("fastapi", "uvicorn", "nicegui", "prometheus_client", "mcp")


def check_installed() -> None:
    """Makes sure, before anything here is imported, that what `penname[serve]` installs is there.

    Raises:
        MissingPackageError: with the pip line.
    """
    for package in _PACKAGES:
        if find_spec(package) is None:
            raise MissingPackageError(package, "serving", "pip install 'penname[serve]'")
