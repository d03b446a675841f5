"""Regret of a policy: exact where the toy can be solved, from rollouts with an interval where it cannot."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lm_envs.core import EnvCore, draw_keys
from lm_envs.rewards.base import whole_number
from lm_envs.toy.games import core_of
from lm_envs.toy.policies import Policy, probabilities
from lm_envs.toy.solve import Tables, backward_induction, is_solvable, toy_of

_NORMAL_95 = 1.959963984540054  # the 97.5% quantile of the standard normal distribution


class Regret(NamedTuple):
    """`(V* - V_policy) / (V* - V_uniform)`, for gamma = 1 and without KL penalty."""

    value: float
    low: float  # of the 95% interval; the value itself where that is exact
    high: float
    is_exact: bool


def regret(env: Any, policy: Policy, *, episodes: int = 10_000, seed: int = 0) -> Regret:
    """How far a policy is from the optimum, on a scale where uniformly random tokens have regret 1.

    Args:
        env: a toy environment.
        policy: as in `Solution.evaluate`; for a space too large to solve a function or a model, not an array.
        episodes: rollouts each of the policy and of random tokens, >= 2; read only where they are needed.
        seed: of the rollouts.

    Returns:
        The exact regret if the space can be solved. Otherwise V* is the rule's own optimum, the two returns
        are means over episodes, and the interval is theirs by the delta method.

    Raises:
        TypeError: not a toy environment, or no policy.
        ValueError: a bad policy, fewer than 2 episodes, or slips in a space too large to solve.
    """
    task, view = toy_of(env)
    if is_solvable(task):
        value = backward_induction(Tables(task, view), 1.0, 0.0).regret(policy)
        return Regret(value, value, value, True)
    if task.dials.slip:
        raise ValueError(f"slip must be 0 where the space is too large to solve, got {task.dials.slip}")
    episodes = whole_number("episodes", episodes, 2)
    size = task.rule.vocab_size
    best, rng = task.rule.optimum(), np.random.default_rng(seed)
    acting, uniform = (
        _returns(core_of(task, episodes, view.observation, view.last_k), act, rng)
        for act in (probabilities(policy, size), lambda observations: np.full((episodes, size), 1 / size))
    )
    gap = best - uniform.mean()
    value = (best - acting.mean()) / gap
    # d value = (value d uniform - d acting) / gap
    variance = (acting.var(ddof=1) + value**2 * uniform.var(ddof=1)) / episodes / gap**2
    half = _NORMAL_95 * float(np.sqrt(variance))
    return Regret(float(value), float(value) - half, float(value) + half, False)


def _returns(core: EnvCore, act: Any, rng: np.random.Generator) -> np.ndarray:
    """Returns (n,) of one episode in every slot, with tokens drawn from the policy's probabilities."""
    slots = core.episodes.all_slots
    core.episodes.seed(slots, draw_keys(rng, len(slots)))
    core.episodes.begin(slots)
    for _ in range(core.episodes.max_new_tokens):
        chances = np.cumsum(act(core.view.look(slots)[0]), axis=1)
        draws = rng.random((len(slots), 1)) * chances[:, -1:]
        core.episodes.step((draws >= chances[:, :-1]).sum(axis=1))
    return core.episodes.arrays.returns
