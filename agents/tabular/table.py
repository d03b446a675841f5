"""A table of numbers per context, and how a batch of updates is applied to it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from agents.tabular.contexts import Contexts


class Column(NamedTuple):
    """What a table holds for every context."""

    initial: float = 0.0
    per_action: bool = True  # a number for each action, or one


class Table:
    """Rows of numbers for contexts; sparse ones grow as contexts are visited.

    Args:
        contexts: which row is whose.
        num_actions: A.
        columns: name -> what is held.
    """

    def __init__(self, contexts: Contexts, num_actions: int, columns: dict[str, Column]) -> None:
        self.contexts, self.num_actions, self.columns = contexts, num_actions, columns
        self._arrays: dict[str, np.ndarray] = {}
        self._fit(len(contexts))

    def __getitem__(self, name: str) -> np.ndarray:
        """A column: (m, A) or (m,) float64, m at least the rows in use. A view, until contexts are added."""
        return self._arrays[name]

    def rows(self, observations: Any, *, add: bool = True) -> np.ndarray:
        """See `Contexts.rows`; the columns grow with the contexts."""
        rows = self.contexts.rows(observations, add=add)
        if add:
            self._fit(len(self.contexts))
        return rows

    def pack(self) -> dict[str, np.ndarray]:
        """Contexts and columns as plain arrays."""
        used = len(self.contexts)
        return {**self.contexts.pack(), **{f"column_{name}": self[name][:used] for name in self.columns}}

    def unpack(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes what `pack` gave.

        Raises:
            ValueError: a column that is missing or of another shape; names both shapes.
        """
        self.contexts.unpack(arrays)
        used = len(self.contexts)
        self._fit(used)
        for name in self.columns:
            stored = arrays.get(f"column_{name}", np.zeros(0))
            expected = (used, *self[name].shape[1:])
            if stored.shape != expected:
                raise ValueError(f"the table's column {name!r} has the shape {stored.shape}, here {expected}")
            self[name][:used] = stored

    def _fit(self, used: int) -> None:
        """Doubles the columns until so many rows fit."""
        for name, column in self.columns.items():
            old = self._arrays.get(name)
            if old is None or len(old) < used:
                size = used if old is None else max(used, 2 * len(old))
                shape = (size, self.num_actions) if column.per_action else (size,)
                self._arrays[name] = np.full(shape, column.initial)
                if old is not None:
                    self._arrays[name][: len(old)] = old


class Groups:
    """The equal ones of n cells (or rows) brought together.

    Args:
        cells: (n,) int64, n >= 1.

    Attributes:
        order: (n,) sorts the cells.
        starts: (m,) where each group starts in that order.
        cells: (m,) the different cells.
        counts: (m,) how often each is there.
    """

    def __init__(self, cells: np.ndarray) -> None:
        self.order = np.argsort(cells, kind="stable")
        ordered = cells[self.order]
        is_first = np.ones(len(cells), bool)
        np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
        self.starts = np.flatnonzero(is_first)
        self.cells = ordered[self.starts]
        self.counts = np.diff(self.starts, append=len(cells))

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sums over the groups: (n, ...) in, (m, ...) out."""
        return np.add.reduceat(values[self.order], self.starts, axis=0)

    def step(self, sizes: np.ndarray) -> np.ndarray:
        """What is left to the mean when each one in turn goes its share of the way: 1 - prod(1 - size)."""
        return 1 - np.multiply.reduceat(1 - sizes[self.order], self.starts)

    def numbers(self) -> np.ndarray:
        """Of each of the n: 1 for the first of its group, 2 for the second, and so on."""
        numbers = np.empty(len(self.order), np.int64)
        numbers[self.order] = np.arange(len(self.order)) - np.repeat(self.starts, self.counts) + 1
        return numbers


def move(
    values: np.ndarray,
    visits: np.ndarray,
    cells: np.ndarray,
    errors: np.ndarray,
    *,
    rate: float,
    power: float,
) -> None:
    """Moves cells of a table by their errors (target - value).

    The i-th update of a cell has the step size rate / i^power. A batch may hold a cell several times: the
    slots' experiences have no order. Then the cell goes toward the mean of its targets, as far as it would
    have come had they been applied one by one: by 1 - prod_i(1 - step_i) of the mean error. For equal targets
    this is exactly the sequential result, and for rate = power = 1 the average of all targets ever seen.

    Args:
        values: (m,) float64, changed.
        visits: (m,) float64, updates of each cell so far; changed.
        cells: (n,) int64.
        errors: (n,) float64, from values before the batch.
        rate: in [0, 1].
        power: in [0, 1].
    """
    if not len(cells):
        return
    groups = Groups(cells)
    steps = np.full(len(cells), rate)
    if power:
        steps *= (visits[cells] + groups.numbers()) ** -power
    visits[groups.cells] += groups.counts
    values[groups.cells] += groups.step(steps) * groups.sum(errors) / groups.counts
