"""The slots of a vector environment as a stream of transitions, whatever its autoreset mode."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array

import lm_envs  # noqa: F401 (registers the ids)


class Step(NamedTuple):
    """One step of the n slots that acted in it (those that were only reset are left out)."""

    slots: np.ndarray  # (n,) int64
    rewards: np.ndarray  # (n,) float64
    terminated: np.ndarray  # (n,) bool
    ended: np.ndarray  # (n,) bool: terminated or truncated
    observations: Any  # of all B slots, to act on
    cut: np.ndarray  # slots whose episode was truncated and whose next one is already in `observations`
    cut_observations: Any  # the last observations of those, batched; None if there are none


class Slots:
    """Steps a vector environment.

    Args:
        env: in SAME_STEP or NEXT_STEP mode, with `Discrete` actions.

    Raises:
        TypeError: not a vector environment.
        ValueError: other autoreset modes or actions.

    Attributes:
        first_action: the number of action 0 in the environment.
    """

    def __init__(self, env: VectorEnv) -> None:
        if not isinstance(env, VectorEnv):
            raise TypeError(f"env must be a gymnasium.vector.VectorEnv, got {env!r:.80}; see make_env")
        if not isinstance(env.single_action_space, gymnasium.spaces.Discrete):
            raise ValueError(f"actions must be Discrete, got {env.single_action_space!r:.80}")
        mode = env.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
            raise ValueError(f"the autoreset mode must be SAME_STEP or NEXT_STEP, got {mode}")
        self.env = env
        self._resets_at_once = mode == AutoresetMode.SAME_STEP
        self._all = np.arange(env.num_envs)
        self._none = self._all[:0]
        self._over = np.zeros(env.num_envs, bool)
        self.first_action = int(env.single_action_space.start)

    def reset(self, seed: int | None) -> Any:
        """New episodes in all slots; their first observations."""
        self._over[:] = False
        return self.env.reset(seed=seed)[0]

    def step(self, actions: np.ndarray) -> Step:
        """Acts; actions are (B,) counted from 0.

        Raises:
            FloatingPointError: a reward is NaN or infinite; names the slots.
        """
        observations, rewards, terminated, truncated, infos = self.env.step(actions + self.first_action)
        if not np.isfinite(rewards).all():
            wrong = np.flatnonzero(~np.isfinite(rewards))
            raise FloatingPointError(f"rewards of slots {wrong.tolist()} are not finite: {rewards[wrong]}")
        ended = terminated | truncated
        if self._resets_at_once:
            cut = np.flatnonzero(truncated & ~terminated) if truncated.any() else self._none
            last = self._stack([infos["final_obs"][slot] for slot in cut]) if len(cut) else None
            return Step(self._all, rewards, terminated, ended, observations, cut, last)
        acted = self._all if not self._over.any() else np.flatnonzero(~self._over)
        self._over = ended
        return Step(acted, rewards[acted], terminated[acted], ended[acted], observations, self._none, None)

    def _stack(self, observations: list[Any]) -> Any:
        space = self.env.single_observation_space
        if isinstance(observations[0], str):
            return tuple(observations)
        empty: Any = create_empty_array(space, len(observations))
        return concatenate(space, observations, empty)


def make_env(env_id: str, num_envs: int, **kwargs: Any) -> VectorEnv:
    """A vector environment that resets in the same step: the id's own one, or single ones side by side.

    Args:
        env_id: registered, e.g. "TextGen-ToyCopy-v0" or "FrozenLake-v1".
        num_envs: B, its slots.
        kwargs: arguments of the environment.
    """
    entry_point = gymnasium.spec(env_id).vector_entry_point
    if isinstance(entry_point, str) and entry_point.startswith("lm_envs"):
        return gymnasium.make_vec(
            env_id,
            num_envs=num_envs,
            vectorization_mode="vector_entry_point",
            autoreset_mode=AutoresetMode.SAME_STEP,
            **kwargs,
        )
    makers = [lambda: gymnasium.make(env_id, **kwargs)] * num_envs
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
