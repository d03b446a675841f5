"""Monte-Carlo control: action values from whole episodes, without bootstrapping."""

from __future__ import annotations

import numpy as np

from agents.tabular.agent import Batch
from agents.tabular.behaviour import GREEDY_LATE
from agents.tabular.history import History
from agents.tabular.value_agent import ValueAgent


class MonteCarlo(ValueAgent):
    """At an episode's end, Q of the first visit to each pair (s, a) moves toward the return that followed.

    It learns the values of its behaviour, so that they are the optimal ones only as far as that becomes
    greedy. A truncated episode's return goes on with the value that the behaviour has in the last context.
    Source: Sutton and Barto, "Reinforcement learning", 2018, 5.4.

    Args:
        env, settings: see `ValueAgent`.
    """

    exploration = GREEDY_LATE
    default_rate_power = 0.5  # whole returns are noisy, and are averaged more

    def begin(self) -> None:
        """See `TabularAgent.begin`."""
        self._history = History(self.env.num_envs)

    def update(self, batch: Batch) -> None:
        """See `TabularAgent.update`."""
        episodes = self._history.add(batch)
        if episodes is None:
            return
        expected = (batch.next_probabilities * self.preferences(batch.next_rows)).sum(axis=1)
        last_values = np.where(batch.terminated, 0.0, expected)[batch.ended]
        returns = episodes.returns(self.gamma, last_values)
        cells = episodes.rows * self.num_actions + episodes.actions
        size = self.table["q"].size
        episode = np.arange(len(cells))[:, None] * size
        is_step = episodes.is_step
        # An episode's steps are in order of time, so the first index is the first visit.
        _, first = np.unique((episode + cells)[is_step], return_index=True)
        self.move(cells[is_step][first], returns[is_step][first])
