"""What is set on the libraries below before their first use: offline, silent except for errors, forgetful."""

from __future__ import annotations

import os

# torch and oneDNN (OpenVINO has a copy of it) keep what they compiled for each shape: by default 1,024 of
# them, some 400 MB, and a server whose texts come in lengths without end would come to hold them all. A
# length takes some ten of them; what is kept beyond a few lengths is seldom met again.
_KEPT = {"LRU_CACHE_CAPACITY": "256", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256"}


def forgetful() -> None:
    """Have torch and oneDNN keep few compiled shapes: there is no other way in than the environment."""
    for name, shapes in _KEPT.items():
        os.environ.setdefault(name, shapes)


def offline() -> None:
    """Keep Hugging Face's libraries from the network. Must run before they are first imported to take effect.

    OpenVINO's runtime sends nothing; its telemetry belongs to conversion tools that are not used here.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # else it warns when a process forks


def quiet() -> None:
    """Silence the hints and progress bars of transformers; errors still come as exceptions."""
    offline()
    forgetful()
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
