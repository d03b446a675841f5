"""The reference: a table that holds the exact action values."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from gymnasium.vector import VectorEnv

import lm_envs.toy
from agents.tabular.agent import Batch
from agents.tabular.value_agent import ValueAgent

_CHUNK = 2**16  # states that are shown at once


class ValueIteration(ValueAgent):
    """Solves a toy environment by `lm_envs.toy.solve` (one sweep from the longest texts to the prompts).

    Its observations must tell the whole context, so not "last_k".

    Args:
        env: a toy environment.
        settings: see `ValueAgent`; the behaviour only matters to `predict(deterministic=False)`.

    Raises:
        ValueError: observations that hide part of the context.
    """

    def __init__(self, env: VectorEnv, **settings: Any) -> None:
        super().__init__(env, **settings)
        view = getattr(env.unwrapped, "view", None)
        if getattr(view, "observation", None) == "last_k":
            raise ValueError('ValueIteration needs observations of the whole context, got "last_k"')

    def learn(
        self,
        total_timesteps: int = 0,
        callback: Any = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
    ) -> Self:
        """Solves the environment; it takes no steps and needs none of the arguments.

        Raises:
            TypeError: not a toy environment.
            ValueError: it is too large to solve.
        """
        solution = lm_envs.toy.solve(self.env, gamma=self.gamma)
        view = solution.tables.view
        for start in range(0, solution.num_states - 1, _CHUNK):
            states = np.arange(start, min(start + _CHUNK, solution.num_states - 1))
            rows = self.table.rows(view.observe_states(states))
            self.table["q"][rows] = solution.q_values[states]
        self.progress_remaining = 0.0
        return self

    def update(self, batch: Batch) -> None:
        """Nothing is learned from experience."""
