"""Exact solutions of toy environments: backward induction over the layers of texts of the same length."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from lm_envs.toy.policies import Policy, policy_array
from lm_envs.toy.states import in_words
from lm_envs.toy.task import ToyTask, check_number
from lm_envs.toy.view import ToyView

MAX_STATES = 2_000_000
MAX_ENTRIES = 25_000_000  # states times tokens: 200 MB for each float64 table
_CHUNK = 2**16  # texts scored at once


class TradeOff(NamedTuple):
    """A point of the exact reward/KL frontier."""

    kl_coef: float
    expected_return: float  # of the optimal policy for this coefficient, without penalty
    kl: float  # its KL divergence from the reference, nats per episode


@dataclass(frozen=True)
class Evaluation:
    """What a policy is worth, exactly. With `kl_coef` > 0, every token's reward is less
    `kl_coef * log(policy / reference)`, as in PPO with a KL penalty.

    n states in the order of the index observation, the end state (all 0) last.
    """

    policy: np.ndarray  # (n, V)
    values: np.ndarray  # (n,)
    q_values: np.ndarray  # (n, V), the penalty of the token itself not yet taken off
    advantages: np.ndarray  # (n, V), its penalty taken off: what GAE estimates
    visits: np.ndarray  # (n,) expected visits per episode, undiscounted; each length sums to 1
    expected_return: float  # discounted, of the rewards alone
    kl: float  # discounted sum of KL(policy || reference) along an episode, nats
    objective: float  # expected_return - kl_coef * kl


class Tables:
    """A toy's rewards and reference probabilities for all states, in the order of the index observation.

    Args:
        task: the toy.
        view: how it shows its states.

    Raises:
        ValueError: too many states.
    """

    def __init__(self, task: ToyTask, view: ToyView) -> None:
        states = task.states
        if not is_solvable(task):
            raise ValueError(
                f"the state space is too large to solve: {in_words(states.num_states)} states "
                f"(at most {MAX_STATES}) with {states.vocab_size} tokens each "
                f"(at most {MAX_ENTRIES} in all); lower vocab_size or length"
            )
        self.task, self.states, self.view = task, states, view
        self.length, self.slip = states.length, task.dials.slip
        self.layers = [
            slice(start, start + size) for start, size in zip(states.offsets, states.sizes, strict=True)
        ]
        # Expected reward of each token that is written (not yet of the action: it may slip).
        self.token_rewards = np.zeros((states.num_states, states.vocab_size))
        for t, layer in enumerate(self.layers):
            flat = self.token_rewards[layer].reshape(-1)
            for start in range(0, len(flat), _CHUNK):
                stop = min(start + _CHUNK, len(flat))
                written = np.full(stop - start, t + 1)
                flat[start:stop] = task.rewards(*states.contexts(t + 1, start, stop), written)

    @cached_property
    def reference(self) -> np.ndarray:
        """The n-gram model's probabilities, (n, V) float64; uniform at the end."""
        reference = np.full_like(self.token_rewards, 1 / self.states.vocab_size)
        for t, layer in enumerate(self.layers):
            for start in range(layer.start, layer.stop, _CHUNK):
                stop = min(start + _CHUNK, layer.stop)
                prompts, completions = self.states.contexts(t, start - layer.start, stop - layer.start)
                contexts = np.concatenate([prompts, completions], axis=1)
                ends = self.states.prompt_length + t
                reference[start:stop] = self.task.rule.language_model.probabilities(contexts, ends)
        return reference

    def slipped(self, table: np.ndarray) -> np.ndarray:
        """From the worth of tokens to that of actions, (m, V) both."""
        if not self.slip:
            return table
        return (1 - self.slip) * table + self.slip * table.mean(axis=1, keepdims=True)

    def fill_action_values(self, q: np.ndarray, t: int, values: np.ndarray, gamma: float) -> None:
        """Writes Q of layer t, from the values (n,) of the next layer, into q (m, V)."""
        q[:] = self.token_rewards[self.layers[t]]
        if t + 1 < self.length:
            q += gamma * values[self.layers[t + 1]].reshape(q.shape)
        if self.slip:
            q[:] = self.slipped(q)


