"""Folders of evaluations as tests need them: made in a moment, without a model."""

from __future__ import annotations

from pathlib import Path

from penname.evaluate.folder import open_run
from penname.evaluate.results import Arm, Row

SECRET = "a text that nobody may see"


def save_report(
    folder: Path,
    *,
    model: str = "told",
    method: str = "step-back",
    users: int = 8,
    remark: str = "",
    rows: int = 2,
) -> Path:
    """An evaluation of `method` on the task "email", better than `none`; `rows` examples of each user."""
    arms = (
        Arm("none", "none"),
        Arm(method, method),
        Arm(f"{method} · swap-user", method, control="swap-user", of=method),
    )
    settings = {"data": "sample 5cbd, test split", "model": model, "seed": 0, "k": 3, "judge": None}
    found = []
    for number, arm in enumerate(arms):
        for user in range(users):
            for place in range(rows):
                score = 0.1 + 0.01 * user + (0.2 if number == 1 else 0.001 * ((user + place) % 3))
                found.append(
                    Row(
                        key=f"{arm.name} {user} {place}",
                        arm=arm.name,
                        task="email",
                        example=f"{user} {place}",
                        users=(f"user-{user}",),
                        input=SECRET,
                        gold=SECRET,
                        text=SECRET,
                        answer=SECRET,
                        finish="stop",
                        scores={"rouge1": score},
                    )
                )
    with open_run(folder, settings) as opened:
        opened.append(found)
        opened.write(arms, [remark] if remark else [])
    return folder
