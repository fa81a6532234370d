"""Step-Back Profiling (arXiv 2406.14275): distil a history into a concise profile. Training-free."""

from penname.methods.stepback.config import StepBackConfig
from penname.methods.stepback.method import History, edit_profile, make_profile, profile_histories
from penname.methods.stepback.parse import Gist, parse_gist

__all__ = [
    "Gist",
    "History",
    "StepBackConfig",
    "edit_profile",
    "make_profile",
    "parse_gist",
    "profile_histories",
]
