"""Numbers that change while an agent learns: exploration rates, temperatures, step sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Linear:
    """From `start` to `end` in a straight line over the first `fraction` of learning, then constant."""

    start: float
    end: float
    fraction: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {self.fraction!r}")

    def __call__(self, progress_remaining: float) -> float:
        """The value now; `progress_remaining` falls from 1 to 0, as in SB3's schedules."""
        done = min(1.0, (1 - progress_remaining) / self.fraction)
        return self.start + done * (self.end - self.start)


@dataclass(frozen=True)
class Exponential:
    """From `start` to `end`, both > 0, by the same factor in every step of learning."""

    start: float
    end: float

    def __post_init__(self) -> None:
        if not min(self.start, self.end) > 0:
            raise ValueError(f"start and end must be > 0, got {self.start!r} and {self.end!r}")

    def __call__(self, progress_remaining: float) -> float:
        """The value now; `progress_remaining` falls from 1 to 0."""
        return self.start * (self.end / self.start) ** (1 - progress_remaining)


Schedule = float | Linear | Exponential  # a float is constant


def at(schedule: Schedule, progress_remaining: float) -> float:
    """The value of a schedule when this share of learning is left."""
    return schedule(progress_remaining) if isinstance(schedule, Linear | Exponential) else schedule


def check_schedule(name: str, schedule: Schedule, low: float, high: float, *, open_low: bool = False) -> None:
    """Raises unless a schedule's values lie in low..high; with `open_low`, above low.

    Raises:
        TypeError: not a number and not one of the schedules.
        ValueError: out of range; names argument, value and range.
    """
    if isinstance(schedule, Linear | Exponential):
        ends: tuple[float, ...] = (schedule.start, schedule.end)
    elif isinstance(schedule, int | float) and not isinstance(schedule, bool):
        ends = (schedule,)
    else:
        raise TypeError(f"{name} must be a number, Linear or Exponential, got {schedule!r:.80}")
    for value in ends:
        if not low <= value <= high or not math.isfinite(value) or (open_low and value == low):
            bounds = f"{'(' if open_low else '['}{low:g}, {high:g}]"
            raise ValueError(f"{name} must be finite and in {bounds}, got {schedule!r}")
