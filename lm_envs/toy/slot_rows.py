"""One item per slot out of a batch, made when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np


class SlotRows(Sequence[Any]):
    """What Gymnasium's vector environments give as an object array: an observation per slot, None elsewhere.

    Thousands of small dicts would cost more than the step that they come from, so they are made one by one.
    `numpy.asarray` makes the object array.

    Args:
        batch: an array of m rows, or a dict of such arrays.
        slots: (m,) the slots that the rows belong to.
        num_slots: B, the length.
    """

    def __init__(self, batch: Any, slots: np.ndarray, num_slots: int) -> None:
        self._batch = batch
        self._rows = np.full(num_slots, -1)
        self._rows[slots] = np.arange(len(slots))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: Any) -> Any: ...

    def __getitem__(self, index: Any) -> Any:
        """The item of one slot, or an object array of items for a mask, a slice or an array of slots."""
        if not isinstance(index, int | np.integer):
            return np.asarray(self)[index]
        row = self._rows[index]
        if row < 0:
            return None
        if isinstance(self._batch, dict):
            return {key: values[row] for key, values in self._batch.items()}
        return self._batch[row]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The object array that this stands for."""
        array = np.empty(len(self), object)
        for slot in range(len(self)):
            array[slot] = self[slot]
        return array
