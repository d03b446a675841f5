"""What each slot has done since its episode began, for agents that learn at the end of episodes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from agents.tabular.agent import Batch


class Episodes(NamedTuple):
    """n whole episodes, padded to M steps."""

    rows: np.ndarray  # (n, M) int64
    actions: np.ndarray  # (n, M) int64
    rewards: np.ndarray  # (n, M) float64
    lengths: np.ndarray  # (n,) int64

    @property
    def is_step(self) -> np.ndarray:
        """(n, M) bool: False for padding."""
        return np.arange(self.rows.shape[1]) < self.lengths[:, None]

    def returns(self, gamma: float, last_values: np.ndarray) -> np.ndarray:
        """G_t = r_t + gamma G_{t+1}, (n, M); `last_values` (n,) is what follows the last step."""
        returns, following, is_step = np.zeros(self.rewards.shape), last_values, self.is_step
        for t in reversed(range(self.rewards.shape[1])):
            following = np.where(is_step[:, t], self.rewards[:, t] + gamma * following, following)
            returns[:, t] = following
        return returns


class History:
    """Collects the steps of B slots.

    Args:
        num_slots: B.
    """

    def __init__(self, num_slots: int) -> None:
        self._rows = np.zeros((num_slots, 8), np.int64)
        self._actions = np.zeros_like(self._rows)
        self._rewards = np.zeros(self._rows.shape)
        self._lengths = np.zeros(num_slots, np.int64)

    def add(self, batch: Batch) -> Episodes | None:
        """Adds one step; hands out the episodes of the slots where `batch.ended`, in their order."""
        if self._lengths.max() == self._rows.shape[1]:
            wider = ((0, 0), (0, self._rows.shape[1]))
            self._rows, self._actions = np.pad(self._rows, wider), np.pad(self._actions, wider)
            self._rewards = np.pad(self._rewards, wider)
        at = batch.slots, self._lengths[batch.slots]
        self._rows[at], self._actions[at], self._rewards[at] = batch.rows, batch.actions, batch.rewards
        self._lengths[batch.slots] += 1
        slots = batch.slots[batch.ended]
        if not len(slots):
            return None
        lengths = self._lengths[slots]
        width = int(lengths.max())
        self._lengths[slots] = 0
        at_most = np.s_[slots, :width]
        return Episodes(self._rows[at_most], self._actions[at_most], self._rewards[at_most], lengths)
