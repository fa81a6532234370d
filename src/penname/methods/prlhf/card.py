"""The model card of a result of P-RLHF, for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ABOUT = {
    "p-dpo": "Writes for each of its users after that user's soft prompt: P-DPO (arXiv 2402.05133).",
    "p-rm": "Tells how much each of its users would like an answer: P-RM (arXiv 2402.05133).",
}


def model_card(card: Mapping[str, Any]) -> str:
    """What was trained, on what, how it stands, and how it is used; no user and no text is named."""
    settings, data, found = card["settings"], card["data"], card["held_out"]
    use = (
        "penname write --user USER --method p-dpo:THIS_FOLDER …"
        if card["method"] == "p-dpo"
        else "penname score --trained THIS_FOLDER --user USER …"
    )
    left_out = "".join(f"- left out: {number:,} {why}\n" for why, number in data["left_out"].items())
    held = ", ".join(f"{name} {value:.4g}" for name, value in found.items() if name != "step")
    return f"""# {card["method"]} over {card["model"]}

{_ABOUT[card["method"]]} Made by penname {card["version"]}.

    {use}

- users: {data["users"]:,} ({settings["users"]})
- preferences: {data["pairs"]:,}, and {data["held_out"]:,} held out
{left_out}- settings: {settings}
- base model's weights: {card["model_fingerprint"]}
- data: {data["fingerprint"]}

On what was held out: {held or "nothing was"}.

The shared weights learnt from all these users. `penname erase` removes a user's row here; what the shared
weights learnt of the user's preferences goes only with the whole folder.
"""
