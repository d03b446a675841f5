"""`python -m benchmarks throughput`: rollouts beside `model.generate`, packed updates beside plain ones."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from lm_envs.language_model import LanguageModel
from lm_envs.sb3 import EpisodeRolloutBuffer, KLCallback, TransformerPolicy, make_vec_env


@dataclass(frozen=True)
class Throughput:
    """Tokens per second of rollouts and updates, against the peers, on this machine."""

    model: str | None = None
    """Folder or hub id; None: the bundled model."""
    slots: int = 64
    new_tokens: int = 48
    repetitions: int = 5
    """Interleaved repetitions; medians and their ratios are reported."""

    def __call__(self) -> None:
        """Runs every contender once per repetition, in turn, and prints the table."""
        learner, callback = self.learner()
        contenders: dict[str, Callable[[], float]] = {
            "model.generate (sampling)": self.generate,
            "PPO.collect_rollouts": lambda: self.rollout(learner, callback),
            "update epoch, one forward per transition": lambda: self.transition_epoch(learner),
            "update epoch, EpisodeRolloutBuffer": lambda: self.packed_epoch(learner),
        }
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in tqdm(range(self.repetitions), desc="repetitions"):
            for name, measure in contenders.items():
                rates[name].append(measure())
        median = {name: statistics.median(values) for name, values in rates.items()}
        names = list(contenders)
        table = Table("", "tokens/s (median)", "slowest - fastest", "ratio", title=self.setting())
        for name, peer in zip(names, (names[0], names[0], names[2], names[2]), strict=True):
            spread = f"{min(rates[name]):,.0f} - {max(rates[name]):,.0f}"
            table.add_row(name, f"{median[name]:,.0f}", spread, f"{median[name] / median[peer]:.2f}x")
        Console().print(table)

    def setting(self) -> str:
        """What was measured, on what."""
        return (
            f"{self.model or 'bundled model'}, {self.slots} slots, {self.new_tokens} new tokens, float32, "
            f"{torch.get_num_threads()} threads of {os.cpu_count()} ({platform.machine()}), "
            f"torch {torch.__version__}, transformers {transformers.__version__}"
        )

    def learner(self) -> tuple[PPO, BaseCallback]:
        """A stock PPO in the middle of training; its episodes end at EOS or after `new_tokens` steps."""
        env = make_vec_env("TextGen-v0", self.slots, seed=0, model=self.model, max_new_tokens=self.new_tokens)
        learner = PPO(
            TransformerPolicy,
            env,
            n_steps=self.new_tokens,
            batch_size=self.slots * self.new_tokens // 4,
            n_epochs=1,
            gamma=1.0,
            normalize_advantage=False,
            rollout_buffer_class=EpisodeRolloutBuffer,
            policy_kwargs={"model": self.model},
            seed=0,
        )
        _, callback = learner._setup_learn(1, KLCallback(kl_coef=0.1))
        callback.on_training_start({}, {})
        return learner, callback

    def generate(self) -> float:
        """`model.generate` on as many story openings, each made to write exactly `new_tokens`."""
        language_model = LanguageModel.load(self.model)
        env = make_vec_env("TextGen-v0", self.slots, seed=0, model=self.model, max_new_tokens=self.new_tokens)
        observation: Any = env.reset()
        mask = torch.as_tensor(observation["attention_mask"]).long()
        width = int(mask.sum(1).max())
        ids, left = (
            torch.zeros(self.slots, width, dtype=torch.long),
            torch.zeros(self.slots, width, dtype=torch.long),
        )
        for row in range(self.slots):  # generate wants its padding on the left
            length = int(mask[row].sum())
            ids[row, width - length :] = torch.as_tensor(observation["input_ids"][row, :length])
            left[row, width - length :] = 1
        length_options = {"min_new_tokens": self.new_tokens, "max_new_tokens": self.new_tokens}
        model: Any = language_model.model
        started = time.perf_counter()
        with torch.no_grad():
            model.generate(
                ids,
                attention_mask=left,
                do_sample=True,
                top_k=0,
                pad_token_id=language_model.pad_token_id,
                **length_options,
            )
        return self.slots * self.new_tokens / (time.perf_counter() - started)

    def rollout(self, learner: PPO, callback: BaseCallback) -> float:
        """Stock `collect_rollouts`: environment, policy, values, rewards, reference and advantages."""
        learner.policy.set_training_mode(True)  # drops the cache, as after an update
        started = time.perf_counter()
        env: Any = learner.env
        learner.collect_rollouts(env, callback, learner.rollout_buffer, n_rollout_steps=self.new_tokens)
        return self.slots * self.new_tokens / (time.perf_counter() - started)

    def packed_epoch(self, learner: PPO) -> float:
        """Stock `PPO.train` for one epoch."""
        started = time.perf_counter()
        learner.train()
        return self.slots * self.new_tokens / (time.perf_counter() - started)

    def transition_epoch(self, learner: PPO, transitions: int = 64) -> float:
        """One observation per transition, as a plain RolloutBuffer yields them, on a sample of them."""
        rng = np.random.default_rng(0)
        policy: Any = learner.policy
        length = policy.context_length
        ids = torch.as_tensor(rng.integers(policy.vocab_size, size=(transitions, length)))
        # lengths of real transitions: an opening of about 56 tokens, anything up to `new_tokens` after it
        lengths = torch.as_tensor(rng.integers(56, 56 + self.new_tokens, size=transitions))
        mask = (torch.arange(length) < lengths[:, None]).to(torch.int8)
        observation = {"input_ids": ids * mask, "attention_mask": mask, "completion_mask": mask}
        started = time.perf_counter()
        values, log_prob, entropy = policy.evaluate_actions(observation, ids[:, 0])
        policy.optimizer.zero_grad()
        (log_prob.mean() + values.mean() + entropy.mean()).backward()
        return transitions / (time.perf_counter() - started)
