"""TL;DR comparisons (summarize from feedback, arXiv 2009.01325): which of two summaries a worker chose.

The official files `comparisons/batch*.json` are JSON Lines of

    info       {id, post, title, subreddit}; of news {id, article, title, site}
    summaries  two of {text, policy, note}
    choice     0 or 1: the better summary
    worker     who chose: the user
    batch, split ("train", "valid1" or "valid2"), extra {confidence}

The prompt is the post as the authors put it to their models. The axis evaluations (`axis_evals`: one summary
with scores by axis, no choice) are another kind of file, and their rows are bad rows here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from penname.errors import BadInputError
from penname.records import Item, Preference
from penname.sources._each import Row, data_files, each, needed, user_of
from penname.sources._rows import text_of


def read(path: Path, *, split: str | None = None, prefix: str = "") -> Iterator[Item]:
    """A Preference (a choice) for each row.

    Args:
        path: a file, or a folder of them, which are read in the order of their names.
        split: only rows whose field `split` says so: "train", "valid1" or "valid2".
        prefix: put before every user's id.

    Raises:
        BadInputError: no such file, it is no JSON, or no row is of that split.
    """
    splits: set[str] = set()

    def comparison(row: Row) -> list[Item]:
        own = text_of(row.get("split"), "split")
        splits.add(own)
        return [_comparison(row, prefix)] if split in (None, own) else []

    for file in data_files(path):
        yield from each(file, comparison)
    if splits and split is not None and split not in splits:
        raise BadInputError(
            f"{path} has no row of the split {split!r} (splits there: {', '.join(sorted(splits))})"
        )


def _comparison(row: Row, prefix: str) -> Preference:
    needed(row, "info", "summaries", "choice", "worker")
    summaries, choice = row["summaries"], row["choice"]
    if not isinstance(summaries, list) or len(summaries) != 2:
        raise BadInputError("the field 'summaries' is no list of two")
    if not all(isinstance(summary, dict) and summary.get("text") is not None for summary in summaries):
        raise BadInputError("a summary is an object with a 'text'")
    if choice not in (0, 1) or isinstance(choice, bool | float):
        raise BadInputError(f"the choice is 0 or 1, not {choice!r:.40}")
    texts = [text_of(summary["text"], "text").strip() for summary in summaries]
    return Preference(
        user=user_of(row, "worker", prefix),
        kind="choice",
        prompt=_prompt(row["info"]),
        chosen=texts[choice],
        rejected=texts[1 - choice],
    )


def _prompt(info: object) -> str:
    """The text to be summarised, as a prompt."""
    if not isinstance(info, dict):
        raise BadInputError("the field 'info' is no object")
    if info.get("article") is not None:
        return f"Article:\n{text_of(info['article'], 'article')}\n\nTL;DR:"
    needed(info, "post")
    post, title, subreddit = (text_of(info.get(name), name) for name in ("post", "title", "subreddit"))
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
