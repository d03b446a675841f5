"""Small training runs: environments of tiny models, and SB3 algorithms on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from lm_envs.sb3 import EpisodeRolloutBuffer, GymVecEnv, TransformerPolicy, make_vec_env

PROMPTS = ("Mira finds", "A fox waits by the", "At night")


def letters(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """A reward: how many lower-case letters a completion holds."""
    return [float(sum(character.islower() for character in text)) for text in completions]


def make_env(model: str, n_envs: int = 4, *, seed: int = 0, **kwargs: Any) -> GymVecEnv:
    """A batched TextGen-v0 on a tiny model, with a reward that needs no model."""
    if "task" not in kwargs:
        kwargs = {"prompts": list(PROMPTS), "reward": letters, **kwargs}
    kwargs = {"max_new_tokens": 6, **kwargs}
    return make_vec_env("TextGen-v0", n_envs, seed=seed, model=model, **kwargs)


def make_algorithm(
    env: GymVecEnv,
    model: str,
    *,
    algorithm: type[OnPolicyAlgorithm] = PPO,
    policy: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """PPO (or A2C) as this project recommends it, with a tiny model."""
    defaults: dict[str, Any] = {"n_steps": 8, "gamma": 1.0, "seed": 0, "normalize_advantage": False}
    defaults["rollout_buffer_class"] = EpisodeRolloutBuffer
    if algorithm is PPO:
        defaults |= {"batch_size": kwargs.get("n_steps", 8) * env.num_envs, "n_epochs": 1}
    return algorithm(
        TransformerPolicy,
        env,
        policy_kwargs={"model": model, **(policy or {})},
        **{**defaults, **kwargs},
    )


class AtRolloutEnd(BaseCallback):
    """Calls a function with the algorithm when a rollout is complete and no update has been made with it."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        super().__init__()
        self.function = function

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.function(self.model)
