"""What a learner's policy is worth, while it learns: exactly on a toy that can be solved, else by playing."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import VectorEnv
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from tqdm import TqdmExperimentalWarning

from agents.tabular.policy_gradient import PolicyGradient
from agents.tabular.slots import Slots
from lm_envs.toy import Solution, regret, solve
from lm_envs.toy.task import ToyTask


class Point(NamedTuple):
    """A point of the learning curve."""

    timesteps: int
    expected_return: float
    regret: float  # NaN where it is not known


class Judge:
    """Measures a learner's policy: the stochastic one of policy gradients and PPO, else the greedy one.

    On a toy too large to solve the regret is an estimate by `lm_envs.toy.regret` (gamma = 1, no slips).

    Args:
        learner: who is judged, a tabular agent or an SB3 algorithm.
        env: environments of its own with the learner's observations, to play in.

    Attributes:
        is_stochastic: whether the stochastic policy is judged.
        solution: None where there is no exact one.
        optimal_return: NaN where there is no exact solution.
    """

    episodes = 1000  # to play where there is no exact solution

    def __init__(self, learner: Any, env: VectorEnv) -> None:
        self.learner, self.env = learner, env
        self.is_stochastic = isinstance(learner, PolicyGradient | OnPolicyAlgorithm)
        self.solution: Solution | None = None
        task = getattr(env.unwrapped, "task", None)
        self.has_estimate = isinstance(task, ToyTask) and learner.gamma == 1 and not task.dials.slip
        if isinstance(task, ToyTask):
            try:
                self.solution = solve(env, gamma=learner.gamma)
            except ValueError as error:
                print(f"no exact solution: {error}")
        self.optimal_return = np.nan if self.solution is None else self.solution.optimal_return

    @property
    def policy(self) -> Any:
        """What is judged, as `Solution.evaluate` takes it."""
        return self.learner.probabilities if isinstance(self.learner, PolicyGradient) else self.learner

    def __call__(self) -> Point:
        """The policy now."""
        steps = self.learner.num_timesteps
        if self.solution is None:
            known = self.has_estimate
            share = regret(self.env, self.policy, episodes=self.episodes).value if known else np.nan
            return Point(steps, self._play(), share)
        achieved = self.solution.evaluate(self.policy).objective
        gap = self.solution.optimal_return - self.solution.uniform_return
        return Point(steps, achieved, (self.solution.optimal_return - achieved) / gap)

    def greedy_regret(self) -> float:
        """The regret of the policy's most probable tokens; NaN where there is no exact solution."""
        if self.solution is None:
            return np.nan
        policy = self.solution.evaluate(self.policy).policy
        return self.solution.regret(np.eye(policy.shape[1])[policy.argmax(axis=1)])

    def _play(self) -> float:
        """The mean discounted return of whole episodes, the same number in every slot."""
        slots, count = Slots(self.env), -(-self.episodes // self.env.num_envs)
        observations = slots.reset(seed=0)
        returns = np.zeros((self.env.num_envs, count))
        played, discount = np.zeros(self.env.num_envs, np.int64), np.ones(self.env.num_envs)
        while (played < count).any():
            actions, _ = self.learner.predict(observations, deterministic=not self.is_stochastic)
            step = slots.step(actions - slots.first_action)
            at = step.slots
            counts = played[at] < count
            returns[at[counts], played[at[counts]]] += (discount[at] * step.rewards)[counts]
            discount[at] = np.where(step.ended, 1.0, discount[at] * self.learner.gamma)
            played[at] += step.ended
            observations = step.observations
        return float(returns.mean())


def learn(
    judge: Judge, total_timesteps: int, points: int, callbacks: Iterable[BaseCallback] = ()
) -> tuple[list[Point], float]:
    """Lets the judged learner learn, and measures it.

    Args:
        judge: of a learner that is new.
        total_timesteps: environment steps.
        points: points of the learning curve after the first, at equal distances on a logarithmic axis.
        callbacks: further SB3 callbacks.

    Returns:
        The learning curve, from the untrained policy to the last one, and the seconds (wall clock) that
        learning took without the measuring.
    """
    learner = judge.learner
    curve = [judge()]
    first = min(1000, total_timesteps)
    milestones = np.geomspace(first, total_timesteps, max(points, 1)).astype(int)[:-1].tolist()
    measuring = 0.0

    def measure(local_variables: dict[str, Any], global_variables: dict[str, Any]) -> bool:
        nonlocal measuring
        if milestones and milestones[0] <= learner.num_timesteps < total_timesteps:
            began = time.perf_counter()
            curve.append(judge())
            while milestones and milestones[0] <= learner.num_timesteps:
                milestones.pop(0)
            measuring += time.perf_counter() - began
        return True

    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmExperimentalWarning)  # SB3's progress bar
        hooks = [*callbacks, ConvertCallback(measure)]
        learner.learn(total_timesteps, callback=hooks, progress_bar=True)
    seconds = time.perf_counter() - began - measuring
    return [*curve, judge()], seconds
