"""Turns a template and a stream of random choices into text.

A template is plain text with choices, `[a|b|c]` (they may nest), and facts, `{hero}`. The stream is a counter
hash in pure Python integers, so that a seed means the same story with every version of every library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

_MASK = (1 << 64) - 1
_CHOICE = re.compile(r"\[([^\[\]]*)\]")  # an innermost choice: no bracket inside
_A_BEFORE_VOWEL = re.compile(r"\b([Aa]) (?=[aeiou])")


class Dice:
    """A stream of fair choices: SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195).

    Args:
        key: A 64-bit integer; the streams of different keys are unrelated.

    Attributes:
        nats: Information drawn so far, the sum of -log(probability) over the choices.
    """

    def __init__(self, key: int) -> None:
        self._state = _scramble(key & _MASK)
        self.nats = 0.0

    def below(self, n: int) -> int:
        """An integer from 0 to `n - 1`, by multiplication: its bias is below n / 2^64."""
        self.nats += math.log(n)
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        return (_scramble(self._state) * n) >> 64

    def weigh(self, *weights: int) -> int:
        """The index of one of the weights, each as likely as it weighs."""
        rest, index = self.below(sum(weights)), 0
        while rest >= weights[index]:
            rest -= weights[index]
            index += 1
        self.nats -= math.log(weights[index])
        return index

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each equally likely."""
        return options[self.below(len(options))]


def _scramble(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def expand(template: str, facts: Mapping[str, str], dice: Dice) -> str:
    """The template with its choices made and its facts filled in; "a" becomes "an" where it has to.

    Raises:
        KeyError: The template names a fact that the story does not have.
    """
    while choice := _CHOICE.search(template):
        chosen = dice.pick(choice[1].split("|"))
        template = template[: choice.start()] + chosen + template[choice.end() :]
    return _A_BEFORE_VOWEL.sub(r"\1n ", template.format_map(facts))
