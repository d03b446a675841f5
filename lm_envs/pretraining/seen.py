"""What the training stories hold, with their people and things masked: what a model could have copied.

Names, roles and things stand in for one another in this world, so two texts that differ in nothing else count
as one. Only hashes are kept: hundreds of thousands of stories fit into memory.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from lm_envs.pretraining.checks import CHILDREN, PRONOUNS, all_sentences, mentions

_TOKEN = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*|'[a-z]+|[^\sA-Za-z]")  # words and marks
_DETERMINERS = frozenset(("the", "his", "her", "The", "His", "Her"))
_NEUTRAL = {
    **dict.fromkeys(("he", "she"), "HE"),
    **dict.fromkeys(("him", "her", "his", "hers"), "HIS"),
    **dict.fromkeys(("himself", "herself"), "HIMSELF"),
}
_NEUTRAL |= {pronoun.capitalize(): neutral for pronoun, neutral in _NEUTRAL.items()}

# So many stories must have a sentence before a use of its pronouns that none of them has counts as wrong.
ENOUGH = 10

Tokens = tuple[str, ...]


class Seen:
    """The training stories that were added, as hashes.

    Args:
        genders: "he" or "she" for each name (capitalised) and the head of each role (lower case).
        things: What stories are about, each a word or more; they are masked.

    Attributes:
        stories: How many were added.
    """

    def __init__(self, genders: Mapping[str, str], things: Iterable[str]) -> None:
        self.stories = 0
        self._genders = genders
        self._things: dict[str, list[Tokens]] = defaultdict(list)  # by first word, the longest first
        for thing in sorted(things, key=len, reverse=True):
            tokens = tuple(_TOKEN.findall(thing))
            self._things[tokens[0]].append(tokens)
        self._exact: set[int] = set()
        self._masked: set[int] = set()
        self._sentences: set[int] = set()
        self._triples: set[int] = set()
        self._capitals: set[str] = set()
        self._counts: Counter[int] = Counter()  # of sentences with pronouns, these masked too
        self._uses: set[int] = set()

    def add(self, text: str) -> None:
        """Takes note of one training story."""
        self.stories += 1
        self._exact.add(hash(text))
        people, masked = self._read(text)
        self._masked.add(hash(_neutral(_whole(masked))))
        for sentence in masked:
            if (key := hash(sentence)) not in self._sentences:
                self._sentences.add(key)
                self._triples.update(map(hash, _triples(sentence)))
                self._capitals.update(_capitals(sentence))
        for use in self._uses_of_pronouns(people, masked):
            if use is not None:
                self._counts[use[0]] += 1
                self._uses.add(hash(use))

    def mask(self, text: str) -> list[Tokens]:
        """The words and marks of each sentence, people and things masked.

        HERO stands for the first name of the text, NAME for any other, ROLE for "the old miller" or "his
        aunt", THING for one of the things.
        """
        return self._read(text)[1]

    def _read(self, text: str) -> tuple[list[str], list[Tokens]]:
        """Hero and helper ("" where there is none), and the masked sentences."""
        people = dict.fromkeys(mention.word for mention in mentions(text, self._genders))
        hero = next((word for word in people if word[0].isupper()), "")
        helper = next((word for word in people if word != hero and word not in CHILDREN), "")
        masked = [self._mask(_TOKEN.findall(sentence), hero) for sentence in all_sentences(text)]
        return [hero, helper], masked

    def _mask(self, tokens: Sequence[str], hero: str) -> Tokens:
        masked: list[str] = []
        position = 0
        while position < len(tokens):
            token = tokens[position]
            length = 1
            for thing in self._things.get(token, ()):
                if tuple(tokens[position : position + len(thing)]) == thing:
                    token, length = "THING", len(thing)
                    break
            else:
                if token == hero:
                    token = "HERO"
                elif token in self._genders and token[0].isupper():
                    token = "NAME"
                elif token.lower() in self._genders:
                    token = "ROLE"
                    for back in (1, 2):  # "the miller", "the old miller"
                        if len(masked) >= back and masked[-back] in _DETERMINERS:
                            del masked[-back:]
                            break
            masked.append(token)
            position += length
        return tuple(masked)

    def is_copy(self, text: str) -> bool:
        """Whether a training story is the same, word for word."""
        return hash(text) in self._exact

    def is_masked_copy(self, text: str) -> bool:
        """Whether a training story is the same but for people, their pronouns and things."""
        return hash(_neutral(_whole(self.mask(text)))) in self._masked

    def unknown_names(self, text: str) -> list[str]:
        """Capitalised words within sentences that are no name of the world and in no training story."""
        return [
            name for tokens in self.mask(text) for name in _capitals(tokens) if name not in self._capitals
        ]

    def strange(self, text: str) -> list[list[str]]:
        """For each sentence the runs of three words or marks, masked, that no training story has.

        A sentence without any is grammatical wherever grammar reaches no further than three words. One with
        some is either broken or new: how often the generator's own held-out sentences have some says how
        often it is only new.
        """
        return [
            [" ".join(triple) for triple in _triples(sentence) if hash(triple) not in self._triples]
            for sentence in self.mask(text)
        ]

    def turned(self, text: str) -> list[str]:
        """Sentences with a pronoun of another person than in every training story that has the sentence.

        Two stories have the same sentence if it differs in people, pronouns and things only. In each the
        pronouns agree in gender with the hero or not, with the helper or not; if this agreement was seen in
        none of at least `ENOUGH` such stories, a pronoun stands for the wrong person: "Mira hurt his knee",
        though a boy is near.

        Not seen: sentences that are new or rare.
        """
        uses = self._uses_of_pronouns(*self._read(text))
        return [
            sentence
            for sentence, use in zip(all_sentences(text), uses, strict=True)
            if use is not None and self._counts[use[0]] >= ENOUGH and hash(use) not in self._uses
        ]

    def _uses_of_pronouns(
        self, people: Sequence[str], masked: Sequence[Tokens]
    ) -> list[tuple[int, tuple[bool, ...]] | None]:
        """For each sentence with pronouns: its form, and which of them agree with hero and with helper."""
        cast = [self._genders.get(person) for person in people]
        uses: list[tuple[int, tuple[bool, ...]] | None] = []
        for sentence in masked:
            found = [PRONOUNS[token.lower()] for token in sentence if token in _NEUTRAL]
            agreement = tuple(pronoun == gender for pronoun in found for gender in cast)
            uses.append((hash(_neutral(sentence)), agreement) if found else None)
        return uses


def _whole(masked: Iterable[Tokens]) -> Tokens:
    return tuple(token for sentence in masked for token in sentence)


def _capitals(sentence: Tokens) -> Iterable[str]:
    """Words with a capital that stand right behind a word or a comma, masks left out."""
    for before, token in pairwise(sentence):
        if re.match("[A-Z][a-z]", token) and (before == "," or before[-1].isalpha()):
            yield token


def _neutral(tokens: Tokens) -> Tokens:
    """One pronoun for both genders."""
    return tuple(_NEUTRAL.get(token, token) for token in tokens)


def _triples(sentence: Tokens) -> Iterable[Tokens]:
    """Runs of three words or marks, the ends of the sentence included; the hero is a name as any."""
    tokens = ["<", *("NAME" if token == "HERO" else token for token in sentence), ">"]
    return zip(tokens, tokens[1:], tokens[2:], strict=False)
