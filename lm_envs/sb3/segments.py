"""Segments: what a transformer has to read, once, to score many actions of one episode.

A segment is what one slot wrote of one episode in one rollout: the context of its first observation, and all
that was appended since. The context of every earlier observation is a prefix of it, so that one forward pass
under a causal mask gives the hidden state before each of its actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lm_envs.scoring import head, hidden_states, token_log_probs


class Block(NamedTuple):
    """Segments of similar length, which go through the model together; n actions are in them."""

    input_ids: Tensor  # (S, T) int64, right padded
    positions: Tensor  # (n,) int64, index into (S * T): the last token of each action's context


class Segments(NamedTuple):
    """A batch of segments with N actions in them; the actions come separately, in the blocks' order."""

    blocks: tuple[Block, ...]
    action_mask: Tensor | None  # (N, V) bool, the actions allowed; None: all
    rescored: bool  # the old log-probs were computed as `score` does, and not while decoding

    @classmethod
    def from_observation(cls, observation: Mapping[str, Tensor]) -> Segments:
        """Observations (B, L) as one block of B segments, of one action each."""
        lengths = observation["attention_mask"].long().sum(1)
        width = int(lengths.max())
        rows = torch.arange(len(lengths), device=lengths.device)
        block = Block(observation["input_ids"][:, :width].long(), rows * width + lengths - 1)
        return cls((block,), action_mask(observation), rescored=False)

    def to(self, device: torch.device) -> Segments:
        """The same segments on another device."""
        return Segments(
            tuple(Block(ids.to(device), positions.to(device)) for ids, positions in self.blocks),
            None if self.action_mask is None else self.action_mask.to(device),
            self.rescored,
        )


class Scores(NamedTuple):
    """What a model says about N actions."""

    hidden: Tensor  # (N, H) hidden state before each action
    log_probs: Tensor  # (N,) nats, float32 or float64
    entropy: Tensor | None  # (N,) nats


def action_mask(observation: Mapping[str, Tensor]) -> Tensor | None:
    """The observation's action mask (B, V) as bool, or None where the environment masks nothing."""
    mask = observation.get("action_mask")
    return None if mask is None else mask.bool()


def autocast(device: torch.device, mixed_precision: bool) -> torch.autocast:
    """What the layers of a model run in: bfloat16 in mixed precision, else the precision of their weights.

    The LM head stays outside: logits rounded to bfloat16 are off by up to 2^-9 of their size, more than the
    ratios of PPO can bear.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision)


def hidden_at_actions(model: nn.Module, segments: Segments, *, mixed_precision: bool) -> Tensor:
    """(N, H) hidden states before each action, in the precision of the LM head."""
    # No mask: causal attention never sees padding on the right, and the kernel that runs (in bfloat16, how it
    # rounds) must not depend on whether a batch happens to have any.
    parts = []
    for input_ids, positions in segments.blocks:
        with autocast(input_ids.device, mixed_precision):
            hidden = hidden_states(model, input_ids)
        parts.append(hidden.flatten(0, 1).index_select(0, positions))
    return torch.cat(parts).to(head_dtype(model))


def head_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the LM head's weights."""
    return next(head(model).parameters()).dtype


def score(
    model: nn.Module,
    segments: Segments,
    actions: Tensor,
    *,
    vocab_size: int,
    temperature: float,
    mixed_precision: bool = False,
    with_entropy: bool = False,
) -> Scores:
    """Score actions (N,) int64 under softmax(logits / temperature), each segment in one forward pass.

    Gradients flow as the caller's grad mode says. Only hidden states at actions meet the LM head, in chunks.
    """
    hidden = hidden_at_actions(model, segments, mixed_precision=mixed_precision)
    log_probs, entropy = token_log_probs(
        head(model),
        hidden,
        actions,
        vocab_size=vocab_size,
        temperature=temperature,
        action_mask=segments.action_mask,
        with_entropy=with_entropy,
    )
    return Scores(hidden, log_probs, entropy)
