"""Spaces that Gymnasium has not: ordinary text, and discrete actions of which some are masked for now."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete, Space

# What samples are made of: ASCII, and characters of two, three and four bytes.
_SAMPLE_CHARACTERS = [chr(code) for code in range(32, 127)] + list("\n\téßœЖδ中文“”…🙂")


class UnicodeText(Space[str]):
    """Every str of at most `max_length` characters; Gymnasium's `Text` refuses blanks by default.

    Vector environments batch it as a tuple of str. There is no way to flatten it.

    Args:
        max_length: in characters, >= 1.
        seed: of `sample`.
    """

    def __init__(self, max_length: int, seed: int | np.random.Generator | None = None) -> None:
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        self.max_length = int(max_length)
        super().__init__(dtype=str, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        """False: text has no fixed-size array form."""
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A str of up to 64 characters, of uniform length; masks are not supported."""
        if mask is not None or probability is not None:
            raise ValueError("UnicodeText.sample() takes no mask and no probability")
        length = self.np_random.integers(min(64, self.max_length) + 1)
        return "".join(self.np_random.choice(_SAMPLE_CHARACTERS, size=length))

    def contains(self, x: Any) -> bool:
        """Whether x is a str that is not too long."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and self.max_length == other.max_length

    def __hash__(self) -> int:
        return hash(("UnicodeText", self.max_length))


class MaskedDiscrete(Discrete):
    """`Discrete(n)` whose samples keep to the mask of the moment, so that random agents need not know of it.

    What the space contains does not change with the mask.

    Attributes:
        mask: (n,) int8, 1 for what may be sampled now; None: everything. The environment keeps it up to date.
    """

    mask: np.ndarray | None = None

    def sample(self, mask: Any = None, probability: Any = None) -> np.int64:
        """As `Discrete.sample`; without a mask or probabilities, with the mask of the moment."""
        return super().sample(self.mask if mask is None and probability is None else mask, probability)


class MaskedMultiDiscrete(MultiDiscrete):
    """One `MaskedDiscrete(n)` for each of B slots.

    Attributes:
        mask: (B, n) int8 or None, as there.
    """

    mask: np.ndarray | None = None

    def sample(self, mask: Any = None, probability: Any = None) -> np.ndarray:
        """As `MultiDiscrete.sample`; without a mask or probabilities, with the mask of the moment."""
        if mask is None and probability is None and self.mask is not None:
            mask = tuple(self.mask)
        return super().sample(mask, probability)
