"""Trains a small Llama on the story world; killed at any time, it goes on from its last checkpoint."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from lm_envs.pretraining.batches import STORIES_PER_SEED, TRAINING_SEEDS, batches


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights.

    Attributes:
        steps: Optimizer steps; the learning rate falls to 0 over them.
        seed: Of the initial weights and of the choice of stories.
        rows: Stories a step.
        vocab_size: Of the tokenizer, the special token and the 256 bytes included.
        tokenizer_stories: How many stories the tokenizer learns from.
        context_length: The model's window, in tokens.
        hidden_size: Width.
        layers: Depth.
        heads: Attention heads.
        intermediate_size: Width of the feed-forward layers.
        matrix_lr: Peak learning rate of Muon, for the hidden matrices.
        other_lr: Peak learning rate of AdamW, for embeddings and norms.
        warmup_steps: Steps over which the learning rate rises.
    """

    steps: int = 8000
    seed: int = 0
    rows: int = 16
    vocab_size: int = 2048
    tokenizer_stories: int = 20_000
    context_length: int = 256
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    intermediate_size: int = 384
    matrix_lr: float = 0.03
    other_lr: float = 3e-3
    warmup_steps: int = 50

    def __post_init__(self) -> None:
        most = STORIES_PER_SEED // self.rows
        if not 1 <= self.steps <= most:
            raise ValueError(f"steps must be from 1 to {most}, got {self.steps}")
        if not 0 <= self.seed < TRAINING_SEEDS:
            raise ValueError(f"seed must be from 0 to {TRAINING_SEEDS - 1}, got {self.seed}")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        model: In eval mode.
        tokens: Trained on, padding not counted.
        seconds: Spent training, over all interruptions.
    """

    model: LlamaForCausalLM
    tokens: int
    seconds: float


def train(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    checkpoint: Path,
    *,
    checkpoint_seconds: float = 60.0,
    progress: bool = True,
) -> Trained:
    """Trains the recipe's model, from the checkpoint if there is one.

    On one CPU with one number of threads, the weights do not depend on how often the run was interrupted.

    Args:
        recipe: What to train.
        tokenizer: Makes the training rows.
        checkpoint: A safetensors file: read at the start, replaced as a whole while training.
        checkpoint_seconds: How often.
        progress: Show a progress bar.

    Raises:
        ValueError: The checkpoint belongs to another recipe.
    """
    model = _new_model(recipe, tokenizer)
    optimizers = _optimizers(recipe, model)
    done, tokens, seconds = 0, 0, 0.0
    if checkpoint.exists():
        done, tokens, seconds = _load(checkpoint, recipe, model, optimizers)

    stream = batches(tokenizer, rows_per_batch=recipe.rows, seed=recipe.seed, start=done)
    saved = last = time.monotonic()
    with tqdm(total=recipe.steps, initial=done, disable=not progress, unit="step", desc="training") as bar:
        for step in range(done, recipe.steps):
            _set_learning_rates(recipe, optimizers, step)
            ids, lengths = (torch.from_numpy(array) for array in next(stream))
            loss = next_token_loss(model, ids, lengths)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

            now = time.monotonic()
            tokens, seconds, last = tokens + int((lengths - 1).sum()), seconds + now - last, now
            bar.update()
            if step % 10 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if now - saved >= checkpoint_seconds:
                _save(checkpoint, recipe, model, optimizers, (step + 1, tokens, seconds))
                saved = now
    return Trained(model.eval(), tokens, seconds)


def next_token_loss(model: LlamaForCausalLM, ids: Tensor, lengths: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of each token given those before it, in nats, over real tokens only.

    Padding stands on the right, where a causal model never looks, so no attention mask is needed; the head
    runs on real positions only.

    Args:
        model: The model.
        ids: int64 (B, T), right-padded.
        lengths: int64 (B,).
        reduction: "mean" or "sum".
    """
    real = torch.arange(ids.shape[1] - 1) < lengths[:, None] - 1
    hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state
    return nn.functional.cross_entropy(model.lm_head(hidden[real]), ids[:, 1:][real], reduction=reduction)


def _new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=recipe.intermediate_size,
        max_position_embeddings=recipe.context_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return LlamaForCausalLM(config).float().train()


def _optimizers(recipe: Recipe, model: nn.Module) -> tuple[torch.optim.Optimizer, ...]:
    """Muon (Jordan et al. 2024) for hidden matrices, AdamW for the rest: half the loss of AdamW alone."""
    if not hasattr(torch.optim, "Muon"):
        raise ImportError(
            f"pretraining needs torch.optim.Muon, that is torch >= 2.9; this is {torch.__version__}"
        )
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name else others).append(parameter)
    return (
        torch.optim.Muon(matrices, lr=recipe.matrix_lr, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=recipe.other_lr, betas=(0.9, 0.98), weight_decay=0.0),
    )


def _set_learning_rates(recipe: Recipe, optimizers: tuple[torch.optim.Optimizer, ...], step: int) -> None:
    """Linear warm-up, then a straight line down to 0."""
    factor = min(1.0, (step + 1) / recipe.warmup_steps) * (1.0 - step / recipe.steps)
    for optimizer, peak in zip(optimizers, (recipe.matrix_lr, recipe.other_lr), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = factor * peak


def _save(
    path: Path,
    recipe: Recipe,
    model: nn.Module,
    optimizers: tuple[torch.optim.Optimizer, ...],
    progress: tuple[int, int, float],
) -> None:
    """One safetensors file with the weights and the optimizers' tensors; the rest is JSON in its header."""
    tensors = {f"model/{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{index}/{name}": tensor for name, tensor in state.items()}
    header = {"recipe": json.dumps(dataclasses.asdict(recipe)), "progress": json.dumps(progress)}
    temporary = path.with_suffix(".new")
    save_file(tensors, temporary, metadata=header)
    os.replace(temporary, path)


def _load(
    path: Path, recipe: Recipe, model: nn.Module, optimizers: tuple[torch.optim.Optimizer, ...]
) -> tuple[int, int, float]:
    """Puts a checkpoint's weights and optimizer states in place; returns steps, tokens and seconds done."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        if json.loads(header["recipe"]) != dataclasses.asdict(recipe):
            raise ValueError(
                f"the checkpoint {path} was made with other settings, {header['recipe']}; finish that run "
                "with them, or delete the file to start anew"
            )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(f"model/{name}"))
        states: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers]
        for key in file.keys():  # noqa: SIM118 (not a dict)
            kind, *place = key.split("/")
            if kind == "optimizer":
                number, index, name = place
                states[int(number)].setdefault(int(index), {})[name] = file.get_tensor(key)
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        steps, tokens, seconds = json.loads(header["progress"])
    return steps, tokens, seconds
