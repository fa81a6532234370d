"""The model cards of PIT and of its first stage, for a person; those of the others are made beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ABOUT = {
    "pit": "Improves texts, with the goal learnt from preferences, in three stages.",
    "pit-sft": "Fine-tuned to write what was preferred, after what was not: the first stage of PIT.",
}
_USE = """
    penname improve --user USER --run THIS_FOLDER TEXT

`model/` is the policy, a whole model; `gap/` the reward that tells how much better a text is; `sft/` the
model that the policy began as. `seen/` holds the drafts that were sampled for it, line by line, and `penname
erase` takes a user's lines out of it.
"""


def model_card(card: Mapping[str, Any]) -> str:
    """What was trained, on what, and how it is used; no user and no text is named."""
    method = card["method"]
    stages = "".join(
        f"| {name} | {_figures(stage['data'])} | {_figures(_found(stage))} |\n"
        for name, stage in card.get("stages", {}).items()
    )
    table = f"\n| stage | learnt from | found |\n| --- | --- | --- |\n{stages}" if stages else ""
    return f"""# {method} over {card["model"]}

{_ABOUT[method]} arXiv 2310.00898. Made by penname {card["version"]}.
{_USE if method == "pit" else ""}
- learnt from: {_figures(card["data"])}
- left out: {_figures(card["data"]["left_out"]) or "nothing"}
- settings: {card["settings"]}
- base model's weights: {card["model_fingerprint"]}
- data: {card["data"]["fingerprint"]}
{table}
What the weights learnt of a user's preferences goes only with the whole folder.
"""


def _found(stage: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage came to: on what was held out, or in the last steps of the curriculum."""
    curriculum = {
        f"{half} {name}": value
        for half, ends in stage.get("stages", {}).items()
        for name, value in ends["end"].items()
    }
    return {**stage["held_out"], **stage.get("calibration", {}), **curriculum}


def _figures(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )
