"""The one place where the output of a reward function is checked, and the weighted sum of several."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from lm_envs.errors import RewardError
from lm_envs.rewards.base import RewardFunction, check_texts, finite_number


def checked(
    reward: RewardFunction,
    prompts: Sequence[str],
    completions: Sequence[str],
    /,
    *,
    slots: Sequence[int] | None = None,
    **columns: Any,
) -> list[float]:
    """Calls a reward function and returns what it gave as finite Python floats.

    Args:
        reward: any callable `reward(prompts, completions, **columns)`; called by keyword, as TRL does.
        prompts: B texts.
        completions: B texts.
        slots: the B numbers by which an error names a completion; 0 to B-1 by default.
        columns: further arguments of the reward; those with B entries hold one per completion.

    Returns:
        B floats. Ints, NumPy scalars and 0-d arrays or tensors are converted.

    Raises:
        RewardError: the function raised (it is then called once per completion to name the culprit, and the
            exception is chained), or returned something else than one finite number per completion.
    """
    return scored(reward, prompts, completions, slots=slots, **columns)[0]


def scored(
    reward: RewardFunction,
    prompts: Sequence[str],
    completions: Sequence[str],
    /,
    *,
    slots: Sequence[int] | None = None,
    **columns: Any,
) -> tuple[list[float], dict[str, list[float]]]:
    """As `checked`, with the parts of a `WeightedSum` (unweighted, B floats each; {} for other rewards)."""
    check_texts(prompts, completions)
    slots = range(len(completions)) if slots is None else slots
    if len(slots) != len(completions):
        raise ValueError(f"got {len(slots)} slots for {len(completions)} completions")
    if not completions:
        return [], {}
    if isinstance(reward, WeightedSum):
        parts = reward.parts(prompts, completions, slots=slots, **columns)
        return _floats(reward.combine(parts), _name(reward), completions, slots), parts
    try:
        values = reward(prompts=list(prompts), completions=list(completions), **columns)
    except Exception as error:
        raise _blame(error, reward, prompts, completions, slots=slots, columns=columns) from error
    return _floats(values, _name(reward), completions, slots), {}


class WeightedSum:
    """The weighted sum of rewards: `sum(weight * reward(...))` over the parts.

    Range: that of the parts, weighted. An empty completion gets the weighted sum of what the parts give it.

    Args:
        rewards: name -> (weight, reward function); weights are finite numbers, negative ones punish.
    """

    __name__ = "weighted_sum"

    def __init__(self, rewards: Mapping[str, tuple[float, RewardFunction]]) -> None:
        if not isinstance(rewards, Mapping) or not rewards:
            raise ValueError(f"rewards must be a non-empty dict name -> (weight, reward), got {rewards!r}")
        self.rewards: dict[str, tuple[float, RewardFunction]] = {}
        for name, entry in rewards.items():
            if not isinstance(entry, tuple | list) or len(entry) != 2 or not callable(entry[1]):
                raise ValueError(f"rewards[{name!r}] must be a pair (weight, reward), got {entry!r}")
            self.rewards[name] = (finite_number(f"weight of rewards[{name!r}]", entry[0]), entry[1])

    def parts(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        /,
        *,
        slots: Sequence[int] | None = None,
        **columns: Any,
    ) -> dict[str, list[float]]:
        """The unweighted values of every part, B floats each. Raises as `checked`, naming the part."""
        parts = {}
        for name, (_, reward) in self.rewards.items():
            try:
                parts[name] = checked(reward, prompts, completions, slots=slots, **columns)
            except RewardError as error:
                where = f"part {name!r}: {error}"
                raise RewardError(
                    where, slot=error.slot, text=error.text, value=error.value
                ) from error.__cause__
        return parts

    def combine(self, parts: Mapping[str, Sequence[float]]) -> list[float]:
        """The weighted sum of what `parts` returned."""
        weighted = [[weight * value for value in parts[name]] for name, (weight, _) in self.rewards.items()]
        return [sum(row) for row in zip(*weighted, strict=True)]

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """B texts in, B floats out."""
        return self.combine(self.parts(prompts, completions, **columns))


def _floats(values: Any, reward: str, completions: Sequence[str], slots: Sequence[int]) -> list[float]:
    """`values` as one finite float per completion; RewardError otherwise."""
    wanted = f"{len(completions)} finite numbers, one per completion"
    is_array = getattr(values, "ndim", None) == 1 and hasattr(values, "tolist")
    if not is_array and (isinstance(values, str | bytes) or not isinstance(values, Sequence)):
        what = f"{type(values).__name__} {reprlib.repr(values)}"
        raise RewardError(f"{reward} returned {what}, expected {wanted}", value=values)
    if len(values) != len(completions):
        raise RewardError(f"{reward} returned {len(values)} values, expected {wanted}", value=values)
    floats = []
    for slot, text, value in zip(slots, completions, values.tolist() if is_array else values, strict=True):
        number = finite_float(value)
        if number is None:
            got = f"{reprlib.repr(value)} ({type(value).__name__})"
            message = f"{reward} returned {got} for {_describe(slot, text)}, expected a finite number"
            raise RewardError(message, slot=slot, text=text, value=value)
        floats.append(number)
    return floats


def finite_float(value: Any) -> float | None:
    """`value` as a float if it is a finite int, float, NumPy scalar or 0-d array or tensor; else None."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an int beyond the floats
        return None
    return number if math.isfinite(number) else None


def _blame(
    error: Exception,
    reward: RewardFunction,
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    slots: Sequence[int],
    columns: Mapping[str, Any],
) -> RewardError:
    """The error to raise for a function that raised `error`: calls it row by row to find the slot."""
    name = _name(reward)
    for row, (slot, text) in enumerate(zip(slots, completions, strict=True)):
        own = {key: _row(column, row, len(completions)) for key, column in columns.items()}
        try:
            reward(prompts=[prompts[row]], completions=[text], **own)
        except Exception as own_error:
            message = f"{name} raised {_short(own_error)} for {_describe(slot, text)}"
            return RewardError(message, slot=slot, text=text, value=own_error)
    message = f"{name} raised {_short(error)} for {len(completions)} completions together, and for none alone"
    return RewardError(message, value=error)


def _row(column: Any, row: int, rows: int) -> Any:
    """The part of a column that belongs to one row; arguments that are not columns stay as they are."""
    is_column = isinstance(column, list | tuple) or getattr(column, "ndim", 0) > 0
    return column[row : row + 1] if is_column and len(column) == rows else column


def _name(reward: RewardFunction) -> str:
    return f"reward {getattr(reward, '__name__', type(reward).__name__)!r}"


def _describe(slot: int, text: str) -> str:
    return f"slot {slot} (completion {reprlib.repr(text)})"


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
