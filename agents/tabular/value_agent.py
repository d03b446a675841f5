"""What the agents that learn action values share: the table Q, the behaviour, the step sizes."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium.vector import VectorEnv

from agents.tabular.agent import Batch, TabularAgent, check_unit
from agents.tabular.behaviour import Behaviour, EpsilonGreedy
from agents.tabular.schedules import Schedule, at, check_schedule
from agents.tabular.table import Column, move


class ValueAgent(TabularAgent):
    """Learns action values Q(s, a), and acts by a behaviour policy made of them.

    The i-th update of Q(s, a) has the step size `learning_rate / i^rate_power`: at power 1 the average of all
    targets, at 0 a constant step. The smaller the power, the sooner the first, poor targets are forgotten
    (Even-Dar and Mansour, "Learning rates for Q-learning", 2003); above 1/2 noise is averaged away with
    probability 1 (Robbins and Monro 1951), as noisy rewards and slips may need.

    Args:
        env: see `TabularAgent`.
        learning_rate: step size of the first update, in [0, 1].
        rate_power: how fast step sizes fall with the number of updates, in [0, 1]; None:
            `default_rate_power`.
        gamma: discount in [0, 1].
        behaviour: how to act while learning; None: `exploration`.
        initial_value: of all action values.
        dense: see `TabularAgent`.
        seed: see `TabularAgent`.
    """

    settings = (*TabularAgent.settings, "rate_power", "behaviour", "initial_value")
    exploration: ClassVar[Behaviour] = EpsilonGreedy()  # the default behaviour
    default_rate_power: ClassVar[float] = 0.4

    def __init__(
        self,
        env: VectorEnv,
        *,
        learning_rate: Schedule = 1.0,
        rate_power: float | None = None,
        gamma: float = 1.0,
        behaviour: Behaviour | None = None,
        initial_value: float = 0.0,
        dense: bool | None = None,
        seed: int | None = None,
    ) -> None:
        check_schedule("learning_rate", learning_rate, 0, 1)
        rate_power = self.default_rate_power if rate_power is None else rate_power
        check_unit("rate_power", rate_power)
        if isinstance(initial_value, bool) or not np.isfinite(initial_value):
            raise ValueError(f"initial_value must be a finite number, got {initial_value!r}")
        self.rate_power, self.initial_value = rate_power, initial_value
        self.behaviour = self.exploration if behaviour is None else behaviour
        super().__init__(env, learning_rate=learning_rate, gamma=gamma, dense=dense, seed=seed)
        self.behaviour.check(env)

    def columns(self) -> dict[str, Column]:
        """Action values, and how often each was updated."""
        return {"q": Column(self.initial_value), "visits": Column()}

    def q_values(self, observations: Any) -> np.ndarray:
        """The action values (n, A) of a batch of n observations; initial ones for unseen contexts."""
        return self.preferences(self.table.rows(observations, add=False))

    def preferences(self, rows: np.ndarray) -> np.ndarray:
        """The action values of rows; see `TabularAgent.preferences`."""
        return self.table["q"][rows]

    def behave(self, rows: np.ndarray, observations: Any) -> np.ndarray:
        """See `TabularAgent.behave`."""
        values = self.preferences(rows)
        return self.behaviour.probabilities(values, observations, self.env, self.progress_remaining)

    def move(self, cells: np.ndarray, targets: np.ndarray, q: str = "q", visits: str = "visits") -> None:
        """Moves the cells (row * A + action) of a table toward their targets; see `table.move`."""
        values = self.table[q].reshape(-1)
        rate = at(self.learning_rate, self.progress_remaining)
        errors = targets - values[cells]
        counts = self.table[visits].reshape(-1)
        move(values, counts, cells, errors, rate=rate, power=self.rate_power)

    def bootstrapped(self, batch: Batch, next_values: np.ndarray) -> np.ndarray:
        """Targets of one step: r + gamma V(s'), and r where the episode terminated."""
        return batch.rewards + self.gamma * np.where(batch.terminated, 0.0, next_values)
