"""`python -m benchmarks episode`: one episode of a model as a moving picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import torch
from PIL import Image

import lm_envs  # noqa: F401  registers the ids
from lm_envs.language_model import LanguageModel
from lm_envs.sampling import sample


@dataclass(frozen=True)
class EpisodePicture:
    """Write a GIF of one episode of `TextGen-v0`."""

    model: str | None = None
    """Folder or hub id of the model that acts; None: the bundled one."""
    seed: int = 0
    out: Path = Path("benchmarks/results/episode.gif")

    def __call__(self) -> None:
        """Plays, renders every token, and writes the picture."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        env = gymnasium.make("TextGen-v0", render_mode="rgb_array", split="test")
        language_model = LanguageModel.load(self.model)
        LanguageModel.load().model  # noqa: B018  loaded weights make the environment shade tokens by probability
        decoder = language_model.decoder(1)
        generator = torch.Generator().manual_seed(self.seed)
        observation, _ = env.reset(seed=self.seed)
        frames: list[Any] = [env.render()]
        terminated = truncated = False
        while not (terminated or truncated):
            decoder.advance(observation["input_ids"][None], observation["attention_mask"][None].sum(1))
            token, _ = sample(decoder.logits(), generator=generator)
            observation, _, terminated, truncated, _ = env.step(int(token))
            frames.append(env.render())
        images = [Image.fromarray(frame).quantize(64) for frame in frames]
        durations = [1200, *[120] * (len(images) - 2), 4000]  # milliseconds
        images[0].save(
            self.out, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True
        )
        print(f"{self.out}: {len(images)} frames")
