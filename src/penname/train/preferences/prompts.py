"""How a pair's prompt and its answers are put to a model: the same in training, scoring and evaluating."""

from __future__ import annotations

from penname.lm.base import Shape
from penname.records import Message, Profile, Prompt, Request
from penname.sources._conversation import Turn, flatten
from penname.tasks import PromptTexts, build_prompt, continuation, quote_tags
from penname.tasks import task as find_task
from penname.tasks.prompts import fill, quote_labels

_SOMEBODY = "user"  # the one author of a request: no prompt shows the id
_ROLES = ("system", "user", "assistant")


def as_prompt(
    prompt: Prompt,
    shape: Shape,
    *,
    task: str | None = None,
    about: str = "",
    texts: PromptTexts | None = None,
) -> Prompt:
    """The prompt as a model of that shape is given it, whole, whatever its length.

    Without a task as it stands: for completion-shaped models text, a conversation being "role: content" for
    each message and "assistant:" at the end (a single message of the user is its content alone); for chat
    models a conversation, text being one message of the user. Text about the user stands before it as data:
    at the beginning, or in the first message of the user.

    With a task as `penname write` puts the same input with `--method none`, or where there is text about the
    user with `--method step-back`, the text being the profile's.

    Args:
        task: a name in `penname.tasks.TASKS`.
        texts: the prompt texts; read anew at each call where None, so give them where there are many prompts.

    Raises:
        UnknownTaskError: no such task.
        BadInputError: the texts cannot be read, or with a task: the prompt is empty.
    """
    about = about.strip()
    if task is not None:
        return _asked(prompt, shape, task, about, texts or PromptTexts.load())
    if shape == "chat":
        return _conversation(prompt, about)
    text = as_text(prompt)
    if not isinstance(prompt, str) and (len(prompt) != 1 or prompt[0].role != "user"):
        text += "\n\nassistant:"
    if not about:
        return text
    profile = (texts or PromptTexts.load()).completion["profile"]
    return f"{fill(profile, profile=quote_labels(about, _ROLES)).strip()}\n\n{text}"


def as_completion(text: str, shape: Shape) -> str:
    """An answer as a model of that shape goes on with it after `as_prompt`'s prompt."""
    return continuation(text, shape)


def _asked(prompt: Prompt, shape: Shape, task: str, about: str, texts: PromptTexts) -> Prompt:
    text = as_text(prompt)
    request = Request(task=task, input=text, users=(_SOMEBODY,))
    built = build_prompt(
        find_task(task),
        request,
        shape=shape,
        texts=texts,
        profiles=[Profile(user=_SOMEBODY, text=about)] if about else [],
        hits=[],
        count=lambda _: 0,  # nothing is left out here: `fit` says what is too long
        room=0,
    )
    return built.prompt


def as_text(prompt: Prompt) -> str:
    """A prompt as text: a conversation is written out."""
    return prompt if isinstance(prompt, str) else flatten([Turn(turn.role, turn.content) for turn in prompt])


def _conversation(prompt: Prompt, about: str) -> tuple[Message, ...]:
    turns = (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt
    if not about:
        return turns
    first = next(place for place, turn in enumerate(turns) if turn.role == "user")
    content = f"<profile>\n{quote_tags(about)}\n</profile>\n\n{turns[first].content}"
    return (*turns[:first], Message(role="user", content=content), *turns[first + 1 :])