@dataclass(frozen=True)
class Solution:
    """The exact solution of a toy environment.

    n states in the order of the index observation, the end state (worth 0) last. With `kl_coef` > 0 values
    are those of the KL-regularised problem: the objective is the return less `kl_coef` times the KL
    divergence from the n-gram reference, V(s) = kl_coef log sum_a p_ref(a|s) exp(Q(s,a) / kl_coef), and
    policy(a|s) is proportional to p_ref(a|s) exp(Q(s,a) / kl_coef).
    """

    tables: Tables
    gamma: float
    kl_coef: float
    values: np.ndarray  # (n,)
    q_values: np.ndarray  # (n, V)
    optimal_return: float  # the optimal objective, over the uniformly drawn prompts

    @property
    def num_states(self) -> int:
        """n, the end state included."""
        return len(self.values)

    @cached_property
    def policy(self) -> np.ndarray:
        """An optimal policy, (n, V); without KL the first of the best tokens has probability 1."""
        if self.kl_coef:
            policy = self.tables.reference * np.exp((self.q_values - self.values[:, None]) / self.kl_coef)
            policy /= policy.sum(axis=1, keepdims=True)
            return policy
        policy = np.zeros_like(self.q_values)
        np.put_along_axis(policy, self.q_values.argmax(axis=1)[:, None], 1.0, axis=1)
        policy[-1] = 1 / policy.shape[1]
        return policy

    def evaluate(self, policy: Policy) -> Evaluation:
        """Exact policy evaluation.

        Args:
            policy: (n, V) probabilities, a function from observations to (m, V) probabilities, or an SB3
                model; see `lm_envs.toy.policies.policy_array`, which also lists the errors.
        """
        policy = policy_array(policy, self.tables.view)
        tables, states = self.tables, self.tables.states
        never = policy == 0
        log_ratio = policy / tables.reference
        log_ratio[never] = 1.0
        np.log(log_ratio, out=log_ratio)
        values, q_values = np.zeros(self.num_states), np.zeros(policy.shape)
        for t in reversed(range(tables.length)):
            layer = tables.layers[t]
            tables.fill_action_values(q_values[layer], t, values, self.gamma)
            worth = q_values[layer] - self.kl_coef * log_ratio[layer] if self.kl_coef else q_values[layer]
            values[layer] = np.einsum("sa,sa->s", policy[layer], worth)
        visits, expected_return, kl = np.zeros(self.num_states), 0.0, 0.0
        visits[tables.layers[0]] = 1 / states.num_prompts
        for t, layer in enumerate(tables.layers):
            discounted = self.gamma**t * visits[layer]
            rewards = tables.slipped(tables.token_rewards[layer])
            expected_return += float(discounted @ np.einsum("sa,sa->s", policy[layer], rewards))
            kl += float(discounted @ np.einsum("sa,sa->s", policy[layer], log_ratio[layer]))
            if t + 1 < tables.length:
                written = tables.slipped(policy[layer])
                visits[tables.layers[t + 1]] = (visits[layer][:, None] * written).reshape(-1)
        visits[-1] = 1.0
        advantages = q_values - values[:, None]
        if self.kl_coef:
            advantages -= self.kl_coef * log_ratio
            advantages[never] = np.inf
        advantages[-1] = 0.0
        return Evaluation(
            policy,
            values,
            q_values,
            advantages,
            visits,
            expected_return,
            kl,
            float(values[tables.layers[0]].mean()),
        )

    @cached_property
    def uniform_return(self) -> float:
        """The objective of uniformly random tokens."""
        return self.evaluate(np.full_like(self.q_values, 1 / self.q_values.shape[1])).objective

    def regret(self, policy: Policy) -> float:
        """`(V* - V_policy) / (V* - V_uniform)`: 0 for an optimal policy, 1 for a uniformly random one.

        Raises:
            ValueError: every policy has the same return, as where all tokens slip.
        """
        gap = self.optimal_return - self.uniform_return
        if gap < 1e-12:
            raise ValueError("regret needs a best policy, but here all have the same return (slip=1, say)")
        return (self.optimal_return - self.evaluate(policy).objective) / gap

    def policy_gradient(self, logits: np.ndarray) -> np.ndarray:
        """The exact gradient of the objective by the logits of a softmax policy.

        Args:
            logits: (n, V) float64, finite.

        Returns:
            (n, V): gamma^t visits(s) policy(a|s) advantage(s, a) (Sutton et al. 2000).
        """
        policy = softmax(logits)
        evaluation = self.evaluate(policy)
        # Where a probability underflows to 0, its penalty is infinite, and their product tends to 0.
        advantages = np.where(policy > 0, evaluation.advantages, 0.0)
        gradient = evaluation.visits[:, None] * policy * advantages
        for t, layer in enumerate(self.tables.layers):
            gradient[layer] *= self.gamma**t
        return gradient

    def frontier(self, kl_coefs: Iterable[float]) -> list[TradeOff]:
        """The exact reward/KL trade-off: what the optimal policies for these coefficients (> 0) reach."""
        points = []
        for kl_coef in kl_coefs:
            if not 0 < check_number("kl_coef", kl_coef) < np.inf:
                raise ValueError(f"kl_coefs must be > 0 and finite, got {kl_coef!r}")
            solution = backward_induction(self.tables, self.gamma, kl_coef)
            evaluation = solution.evaluate(solution.policy)
            points.append(TradeOff(kl_coef, evaluation.expected_return, evaluation.kl))
        return points


