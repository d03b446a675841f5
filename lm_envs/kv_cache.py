"""Key/value storage for slots that stand at different lengths, behind the cache interface of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache


class SlotCache(Cache):
    """Keys and values of B slots; every row of a forward pass writes at positions of its own.

    transformers calls `update` once per layer of a forward pass; `plan` says beforehand where that pass
    writes and what it reads. Storage is (B, heads, capacity + 1, head size) per layer; the position after the
    last takes what padded tokens and idle rows write. It starts as zeros: a masked position's weight is 0,
    and 0 * NaN would be NaN.
    """

    def __init__(self, num_slots: int) -> None:
        super().__init__(layers=[])
        self.num_slots = num_slots
        self.capacity = 0
        self._stored: dict[int, list[Tensor]] = {}

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tokens a slot, keeping what is stored."""
        if capacity <= self.capacity:
            return
        for stored in self._stored.values():
            for i, old in enumerate(stored):
                stored[i] = old.new_zeros((*old.shape[:2], capacity + 1, old.shape[3]))
                stored[i][:, :, : self.capacity] = old[:, :, : self.capacity]
        self.capacity = capacity

    def plan(self, rows: Tensor | None, positions: Tensor, width: int) -> None:
        """Set what the next forward pass writes and reads.

        Args:
            rows: (n,) slots of the batch's rows; None: all slots in order, read without a copy.
            positions: (n, T) where each new token is written; `capacity` discards it.
            width: attention sees the first `width` positions.
        """
        self._rows, self._positions, self._width = rows, positions, width
        write_rows = torch.arange(self.num_slots, device=positions.device) if rows is None else rows
        self._write_rows = write_rows[:, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values (n, heads, T, head size); return the rows' first `width` ones."""
        stored = self._layer(layer_idx, key_states, value_states)
        for old, new in zip(stored, (key_states, value_states), strict=True):
            old[self._write_rows, :, self._positions] = new.transpose(1, 2)
        if self._rows is None:
            return stored[0][:, :, : self._width], stored[1][:, :, : self._width]
        return stored[0][self._rows, :, : self._width], stored[1][self._rows, :, : self._width]

    def read(self, rows: Tensor, length: int) -> dict[int, tuple[Tensor, Tensor]]:
        """Copies of the rows' first `length` keys and values, by layer."""
        return {i: (k[rows, :, :length], v[rows, :, :length]) for i, (k, v) in self._stored.items()}

    def write(self, rows: Tensor, layers: dict[int, tuple[Tensor, Tensor]]) -> None:
        """Store what `read` returned, and nothing behind it; one row is broadcast to all `rows`."""
        self.erase(rows)
        for i, (keys, values) in layers.items():
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
