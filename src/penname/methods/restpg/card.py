"""The model card of a result of REST-PG, for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ABOUT = {
    "sft": "Fine-tuned on its users' own texts.",
    "sft-reasoning": "Fine-tuned to reason about the writer and then write (arXiv 2501.04167, section 3.2).",
    "rest-em": "Fine-tuned, then trained on its own best outputs (ReST-EM, arXiv 2312.06585).",
    "rest-pg": "Reasons about the writer, then writes; trained on its own best outputs (REST-PG, "
    "arXiv 2501.04167).",
}


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
    return f"""# {card["method"]} over {card["model"]}

{_ABOUT[card["method"]]} Made by penname {card["version"]}.

    penname write --user USER --task {settings["task"]} --method rest-pg:THIS_FOLDER …

- texts: {data["texts"]:,} of {data["users"]:,} users
- reward: {settings["reward"] or "none"}
- settings: {settings}
- base model's weights: {card["model_fingerprint"]}
- data: {data["fingerprint"]}
{table}
`seen/` holds what it learnt from, line by line. `penname erase` takes a user's lines out of it; what the
weights learnt of the user's texts goes only with the whole folder.
"""
