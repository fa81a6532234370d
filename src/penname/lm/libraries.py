"""What is set on the libraries below before their first use: offline, and silent except for errors."""

from __future__ import annotations

import os


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
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
