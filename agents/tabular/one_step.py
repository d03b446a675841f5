"""The one-step agents. They differ in one line: what the next context is taken to be worth."""

from __future__ import annotations

import numpy as np

from agents.tabular.agent import Batch
from agents.tabular.behaviour import GREEDY_LATE, EpsilonGreedy
from agents.tabular.schedules import Linear
from agents.tabular.table import Column
from agents.tabular.value_agent import ValueAgent


class QLearning(ValueAgent):
    """Target r + gamma max_b Q(s', b): the optimal values, whatever the behaviour.

    Source: Watkins, "Learning from delayed rewards", 1989; Watkins and Dayan, "Q-learning", 1992.
    """

    def update(self, batch: Batch) -> None:
        """See `TabularAgent.update`."""
        best = self.table["q"][batch.next_rows].max(axis=1)
        self.move(batch.rows * self.num_actions + batch.actions, self.bootstrapped(batch, best))


class Sarsa(ValueAgent):
    """Target r + gamma Q(s', a') with the action a' that is taken next: the values of the behaviour.

    They tend to the optimal ones if the behaviour becomes greedy. Source: Rummery and Niranjan, "On-line
    Q-learning using connectionist systems", 1994; Sutton and Barto, "Reinforcement learning", 2018, 6.4.
    """

    exploration = GREEDY_LATE
    default_rate_power = 0.3  # the first targets, of a behaviour that explored, are soon forgotten

    def update(self, batch: Batch) -> None:
        """See `TabularAgent.update`."""
        taken = self.table["q"][batch.next_rows, batch.next_actions]
        self.move(batch.rows * self.num_actions + batch.actions, self.bootstrapped(batch, taken))


class ExpectedSarsa(ValueAgent):
    """Target r + gamma sum_b pi(b|s') Q(s', b), pi the behaviour: Sarsa without the noise of the next action.

    With so little noise it can forget old targets, those of a behaviour that explored more, sooner than
    Sarsa. Source: van Seijen et al., "A theoretical and empirical analysis of Expected Sarsa", 2009.
    """

    default_rate_power = 0.2

    def update(self, batch: Batch) -> None:
        """See `TabularAgent.update`."""
        expected = (batch.next_probabilities * self.table["q"][batch.next_rows]).sum(axis=1)
        self.move(batch.rows * self.num_actions + batch.actions, self.bootstrapped(batch, expected))


class DoubleQLearning(ValueAgent):
    """Two tables; one picks the next action, the other one says what it is worth.

    The maximum over noisy estimates is biased upward. A fair coin per experience decides which table learns:
    for A the target is r + gamma Q_B(s', argmax_b Q_A(s', b)). The agent acts by the mean of both. Source:
    van Hasselt, "Double Q-learning", 2010.

    Each table sees half of the experience, so by default it explores more than the others.
    """

    exploration = EpsilonGreedy(Linear(1.0, 0.5))

    def columns(self) -> dict[str, Column]:
        """Both tables and their counts."""
        other = {"q_other": Column(self.initial_value), "visits_other": Column()}
        return {**super().columns(), **other}

    def preferences(self, rows: np.ndarray) -> np.ndarray:
        """The mean of both tables."""
        return (self.table["q"][rows] + self.table["q_other"][rows]) / 2

    def update(self, batch: Batch) -> None:
        """See `TabularAgent.update`."""
        cells = batch.rows * self.num_actions + batch.actions
        heads = self.rng.random(len(cells)) < 0.5
        names = ("q", "visits"), ("q_other", "visits_other")
        targets = []
        for (learner, _), (judge, _) in (names, names[::-1]):
            best = self.table[learner][batch.next_rows].argmax(axis=1)
            targets.append(self.bootstrapped(batch, self.table[judge][batch.next_rows, best]))
        for mine, target, (q, visits) in zip((heads, ~heads), targets, names, strict=True):
            self.move(cells[mine], target[mine], q, visits)
