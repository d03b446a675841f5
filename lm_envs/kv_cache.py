"""Keys and values of slots that stand at different lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

# Attention widths are multiples of this: few distinct shapes, little wasted reading of the cache.
WIDTH_BUCKET = 32


class SlotCache(Cache):
    """Keys and values of B slots; every row of a forward pass writes at positions of its own.

    `begin` sets where a pass writes and what it reads; each layer then calls `update` once.
    Storage is (B, heads, capacity + 1, head size) per layer; the position after the last takes what padded
    tokens and idle rows write. It starts as zeros: a masked position has weight 0, and 0 * NaN would be NaN.
    """

    def __init__(self, num_slots: int, context_length: int) -> None:
        super().__init__(layers=[])
        self.num_slots = num_slots
        self.context_length = context_length
        self.capacity = 0
        self._stored: dict[int, list[Tensor]] = {}
        self._places: dict[int, Tensor] = {}  # of the current pass, by number of heads

    def begin(self, rows: Tensor | None, positions: Tensor, real: Tensor, longest: int) -> Tensor:
        """Prepare a forward pass of n rows of T new tokens.

        Args:
            rows: (n,) distinct slots; None: all, in order.
            positions: (n, T) int64, where the new tokens stand.
            real: (n, T) bool, false for padding.
            longest: tokens of the longest row after this pass, which reads as many of each row, rounded up.

        Returns:
            (n, T, width) bool, which of the cached positions each new token attends to.
        """
        self._rows = rows
        every = torch.arange(self.num_slots, device=positions.device)
        self._write_rows = (every if rows is None else rows)[:, None, None]
        self._write_positions = torch.where(real, positions, self.capacity)[:, None]
        self._places = {}
        self._width = self.width(longest)
        return torch.arange(self._width, device=positions.device) <= positions[..., None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values (n, heads, T, head size); return the rows' first `width` ones."""
        stored = self._layer(layer_idx, key_states, value_states)
        for old, new in zip(stored, (key_states, value_states), strict=True):
            size = old.shape[3]
            places = self._places_of(old.shape[1])
            old.view(-1, size).index_copy_(0, places, new.reshape(-1, size).to(old.dtype))
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

    def width(self, longest: int) -> int:
        """How many positions of each row are read when the longest holds so many tokens."""
        return min(_round_up(longest), self.capacity)

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

    def _places_of(self, heads: int) -> Tensor:
        """Where the pass writes, as rows of (B * heads * (capacity + 1), head size): (n * heads * T,)."""
        if heads not in self._places:
            head = torch.arange(heads, device=self._write_rows.device)[:, None]
            places = (self._write_rows * heads + head) * (self.capacity + 1) + self._write_positions
            self._places[heads] = places.flatten()
        return self._places[heads]

    def _layer(self, layer_idx: int, keys: Tensor, values: Tensor) -> list[Tensor]:
        if layer_idx not in self._stored:
            self._stored[layer_idx] = [
                like.new_zeros((self.num_slots, like.shape[1], self.capacity + 1, like.shape[3]))
                for like in (keys, values)
            ]
        return self._stored[layer_idx]


def _round_up(length: int) -> int:
    return -(-length // WIDTH_BUCKET) * WIDTH_BUCKET
