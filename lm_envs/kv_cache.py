"""Keys and values of slots that stand at different lengths, and the forward pass that extends them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

# Attention widths are multiples of this: few distinct shapes, little wasted reading of the cache.
WIDTH_BUCKET = 32


class SlotCache(Cache):
    """Keys and values of B slots; every row of a forward pass writes at positions of its own.

    `extend` sets where a pass writes and what it reads; transformers then calls `update` once per layer.
    Storage is (B, heads, capacity + 1, head size) per layer; the position after the last takes what padded
    tokens and idle rows write. It starts as zeros: a masked position has weight 0, and 0 * NaN would be NaN.
    """

    def __init__(self, num_slots: int, context_length: int) -> None:
        super().__init__(layers=[])
        self.num_slots = num_slots
        self.context_length = context_length
        self.capacity = 0
        self._stored: dict[int, list[Tensor]] = {}

    @torch.no_grad()
    def extend(
        self, trunk: nn.Module, slots: np.ndarray, starts: np.ndarray, counts: np.ndarray, block: np.ndarray
    ) -> Tensor:
        """Append block[i, :counts[i]] to the first starts[i] tokens of slots[i], in one forward pass.

        Args:
            trunk: base model of a causal LM; it runs in evaluation mode.
            slots: (n,) distinct slots.
            starts: (n,) tokens of each that stay.
            counts: (n,) tokens to append, at least one.
            block: (n, T) token ids, right padded with any valid id.

        Returns:
            (n, H) hidden states at each row's last new token.
        """
        ends = starts + counts
        self.reserve(int(ends.max()))
        # One token a row is limited by reading the cache: with most slots involved, running all of them on
        # views is cheaper than gathering some. A longer block is limited by arithmetic: idle rows would cost.
        every = len(slots) == self.num_slots or (block.shape[1] == 1 and 2 * len(slots) >= self.num_slots)
        plan = np.column_stack([starts, counts, block])
        if every:
            plan, involved = np.zeros((self.num_slots, plan.shape[1]), np.int64), plan
            plan[slots] = involved
        weights = next(trunk.parameters())
        device, dtype = weights.device, weights.dtype
        packed, rows = torch.from_numpy(plan).to(device), torch.from_numpy(slots).to(device)
        offsets = torch.arange(block.shape[1], device=device)
        positions, real = packed[:, :1] + offsets, offsets < packed[:, 1:2]

        self._rows = None if every else rows
        self._write_rows = (torch.arange(self.num_slots, device=device) if every else rows)[:, None]
        self._write_positions = torch.where(real, positions, self.capacity)
        self._width = min(_round_up(int(ends.max())), self.capacity)
        visible = torch.arange(self._width, device=device) <= positions[..., None]
        mask = torch.zeros(visible.shape, device=device, dtype=dtype)
        mask.masked_fill_(~visible, torch.finfo(dtype).min)
        with _evaluating(trunk):
            hidden = trunk(
                input_ids=packed[:, 2:],
                attention_mask=mask[:, None],
                position_ids=positions.clamp(max=self.context_length - 1),
                past_key_values=self,
                use_cache=True,
            ).last_hidden_state
        last = hidden[torch.arange(len(plan), device=device), (packed[:, 1] - 1).clamp(min=0)]
        return last[rows] if every else last

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values (n, heads, T, head size); return the rows' first `width` ones."""
        stored = self._layer(layer_idx, key_states, value_states)
        for old, new in zip(stored, (key_states, value_states), strict=True):
            old[self._write_rows, :, self._write_positions] = new.transpose(1, 2)
        if self._rows is None:
            return stored[0][:, :, : self._width], stored[1][:, :, : self._width]
        return stored[0][self._rows, :, : self._width], stored[1][self._rows, :, : self._width]

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens a slot; geometrically, so that copying stays a constant share."""
        if length <= self.capacity:
            return
        capacity = min(max(_round_up(length), 2 * self.capacity), self.context_length)
        for stored in self._stored.values():
            for i, old in enumerate(stored):
                stored[i] = old.new_zeros((*old.shape[:2], capacity + 1, old.shape[3]))
                stored[i][:, :, : self.capacity] = old[:, :, : self.capacity]
        self.capacity = capacity

    def read(self, rows: Tensor, length: int) -> dict[int, tuple[Tensor, Tensor]]:
        """Copies of the rows' first `length` keys and values, by layer."""
        return {i: (k[rows, :, :length], v[rows, :, :length]) for i, (k, v) in self._stored.items()}

    def write(self, rows: Tensor, layers: dict[int, tuple[Tensor, Tensor]]) -> None:
        """Store what `read` returned, and nothing behind it; one row is broadcast to all `rows`."""
        self.erase(rows)
        for i, (keys, values) in layers.items():
            self.reserve(keys.shape[2])
            stored = self._layer(i, keys, values)
            stored[0][rows, :, : keys.shape[2]] = keys
            stored[1][rows, :, : values.shape[2]] = values

    def erase(self, rows: Tensor) -> None:
        """Overwrite rows with zeros, which no later pass can read a NaN from."""
        for stored in self._stored.values():
            for old in stored:
                old[rows] = 0

    def _layer(self, layer_idx: int, keys: Tensor, values: Tensor) -> list[Tensor]:
        if layer_idx not in self._stored:
            self._stored[layer_idx] = [
                like.new_zeros((self.num_slots, like.shape[1], self.capacity + 1, like.shape[3]))
                for like in (keys, values)
            ]
        return self._stored[layer_idx]


def _round_up(length: int) -> int:
    return -(-length // WIDTH_BUCKET) * WIDTH_BUCKET


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a moment: without dropout and gradient checkpointing (it would drop the cache)."""
    training = [m for m in module.modules() if m.training] if module.training else []
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True
