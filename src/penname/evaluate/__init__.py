"""What a draft is worth: metrics against the user's real text, intervals over users, and reports."""

from penname.evaluate.console import print_summary
from penname.evaluate.metrics import (
    METRICS,
    Metric,
    bits_per_byte,
    chrf,
    rouge1,
    rouge_l,
    similarity,
    text_scores,
)
from penname.evaluate.report import write_html
from penname.evaluate.results import Line, Results, Row, summary
from penname.evaluate.statistics import Interval, paired_interval

__all__ = [
    "METRICS",
    "Interval",
    "Line",
    "Metric",
    "Results",
    "Row",
    "bits_per_byte",
    "chrf",
    "paired_interval",
    "print_summary",
    "rouge1",
    "rouge_l",
    "similarity",
    "summary",
    "text_scores",
    "write_html",
]
