"""How the benchmark of improvement compares texts: shares of wins and differences, with intervals.

    python benchmarks/revisions_report.py OUT OUT2 … [--split test] [--systems NAME …]

tells of several runs of `revisions.py` together, such as those of several seeds: of the systems that all of
them evaluated, and of the drafts that all these systems improved. A proposal's drafts are one group.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from penname.evaluate.statistics import compare
from revisions_data import JUDGED, take

Rows = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""What is known of each text, by system and draft."""


def win(mine: float, other: float) -> float:
    """1, ½ for a tie, or 0."""
    return 0.5 if mine == other else float(mine > other)


def share(values: Sequence[float], groups: Sequence[str]) -> str:
    """A mean of 0, ½ and 1 as per cent, with its interval."""
    found = compare(values, [0.0] * len(values), groups)
    return f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def signed(values: Sequence[float], others: Sequence[float], groups: Sequence[str]) -> str:
    """A mean difference with its interval."""
    found = compare(values, others, groups)
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def report(rows: Rows, kind: str, keys: Sequence[str]) -> str:
    """Two tables of Markdown: each system against the original, and the whole of PIT against each."""
    groups = [rows["original"][key]["id"] for key in keys]

    def values(system: str, score: str) -> list[Any]:
        return [rows[system][key][score] for key in keys]

    def wins(system: str, other: str) -> str:
        """In per cent; the same text is a tie, whatever its reward."""
        both = zip(values(system, "text"), values(other, "text"), strict=True)
        same = [one.split() == another.split() for one, another in both]
        sides = zip(values(system, "reward"), values(other, "reward"), same, strict=True)
        return share([0.5 if tie else win(one, another) for one, another, tie in sides], groups)

    def line(system: str) -> list[str]:
        texts = zip(values(system, "text"), values("original", "text"), strict=True)
        unchanged = statistics.mean(one.split() == other.split() for one, other in texts)
        apart = [
            signed(values(system, score), values("original", score), groups)
            for score in ("reward", "similarity", "chrf")
        ]
        means = [f"{statistics.mean(values(system, score)):.3f}" for score in ("similarity", "chrf")]
        cells = [wins(system, "original"), apart[0], f"{100 * unchanged:.0f}"]
        words = f"{statistics.mean(values(system, 'words')):.0f}"
        return [system, *cells, words, means[0], apart[1], means[1], apart[2]]

    heads = ["system", "wins, %", "reward, difference", "unchanged, %", "words"]
    heads += ["similarity", "difference", "chrF", "difference"]
    title = f"{kind}: {len(keys)} drafts of {len(set(groups))} proposals, [95 %]"
    found = f"\n### {title}\n\nAgainst the original.\n\n{table(heads, map(line, rows))}"
    for system in ("pit, stopped", "pit, 1 round", "sft"):
        if system in rows:
            others = [[name, wins(system, name)] for name in rows if name != system]
            found += f"\n{system}, against each:\n\n{table(['system', 'wins, %'], others)}"
    return found


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Rows as Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (heads, ["---"] * len(heads), *lines))


def together(folders: Sequence[Path], split: str, systems: Sequence[str]) -> tuple[Rows, dict[str, str]]:
    """The rows of these systems (none: of all), and the drafts that each of them has, with their kinds."""
    kinds: dict[str, str] = {}
    runs: list[dict[str, dict[str, dict[str, Any]]]] = []
    for number, folder in enumerate(folders):
        kinds |= {f"{number} {one.key}": one.kind for one in take(folder / f"{split}.jsonl")}
        runs.append({})
        for line in (folder / f"rows-{split}.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            runs[-1].setdefault(row["system"], {})[f"{number} {row['key']}"] = row
    asked = [name for name in runs[0] if not systems or name in ("original", *systems)]
    rows = {
        name: {key: row for run in runs for key, row in run[name].items()}
        for name in asked
        if all(name in run for run in runs)
    }
    return rows, {key: kind for key, kind in kinds.items() if all(key in found for found in rows.values())}


def main() -> None:
    """Tell of several runs together."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, nargs="+", help="folders of revisions.py")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--systems", nargs="+", default=(), help="those to tell of; default: all")
    given = parser.parse_args()
    rows, kinds = together(given.out, given.split, given.systems)
    for kind in (*JUDGED, "both"):
        print(report(rows, kind, [key for key, own in kinds.items() if kind in (own, "both")]))


if __name__ == "__main__":
    main()
