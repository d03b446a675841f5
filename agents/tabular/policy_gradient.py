"""Policy gradients for a softmax over a table of logits: REINFORCE and the one-step actor-critic."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from agents.tabular.agent import Batch, TabularAgent, check_unit
from agents.tabular.history import Episodes, History
from agents.tabular.schedules import Schedule, at, check_schedule
from agents.tabular.table import Column, Groups
from lm_envs.toy.solve import softmax


class PolicyGradient(TabularAgent):
    """A policy pi(a|s) proportional to exp(logits[s, a]), and a table V of its values.

    For this policy the gradient of log pi(a|s) by the logits of s is onehot(a) - pi(.|s). All visits of a
    context in a batch make one step together, `learning_rate` times their mean: the size of a step does not
    depend on the number of slots.

    Args:
        env: see `TabularAgent`.
        learning_rate: of the logits, >= 0.
        value_rate: step size of V, in [0, 1].
        gamma: discount in [0, 1].
        dense: see `TabularAgent`.
        seed: see `TabularAgent`.
    """

    settings = (*TabularAgent.settings, "value_rate")

    def __init__(
        self,
        env: VectorEnv,
        *,
        learning_rate: Schedule = 1.0,
        value_rate: float = 0.1,
        gamma: float = 1.0,
        dense: bool | None = None,
        seed: int | None = None,
    ) -> None:
        check_schedule("learning_rate", learning_rate, 0, np.inf)
        check_unit("value_rate", value_rate)
        self.value_rate = value_rate
        super().__init__(env, learning_rate=learning_rate, gamma=gamma, dense=dense, seed=seed)

    def columns(self) -> dict[str, Column]:
        """Logits, 0 at first, and values of contexts."""
        return {"logits": Column(), "values": Column(per_action=False)}

    def preferences(self, rows: np.ndarray) -> np.ndarray:
        """The logits of rows."""
        return self.table["logits"][rows]

    def behave(self, rows: np.ndarray, observations: Any) -> np.ndarray:
        """The policy itself."""
        return softmax(self.preferences(rows))

    def probabilities(self, observations: Any) -> np.ndarray:
        """The policy's probabilities (n, A) for a batch of n observations; uniform for unseen contexts."""
        return self.behave(self.table.rows(observations, add=False), observations)

    def climb(self, rows: np.ndarray, actions: np.ndarray, weights: np.ndarray) -> None:
        """One step up the gradients of sum_i weights_i log pi(actions_i | rows_i); (n,) all."""
        groups = Groups(rows)
        gradients = log_gradients(self.preferences(rows), actions) * weights[:, None]
        rate = at(self.learning_rate, self.progress_remaining)
        self.table["logits"][groups.cells] += rate * groups.sum(gradients) / groups.counts[:, None]

    def assess(self, rows: np.ndarray, targets: np.ndarray) -> None:
        """Moves V of rows toward their targets, (n,) both; equal rows as in `table.move`."""
        groups, values = Groups(rows), self.table["values"]
        steps = groups.step(np.full(len(rows), self.value_rate))
        values[groups.cells] += steps * groups.sum(targets - values[rows]) / groups.counts


class Reinforce(PolicyGradient):
    """REINFORCE: at an episode's end, log pi of each action is raised by gamma^t times its return.

    With `baseline`, by its return less V(s), which changes nothing on average (V does not depend on the
    action) but makes steps less noisy. Truncated episodes go on with the value of the last context; without
    a baseline, there is none, and they count as far as they went. Sources: Williams, "Simple statistical
    gradient-following algorithms for connectionist reinforcement learning", 1992; Sutton and Barto,
    "Reinforcement learning", 2018, 13.3 and 13.4.

    Args:
        baseline: learn V, and take it off.
        env, settings: see `PolicyGradient`.
    """

    settings = (*PolicyGradient.settings, "baseline")

    def __init__(self, env: VectorEnv, *, baseline: bool = True, **settings: Any) -> None:
        self.baseline = bool(baseline)
        super().__init__(env, **settings)

    def begin(self) -> None:
        """See `TabularAgent.begin`."""
        self._history = History(self.env.num_envs)

    def update(self, batch: Batch) -> None:
        """See `TabularAgent.update`."""
        episodes = self._history.add(batch)
        if episodes is None:
            return
        last_values = np.where(batch.terminated, 0.0, self.table["values"][batch.next_rows])[batch.ended]
        rows, actions, weights, returns = self.weigh(episodes, last_values)
        self.climb(rows, actions, weights)
        if self.baseline:
            self.assess(rows, returns)

    def weigh(
        self, episodes: Episodes, last_values: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Rows, actions, weights gamma^t (G_t - V(s_t)) and returns G_t of all steps, (n,) each.

        The sum of weights times `log_gradients`, over the number of episodes, is an unbiased estimate of the
        gradient of the expected return.
        """
        is_step = episodes.is_step
        returns = episodes.returns(self.gamma, last_values)
        advantages = returns - self.table["values"][episodes.rows] if self.baseline else returns
        weights = self.gamma ** np.arange(is_step.shape[1]) * advantages
        return episodes.rows[is_step], episodes.actions[is_step], weights[is_step], returns[is_step]


class ActorCritic(PolicyGradient):
    """One-step actor-critic: in every step, log pi of the action is raised by delta, and V moves by it too.

    delta = r + gamma V(s') - V(s) is an estimate of the advantage. Without the factor gamma^t of the exact
    gradient, as is usual. Source: Sutton and Barto, "Reinforcement learning", 2018, 13.5.
    """

    def update(self, batch: Batch) -> None:
        """See `TabularAgent.update`."""
        values = self.table["values"]
        following = np.where(batch.terminated, 0.0, values[batch.next_rows])
        targets = batch.rewards + self.gamma * following
        self.climb(batch.rows, batch.actions, targets - values[batch.rows])
        self.assess(batch.rows, targets)


def log_gradients(logits: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Gradients of log pi(action) by the logits: onehot(action) - pi, (n, A) from (n, A) and (n,)."""
    gradients = -softmax(logits)
    gradients[np.arange(len(actions)), actions] += 1
    return gradients
