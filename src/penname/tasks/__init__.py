"""What is asked of a model, and how it is put to one."""

from penname.tasks.prompts import BuiltPrompt, PromptTexts, build_prompt, continuation, quote_tags
from penname.tasks.tasks import TASKS, Task, task

__all__ = [
    "TASKS",
    "BuiltPrompt",
    "PromptTexts",
    "Task",
    "build_prompt",
    "continuation",
    "quote_tags",
    "task",
]
