"""Small training runs on tiny models: environments, SB3 algorithms, policies, and what these should say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from transformers import AutoModelForCausalLM

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


def make_policy(env: Any, model: str, **kwargs: Any) -> TransformerPolicy:
    """A policy without an algorithm."""
    return TransformerPolicy(env.observation_space, env.action_space, lambda _: 1e-2, model, **kwargs)


def random_contexts(env: Any, rows: int, seed: int = 0, longest: int = 20) -> dict[str, torch.Tensor]:
    """Observations of random tokens, at random lengths."""
    rng = np.random.default_rng(seed)
    width = env.observation_space["input_ids"].shape[0]
    lengths = rng.integers(1, longest + 1, rows)
    mask = np.arange(width) < lengths[:, None]
    ids = np.where(mask, rng.integers(env.action_space.n, size=mask.shape), 0)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int8))}


def expected_log_probs(
    model: str, observation: dict[str, torch.Tensor], vocab_size: int, temperature: float = 1.0
) -> torch.Tensor:
    """(B, V) in float64, each row alone, without padding, by transformers' own model."""
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).eval()
    rows = []
    for ids, mask in zip(observation["input_ids"], observation["attention_mask"], strict=True):
        logits = reference(ids[mask.bool()][None]).logits[0, -1, :vocab_size]
        rows.append((logits / temperature).log_softmax(-1))
    return torch.stack(rows).detach()
