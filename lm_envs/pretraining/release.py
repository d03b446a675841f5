"""Writes a trained model as the folder that ships: Hugging Face files, checksums and the model card."""

from __future__ import annotations

import hashlib
import os
import tempfile
from importlib import resources
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from lm_envs.pretraining.measures import (
    SampleQuality,
    Variety,
    generator_perplexity,
    held_out_perplexity,
    sample_stories,
)
from lm_envs.pretraining.training import Recipe, Trained
from lm_envs.pretraining.world import PLOTS

CHECKSUMS = "SHA256SUMS"
MODEL_CARD = "MODEL_CARD.md"


def write_release(
    folder: Path,
    recipe: Recipe,
    trained: Trained,
    tokenizer: PreTrainedTokenizerBase,
    *,
    held_out: int = 1000,
    sampled: int = 500,
    counted: int = 50_000,
) -> float:
    """Measures the model and writes its folder, replacing each file as a whole.

    Args:
        folder: Where; made if missing. Other files in it are left alone.
        recipe: What was trained.
        trained: The result.
        tokenizer: Its tokenizer.
        held_out: Test stories for the perplexity.
        sampled: Stories to sample for the shares of mistakes.
        counted: Training stories to count the variety of.

    Returns:
        Held-out perplexity.
    """
    perplexity = held_out_perplexity(trained.model, tokenizer, held_out)
    parameters = trained.model.num_parameters()
    card = resources.files(__package__).joinpath("model_card.md.template").read_text(encoding="utf-8")
    card = card.format(
        recipe=recipe,
        trained=trained,
        options=_options(recipe),
        parameters=parameters,
        megabytes=parameters * 4 / 1e6,
        vocab_size=len(tokenizer),
        stories=recipe.steps * recipe.rows,
        minutes=trained.seconds / 60,
        threads=torch.get_num_threads(),
        perplexity=perplexity,
        held_out=held_out,
        floor=generator_perplexity(tokenizer, held_out),
        variety=Variety.of(counted),
        sampled=sampled,
        quality=SampleQuality.of(sample_stories(trained.model, tokenizer, count=sampled, seed=0)),
        samples="\n\n".join(
            f"> {text}"
            for seed in range(3)
            for text in sample_stories(trained.model, tokenizer, count=1, seed=seed)
        ),
        plots=len(PLOTS),
    )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as new:
        trained.model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        files = sorted(Path(new).iterdir())
        sums = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
        Path(new, MODEL_CARD).write_text(card, encoding="utf-8")
        Path(new, CHECKSUMS).write_text(sums, encoding="utf-8")
        for file in (*files, Path(new, MODEL_CARD), Path(new, CHECKSUMS)):
            file.chmod(0o644)
            os.replace(file, folder / file.name)
    return perplexity


def _options(recipe: Recipe) -> str:
    """The command line's options that make this recipe."""
    default = Recipe()
    return "".join(
        f" --{name} {getattr(recipe, name)}"
        for name in ("steps", "seed")
        if getattr(recipe, name) != getattr(default, name)
    )
