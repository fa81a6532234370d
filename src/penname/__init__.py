"""penname makes a language model write, for each user, as that user would.

    import penname

    with penname.Store("mine.db") as store:
        writer = penname.Writer(store, penname.load_model())
        print(writer.write(penname.Request(input="a late train", users=("alice",))).text)

The names below are the whole public face; each is loaded when it is first used, so that importing penname
loads neither torch nor a database driver.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penname import evaluate
    from penname.lm import LanguageModel, Sampling, load_embedder, load_model
    from penname.methods.stepback import History, edit_profile, profile_histories
    from penname.records import Document, Draft, Preference, Profile, Request, User
    from penname.retrieve import retriever
    from penname.sources import read
    from penname.store import Store
    from penname.writer import Writer

__version__ = "0.1.0"

_HOME = {
    "Document": "penname.records",
    "Draft": "penname.records",
    "History": "penname.methods.stepback",
    "LanguageModel": "penname.lm",
    "Preference": "penname.records",
    "Profile": "penname.records",
    "Request": "penname.records",
    "Sampling": "penname.lm",
    "Store": "penname.store",
    "User": "penname.records",
    "Writer": "penname.writer",
    "edit_profile": "penname.methods.stepback",
    "load_embedder": "penname.lm",
    "load_model": "penname.lm",
    "profile_histories": "penname.methods.stepback",
    "read": "penname.sources",
    "retriever": "penname.retrieve",
}

__all__ = [
    "Document",
    "Draft",
    "History",
    "LanguageModel",
    "Preference",
    "Profile",
    "Request",
    "Sampling",
    "Store",
    "User",
    "Writer",
    "__version__",
    "edit_profile",
    "evaluate",
    "load_embedder",
    "load_model",
    "profile_histories",
    "read",
    "retriever",
]


def __getattr__(name: str) -> object:
    if name == "evaluate":  # a module with a public face of its own
        return import_module("penname.evaluate")
    if name not in _HOME:
        raise AttributeError(f"module 'penname' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
