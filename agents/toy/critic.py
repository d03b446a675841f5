"""Critic and GAE against the truth: exact values and advantages of the policy in training, on a toy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from lm_envs.toy import Evaluation, Solution, solve


class Agreement(NamedTuple):
    """How far estimates are from exact numbers."""

    correlation: float  # Pearson's; NaN where either side is constant
    rmse: float


class CriticAudit(BaseCallback):
    """Logs, each rollout, how far a toy's critic and its GAE are from the truth.

    The truth is V and A of the policy that wrote the rollout, by `lm_envs.toy.Solution.evaluate`, with the KL
    penalty of an `EpisodeRolloutBuffer`, for the algorithm's gamma. The penalty's reference is taken to be
    the toy's n-gram model. GAE is judged before it is whitened, as returns - values. At gae_lambda=1 it
    estimates A + V - value without bias, with the noise of what an episode earns; with an exact critic it
    estimates A at every lambda, and at lambda=0, where steps are deterministic, it equals A.

    Logs: `audit/value_correlation`, `audit/value_rmse`, `audit/advantage_correlation`,
        `audit/advantage_rmse` over the rollout's actions; `audit/objective`, exact: return less penalty.

    Args:
        env: the toy environment that is trained on, or one alike; single or vector.
        every: rollouts from one audit to the next; the policy is asked in every state, which takes a second.

    Attributes:
        values, advantages: the `Agreement` of the newest rollout that was audited; None before the first.
        evaluation: the exact evaluation of the policy that wrote it.

    Raises:
        TypeError: env is not a toy environment.
        ValueError: its state space is too large to be solved, or every is not positive.
    """

    model: OnPolicyAlgorithm

    def __init__(self, env: Any, every: int = 1) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every!r}")
        self.env, self.every = env, every
        self.values: Agreement | None = None
        self.advantages: Agreement | None = None
        self.evaluation: Evaluation | None = None
        self._solution: Solution = solve(env)
        self._states: list[np.ndarray] = []
        self._rollouts = 0

    def _on_training_start(self) -> None:
        """Raises ValueError unless observations are tokens."""
        space = self.training_env.observation_space
        if not isinstance(space, spaces.Dict):
            raise ValueError(f'the audit needs observation="tokens", got {space}')

    def _on_rollout_start(self) -> None:
        self._states = []
        self._rollouts += 1

    @property
    def _is_due(self) -> bool:
        return (self._rollouts - 1) % self.every == 0

    def _on_step(self) -> bool:
        if not self._is_due:
            return True
        observation = self.locals["obs_tensor"]  # what the action was chosen from
        tokens = observation["input_ids"].cpu().numpy().astype(np.int64)
        lengths = observation["attention_mask"].cpu().numpy().sum(axis=1, dtype=np.int64)
        self._states.append(self._solution.tables.states.numbers(tokens, lengths))
        return True

    def _on_rollout_end(self) -> None:
        if not self._is_due:
            return
        buffer: Any = self.model.rollout_buffer
        kl_coef = getattr(buffer, "kl_coef", None) or 0.0
        if (self._solution.kl_coef, self._solution.gamma) != (kl_coef, self.model.gamma):
            self._solution = solve(self.env, gamma=self.model.gamma, kl_coef=kl_coef)
        self.evaluation = self._solution.evaluate(self.model)
        states = np.stack(self._states)
        exact = self.evaluation.advantages[states, buffer.actions.reshape(states.shape).astype(np.int64)]
        self.values = agreement(buffer.values, self.evaluation.values[states])
        self.advantages = agreement(buffer.returns - buffer.values, exact)
        self.logger.record("audit/value_correlation", self.values.correlation)
        self.logger.record("audit/value_rmse", self.values.rmse)
        self.logger.record("audit/advantage_correlation", self.advantages.correlation)
        self.logger.record("audit/advantage_rmse", self.advantages.rmse)
        self.logger.record("audit/objective", self.evaluation.objective)


def agreement(estimates: np.ndarray, exact: np.ndarray) -> Agreement:
    """Correlation and root-mean-square error of estimates, arrays of the same shape."""
    rmse = float(np.sqrt(np.mean((estimates - exact) ** 2)))
    if np.ptp(estimates) == 0 or np.ptp(exact) == 0:
        return Agreement(float("nan"), rmse)
    return Agreement(float(np.corrcoef(estimates.ravel(), exact.ravel())[0, 1]), rmse)
