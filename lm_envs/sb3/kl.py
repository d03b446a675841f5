"""Keeping a trained language model near a frozen one: a KL penalty on the rewards, fixed or adaptive."""

from __future__ import annotations

import warnings
from typing import cast

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from lm_envs.language_model import LanguageModel
from lm_envs.sb3.buffer import EpisodeRolloutBuffer
from lm_envs.sb3.policy import TransformerPolicy
from lm_envs.sb3.segments import head_dtype


class KLCallback(BaseCallback):
    """Penalises each action by `kl_coef * (log pi(a|s) - log pi_ref(a|s))`, and logs the KL.

    The reference is scored at the policy's temperature and under the same action masks, so that the KL is 0
    before training. The sum over an episode's actions is an unbiased estimate of the episode's KL divergence,
    in nats.

    With a `target`, the coefficient follows it with the controller of Ziegler et al., "Fine-tuning language
    models from human preferences" (2019), section 2.2, once per rollout: `kl_coef *= 1 + gain * clip(kl /
    target - 1, -0.2, 0.2)`. The coefficient lives in the rollout buffer, and goes on from there in a later
    `learn()` or from a checkpoint.

    Logs, each rollout: `kl/per_token`, the mean over its actions; `kl/per_episode`, that times the mean
        length of recent episodes (SB3's `rollout/ep_len_mean`), once one has ended; `kl/coef`.

    The penalty ends with the `learn()` that the callback was passed to.
    """

    def __init__(
        self,
        kl_coef: float = 0.1,
        target: float | None = None,
        gain: float = 0.1,
        reference: LanguageModel | None = None,
    ) -> None:
        """Args:
        kl_coef: reward lost per nat, at first; 0 only logs.
        target: KL per episode to steer to, in nats; None keeps the coefficient.
        gain: how fast the coefficient follows, per rollout.
        reference: None: the environment's frozen language model, in the precision of the policy's weights.

        Raises:
            ValueError: kl_coef is negative, or 0 with a target; target or gain is not positive.
        """
        super().__init__()
        if not (kl_coef > 0 or (kl_coef == 0 and target is None)):
            raise ValueError(f"kl_coef must be > 0 (or 0 without a target), got {kl_coef!r}")
        if target is not None and not target > 0:
            raise ValueError(f"target must be None or > 0 nats, got {target!r}")
        if not gain > 0:
            raise ValueError(f"gain must be > 0, got {gain!r}")
        self.kl_coef = kl_coef
        self.target = target
        self.gain = gain
        self.reference = reference

    def _on_training_start(self) -> None:
        """Bind policy and reference to the buffer.

        Raises:
            TypeError: the algorithm has another policy or buffer class.
            ValueError: the reference has another vocabulary than the policy.
        """
        policy = self.model.policy
        if not isinstance(policy, TransformerPolicy):
            raise TypeError(f"KLCallback needs a TransformerPolicy, got {type(policy).__name__}")
        buffer = self._buffer
        reference = self.reference or self._frozen_model(head_dtype(policy.model))
        if reference.vocab_size != policy.vocab_size:
            raise ValueError(
                f"reference {reference.name!r} has {reference.vocab_size} tokens, not {policy.vocab_size}"
            )
        buffer.bind(policy, reference.model)
        if self.target is None or buffer.kl_coef is None:
            buffer.kl_coef = self.kl_coef
        if getattr(self.model, "normalize_advantage", False):
            warnings.warn(
                "normalize_advantage=True subtracts an episode's own outcome where minibatches hold few, "
                "and the buffer whitens advantages already: set normalize_advantage=False",
                stacklevel=2,
            )

    def _frozen_model(self, dtype: torch.dtype) -> LanguageModel:
        """The environment's model, in the precision of the policy's weights: equal weights score equally."""
        model: LanguageModel = self.training_env.get_attr("language_model", 0)[0]
        if model.dtype == dtype:
            return model
        return LanguageModel.load(model.path, device=model.device, dtype=dtype)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self._buffer
        per_token = float(buffer.kl.mean())
        self.logger.record("kl/per_token", per_token)
        self.logger.record("kl/coef", buffer.kl_coef)
        if not self.model.ep_info_buffer:
            return
        per_episode = per_token * float(np.mean([episode["l"] for episode in self.model.ep_info_buffer]))
        self.logger.record("kl/per_episode", per_episode)
        if self.target is not None and buffer.kl_coef is not None:
            error = min(max(per_episode / self.target - 1, -0.2), 0.2)
            buffer.kl_coef *= 1 + self.gain * error

    def _on_training_end(self) -> None:
        self._buffer.bind(cast(TransformerPolicy, self.model.policy), None)

    @property
    def _buffer(self) -> EpisodeRolloutBuffer:
        buffer = getattr(self.model, "rollout_buffer", None)
        if not isinstance(buffer, EpisodeRolloutBuffer):
            raise TypeError(
                f"KLCallback needs rollout_buffer_class=EpisodeRolloutBuffer, got {type(buffer).__name__}"
            )
        return buffer
