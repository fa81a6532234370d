"""PIT (arXiv 2310.00898): learn to improve a text, with the goal implicit in preferences."""

from typing import Literal

Method = Literal["pit", "pit-sft", "pit-gap", "pit-rl"]
METHODS: tuple[Method, ...] = ("pit", "pit-sft", "pit-gap", "pit-rl")
"""The whole, and its three stages by themselves."""
