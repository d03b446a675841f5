"""What must hold in a story of this world and can be checked by rule: its cast and its pronouns.

They hold in every generated story; how often they hold in a model's samples says how well it learned them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lm_envs.pretraining.world import BOYS, GIRLS

_WORDS = re.compile(r"[A-Za-z]+")
_FEMALE = frozenset(("she", "her", "herself", *map(str.lower, GIRLS)))
_MALE = frozenset(("he", "him", "his", "himself", *map(str.lower, BOYS)))
_NAMES = frozenset(GIRLS + BOYS)


def names(text: str) -> frozenset[str]:
    """The heroes' names that occur in a text."""
    return _NAMES.intersection(_WORDS.findall(text))


def mixes_genders(text: str) -> bool:
    """Whether a text holds both a female and a male name or pronoun; a story of this world has one gender."""
    words = set(_WORDS.findall(text.lower()))
    return bool(words & _FEMALE) and bool(words & _MALE)


def words(text: str) -> list[str]:
    """Lower-case words, without punctuation."""
    return [word.lower() for word in re.findall(r"[A-Za-z']+", text)]


def four_grams(text: str) -> set[tuple[str, ...]]:
    """The distinct runs of four words in a text."""
    tokens = words(text)
    return set(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))


def sentences(text: str) -> list[str]:
    """The sentences of a text, closing quotation marks included."""
    return re.findall(r'\S.*?[.!?]+"?(?=\s+[A-Z"]|$)', text)


def share(flags: Iterable[bool]) -> float:
    """The fraction of true values."""
    values = list(flags)
    return sum(values) / len(values)
