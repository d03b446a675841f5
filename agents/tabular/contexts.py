"""Rows of a table for observations: a hash of those that were visited, or the observation itself."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from lm_envs.spaces import UnicodeText

MAX_DENSE = 2**24  # observations that get a row each without having been visited, unless asked for


class Contexts:
    """Numbers contexts, 0, 1, ...: the rows of a table.

    Sparse: a context gets a row when it is first visited, by its bytes (a text: UTF-8); row 0 is that of all
    contexts that never were. Exact: no two contexts share a row by chance. Dense, for `Discrete` observations
    only: row = observation.

    Args:
        space: of single observations: `Discrete`, `MultiDiscrete`, `MultiBinary`, `Box` of integers, `Dict`
            and `Tuple` of these, or texts.
        dense: None: wherever possible, up to `MAX_DENSE` observations.

    Raises:
        TypeError: observations that are no exact keys, floats say.
        ValueError: dense, but the observations are not `Discrete`.
    """

    def __init__(self, space: Space, dense: bool | None = None) -> None:
        self.space = space
        self.is_text = isinstance(space, spaces.Text | UnicodeText)
        if not self.is_text and not _has_leaves(space):
            raise TypeError(
                "a table needs observations that are exact keys: integers (Discrete, MultiDiscrete, "
                f"MultiBinary, Box, and Dict or Tuple of these) or texts; got {space!r:.120}"
            )
        if dense and not isinstance(space, spaces.Discrete):
            raise ValueError(f"dense=True needs Discrete observations, got {space!r:.120}")
        if dense is None:
            dense = isinstance(space, spaces.Discrete) and int(space.n) <= MAX_DENSE
        self.dense = dense
        self._rows: dict[bytes, int] = {}

    def __len__(self) -> int:
        """Rows in use."""
        return int(self.space.n) if self.dense else 1 + self.visited  # type: ignore[attr-defined]

    @property
    def visited(self) -> int:
        """Contexts that got a row by being visited (sparse only)."""
        return len(self._rows)

    def batch(self, observation: Any) -> tuple[Any, bool]:
        """An observation or a batch of them as a batch, and whether it was a single one."""
        if self.is_text:
            is_single = isinstance(observation, str)
            return ((observation,) if is_single else observation), is_single
        first, space = next(_leaves(self.space, observation))
        is_single = first.ndim == len(space.shape or ())
        return (_add_axis(self.space, observation) if is_single else observation), is_single

    def rows(self, observations: Any, *, add: bool) -> np.ndarray:
        """The rows of a batch of n observations.

        Args:
            observations: batched as Gymnasium's vector environments batch them.
            add: give new contexts rows of their own; else they are in row 0.

        Returns:
            (n,) int64.

        Raises:
            ValueError: a dense row that does not exist.
        """
        if self.dense:
            rows = np.asarray(observations, np.int64) - int(self.space.start)  # type: ignore[attr-defined]
            if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
                raise ValueError(f"observations must be in {self.space!r}, got {rows.min()} to {rows.max()}")
            return rows
        keys = self.keys(observations)
        rows = np.fromiter(map(self._rows.get, keys, repeat(0)), np.int64, len(keys))
        if add:
            for new in np.flatnonzero(rows == 0).tolist():
                rows[new] = self._rows.setdefault(keys[new], 1 + len(self._rows))
        return rows

    def keys(self, observations: Any) -> list[bytes]:
        """The bytes of each observation of a batch."""
        if self.is_text:
            return [text.encode("utf-8", "surrogatepass") for text in observations]
        parts = []
        for leaf, _ in _leaves(self.space, observations):
            flat = np.ascontiguousarray(leaf).reshape(len(leaf), -1)
            parts.append(flat.view(np.uint8))
        joined = np.concatenate(parts, axis=1)
        return joined.view(f"V{joined.shape[1]}").ravel().tolist()

    def pack(self) -> dict[str, np.ndarray]:
        """The visited contexts in order, as plain arrays."""
        keys = list(self._rows)
        lengths = np.array([len(key) for key in keys], np.int64)
        return {"keys": np.frombuffer(b"".join(keys), np.uint8), "key_lengths": lengths}

    def unpack(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes the contexts that `pack` gave for the same space."""
        ends = arrays["key_lengths"].cumsum().tolist()
        joined = arrays["keys"].tobytes()
        starts = [0, *ends[:-1]]
        self._rows = {joined[a:b]: row for row, (a, b) in enumerate(zip(starts, ends, strict=False), 1)}


def _has_leaves(space: Space) -> bool:
    """Whether observations are made of arrays of integers."""
    if isinstance(space, spaces.Dict):
        return all(_has_leaves(part) for part in space.values())
    if isinstance(space, spaces.Tuple):
        return all(_has_leaves(part) for part in space)
    fixed = isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box)
    return fixed and np.issubdtype(space.dtype, np.integer)


def _leaves(space: Space, observations: Any) -> Iterator[tuple[np.ndarray, Space]]:
    """The arrays that an observation (or a batch) is made of, in the dtype of their spaces."""
    if isinstance(space, spaces.Dict):
        for key, part in space.items():
            yield from _leaves(part, observations[key])
    elif isinstance(space, spaces.Tuple):
        for part, inner in zip(space, observations, strict=True):
            yield from _leaves(part, inner)
    else:
        yield np.asarray(observations, dtype=space.dtype), space


def _add_axis(space: Space, observation: Any) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _add_axis(part, observation[key]) for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_add_axis(part, inner) for part, inner in zip(space, observation, strict=True))
    return np.asarray(observation)[None]
