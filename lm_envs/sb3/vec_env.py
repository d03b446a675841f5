"""One batched Gymnasium environment as a stable-baselines3 `VecEnv`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

# Arguments of SB3's `make_vec_env` that have no meaning here.
SB3_ARGUMENTS = {
    *("env_kwargs", "start_index", "monitor_dir", "monitor_kwargs"),
    *("wrapper_class", "wrapper_kwargs", "vec_env_cls", "vec_env_kwargs"),
}


def make_vec_env(
    env_id: str = "TextGen-v0",
    n_envs: int = 1,
    *,
    seed: int | None = None,
    max_episode_steps: int | None = None,
    **env_kwargs: Any,
) -> GymVecEnv:
    """Make one batched environment of `n_envs` slots, ready for stable-baselines3.

    Args:
        env_id: a registered id with a vector environment of its own, "module:id" included.
        n_envs: number of slots, B.
        seed: seed of the first reset; slot i gets `seed + i`. None: a random one.
        max_episode_steps: truncate episodes after so many tokens; None: the id's own limit.
        env_kwargs: the environment's arguments.

    Raises:
        gymnasium.error.Error: no such id.
        TypeError: env_id is no str, or an argument is one of SB3's function of this name.
        ValueError: n_envs is not positive.
    """
    if n_envs < 1:
        raise ValueError(f"n_envs must be at least 1, got {n_envs!r}")
    if not isinstance(env_id, str):
        raise TypeError(f"env_id must be a registered id, got {env_id!r:.60}")
    if foreign := sorted(SB3_ARGUMENTS & env_kwargs.keys()):
        raise TypeError(
            f"{foreign[0]} is an argument of stable_baselines3's make_vec_env, of many environments; "
            "this makes a batched one: pass the environment's own arguments by name, and wrap the result"
        )
    if env_id.partition(":")[0] == env_id:
        import lm_envs  # noqa: F401  registers this project's ids
    if max_episode_steps is not None:
        env_kwargs["max_episode_steps"] = max_episode_steps
    env = gym.make_vec(
        env_id,
        num_envs=n_envs,
        vectorization_mode="vector_entry_point",
        autoreset_mode=AutoresetMode.SAME_STEP,
        **env_kwargs,
    )
    vec_env = GymVecEnv(env)
    vec_env.arguments = {"env_id": env_id, "n_envs": n_envs, **env_kwargs}
    if seed is not None:
        vec_env.seed(seed)
    return vec_env


def split_infos(infos: Mapping[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """Turn Gymnasium's dict of arrays (with their `_key` masks) into one dict per slot."""
    split: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for key, values in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        present = infos.get(f"_{key}")
        slots = range(num_envs) if present is None else np.flatnonzero(present)
        per_slot = split_infos(values, num_envs) if isinstance(values, Mapping) else values
        for slot in slots:
            split[slot][key] = per_slot[slot]
    return split


class GymVecEnv(VecEnv):
    """Adapter from a Gymnasium `VectorEnv` in SAME_STEP mode to SB3's `VecEnv`.

    At the end of an episode a slot's info holds what SB3 expects: `terminal_observation`,
    `TimeLimit.truncated` (truncated and not terminated: SB3 then bootstraps the value), and `episode` = {"r":
    return, "l": tokens, "t": seconds since this adapter was made}, as SB3's `Monitor` writes it. Wherever the
    batch has nothing to say about a slot, its info is empty.

    Attributes:
        env: the Gymnasium vector environment.
        arguments: what `make_vec_env` was called with, enough to make it again; None if made otherwise.
        last_observations: what the last `reset` or `step` returned; None before the first.
        last_dones: (B,) bool, the slots whose last observation begins an episode.
    """

    arguments: dict[str, Any] | None = None

    def __init__(self, env: VectorEnv) -> None:
        """Wrap `env`.

        Raises:
            ValueError: env does not run in SAME_STEP autoreset mode.
        """
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(f"env must be in AutoresetMode.SAME_STEP, which SB3 assumes; got {mode!r}")
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._started = time.time()
        self._actions: np.ndarray | None = None
        self.last_observations: VecEnvObs | None = None
        self.last_dones = np.ones(self.num_envs, bool)

    def reset(self) -> VecEnvObs:
        """Reset every slot, with the seeds and options set since the last reset."""
        options = self._options[0]
        if any(other != options for other in self._options):
            raise ValueError("options must be the same for all slots of a batched environment")
        seeds = None if self._seeds[0] is None else self._seeds
        observations, infos = self.env.reset(seed=seeds, options=options or None)  # type: ignore[arg-type]
        self.reset_infos = split_infos(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0.0
        self._lengths[:] = 0
        self.last_observations, self.last_dones = observations, np.ones(self.num_envs, bool)
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions (B,) for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step every slot.

        Returns:
            observations, rewards (B,) float32, dones (B,) bool, infos (B dicts).
        """
        observations, rewards, terminated, truncated, batch_infos = self.env.step(self._actions)
        dones = terminated | truncated
        infos = split_infos(batch_infos, self.num_envs)
        self._returns += rewards
        self._lengths += 1
        for slot in np.flatnonzero(dones):
            reset_info = infos[slot]
            info = reset_info.pop("final_info", {})
            info["terminal_observation"] = reset_info.pop("final_obs")
            info["TimeLimit.truncated"] = bool(truncated[slot] and not terminated[slot])
            info["episode"] = {
                "r": round(float(self._returns[slot]), 6),
                "l": int(self._lengths[slot]),
                "t": round(time.time() - self._started, 6),
            }
            infos[slot], self.reset_infos[slot] = info, reset_info
        self._returns[dones] = 0.0
        self._lengths[dones] = 0
        self.last_observations, self.last_dones = observations, dones
        return observations, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_images(self) -> list[np.ndarray | None]:
        """One rendered frame per slot, each (height, width, 3) uint8."""
        return list(self.env.render() or [None] * self.num_envs)  # type: ignore[arg-type]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The batch's attribute, once per slot asked for."""
        return [getattr(self.env, attr_name)] * len(self._slots(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the batch.

        Raises:
            ValueError: `indices` names some slots only, which a batch with shared attributes cannot do.
        """
        if set(self._slots(indices)) != set(range(self.num_envs)):
            raise ValueError(f"{attr_name} is shared by all slots: indices must name all of them or be None")
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the batch once; deal out a result with one entry per slot, repeat any other."""
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        per_slot = isinstance(result, (np.ndarray, list, tuple)) and len(result) == self.num_envs
        return [result[slot] if per_slot else result for slot in self._slots(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """True for `Monitor`, whose episode statistics this adapter writes itself."""
        return [issubclass(Monitor, wrapper_class)] * len(self._slots(indices))

    def get_state(self) -> dict[str, np.ndarray]:
        """The environment's resumable state, and the statistics of the running episodes, as plain arrays."""
        state = self.env.get_state()  # type: ignore[attr-defined]
        return {**state, "episode_returns": self._returns.copy(), "episode_lengths": self._lengths.copy()}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go back to a state that `get_state` returned. Seeds set for a next reset are forgotten."""
        own = {"episode_returns", "episode_lengths"}
        self.env.set_state({key: value for key, value in state.items() if key not in own})  # type: ignore[attr-defined]
        self._returns = np.array(state["episode_returns"], dtype=float)
        self._lengths = np.array(state["episode_lengths"], dtype=np.int64)
        self._reset_seeds()

    def _slots(self, indices: VecEnvIndices) -> list[int]:
        chosen: Iterable[int] = self._get_indices(indices)
        return list(chosen)
