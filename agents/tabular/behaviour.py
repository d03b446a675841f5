"""Behaviour policies: how an agent acts while it learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from agents.tabular.schedules import Exponential, Linear, Schedule, at, check_schedule
from lm_envs.toy.solve import softmax

_EPSILON = Linear(1.0, 0.0, 0.9)
_TEMPERATURE = Linear(1.0, 0.01, 0.9)


class Behaviour(ABC):
    """Probabilities of actions, given action values."""

    def check(self, env: VectorEnv) -> None:  # noqa: B027 (most behaviours suit every environment)
        """Raises ValueError if this behaviour cannot act in the environment."""

    @abstractmethod
    def probabilities(
        self, values: np.ndarray, observations: Any, env: VectorEnv, progress_remaining: float
    ) -> np.ndarray:
        """The probabilities of all actions for n contexts.

        Args:
            values: (n, A) action values.
            observations: the n contexts, batched as the environment batches them.
            env: where they come from.
            progress_remaining: falls from 1 to 0 while the agent learns.

        Returns:
            (n, A) float64; rows sum to 1.
        """


@dataclass(frozen=True)
class EpsilonGreedy(Behaviour):
    """With probability epsilon a uniformly random action, else one of the best, ties broken at random."""

    epsilon: Schedule = _EPSILON

    def __post_init__(self) -> None:
        check_schedule("epsilon", self.epsilon, 0, 1)

    def probabilities(
        self, values: np.ndarray, observations: Any, env: VectorEnv, progress_remaining: float
    ) -> np.ndarray:
        """See `Behaviour.probabilities`."""
        epsilon = at(self.epsilon, progress_remaining)
        best = values == values.max(axis=1, keepdims=True)
        share = (1 - epsilon) / best.sum(axis=1, keepdims=True)
        return best * share + epsilon / values.shape[1]


# For agents that learn the values of their behaviour: long nearly greedy, but never quite, so that an action
# that only seemed worse while there was much exploration is still tried.
GREEDY_LATE = EpsilonGreedy(Exponential(1.0, 0.01))


@dataclass(frozen=True)
class Softmax(Behaviour):
    """Boltzmann exploration: probabilities proportional to exp(Q / temperature)."""

    temperature: Schedule = _TEMPERATURE

    def __post_init__(self) -> None:
        check_schedule("temperature", self.temperature, 0, np.inf, open_low=True)

    def probabilities(
        self, values: np.ndarray, observations: Any, env: VectorEnv, progress_remaining: float
    ) -> np.ndarray:
        """See `Behaviour.probabilities`."""
        return softmax(values / at(self.temperature, progress_remaining))


@dataclass(frozen=True)
class Random(Behaviour):
    """Every action alike."""

    def probabilities(
        self, values: np.ndarray, observations: Any, env: VectorEnv, progress_remaining: float
    ) -> np.ndarray:
        """See `Behaviour.probabilities`."""
        return np.full(values.shape, 1 / values.shape[1])


@dataclass(frozen=True)
class Proposal(Behaviour):
    """What the environment's n-gram language model would write next: off-policy, whatever the values are.

    For toy environments whose observations ("tokens" or "index") tell the whole context.
    """

    def check(self, env: VectorEnv) -> None:
        """See `Behaviour.check`."""
        toy: Any = env.unwrapped
        model = getattr(toy, "language_model", None)
        if not hasattr(model, "probabilities") or toy.view.observation not in ("tokens", "index"):
            raise ValueError(
                'Proposal needs a toy environment with observation="tokens" or "index", '
                f"got {env!r:.80} with {env.single_observation_space!r:.80}"
            )

    def probabilities(
        self, values: np.ndarray, observations: Any, env: VectorEnv, progress_remaining: float
    ) -> np.ndarray:
        """See `Behaviour.probabilities`."""
        toy: Any = env.unwrapped
        if isinstance(observations, dict):
            lengths = observations["attention_mask"].sum(axis=1, dtype=np.int64)
            return toy.language_model.probabilities(observations["input_ids"], lengths)
        states = toy.task.states
        # Nothing is decided in the end state, whose number stands for no single context.
        tokens, lengths = states.tokens(np.minimum(observations, states.end - 1))
        return toy.language_model.probabilities(tokens, lengths)


def sample(probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One action per row by inverting the cumulative distribution: (n, A) in, (n,) int64 out."""
    cumulative = probabilities.cumsum(axis=1)
    draws = rng.random((len(probabilities), 1)) * cumulative[:, -1:]
    # Rounding may bring a draw up to the total; that is the last action's.
    return np.minimum((cumulative <= draws).sum(axis=1), probabilities.shape[1] - 1)
