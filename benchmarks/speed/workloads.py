"""What is run: a model, slots and lengths; the prompts, and the stock learner whose episodes have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from lm_envs.language_model import LanguageModel
from lm_envs.sb3 import EpisodeRolloutBuffer, KLCallback, TransformerPolicy, make_vec_env


@dataclass(frozen=True)
class Workload:
    """Episodes of one model.

    Attributes:
        name: of the model.
        model: what environments and policies take; None: the bundled model.
        slots: B, episodes at a time.
        new_tokens: tokens an episode may have; a rollout has as many steps.
        ragged: episodes end at random, after 1 to `new_tokens` tokens, uniformly; else all after
            `new_tokens`.
        device: "cpu" or "cuda"; on the latter matrix products run in bfloat16.
    """

    name: str
    model: str | None
    slots: int
    new_tokens: int
    ragged: bool = False
    device: str = "cpu"

    @property
    def settings(self) -> dict[str, Any]:
        """What a table says about it."""
        lengths = f"uniform 1 to {self.new_tokens}" if self.ragged else str(self.new_tokens)
        return {"model": self.name, "slots": self.slots, "new tokens": lengths}

    @property
    def label(self) -> str:
        """Name of the case."""
        return f"{self.name}, {'ragged' if self.ragged else 'equal'}"

    def language_model(self) -> LanguageModel:
        """The frozen model."""
        return LanguageModel.load(self.model, device=self.device)

    def env(self, **env_kwargs: Any) -> Any:
        """The vector environment for stable-baselines3."""
        return make_vec_env(
            "TextGen-v0",
            self.slots,
            seed=0,
            model=self.model,
            device=self.device,
            **({"max_new_tokens": self.new_tokens} | env_kwargs),
        )

    def prompts(self) -> list[list[int]]:
        """The first prompt of each slot, as token ids."""
        observation = self.env().reset()
        ids, mask = observation["input_ids"], observation["attention_mask"].astype(bool)
        return [row[shown].tolist() for row, shown in zip(ids, mask, strict=True)]

    def lengths(self, seed: int = 0) -> np.ndarray:
        """How many tokens each slot's episode has, (B,) int64."""
        if not self.ragged:
            return np.full(self.slots, self.new_tokens)
        return np.random.default_rng(seed).integers(1, self.new_tokens + 1, size=self.slots)

    def learner(
        self,
        *,
        reference: bool = True,
        per_transition: bool = False,
        dtype: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[PPO, BaseCallback]:
        """A stock PPO in the middle of training, one epoch a rollout, and the callback of its rollouts.

        Args:
            reference: score the rollouts under the frozen model as well, for the KL penalty.
            per_transition: stable-baselines3's own buffer and minibatch size: one observation a transition.
            dtype: the policy's; None: "float32", on a GPU "bfloat16", which trains with a reference only.
            env_kwargs: of the environment.
        """
        total = self.slots * self.new_tokens
        buffer: type[RolloutBuffer] = DictRolloutBuffer if per_transition else EpisodeRolloutBuffer
        env = self.env(**(env_kwargs or {}))
        learner = PPO(
            EndingPolicy,
            env,
            n_steps=self.new_tokens,
            batch_size=min(64, total) if per_transition else max(total // 4, 2),
            n_epochs=1,
            learning_rate=1e-6,  # the same work, but the model stays what it is
            gamma=1.0,
            normalize_advantage=per_transition,
            rollout_buffer_class=buffer,
            policy_kwargs={
                "model": self.model,
                "longest": self.new_tokens if self.ragged else None,
                "dtype": dtype or ("float32" if self.device == "cpu" else "bfloat16"),
            },
            seed=0,
            device=self.device,
        )
        _, callback = learner._setup_learn(1, KLCallback(kl_coef=0.1) if reference else None)
        callback.on_training_start({}, {})
        return learner, callback


class EndingPolicy(TransformerPolicy):
    """A `TransformerPolicy` that writes EOS where the workload says, and nowhere else.

    Args (further ones as `TransformerPolicy`):
        longest: episodes end after 1 to so many tokens, uniformly; None: the environment ends them.
    """

    def __init__(self, *args: Any, longest: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._longest = longest
        self._rng = np.random.default_rng(0)
        self._ends = np.zeros(0, np.int64)

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """As `TransformerPolicy.forward`."""
        tokens, values, log_probs = super().forward(obs, deterministic)
        eos = int(self.tokenizer.eos_token_id)
        tokens = torch.where(tokens == eos, (eos + 1) % self.vocab_size, tokens)
        if self._longest is not None:
            written = obs["completion_mask"].sum(1).cpu().numpy()
            if len(self._ends) != len(written):
                self._ends = np.zeros(len(written), np.int64)
            drawn = self._rng.integers(1, self._longest + 1, size=len(written))
            self._ends = np.where(written == 0, drawn, self._ends)
            ending = torch.from_numpy(written + 1 >= self._ends).to(tokens.device)
            tokens = torch.where(ending, eos, tokens)
        return tokens, values, log_probs


def collect(learner: PPO, callback: BaseCallback) -> None:
    """Stock `collect_rollouts`, with nothing cached from before, as after an update."""
    learner.policy.set_training_mode(True)
    env: Any = learner.env
    learner.collect_rollouts(env, callback, learner.rollout_buffer, n_rollout_steps=learner.n_steps)
