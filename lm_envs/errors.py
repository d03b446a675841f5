"""The errors of this project that neither Python nor Gymnasium already has a name for."""

from __future__ import annotations

from typing import Any


class RewardError(ValueError):
    """A reward function raised, or returned something that is not one finite float per completion.

    Attributes:
        slot: row of the batch, or -1 when the whole batch is at fault (a wrong count, say).
        text: the completion that was being scored.
        value: what came back, or the exception that was raised.
    """

    def __init__(self, message: str, *, slot: int = -1, text: str = "", value: Any = None) -> None:
        super().__init__(message)
        self.slot = slot
        self.text = text
        self.value = value


class ModelError(OSError, ValueError):
    """A model folder is missing, damaged, unsafe or does not fit; the message names path and file."""
