"""What went into a draft: profile, documents, reasoning, rounds, and the prompt itself."""

from __future__ import annotations

from nicegui import ui

from penname.records import Draft
from penname.train.preferences.prompts import as_text


def explain(draft: Draft) -> None:
    """All of it, each part under its heading. Texts are shown as text, whatever is in them."""
    _part("Method", f"{draft.method}, with {draft.model}")
    for profile in draft.profiles:
        _part(f"Profile of {profile.user}, version {profile.version}", profile.text)
    for number, hit in enumerate(draft.documents, 1):
        document = hit.document
        _part(f"Document {number}: {document.title or document.id}", document.text, f"score {hit.score:.2f}")
    if draft.reasoning:
        _part("Reasoning", draft.reasoning)
    if draft.first:
        _part("Before the rounds", draft.first)
    for number, one in enumerate(draft.rounds, 1):
        gain = "" if one.gain is None else f", gain {one.gain:+.2f}"
        _part(f"Round {number}: {'taken' if one.taken else 'not taken'}{gain}", one.text, one.feedback)
    for remark in (*draft.notes, *(f"left out: {one}" for one in draft.dropped)):
        ui.label(remark).classes("hint")
    seconds = ", ".join(f"{stage} {spent:.2f} s" for stage, spent in draft.seconds.items())
    tokens = f"{draft.prompt_tokens} tokens read, {draft.completion_tokens} written"
    _part("Prompt", as_text(draft.prompt), f"{tokens}; {seconds}; seed {draft.seed}")


def _part(title: str, text: str, hint: str = "") -> None:
    with ui.element("div").classes("part"):
        ui.label(title).classes("subtitle").props("role=heading aria-level=3")
        if hint:
            ui.label(hint).classes("hint")
        ui.label(text).classes("text small")
