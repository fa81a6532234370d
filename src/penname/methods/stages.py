"""The names of ways to write: stages joined by `+`, some with a name of their own behind a colon.

`rest-pg` writes as its run learnt to: where no stage beside it says what of a history is shown, those of its
training are added.
"""

from __future__ import annotations

from pathlib import Path

from penname.errors import BadInputError, UnknownMethodError, UnknownRetrieverError
from penname.paths import trained_dir
from penname.retrieve import RETRIEVERS

STAGES = {
    "none": "the request alone",
    "retrieval": "with the documents of the history that matter most now, as examples",
    "step-back": "with the profile distilled from the history",
    "rest-pg": "by a model trained to reason and then write; a colon names the run's folder",
    "p-dpo": "by a model trained on preferences, with the user's soft prompt; a colon names the run's folder",
    "p-rm": "the best of several drafts by the user's trained reward; a colon names the run's folder",
    "pit": "improved in rounds by a trained model, last of all; a colon names the run's folder",
}
READ_HISTORY = ("retrieval", "step-back")  # the stages that need documents
TRAINED = ("rest-pg", "p-dpo", "p-rm", "pit")  # the stages that need a result of training


def stages(method: str) -> dict[str, str]:
    """The stages of a method's name, each with what stands behind its colon, or "".

    Raises:
        UnknownMethodError: a part of the name is no stage; the message offers the nearest.
        UnknownRetrieverError: `retrieval:` names no retriever.
        BadInputError: a stage stands twice, `none` beside another, `pit` before another, a colon after a
            stage that takes none, or nothing behind a colon.
        TrainedError: `rest-pg` stands without a stage that reads histories, and its run is not there.
    """
    parts = [part.partition(":") for part in method.split("+")]
    for stage, colon, named in parts:
        if stage not in STAGES:
            raise UnknownMethodError(stage, STAGES)
        if colon and stage not in ("retrieval", *TRAINED):
            raise BadInputError(
                f"method {method!r}: {stage!r} takes no name after a colon; "
                "'retrieval', 'rest-pg', 'p-dpo', 'p-rm' and 'pit' do"
            )
        if colon and stage == "retrieval" and named not in RETRIEVERS:
            raise UnknownRetrieverError(named, RETRIEVERS)
        if colon and not named:
            raise BadInputError(f"method {method!r}: name the folder of a trained run after {stage + ':'!r}")
    found = {stage: named for stage, _, named in parts}
    if len(found) != len(parts) or ("none" in found and len(parts) > 1):
        raise BadInputError(f"method {method!r}: each stage once, and 'none' alone")
    if "pit" in found and parts[-1][0] != "pit":
        raise BadInputError(f"method {method!r}: 'pit' improves what the other stages wrote: put it last")
    found.pop("none", None)
    if "rest-pg" in found and found.keys().isdisjoint(READ_HISTORY):
        return {**_learnt_with(run_folder("rest-pg", found["rest-pg"])), **found}
    return found


def _learnt_with(folder: Path) -> dict[str, str]:
    """The stages that read histories in the training of a run of `rest-pg`."""
    from penname.train.folder import open_trained

    context = open_trained(folder).settings.get("context") or {}
    return stages(str(context.get("stages") or "none"))


def reads_history(method: str) -> bool:
    """Whether a method needs documents. Raises as `stages` does."""
    return not stages(method).keys().isdisjoint(READ_HISTORY)


def run_folder(stage: str, named: str) -> Path:
    """The folder of the trained run that a stage uses: the one named, or where training writes by itself."""
    return Path(named).expanduser() if named else trained_dir(stage)
