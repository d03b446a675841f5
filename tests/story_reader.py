"""Reads the beginning of a story back into facts, by patterns of its sentences: an oracle for tasks."""

from __future__ import annotations

import re
from typing import NamedTuple

from lm_envs.pretraining.world import BOYS, GIRLS

NAMES = {*GIRLS, *BOYS}
_WISH = re.compile(
    r"(?:\"I want|wanted|hoped|longed|decided|made a plan|made up (?:his|her) mind|began|set out)"
    r" to (?P<goal>[^,.\"]+)(?:, because (?P<because>[^.]+)\.|[,.])"
)
_PLACES = (
    r"\b(?:lived|boy|girl) ((?:in|on|at) .+?)(?=,|\.| and (?:wanted|hoped|had|often)\b| who\b)",
    r"^(?:Once, |One \w+, )?((?:in|on|at) .+?)(?=,| lived)",
)
_FRIEND = re.compile(r"\b(?:his|her) (?:friend|classmate|playmate) ([A-Z]\w+)", re.IGNORECASE)


class Beginning(NamedTuple):
    """What the beginning of a story tells."""

    hero: str
    goal: str
    place: str
    reason: str
    friend: str  # a second person with a name, "" if there is none
    trouble: str  # the sentence that begins with "But"


def sentences(text: str) -> list[str]:
    """Full stops, or quotation marks behind them, end a sentence where a capital follows."""
    return re.split(r"(?<=[.!?]) (?=[\"A-Z])|(?<=[.!?]\") (?=[\"A-Z])", text)


def beginnings(text: str) -> list[Beginning]:
    """One for each story in the text: of a whole story, of a beginning, or of two after each other."""
    told = sentences(text)
    found: list[Beginning] = []
    while told:
        # The hero is named first; a story that goes on after its trouble names nobody new.
        hero = next((word for word in re.findall(r"\w+", told[0]) if word in NAMES), "")
        if not hero or (found and hero in text[: text.index(told[0])]):
            break
        trouble = next(at for at, sentence in enumerate(told) if sentence.startswith("But "))
        wished = next(at for at in range(2) if _WISH.search(told[at]))
        wish = _WISH.search(told[wished])
        assert wish
        reason = wish["because"] or told[wished + 1].removesuffix(".")
        reason = re.sub(r"^(The reason was simple|There was a reason): ", "", reason)
        places = (re.search(pattern, told[0], re.IGNORECASE) for pattern in _PLACES)
        place = next(place[1] for place in places if place)
        friend = _FRIEND.search(" ".join(told[: trouble + 1]))
        named = friend[1] if friend else ""
        found.append(Beginning(hero, wish["goal"], place, _FRIEND.sub(r"\1", reason), named, told[trouble]))
        told = told[trouble + 1 :]
    return found
