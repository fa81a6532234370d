"""REST-PG (arXiv 2501.04167): reason over the profile, then self-train on one's own best outputs."""

from typing import Literal

Method = Literal["sft", "sft-reasoning", "rest-em", "rest-pg"]
METHODS: tuple[Method, ...] = ("sft", "sft-reasoning", "rest-em", "rest-pg")
"""REST-PG and what it contains, each with less of it left out."""
