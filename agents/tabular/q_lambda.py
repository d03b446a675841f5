"""Watkins's Q(lambda): what is learned now also moves the actions that led here, while they were greedy."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from agents.tabular.agent import Batch, check_unit
from agents.tabular.schedules import at
from agents.tabular.table import Groups
from agents.tabular.value_agent import ValueAgent


class QLambda(ValueAgent):
    """Q-learning with eligibility traces that end at the first action that is not greedy.

    With the error delta = r + gamma max_b Q(s', b) - Q(s, a), every pair of the episode's trace moves by
    step * e * delta. The pair just taken has e = 1 (replacing traces); the others' e fall by gamma * lambda a
    step. If the next action is none of the best, the trace is cut: what follows says nothing about greedy
    play.

    Each slot has a trace of its own. A pair that is in several traces moves in the mean direction of its
    errors, weighted by e, by 1 - prod_i(1 - step_i e_i) of the way: what `table.move` does where e = 1. Step
    sizes fall with the number of times that a pair was taken.

    Source: Watkins, "Learning from delayed rewards", 1989; Sutton and Barto, "Reinforcement learning", 1998,
    7.6; replacing traces: Singh and Sutton, "Reinforcement learning with replacing eligibility traces", 1996.

    Args:
        trace_decay: lambda in [0, 1]. 0 is Q-learning with the same `rate_power`.
        env, settings: see `ValueAgent`.
    """

    settings = (*ValueAgent.settings, "trace_decay")
    default_rate_power = 0.3  # a trace carries poor first targets to the whole text: sooner forgotten

    def __init__(self, env: VectorEnv, *, trace_decay: float = 0.9, **settings: Any) -> None:
        check_unit("trace_decay", trace_decay)
        self.trace_decay = trace_decay
        super().__init__(env, **settings)

    def begin(self) -> None:
        """Empty traces: (B, M) pairs and their e, of which the first `lengths` of each slot count."""
        self._cells = np.zeros((self.env.num_envs, 8), np.int64)
        self._eligible = np.zeros(self._cells.shape)
        self._lengths = np.zeros(self.env.num_envs, np.int64)

    def update(self, batch: Batch) -> None:
        """See `TabularAgent.update`."""
        q, visits = self.table["q"].reshape(-1), self.table["visits"].reshape(-1)
        cells = batch.rows * self.num_actions + batch.actions
        next_values = self.table["q"][batch.next_rows]
        best = next_values.max(axis=1)
        errors = self.bootstrapped(batch, best) - q[cells]
        np.add.at(visits, cells, 1)
        self._append(batch.slots, cells)

        width = int(self._lengths.max())
        traces, eligible = self._cells[batch.slots, :width], self._eligible[batch.slots, :width]
        slot, _ = alive = np.nonzero(eligible)
        traced, weights = traces[alive], eligible[alive]
        steps = at(self.learning_rate, self.progress_remaining) * weights
        if self.rate_power:
            steps *= visits[traced] ** -self.rate_power
        groups = Groups(traced)
        direction = groups.sum(weights * errors[slot]) / groups.sum(weights)
        q[groups.cells] += groups.step(steps) * direction

        taken = next_values[np.arange(len(cells)), batch.next_actions]
        cut = batch.ended | (taken < best)
        self._eligible[batch.slots] *= np.where(cut, 0.0, self.gamma * self.trace_decay)[:, None]
        self._lengths[batch.slots[cut]] = 0

    def _append(self, slots: np.ndarray, cells: np.ndarray) -> None:
        """Gives the pairs just taken e = 1, in the places where they already are, if they are."""
        if self._lengths.max() == self._cells.shape[1]:
            self._cells = np.pad(self._cells, ((0, 0), (0, self._cells.shape[1])))
            self._eligible = np.pad(self._eligible, ((0, 0), (0, self._eligible.shape[1])))
        lengths = self._lengths[slots]
        width = int(lengths.max()) + 1
        known = (self._cells[slots, :width] == cells[:, None]) & (np.arange(width) < lengths[:, None])
        is_known = known.any(axis=1)
        places = np.where(is_known, known.argmax(axis=1), lengths)
        self._cells[slots, places] = cells
        self._eligible[slots, places] = 1.0
        self._lengths[slots] += ~is_known
