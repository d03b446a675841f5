"""Tasks: what is asked, how a completion is answered and scored. One task a file."""

from lm_envs.tasks.base import Append, Completion, Feedback, Replace, Task, TaskState

__all__ = ["Append", "Completion", "Feedback", "Replace", "Task", "TaskState"]
