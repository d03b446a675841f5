"""The bridge to stable-baselines3: batched `VecEnv`, transformer policy, episode buffer, KL, checkpoints.

```python
env = make_vec_env("TextGen-v0", n_envs=64, seed=0)
model = PPO(
    TransformerPolicy,
    env,
    rollout_buffer_class=EpisodeRolloutBuffer,
    normalize_advantage=False,  # the buffer whitens advantages, once per rollout
    gamma=1.0,  # a reward at the end counts in full for the first token
    n_steps=48,
    batch_size=768,
    n_epochs=2,
    learning_rate=1e-4,
)
model.learn(100_000, callback=KLCallback(kl_coef=0.1))
save_checkpoint(model, "runs/story")  # load_checkpoint("runs/story") goes on from here
model.policy.save_pretrained("runs/story/model")  # a plain Hugging Face folder
```
"""

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