def solve(env: Any, gamma: float = 1.0, kl_coef: float = 0.0) -> Solution:
    """Solves a toy environment exactly.

    Args:
        env: a toy environment, single or vector, wrapped or not. Its rewards count as expected ones: noise
            changes nothing, slips do.
        gamma: discount per token, in 0..1.
        kl_coef: price of a nat of KL divergence from the n-gram reference (`env.unwrapped.language_model`),
            >= 0 and finite.

    Returns:
        Values, optimal policy and the means to judge other policies. A million states take seconds.

    Raises:
        TypeError: not a toy environment.
        ValueError: gamma or kl_coef out of range, or more than `MAX_STATES` states.
    """
    if not 0 <= check_number("gamma", gamma) <= 1:
        raise ValueError(f"gamma must be in 0..1, got {gamma!r}")
    if not 0 <= check_number("kl_coef", kl_coef) < np.inf:
        raise ValueError(f"kl_coef must be >= 0 and finite, got {kl_coef!r}")
    return backward_induction(Tables(*toy_of(env)), gamma, kl_coef)


def toy_of(env: Any) -> tuple[ToyTask, ToyView]:
    """The toy behind an environment and how it shows its states; TypeError if it is no toy environment."""
    toy: Any = getattr(env, "unwrapped", None)
    if not isinstance(getattr(toy, "task", None), ToyTask):
        raise TypeError(f"env must be a toy environment, got {env!r:.80}")
    return toy.task, toy.view


def is_solvable(task: ToyTask) -> bool:
    """Whether the state space is within the limits of `solve`."""
    states = task.states
    return states.num_states <= MAX_STATES and states.num_states * states.vocab_size <= MAX_ENTRIES


def backward_induction(tables: Tables, gamma: float, kl_coef: float) -> Solution:
    """Values of all states, from the longest texts to the prompts."""
    values, q_values = np.zeros(len(tables.token_rewards)), np.zeros(tables.token_rewards.shape)
    for t in reversed(range(tables.length)):
        layer = tables.layers[t]
        q = q_values[layer]
        tables.fill_action_values(q, t, values, gamma)
        values[layer] = best = q.max(axis=1)
        if kl_coef:
            # log sum p exp(x) as log1p(sum p expm1(x)), which stays exact for large coefficients.
            terms = np.expm1((q - best[:, None]) / kl_coef)
            terms *= tables.reference[layer]
            values[layer] += kl_coef * np.log1p(terms.sum(axis=1))
    return Solution(tables, gamma, kl_coef, values, q_values, float(values[tables.layers[0]].mean()))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of rows of logits."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)
