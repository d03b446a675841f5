"""Timing contenders in turn, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

Contender = Callable[[], float]


class Unavailable(Exception):
    """A peer that cannot run here; the message says why."""


@dataclass
class Case:
    """One run of interleaved contenders: a plain JSON value, and the ratios in it.

    Attributes:
        part: "rollout", "update", "growth", "limit" or "toy".
        name: of the case within its part, such as "gpt2, ragged".
        settings: what was run: slots, lengths, options.
        unit: of all values, such as "tokens/s".
        values: contender -> one value a repetition; the i-th ones belong together.
        peer: the contender that the others are compared with; "" for none.
        missing: peer that did not run -> the reason.
        facts: numbers about the case that no contender has, such as a fitted slope.
    """

    part: str
    name: str
    settings: dict[str, Any]
    unit: str
    values: dict[str, list[float]]
    peer: str = ""
    missing: dict[str, str] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Median of a contender's values."""
        return statistics.median(self.values[name])

    def ratios(self, name: str, peer: str | None = None) -> list[float]:
        """A contender's values over the peer's, repetition by repetition."""
        both = zip(self.values[name], self.values[peer or self.peer], strict=True)
        return [value / other for value, other in both]

    def ratio(self, name: str, peer: str | None = None) -> float | None:
        """Median of `ratios`; None where one of the two did not run."""
        if name not in self.values or (peer or self.peer) not in self.values:
            return None
        return statistics.median(self.ratios(name, peer))

    def fastest(self, names: Sequence[str]) -> str:
        """Of these contenders the one with the highest median; "" if none ran."""
        return max((name for name in names if name in self.values), key=self.median, default="")

    def as_json(self) -> dict[str, Any]:
        """Plain values; `Case(**value)` undoes it."""
        return asdict(self)


def interleave(
    contenders: Mapping[str, Contender], repetitions: int, *, cold: Sequence[str] = (), label: str = ""
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Call every contender once a repetition, in turn.

    Args:
        contenders: name -> a function that runs once and returns its value, such as tokens per second.
        repetitions: at least 1, after a first one that warms up and is not counted.
        cold: contenders too slow to warm up.
        label: of the progress bar.

    Returns:
        The values by contender, and the reasons of those that raised `Unavailable`.
    """
    if repetitions < 1:
        raise ValueError(f"repetitions must be >= 1, got {repetitions!r}")
    values: dict[str, list[float]] = {name: [] for name in contenders}
    missing: dict[str, str] = {}
    with tqdm(total=(repetitions + 1) * len(contenders), desc=label, leave=False) as bar:
        for repetition in range(repetitions + 1):
            for name, run in contenders.items():
                bar.set_postfix_str(name)
                if name not in missing and (repetition or name not in cold):
                    try:
                        value = run()
                    except Unavailable as reason:
                        missing[name] = str(reason)
                        del values[name]
                    else:
                        values[name] += [value] if repetition else []
                bar.update()
    return values, missing


class Stopwatch:
    """Seconds spent in the functions it wraps; of nested ones the outermost counts."""

    def __init__(self, device: str) -> None:
        self.seconds = 0.0
        self._device = device
        self._running = False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._running:
                return function(*args, **kwargs)
            self._running = True
            started = now(self._device)
            try:
                return function(*args, **kwargs)
            finally:
                self._running = False
                self.seconds += now(self._device) - started

        return timed


def now(device: str) -> float:
    """Seconds, after all that the device was given to do is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(device: str, run: Callable[[], object]) -> float:
    """How long `run` takes."""
    started = now(device)
    run()
    return now(device) - started


def fitted_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Exponent k of the least-squares fit y = c * x**k, in logarithms: 0 is constant, 1 is linear.

    Raises:
        ValueError: fewer than two points, or one that is not positive.
    """
    if len(x) < 2 or len(x) != len(y) or min(*x, *y) <= 0:
        raise ValueError(f"a slope needs at least two pairs of positive numbers, got {x} and {y}")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
