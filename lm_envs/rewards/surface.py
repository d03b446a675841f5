"""Rewards of how a text looks: length, keywords, repetition, patterns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lm_envs.rewards.base import (
    TextReward,
    check_texts,
    column_rows,
    text_column,
    text_list,
    whole_number,
    words,
)


class Length:
    """1 if the length n lies in [minimum, maximum]; below it n / minimum, above it maximum / n. Range 0 to 1.

    `Length(20, 20)` aims at 20. An empty completion has length 0: it gets 0, or 1 if minimum is 0.

    Args:
        minimum: shortest length that gets 1, in units.
        maximum: longest length that gets 1, in units, at least 1; None: no limit.
        unit: "words" (runs of letters and digits), or "tokens": the length of the row's entry in the column
            `completion_ids` (a generated EOS counts).
    """

    __name__ = "length"

    def __init__(self, minimum: int = 0, maximum: int | None = None, *, unit: str = "words") -> None:
        self.minimum = whole_number("minimum", minimum, 0)
        self.maximum = None if maximum is None else whole_number("maximum", maximum, max(1, minimum))
        if unit not in ("words", "tokens"):
            raise ValueError(f"unit must be 'words' or 'tokens', got {unit!r}")
        self.unit = unit

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """B texts in, B floats out. Raises ValueError if it lacks a `completion_ids` to count."""
        check_texts(prompts, completions)
        if self.unit == "words":
            return [self.score(len(words(completion))) for completion in completions]
        if columns.get("completion_ids") is None:
            raise ValueError("Length(unit='tokens') needs the column 'completion_ids'")
        ids = column_rows("completion_ids", columns["completion_ids"], len(completions))
        return [self.score(len(row) if text else 0) for text, row in zip(completions, ids, strict=True)]

    def score(self, length: int) -> float:
        """The reward of a length in units."""
        if length < self.minimum:
            return length / self.minimum
        if self.maximum is not None and length > self.maximum:
            return self.maximum / length
        return 1.0


class KeywordCoverage:
    """Share of the keywords that the completion holds as whole words, case ignored. Range 0 to 1.

    An empty completion gets 0.

    Args:
        keywords: words or phrases for every completion; None: the column `keywords` holds a str or a
            non-empty list of str per completion.
    """

    __name__ = "keyword_coverage"

    def __init__(self, keywords: Sequence[str] | None = None) -> None:
        self.keywords = None if keywords is None else text_list("keywords", keywords)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """B texts in, B floats out. Raises ValueError if there are neither keywords nor a column of them."""
        check_texts(prompts, completions)
        rows = len(completions)
        keywords = [self.keywords] * rows if self.keywords else text_column(columns, rows, "keywords")
        return [
            sum(_holds(completion, keyword) for keyword in wanted) / len(wanted)
            for completion, wanted in zip(completions, keywords, strict=True)
        ]


def _holds(text: str, keyword: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(keyword)}(?!\w)", text, re.IGNORECASE) is not None


class DistinctN(TextReward):
    """Different n-grams of words, divided by all n-grams of the completion. Range 0 to 1.

    A completion of fewer than n words, an empty one too, gets 0. Words are compared in lower case.

    Source: Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models"; divided
    by the number of n-grams, so that a text without repetition gets 1.

    Args:
        n: words per n-gram, at least 1.
    """

    def __init__(self, n: int = 2) -> None:
        self.n = whole_number("n", n, 1)
        self.__name__ = f"distinct_{n}"

    def score(self, completion: str) -> float:
        """The share of different n-grams of one completion."""
        grams = _ngrams(completion, self.n)
        return len(set(grams)) / len(grams) if grams else 0.0


class RepetitionPenalty(TextReward):
    """Minus the share of n-grams that are repeats: (different n-grams / all n-grams) - 1. Range (-1, 0].

    A completion of fewer than n words, an empty one too, repeats nothing and gets 0.

    Source: seq-rep-n of Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training", negated.

    Args:
        n: words per n-gram, at least 1.
    """

    def __init__(self, n: int = 3) -> None:
        self.n = whole_number("n", n, 1)
        self.__name__ = f"repetition_penalty_{n}"

    def score(self, completion: str) -> float:
        """Minus the share of repeated n-grams of one completion."""
        grams = _ngrams(completion, self.n)
        return len(set(grams)) / len(grams) - 1.0 if grams else 0.0


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    tokens = words(text)
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


class Regex(TextReward):
    """1 if the pattern is found in the completion, else 0.

    An empty completion gets 0, unless the pattern matches the empty string.

    Args:
        pattern: a regular expression of Python's `re`; flags go inside, as in "(?i)yes".
        full: whether the pattern must match the whole completion.
    """

    __name__ = "regex"

    def __init__(self, pattern: str, *, full: bool = False) -> None:
        try:
            self.pattern = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(f"pattern must be a regular expression, got {pattern!r}: {error}") from error
        self.full = full

    def score(self, completion: str) -> float:
        """1.0 or 0.0 for one completion."""
        found = self.pattern.fullmatch(completion) if self.full else self.pattern.search(completion)
        return float(found is not None)
