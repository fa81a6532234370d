"""What is done with a trained run: `penname adapt`, `penname score` and `penname merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from penname.cli.options import Db, Json, UserArgument, open_store, read_text
from penname.cli.output import note, plural, progress, say, say_json, table
from penname.errors import BadInputError

Trained = Annotated[
    Path | None,
    typer.Option("--trained", metavar="DIR", help="A result of `penname train`. Default: p-dpo's own place."),
]
Base = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="The base model, where it has moved since training."),
]


def adapt(
    user: UserArgument,
    trained: Trained = None,
    model: Base = None,
    db: Db = None,
    json: Json = False,
) -> None:
    """Fit one user's vector in a trained run to the user's preferences.

    The preferences are those in the store (`penname prefer`). Nothing of any other user changes.

    Example: penname adapt alice --trained runs/ours
    """
    from penname.methods.prlhf.adapt import adapt as fit_user
    from penname.paths import trained_dir

    folder = (trained or trained_dir("p-dpo")).expanduser()
    with open_store(db) as store, progress(f"fitting {user}"):
        found = fit_user(folder, user, store, model=model)
    if json:
        say_json({"user": user, "trained": str(folder), **vars(found)})
        return
    say(
        f"fitted {user} to {plural(found.preferences, 'preference')} in {found.seconds:.1f} s: "
        f"{found.after:.0%} in the right order, {found.before:.0%} before"
    )


def score(
    texts: Annotated[
        list[str], typer.Argument(metavar="FILE…", help="Answers to compare, a file each; - reads stdin.")
    ],
    trained: Annotated[
        Path | None,
        typer.Option(
            "--trained", metavar="DIR", help="A result of `penname train`. Default: p-rm's own place."
        ),
    ] = None,
    users: Annotated[
        list[str] | None,
        typer.Option("--user", "-u", metavar="USER", help="Whose reward; again for more. Default: nobody's."),
    ] = None,
    prompt: Annotated[
        str, typer.Option("--prompt", metavar="TEXT", help="What the answers were written for.")
    ] = "",
    model: Base = None,
    json: Json = False,
) -> None:
    """Tell how much users would like some answers, by a trained reward.

    A run of p-rm says it outright; one of p-dpo by how much likelier it makes the answer than its base does.

    Example: penname score --trained runs/taste --user alice --prompt "A late train" one.txt two.txt
    """
    from penname.methods.prlhf.reward import open_reward
    from penname.paths import trained_dir

    answers = [read_text(name).strip() for name in texts]
    for name, answer in zip(texts, answers, strict=True):
        if not answer:
            raise BadInputError(f"{name} holds no text")
    asked: list[str | None] = [*users] if users else [None]
    with progress("reading"):
        reward = open_reward(trained or trained_dir("p-rm"), model)
        found = reward.rewards(
            [prompt] * len(answers) * len(asked),
            [answer for answer in answers for _ in asked],
            [user for _ in answers for user in asked],
        )
    for user in asked:
        if user is not None and not reward.knows(user):
            note(f"{user!r} is unknown to this run: the generic user's reward")
    rows = [
        {"file": name, "user": user, "reward": value}
        for (name, user), value in zip(((n, u) for n in texts for u in asked), found, strict=True)
    ]
    if json:
        for row in rows:
            say_json(row)
        return
    table(
        ("text", "user", "reward"), ((r["file"], r["user"] or "anybody", f"{r['reward']:.4f}") for r in rows)
    )


def merge(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="A result of `penname train`.")],
    model: Base = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option("--dtype", help="Of the weights. Default: as trained."),
    ] = None,
    json: Json = False,
) -> None:
    """Write a run's base and adapter as one model, for servers.

    It lies in the run's own folder, and any program can load it. Users' soft prompts stay outside of it.

    Example: penname merge runs/ours && vllm serve runs/ours/merged --enable-prompt-embeds
    """
    from penname.train.merge import merge as merge_run

    with progress("merging"):
        out = merge_run(run, model, dtype)
    if json:
        say_json({"trained": str(run), "merged": str(out)})
        return
    say(f"the weights of {run}, whole: {out}")
