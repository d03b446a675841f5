"""Turns templates and a stream of random choices into sentences that follow one another.

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
_A_BEFORE_VOWEL = re.compile(r"\b([Aa]) (?=[aeiou]|hour|honest)")
_PERSON = re.compile(r"\{(hero|he|him|his|himself|helper)(?:_\w+)?\}")


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


def choose(template: str, dice: Dice) -> str:
    """The template with its choices made, its facts still open."""
    while choice := _CHOICE.search(template):
        chosen = dice.pick(choice[1].split("|"))
        template = template[: choice.start()] + chosen + template[choice.end() :]
    return template


def fill(template: str, facts: Mapping[str, str]) -> str:
    """The template with its facts filled in; "a" becomes "an" where it has to.

    Raises:
        KeyError: The template names a fact that the story does not have.
    """
    return _A_BEFORE_VOWEL.sub(r"\1n ", template.format_map(facts))


def expand(template: str, facts: Mapping[str, str], dice: Dice) -> str:
    """`fill` after `choose`."""
    return fill(choose(template, dice), facts)


class Teller:
    """Tells one sentence after the other; remembers whom it spoke of last, and calls them accordingly.

    A sentence that begins with a person may begin with the pronoun instead, if the sentence before it spoke
    of this person and of nobody else of that gender. It does so in half of these places, and in a quarter of
    them in a story of two names, where a reader has more to keep apart. The helper is introduced at the first
    mention ("her friend Tom") and has a shorter name from then on ("Tom").

    Args:
        facts: What templates may name; `helper` is the short name, `introduction` the first one.
        dice: Makes the choices.

    Attributes:
        has_introduced: Whether the helper has been named.
    """

    def __init__(self, facts: Mapping[str, str], dice: Dice) -> None:
        self.facts = dict(facts)
        self.dice = dice
        self._just_named: set[str] = set()
        self._names = 3 if self.facts["introduction"] != self.facts["helper"] else 1
        self.has_introduced = False

    def say(self, *templates: str) -> str:
        """One of the templates as a sentence, with its capital."""
        sentence = choose(self.dice.pick(templates), self.dice)
        for person, he, his in (("hero", "{he}", "{his}"), ("helper", "{helper_he}", "{helper_his}")):
            if self._is_clear(person):
                begins = sentence.startswith((f"{{{person}}} ", f"{{{person}_s}} "))
                if begins and self.dice.weigh(self._names, 1):
                    beginning, rest = sentence.split(" ", 1)
                    sentence = f"{his if beginning.endswith('_s}') else he} {rest}"
            elif sentence.startswith(his):
                sentence = f"{{{person}_s}}" + sentence.removeprefix(his)
        named = {("helper" if name == "helper" else "hero") for name in _PERSON.findall(sentence)}
        if "helper" in named and not self.has_introduced:
            self.has_introduced = True
            sentence = re.sub(r"\{helper(_s)?\}", r"{introduction\1}", sentence, count=1)
        self._just_named = named
        return _with_capital(fill(sentence, self.facts))

    def _is_clear(self, person: str) -> bool:
        """Whether a pronoun at the beginning of the next sentence can only mean this person."""
        same_gender = self.facts["he"] == self.facts["helper_he"]
        return person in self._just_named and (len(self._just_named) == 1 or not same_gender)


def _with_capital(text: str) -> str:
    first = 1 if text.startswith('"') else 0
    return text[:first] + text[first].upper() + text[first + 1 :]
