"""The bridge to stable-baselines3: batched `VecEnv`, transformer policy, episode buffer, KL, checkpoints."""

from lm_envs.sb3.buffer import EpisodeRolloutBuffer
from lm_envs.sb3.checkpoint import load_checkpoint, save_checkpoint
from lm_envs.sb3.kl import KLCallback
from lm_envs.sb3.policy import TransformerPolicy
from lm_envs.sb3.vec_env import GymVecEnv, make_vec_env

__all__ = [
    "EpisodeRolloutBuffer",
    "GymVecEnv",
    "KLCallback",
    "TransformerPolicy",
    "load_checkpoint",
    "make_vec_env",
    "save_checkpoint",
]
