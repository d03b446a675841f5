"""Three families of learners for the toy environments, with hyperparameters that solve every default toy.

Tabular Q-learning, SB3's DQN on one-hot observations, and stock SB3 PPO with a small transformer that starts
from random weights. One set of hyperparameters each; all learn without discount, to the end of the text.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

from agents.tabular import QLearning, TabularAgent, make_env
from agents.toy.transformer import save_toy_transformer, toy_task
from lm_envs.model_loading import no_progress_bar
from lm_envs.registration import ENVIRONMENTS
from lm_envs.sb3 import EpisodeRolloutBuffer, TransformerPolicy, make_vec_env

TOYS = tuple(env_id for env_id in ENVIRONMENTS if env_id.startswith("TextGen-Toy"))


def q_learning(
    env_id: str,
    env_kwargs: dict[str, Any],
    seed: int,
    *,
    n_envs: int = 1024,
    learning_rate: float | None = None,
) -> QLearning:
    """Tabular Q-learning with the hyperparameters of `agents.tabular`.

    Args:
        env_id: registered id of a toy.
        env_kwargs: its dials.
        seed: of everything random.
        n_envs: slots of the vector environment.
        learning_rate: first step size, which falls with the number of updates; None: the agent's own.
    """
    settings: dict[str, Any] = {} if learning_rate is None else {"learning_rate": learning_rate}
    return QLearning(make_env(env_id, n_envs, **env_kwargs), seed=seed, **settings)


def dqn(
    env_id: str,
    env_kwargs: dict[str, Any],
    seed: int,
    *,
    n_envs: int = 64,
    learning_rate: float = 1e-3,
    batch_size: int = 256,
) -> DQN:
    """SB3's DQN with an MLP on one-hot observations; arguments as `q_learning`'s and SB3's.

    A reward at the end reaches the first token through as many target networks as a text has tokens, so they
    are renewed often. Epsilon falls from 1 to 0.05 in the first half; the learning rate falls to 0.
    """
    env = make_vec_env(env_id, n_envs, **({"observation": "onehot"} | env_kwargs))
    return DQN(
        "MlpPolicy",
        env,
        gamma=1.0,
        learning_rate=LinearSchedule(learning_rate, 0.0, 1.0),
        batch_size=batch_size,
        buffer_size=200_000,
        learning_starts=5000,
        train_freq=1,
        gradient_steps=4,
        target_update_interval=5000,
        exploration_fraction=0.5,
        exploration_final_eps=0.05,
        policy_kwargs={"net_arch": [128, 128]},
        seed=spread(seed),
        device="cpu",
    )


def ppo(
    env_id: str,
    env_kwargs: dict[str, Any],
    seed: int,
    *,
    n_envs: int = 512,
    n_epochs: int = 4,
    batch_size: int | None = None,
    learning_rate: float = 2e-3,
    clip_range: float = 0.2,
    gae_lambda: float = 0.95,
    ent_coef: float = 0.05,
) -> PPO:
    """Stock PPO with `TransformerPolicy`: a transformer of 2 layers x 32, from random weights.

    A rollout is one text in every slot. Arguments as `q_learning`'s and SB3's; batch_size None is a quarter
    of a rollout. The learning rate falls to 0, and so does the entropy coefficient, if learning is done with
    `callbacks`: without it PPO becomes certain of wrong tokens on some texts while it learns others, and
    never draws the right ones again. Advantages are not whitened: rewards and entropy keep their proportion.
    """
    env = make_vec_env(env_id, n_envs, **env_kwargs)
    steps = toy_task(env.env).rule.length
    with tempfile.TemporaryDirectory() as folder, no_progress_bar():
        save_toy_transformer(env.env, folder, seed=seed)
        return PPO(
            TransformerPolicy,
            env,
            n_steps=steps,
            batch_size=max(1, steps * n_envs // 4) if batch_size is None else batch_size,
            n_epochs=n_epochs,
            learning_rate=LinearSchedule(learning_rate, 0.0, 1.0),
            clip_range=clip_range,
            gamma=1.0,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            normalize_advantage=False,
            rollout_buffer_class=EpisodeRolloutBuffer,
            rollout_buffer_kwargs={"whiten_advantages": False},
            policy_kwargs={"model": folder},
            seed=spread(seed),
            device="cpu",
        )


FAMILIES: dict[str, Callable[..., Any]] = {"q_learning": q_learning, "dqn": dqn, "ppo": ppo}
TIMESTEPS = {"q_learning": 10_000_000, "dqn": 150_000, "ppo": 350_000}


class EntropyDecay(BaseCallback):
    """Lowers PPO's entropy coefficient linearly, to 0 when 80% of the training are done."""

    model: PPO

    def _on_training_start(self) -> None:
        self.first, self.total_timesteps = self.model.ent_coef, self.locals["total_timesteps"]

    def _on_rollout_start(self) -> None:
        self.model.ent_coef = self.first * max(0.0, 1 - self.num_timesteps / (0.8 * self.total_timesteps))

    def _on_step(self) -> bool:
        return True


def callbacks(learner: Any) -> list[BaseCallback]:
    """What belongs to a learner's `learn`."""
    return [EntropyDecay()] if isinstance(learner, PPO) else []


def spread(seed: int) -> int:
    """A seed far from those of neighbouring seeds: SB3 seeds slot i by seed + i."""
    return int(np.random.default_rng(seed).integers(2**31))


def save(learner: Any, folder: Path) -> Path:
    """Writes what was learned, without pickles.

    Returns:
        A tabular agent's .npz file; DQN's Q-network as .safetensors, for `learner.q_net.load_state_dict`;
        PPO's transformer as a Hugging Face folder.
    """
    if isinstance(learner, TabularAgent):
        learner.save(folder / "agent.npz")
        return folder / "agent.npz"
    if isinstance(learner, DQN):
        safetensors.torch.save_file(learner.q_net.state_dict(), folder / "q_net.safetensors")
        return folder / "q_net.safetensors"
    learner.policy.save_pretrained(folder / "model")
    return folder / "model"
