"""What the rewards of this package share: the signature, and the checks of texts, columns and arguments."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

_WORD = re.compile(r"\w+(?:['’]\w+)*")


# `reward(prompts=[...], completions=[...], **columns)` -> one finite number per completion. As TRL does with
# its `reward_funcs`, all arguments are passed by keyword, columns hold one entry per completion, and a
# function names those that it reads: `def accuracy(completions, solution, **columns)`.
RewardFunction: TypeAlias = Callable[..., Sequence[float]]


class TextReward:
    """A reward of the completion alone; a subclass defines `score`. `__name__` is what TRL logs."""

    __name__: str

    def score(self, completion: str) -> float:
        """The reward of one completion."""
        raise NotImplementedError

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """Scores each completion (B texts in, B floats out); `prompts` and `columns` are not read."""
        check_texts(prompts, completions)
        return [self.score(completion) for completion in completions]


class ReferenceReward:
    """A reward that compares with references; a subclass defines `score`.

    The column `references` (or `reference`) holds a str or a non-empty list of str per completion.
    """

    __name__: str

    def score(self, completion: str, references: list[str]) -> float:
        """The reward of one completion against its references (at least one)."""
        raise NotImplementedError

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """Scores each completion (B texts in, B floats out). Raises ValueError without a reference column."""
        check_texts(prompts, completions)
        references = text_column(columns, len(completions), "references", "reference")
        return [self.score(text, refs) for text, refs in zip(completions, references, strict=True)]


def words(text: str) -> list[str]:
    """Lower-case words: runs of letters, digits and underscores, inner apostrophes included."""
    return _WORD.findall(text.lower())


def check_texts(prompts: Sequence[str], completions: Sequence[str]) -> None:
    """Raises TypeError or ValueError unless both are sequences of str of one length."""
    for argument, texts in (("prompts", prompts), ("completions", completions)):
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise TypeError(f"{argument} must be a list of str, got {type(texts).__name__}")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                hint = "; of chat messages, pass the content" if isinstance(text, list) else ""
                raise TypeError(f"{argument}[{index}] must be a str, got {type(text).__name__}{hint}")
    if len(prompts) != len(completions):
        raise ValueError(f"got {len(prompts)} prompts for {len(completions)} completions")


def text_column(columns: Mapping[str, Any], rows: int, *names: str) -> list[list[str]]:
    """The first column of `names` that is given, as one non-empty list of str per row.

    Raises:
        ValueError: no such column, another number of rows than `rows`, or a row without text.
    """
    name = next((name for name in names if columns.get(name) is not None), None)
    if name is None:
        wanted = " or ".join(repr(name) for name in names)
        raise ValueError(f"this reward needs the column {wanted}; the columns given are {sorted(columns)}")
    column = column_rows(name, columns[name], rows)
    return [text_list(f"{name}[{index}]", entry) for index, entry in enumerate(column)]


def column_rows(name: str, column: Any, rows: int) -> Sequence[Any]:
    """`column` itself; ValueError naming it unless it has one entry for each of `rows` completions."""
    if isinstance(column, str) or not hasattr(column, "__len__") or len(column) != rows:
        size = f"{len(column)} entries" if isinstance(column, Sequence) else type(column).__name__
        raise ValueError(f"column {name!r} must have one entry per completion ({rows}), got {size}")
    return column


def text_list(name: str, texts: Any) -> list[str]:
    """A str or a non-empty sequence of str as a list; ValueError naming it otherwise."""
    listed = [texts] if isinstance(texts, str) else texts
    if not isinstance(listed, Sequence) or not listed or not all(isinstance(text, str) for text in listed):
        raise ValueError(f"{name} must be a str or a non-empty list of str, got {texts!r:.60}")
    return list(listed)


def whole_number(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """`value` as an int if it is one, Python's or numpy's, and in range; ValueError naming it otherwise."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or value < minimum or (maximum is not None and value > maximum):
        limits = f">= {minimum}" if maximum is None else f"in {minimum}..{maximum}"
        raise ValueError(f"{name} must be an integer {limits}, got {value!r}")
    return int(value)


def finite_number(name: str, value: Any) -> float:
    """`value` as a float if it is a finite int or float; ValueError naming it otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)
