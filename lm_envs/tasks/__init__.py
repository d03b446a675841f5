"""Tasks: what is asked, how a completion is answered and scored. One task a file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lm_envs.tasks.base import Append, Completion, Feedback, Replace, Task, TaskState

if TYPE_CHECKING:
    from lm_envs.language_model import LanguageModel

# Name -> class; imported when asked for.
NAMED_TASKS = {
    "continuation": "lm_envs.tasks.continuation:Continuation",
    "control": "lm_envs.tasks.control:Control",
    "dialogue": "lm_envs.tasks.dialogue:Dialogue",
    "edit": "lm_envs.tasks.edit:Edit",
    "qa": "lm_envs.tasks.qa:QuestionAnswering",
    "reasoning_gym": "lm_envs.tasks.reasoning_gym:ReasoningGym",
    "recommendation": "lm_envs.tasks.recommendation:Recommendation",
    "sentiment": "lm_envs.tasks.sentiment:SentimentSteering",
    "snake": "lm_envs.tasks.snake:Snake",
    "story": "lm_envs.tasks.story:StoryTask",
    "summarization": "lm_envs.tasks.summarization:Summarization",
    "transcription": "lm_envs.tasks.transcription:Transcription",
    "translation": "lm_envs.tasks.translation:Translation",
}


def make_task(task: str | Task, language_model: LanguageModel, task_kwargs: Mapping[str, Any]) -> Task:
    """Builds a named task as `TaskClass(language_model, **task_kwargs)`, or passes a built one through.

    Raises:
        ValueError: unknown name.
        TypeError: not a task, or arguments that the task does not take.
    """
    if isinstance(task, str):
        if task not in NAMED_TASKS:
            raise ValueError(f"task must be one of {sorted(NAMED_TASKS)} or a task object, got {task!r}")
        module, name = NAMED_TASKS[task].split(":")
        return getattr(import_module(module), name)(language_model, **task_kwargs)
    if isinstance(task, type) or not isinstance(task, Task):
        raise TypeError(f"task must be a name or an object with start() and respond(), got {task!r:.80}")
    if task_kwargs:
        raise TypeError(f"unknown arguments {sorted(task_kwargs)}: a task that is already built takes none")
    return task


__all__ = ["NAMED_TASKS", "Append", "Completion", "Feedback", "Replace", "Task", "TaskState", "make_task"]
