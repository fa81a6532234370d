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
    from penname.evaluate.rewards import reward_of
    from penname.lm import LanguageModel, Sampling, load_embedder, load_model
    from penname.methods.erase import forget
    from penname.methods.pit.train import PITConfig, train_pit
    from penname.methods.prlhf.adapt import adapt
    from penname.methods.prlhf.config import PDPOConfig
    from penname.methods.prlhf.featured import train_featured
    from penname.methods.prlhf.reward import open_reward
    from penname.methods.prlhf.train import train_preferences
    from penname.methods.restpg.config import RestPGConfig
    from penname.methods.restpg.requests import requests_to_learn
    from penname.methods.restpg.train import train_rest_pg
    from penname.methods.stepback import History, edit_profile, profile_histories
    from penname.records import Document, Draft, Preference, Profile, Request, User
    from penname.retrieve import retriever
    from penname.sources import read
    from penname.store import Store
    from penname.train.preferences.data import prepare, read_preferences
    from penname.writer import Writer

__version__ = "0.1.0"

_HOME = {
    "Document": "penname.records",
    "Draft": "penname.records",
    "History": "penname.methods.stepback",
    "LanguageModel": "penname.lm",
    "PDPOConfig": "penname.methods.prlhf.config",
    "PITConfig": "penname.methods.pit.train",
    "Preference": "penname.records",
    "Profile": "penname.records",
    "Request": "penname.records",
    "RestPGConfig": "penname.methods.restpg.config",
    "Sampling": "penname.lm",
    "Store": "penname.store",
    "User": "penname.records",
    "Writer": "penname.writer",
    "adapt": "penname.methods.prlhf.adapt",
    "edit_profile": "penname.methods.stepback",
    "forget": "penname.methods.erase",
    "load_embedder": "penname.lm",
    "load_model": "penname.lm",
    "open_reward": "penname.methods.prlhf.reward",
    "prepare": "penname.train.preferences.data",
    "profile_histories": "penname.methods.stepback",
    "read": "penname.sources",
    "read_preferences": "penname.train.preferences.data",
    "requests_to_learn": "penname.methods.restpg.requests",
    "retriever": "penname.retrieve",
    "reward_of": "penname.evaluate.rewards",
    "train_featured": "penname.methods.prlhf.featured",
    "train_pit": "penname.methods.pit.train",
    "train_preferences": "penname.methods.prlhf.train",
    "train_rest_pg": "penname.methods.restpg.train",
}

__all__ = [
    "Document",
    "Draft",
    "History",
    "LanguageModel",
    "PDPOConfig",
    "PITConfig",
    "Preference",
    "Profile",
    "Request",
    "RestPGConfig",
    "Sampling",
    "Store",
    "User",
    "Writer",
    "__version__",
    "adapt",
    "edit_profile",
    "evaluate",
    "forget",
    "load_embedder",
    "load_model",
    "open_reward",
    "prepare",
    "profile_histories",
    "read",
    "read_preferences",
    "requests_to_learn",
    "retriever",
    "reward_of",
    "train_featured",
    "train_pit",
    "train_preferences",
    "train_rest_pg",
]


def __getattr__(name: str) -> object:
    if name == "evaluate":  # a module with a public face of its own
        return import_module("penname.evaluate")
    if name not in _HOME:
        raise AttributeError(f"module 'penname' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
