"""What a result of REST-PG tells of itself: figures of what was seen, and the model card for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penname.methods.restpg import reasoning, select
from penname.train import seen

_ABOUT = {
    "sft": "Fine-tuned on its users' own texts.",
    "sft-reasoning": "Fine-tuned to reason about the writer and then write (arXiv 2501.04167, section 3.2).",
    "rest-em": "Fine-tuned, then trained on its own best outputs (ReST-EM, arXiv 2312.06585).",
    "rest-pg": "Reasons about the writer, then writes; trained on its own best outputs (REST-PG, "
    "arXiv 2501.04167).",
}


def reasoning_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, int | float]:
    """What was said of the writers, as a training's rows say: `reasoning.summary`."""
    return reasoning.summary(
        [reasoning.Reasoned(row["reasoning"], row["overlap"], row["why"]) for row in rows]
    )


def iteration_figures(folder: Path, number: int) -> dict[str, float]:
    """What the expectation step of an iteration saw, as its rows say: `select.summary`."""
    rows = seen.read(folder / seen.SEEN / f"iteration-{number}.jsonl")
    inputs = [[select.sample_of(sample) for sample in row["samples"]] for row in rows]
    kept = [[i for i, sample in enumerate(row["samples"]) if sample["kept"]] for row in rows]
    return {"iteration": number, **select.summary(inputs, kept)}


def model_card(card: Mapping[str, Any]) -> str:
    """What was trained, on what, what it saw, and how it is used; no user and no text is named."""
    settings, data = card["settings"], card["data"]
    rows = "".join(
        f"| {line['iteration']} | {line['samples']:,} | {line['reward']:.3f} | {line['best_reward']:.3f} | "
        f"{line['kept']:,} | {line['kept_reward']:.3f} | {line['above']:.0%} | {line['cut']:,} |\n"
        for line in card["iterations"]
    )
    table = (
        "\n| iteration | outputs | reward | of an input's best | learnt from | their reward | inputs with "
        f"any | cut at the limit |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n{rows}"
        if rows
        else ""
    )
    short = f"; {card['short_histories']:,} with fewer documents than k" if card["short_histories"] else ""
    counted = "".join(f"- {why}: {number:,}\n" for why, number in card["left_out"].items())
    if said := card["reasoning"]:
        counted += (
            f"- reasoning learnt: {said['kept']:,} of {said['examples']:,}, overlap with the real text alone "
            f"{said['overlap_kept']:.1%}\n"
        )
    return f"""# {card["method"]} over {card["model"]}

{_ABOUT[card["method"]]} Made by penname {card["version"]}.

    penname write --user USER --task {settings["task"]} --method rest-pg:THIS_FOLDER …

- texts: {data["texts"]:,} of {data["users"]:,} users{short}
{counted}- reward: {settings["reward"] or "none"}
- settings: {settings}
- base model's weights: {card["model_fingerprint"]}
- data: {data["fingerprint"]}
{table}
`seen/` holds what it learnt from, line by line. `penname erase` takes a user's lines out of it; what the
weights learnt of the user's texts goes only with the whole folder.
"""
