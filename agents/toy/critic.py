"""Critic and GAE against the truth: exact values and advantages of the policy in training, on a toy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from lm_envs.toy import Evaluation, Solution, solve
from lm_envs.toy.solve import toy_of


class Agreement(NamedTuple):
    """How far estimates are from exact numbers."""

    correlation: float  # Pearson's; NaN where either side is constant
    rmse: float


class Audited(NamedTuple):
    """What an audit found."""

    rollout: int  # from 1
    values: Agreement  # the value head against V
    advantages: Agreement  # GAE against A


class CriticAudit(BaseCallback):
    """Logs, each rollout of PPO or A2C, how far a toy's critic and its GAE are from the truth.

    `model.learn(steps, callback=CriticAudit(env))`. The truth is V and A of the policy that wrote the
    rollout, by `lm_envs.toy.Solution.evaluate`, for the algorithm's gamma and, with an
    `EpisodeRolloutBuffer`, its KL penalty. The penalty's reference is taken to be
    the toy's n-gram model. GAE is judged before it is whitened, as returns - values. At gae_lambda=1 it
    estimates A + V - value without bias, with the noise of what an episode earns; with an exact critic it
    estimates A at every lambda, and at lambda=0, where steps are deterministic, it equals A.

    Logs: `audit/value_correlation`, `audit/value_rmse`, `audit/advantage_correlation`,
        `audit/advantage_rmse` over the rollout's actions; `audit/objective`, exact: return less penalty.

    Args:
        env: the toy environment that is trained on, or one alike; single or vector, and in any mode but
            "last_k", which hides the state.
        every: rollouts from one audit to the next; the policy is asked in every state, which takes a second.

    Attributes:
        history: one `Audited` for each rollout that was audited.
        evaluation: the exact evaluation of the policy that wrote the newest of them; None before the first.

    Raises:
        TypeError: env is not a toy environment.
        ValueError: its state space is too large to be solved, it hides the state, or every is not positive;
            when training starts: its observations are not those of the environment that is trained on.
    """

    model: OnPolicyAlgorithm

    def __init__(self, env: Any, every: int = 1) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every!r}")
        self.env, self.every = env, every
        self.history: list[Audited] = []
        self.evaluation: Evaluation | None = None
        self._view = toy_of(env)[1]
        self._view.state_numbers(self._view.observe_states(np.arange(1)))  # raises unless states are shown
        self._solution: Solution = solve(env)
        self._states: list[np.ndarray] = []
        self._rollouts = 0

    def _on_training_start(self) -> None:
        """Raises ValueError unless the policy sees what the audit's environment shows."""
        space = self.training_env.observation_space
        if space != self._view.observation_space:
            raise ValueError(f"env must show {space} as in training, got {self._view.observation_space}")

    def _on_rollout_start(self) -> None:
        self._states = []
        self._rollouts += 1

    @property
    def _is_due(self) -> bool:
        return (self._rollouts - 1) % self.every == 0

    def _on_step(self) -> bool:
        if not self._is_due:
            return True
        seen = self.locals["obs_tensor"]  # what the action was chosen from
        if isinstance(seen, dict):
            observations: Any = {key: tensor.cpu().numpy() for key, tensor in seen.items()}
        else:
            observations = seen.cpu().numpy()
        self._states.append(self._view.state_numbers(observations))
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
        values = agreement(buffer.values, self.evaluation.values[states])
        advantages = agreement(buffer.returns - buffer.values, exact)
        self.history.append(Audited(self._rollouts, values, advantages))
        self.logger.record("audit/value_correlation", values.correlation)
        self.logger.record("audit/value_rmse", values.rmse)
        self.logger.record("audit/advantage_correlation", advantages.correlation)
        self.logger.record("audit/advantage_rmse", advantages.rmse)
        self.logger.record("audit/objective", self.evaluation.objective)


def agreement(estimates: np.ndarray, exact: np.ndarray) -> Agreement:
    """Correlation and root-mean-square error of estimates, arrays of the same shape."""
    rmse = float(np.sqrt(np.mean((estimates - exact) ** 2)))
    if np.ptp(estimates) == 0 or np.ptp(exact) == 0:
        return Agreement(float("nan"), rmse)
    return Agreement(float(np.corrcoef(estimates.ravel(), exact.ravel())[0, 1]), rmse)
