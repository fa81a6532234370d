"""What is asked of a model, and how it is put to one."""

from penname.tasks.answers import labelled
from penname.tasks.base import Task
from penname.tasks.prompts import BuiltPrompt, PromptTexts, build_prompt, continuation, quote_tags
from penname.tasks.tasks import TASKS, task

__all__ = [
    "TASKS",
    "BuiltPrompt",
    "PromptTexts",
    "Task",
    "build_prompt",
    "continuation",
    "labelled",
    "quote_tags",
    "task",
]
