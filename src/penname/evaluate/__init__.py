"""What a draft is worth: benchmarks, metrics, judges, controls, statistics, runs and reports.

arms = plan(["none", "step-back"], users=["all"], controls=["swap-user"])
results = evaluate(load("sample", store), store, model, arms, Path("run"), embedder=load_embedder())
write_report(results, Path("run"))
"""

from penname.evaluate.arms import CONTROLS, plan
from penname.evaluate.benchmarks import BENCHMARKS, Loaded, load
from penname.evaluate.console import print_summary
from penname.evaluate.folder import load_results
from penname.evaluate.metrics import METRICS
from penname.evaluate.official import write_predictions
from penname.evaluate.report import write_report
from penname.evaluate.results import Arm, Results, Row
from penname.evaluate.run import Settings, evaluate
from penname.evaluate.tables import Table, summary
from penname.evaluate.trackers import log

__all__ = [
    "BENCHMARKS",
    "CONTROLS",
    "METRICS",
    "Arm",
    "Loaded",
    "Results",
    "Row",
    "Settings",
    "Table",
    "evaluate",
    "load",
    "load_results",
    "log",
    "plan",
    "print_summary",
    "summary",
    "write_predictions",
    "write_report",
]
