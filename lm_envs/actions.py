"""Checks actions before anything happens. `Discrete.contains` would let `True` pass, and asserts vanish."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.error import InvalidAction


class Turn(str):
    """A completion as an action: `TextGenEnv.step` writes it as one whole turn, whatever its action mode."""

    __slots__ = ()


def check_action(action: Any, num_actions: int, slot: int | None = None) -> int:
    """One action as an int.

    Args:
        action: an int, a numpy integer or a 0-d integer array or tensor.
        num_actions: accepted are 0 to num_actions - 1.
        slot: the row of a vector environment, for the message.

    Raises:
        InvalidAction: anything else, bool and float among it; names action, value, range and slot.
    """
    value = action
    if not isinstance(action, int) and getattr(action, "shape", None) == ():
        value = np.asarray(action)[()]
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < num_actions:
        name = "action" if slot is None else f"action of slot {slot}"
        kind = type(action).__name__
        raise InvalidAction(f"{name} must be an integer in 0..{num_actions - 1}, got {action!r:.80} ({kind})")
    return int(value)


def check_actions(actions: Any, num_actions: int, used: np.ndarray) -> np.ndarray:
    """The actions of a vector environment as (B,) int64.

    Args:
        actions: (B,) integer array or tensor, or a list of B single actions.
        num_actions: accepted are 0 to num_actions - 1.
        used: (B,) bool; the actions of the other slots are read by no one, and 0 in the result.

    Raises:
        InvalidAction: another shape, or a used action that `check_action` refuses.
    """
    if hasattr(actions, "shape") and len(actions.shape) == 1 and not isinstance(actions, np.ndarray):
        actions = np.asarray(actions)
    is_batch = isinstance(actions, list | tuple) or (isinstance(actions, np.ndarray) and actions.ndim > 0)
    if not is_batch or len(actions) != len(used):
        raise InvalidAction(
            f"actions must be {len(used)} integers in 0..{num_actions - 1}, one per slot, got {actions!r:.80}"
        )
    if isinstance(actions, np.ndarray) and actions.dtype.kind in "iu" and actions.ndim == 1:
        in_range = len(actions) == 0 or (actions.min() >= 0 and actions.max() < num_actions)
        if in_range and np.count_nonzero(used) == len(used):
            return actions.astype(np.int64)
        if in_range or not (used & ((actions < 0) | (actions >= num_actions))).any():
            return np.where(used, actions, 0).astype(np.int64)
    checked = np.zeros(len(used), np.int64)
    for slot in np.flatnonzero(used).tolist():
        checked[slot] = check_action(actions[slot], num_actions, slot)
    return checked
