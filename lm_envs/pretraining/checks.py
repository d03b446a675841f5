"""What must hold in a story of this world and can be checked by rule: its cast, its pronouns, its sentences.

A check returns its findings, one short line each; none means that nothing was found. They hold in every
generated story; how often they hold in a model's samples says how well it learned them. Each rule is meant to
be certain: what could be right is not reported, so the findings are a lower bound of the mistakes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from lm_envs.pretraining import world

_WORDS = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*")
_SENTENCE = re.compile(r'\S.*?[.!?]+"?(?=\s+[A-Z"]|$)', re.DOTALL)
PRONOUNS = {
    **dict.fromkeys(("he", "him", "his", "himself"), "he"),
    **dict.fromkeys(("she", "her", "hers", "herself"), "she"),
}
_POSSESSIVES = ("his", "her")
_DETERMINER = re.compile(r"\b(an?|the|his|her) (?:(?!to )[a-z-]+ )?$", re.IGNORECASE)

# What stands before a name that is introduced: "her old friend ", "the boy, ", "a boy named ".
_APPOSITION = re.compile(
    r"(?:\b[Aa]n? (?:[a-z-]+ )?([a-z-]+) (?:named|called)"
    r"|(?:\b[Hh]is|\b[Hh]er|\b[Tt]he|'s) (?:[a-z-]+ )?([a-z-]+)(?:,| named| called)?) $"
)

# A name says the gender of whom it names, and so do these.
CHILDREN = {"boy": "he", "man": "he", "lad": "he", "girl": "she", "woman": "she", "lass": "she"}


def genders() -> Mapping[str, str]:
    """ "he" or "she" for each name (capitalised) and each role or relation (lower case) of the world."""
    return world.GENDERS


def names(text: str) -> frozenset[str]:
    """The people's names that occur in a text."""
    known = genders()
    return frozenset(word for word in _WORDS.findall(text) if word[0].isupper() and word in known)


def words(text: str) -> list[str]:
    """Lower-case words, without punctuation."""
    return [word.lower() for word in re.findall(r"[A-Za-z']+", text)]


def four_grams(text: str) -> set[tuple[str, ...]]:
    """The distinct runs of four words in a text."""
    tokens = words(text)
    return set(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))


def sentences(text: str) -> list[str]:
    """The sentences of a text, closing quotation marks included; an unfinished last one left out."""
    return _SENTENCE.findall(text)


def all_sentences(text: str) -> list[str]:
    """As `sentences`, and the unfinished one behind them if there is one."""
    found = list(_SENTENCE.finditer(text))
    rest = text[found[-1].end() if found else 0 :].strip()
    return [match[0] for match in found] + ([rest] if rest else [])


def share(flags: Iterable[bool]) -> float:
    """The fraction of true values."""
    values = list(flags)
    return sum(values) / len(values)


@dataclass(frozen=True)
class Mention:
    """A word that names a person.

    Attributes:
        word: A name, or the lower-case head of a role ("miller" in "the old miller").
        start: Where it begins in the text.
        determiner: Of a role, the article or possessive before it, lower case.
    """

    word: str
    start: int
    determiner: str = ""

    @property
    def is_name(self) -> bool:
        """Whether it is a name and no role."""
        return self.word[0].isupper()


def mentions(text: str, genders: Mapping[str, str]) -> Iterator[Mention]:
    """The people that a text names, in order: names, and roles behind an article or a possessive."""
    for match in _WORDS.finditer(text):
        word, start = match[0], match.start()
        if word not in genders:
            continue
        if word[0].isupper():
            yield Mention(word, start)
        elif determiner := _DETERMINER.search(text, max(0, start - 30), start):
            yield Mention(word, start, determiner[1].lower())


def name_faults(text: str, genders: Mapping[str, str]) -> list[str]:
    """Names that were never introduced.

    The first name is the hero's and has to come within the first two sentences. Any other must come first in
    an apposition ("her friend Tom", "a boy named Tom", "the miller's son Tom").

    Not seen: a name that the world does not have, and a second person called by the hero's name.
    """
    people = [mention for mention in mentions(text, genders) if mention.is_name]
    if not people:
        return ["nobody has a name"]
    faults = []
    if people[0].start >= len(" ".join(sentences(text)[:2])) > 0:
        faults.append(f"{people[0].word} is introduced late")
    known = {people[0].word}
    for mention in people:
        if mention.word not in known and not _is_introduced(text[: mention.start], genders):
            faults.append(f"{mention.word} was never introduced")
        known.add(mention.word)
    return faults


def _is_introduced(before: str, genders: Mapping[str, str]) -> bool:
    """Whether what stands before a name introduces it."""
    found = _APPOSITION.search(before)
    role = found and (found[1] or found[2])
    return role in world.BONDS or role in genders or role in CHILDREN


def pronoun_faults(text: str, genders: Mapping[str, str]) -> list[str]:
    """Pronouns and relations that nobody in the story can be meant by, and people of two genders.

    A pronoun needs a person of its gender before it or in its own sentence; the relation in "her aunt" is not
    the "her". "A girl named Tom", "his sister Tom" and "Tom was a shy girl" are two genders in one.

    Not seen: a pronoun of the wrong person while the story has people of both genders (see `Seen.turned`).
    """
    genders = {**CHILDREN, **genders}
    faults = []
    met: set[str] = set()
    for sentence in all_sentences(text):
        met.update(mention.word for mention in mentions(sentence, genders))
        for match in _WORDS.finditer(sentence):
            word = match[0].lower()
            gender = PRONOUNS.get(word)
            if gender is None:
                continue
            others = met - {_possessed(sentence[match.end() :], genders)} if word in _POSSESSIVES else met
            if not any(genders[person] == gender for person in others):
                faults.append(f"{word}: nobody to refer to in {sentence!r}")
        faults += _two_genders(sentence, genders)
    return faults


def _possessed(after: str, genders: Mapping[str, str]) -> str:
    """The relation right behind a possessive, an adjective between them allowed; "" if there is none."""
    words = _WORDS.findall(after[:40])[:2]
    return next((word for word in words if word in genders and word[0].islower()), "")


def _two_genders(sentence: str, genders: Mapping[str, str]) -> Iterator[str]:
    """Names beside a word of the other gender."""
    beside = (
        r"(?P<role>[a-z]+),? (?:named |called )?(?P<name>[A-Z][a-z]+)",
        r"(?P<name>[A-Z][a-z]+)(?:,| was| is) an? (?:[a-z-]+ )?(?P<role>[a-z]+)",
    )
    for pattern in beside:
        for match in re.finditer(pattern, sentence):
            role, name = match["role"], match["name"]
            if name in genders and role in genders and genders[name] != genders[role]:
                yield f"{name} is called a {role}"


def role_faults(text: str, genders: Mapping[str, str]) -> list[str]:
    """A second helper: another "the baker" or "her aunt" than the first one, that no "a baker" introduced.

    Not seen: a helper who changes in all but the noun ("the old miller", "the young miller").
    """
    first = ""
    known: set[str] = set()
    faults = []
    for mention in mentions(text, genders):
        if mention.is_name or mention.word in known or mention.word in CHILDREN:
            continue
        known.add(mention.word)
        if mention.determiner not in ("a", "an"):
            if first:
                faults.append(f"the {mention.word} after the {first}")
            first = first or mention.word
    return faults


_PASTS = (
    "went|came|was|were|had|said|took|gave|knew|thought|brought|began|ran|ate|wrote|spoke|broke|fell|"
    "kept|told|made|heard|stood|swam|sang|threw|flew|grew|drew|drove|rode|woke|chose|hid|caught|taught|sold|"
    r"bought|sought|fought|slept|wept|swept|(?!\w*eed\b)(?!(?:bed|red|shed|sled|hundred|sacred|bred|fed|led|"
    r"wed|embed|shred|spread|ahead|kindred|naked|wicked|rugged|wretched)\b)[a-z]+ed"
)
# What is wrong in any sentence -> its pattern.
_SLIPS = {
    "a doubled word": re.compile(r"\b(?!(?:had|that|so|very|far)\b)([A-Za-z]+) \1\b", re.IGNORECASE),
    '"a" before a vowel': re.compile(r"\b[Aa] (?=[aeiou])"),
    '"an" before a consonant': re.compile(r"\b[Aa]n (?!hour|honest|heir)(?=[^aeiouAEIOU\W])"),
    "two articles": re.compile(r"\b(?:the|a|an|my|your|their|his) (?:the|an?|my|your|their|his|her)\b", re.I),
    "a past after to or a modal verb": re.compile(
        rf"\b(?:to|could|would|will|can|must|should|may|did|did not) (?:{_PASTS})\b"
    ),
    "verb and subject disagree": re.compile(
        r"\b(?:(?:[Tt]hey|[Ww]e|[Yy]ou) (?:was|is|has|am)|(?:[Hh]e|[Ss]he|[Ii]t) (?:have|are|am)"
        r"|I (?:is|are|has|were))\b"
    ),
    "an end too soon": re.compile(r'\b(?:the|an?|and|or|of|my|your|their|but)[.,!?]+"?(?:\s|$)'),
    "wrong punctuation": re.compile(r"\s[.,!?;:]|[,;:][.,!?;:]|[.!?],|\.\.(?!\.)(?<!\.\.\.)|\ufffd|  "),
}


def sentence_slips(sentence: str) -> list[str]:
    """What is wrong in a sentence by a few certain rules: the grammar that needs no parser.

    Doubled words, articles, a past form behind "to" or a modal verb, "they was", punctuation, no capital at
    the beginning, no full stop at the end. Not seen: all else; see `Seen.strange`.
    """
    slips = [name for name, pattern in _SLIPS.items() if pattern.search(sentence)]
    if not re.match(r'"?[A-Z]', sentence):
        slips.append("no capital")
    if not re.search(r'[.!?]"?$', sentence):
        slips.append("no end")
    return slips


def is_unfinished(text: str) -> bool:
    """Whether a text stops within a sentence or within a quotation."""
    return not re.search(r'[.!?]"?$', text) or text.count('"') % 2 == 1
