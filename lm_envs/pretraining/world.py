"""The people, places, plots and turns of the story world.

Names, roles and what a hero may carry or be stand here; the sentences stand in the TOML files beside this
one, as templates for `telling.Teller`: a file for each genre (what one may want there, and what may go
wrong), the attempts to get out of trouble, shared by all genres, and the endings. The facts that a template
may name:

- `{hero}` and `{hero_s}` ("Mira", "Mira's"), `{child}` ("girl" or "boy"), `{trait}`, and the hero's pronouns
  `{he}`, `{him}`, `{his}` and `{himself}`;
- `{helper}` and `{helper_s}`, `{helper_he}`, `{helper_him}` and `{helper_his}`;
- `{place}` ("in a village by the sea"), `{town}` ("village"), `{in_town}` ("in the village"), `{spot}`
  ("behind the mill");
- `{goal}`, `{reason}`, `{thing}`, `{possession}` ("a small lamp"), and of the trouble `{cause}` and `{lack}`.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

Pronoun = Literal["he", "she"]

# One gender a name, so that a name alone decides every pronoun that follows.
GIRLS = (
    *("Mira", "Anna", "Lily", "Nora", "Ella", "Ruth", "Clara", "Ida"),
    *("Tessa", "Maya", "Rosa", "Hanna", "Vera", "Greta", "Lena", "Iris"),
)
BOYS = (
    *("Tom", "Ben", "Finn", "Oscar", "Leo", "Jonas", "Peter", "Hugo"),
    *("Noah", "Emil", "Karl", "Simon", "Jack", "Felix", "Otto", "Theo"),
)
# One gender a role too.
MEN = (
    *("miller", "baker", "blacksmith", "shepherd", "sailor", "fisherman", "carpenter", "clockmaker"),
    *("gardener", "innkeeper", "knight", "king", "wizard", "woodcutter", "ferryman", "captain"),
    *("postman", "conductor", "librarian", "cook", "painter", "printer", "tinker"),
)
WOMEN = (
    *("teacher", "doctor", "tailor", "weaver", "midwife", "queen", "witch", "fairy"),
    *("goose girl", "florist", "nurse", "singer", "shopkeeper", "harbor master", "potter"),
    *("glassblower", "seamstress", "headmistress", "inventor", "washerwoman", "beekeeper", "dancer"),
)
MALE_RELATIONS = ("grandfather", "uncle", "father", "brother", "cousin")
FEMALE_RELATIONS = ("grandmother", "aunt", "mother", "sister", "neighbor")
# What a helper with a name is to the hero.
BONDS = ("friend", "classmate", "playmate")

# The pronoun of every name, and of the last word of every role and relation.
GENDERS: dict[str, Pronoun] = {
    **{noun.split()[-1]: "he" for noun in (*BOYS, *MEN, *MALE_RELATIONS)},
    **{noun.split()[-1]: "she" for noun in (*GIRLS, *WOMEN, *FEMALE_RELATIONS)},
}

TRAITS = (
    *("brave", "patient", "clever", "kind", "stubborn", "careful"),
    *("cheerful", "strong", "honest", "quick", "curious", "gentle"),
)
POSSESSIONS = {
    "lamp": "a small lamp",
    "rope": "a long rope",
    "whistle": "a tin whistle",
    "string": "a ball of string",
    "coin": "a silver coin",
    "bread": "a loaf of bread",
    "flute": "a wooden flute",
    "blanket": "a warm blanket",
}

KINDS = ("lost", "broken", "taken", "short", "blocked", "afraid", "quarrel", "late", "storm", "ill")

# The first sentence, or the first two: who and where, then what for. A plan is a tuple of sentences.
PLANS = (
    ("{hero} lived {place} and [wanted|hoped|had decided] to {goal}.", "REASON"),
    ("{place}, a {trait} {child} named {hero} wanted to {goal}.", "REASON"),
    ("{hero} was a {trait} {child} {place} who [wanted|longed] to {goal}.", "REASON"),
    ("[Once|One year|One autumn], {place}, {hero} [decided|made a plan] to {goal}.", "REASON"),
    (
        "[Long ago|In those days], {hero}, a {trait} {child} {place}, [hoped|wanted] to {goal}, "
        "because {reason}.",
    ),
    ("{hero}, a {trait} {child} {place}, wanted to {goal}, because {reason}.",),
    (
        "{hero} was a {trait} {child} and lived {place}.",
        "[One day|That year|One spring] {hero} [decided|made up {his} mind] to {goal}, because {reason}.",
    ),
    (
        "A {trait} {child} named {hero} lived {place} and [often helped|often talked to] {helper}.",
        "[One day|That year|One morning] {hero} [wanted|decided|set out] to {goal}.",
        "REASON",
    ),
    (
        '"I want to {goal}," [said|announced] {hero}, a {trait} {child} {place}.',
        "[The reason was simple|There was a reason]: {reason}.",
    ),
    (
        "{place} lived {hero}, a {trait} {child} whom {helper} [liked|trusted|often praised].",
        "{hero} [wanted|hoped|had decided] to {goal}, because {reason}.",
    ),
)
CARRIED = (
    "{hero} [always carried|never went out without|had brought] {possession}.",
    "In {his} [bag|pocket|basket] {hero} had {possession}, a gift from {helper}.",
    "{hero} took along {possession}, [as always|just in case|for luck].",
)
HERO_SAYS = ('"{speech}," said {hero}.', '"{speech}," {hero} [told {helper}|said to {helper}|promised].')
HELPER_SAYS = ('"{speech}, {hero}," said {helper}.', '"{speech}," {helper} [said|told {him}].')
# What stands between a first attempt and a second one.
AGAIN = (
    "[Still|Even so,] {hero} [did not give up|did not go home|would not stop].",
    "{hero} [took a deep breath|sat down for a moment|counted to ten] "
    "and [tried again|thought of something else].",
    "[There was one more way|There was still a way|One chance was left].",
)


@dataclass(frozen=True)
class Place:
    """Where a hero lives: "in a village by the sea", "village", "in the village"."""

    phrase: str
    town: str
    in_town: str


@dataclass(frozen=True)
class Goal:
    """What a hero may want.

    Attributes:
        name: One word for the facts of the story.
        can: The kinds of trouble that may come.
        goal: A verb phrase that follows "wanted to"; it names the thing.
        things: What the goal is about.
        reason: Clauses that follow "because".
        hero_says: What the hero says before the trouble.
        helper_says: What the helper says before the trouble.
        done: Sentences that tell that the goal is reached.
        lost: Sentences that tell that it is not.
    """

    name: str
    can: tuple[str, ...]
    goal: str
    things: tuple[str, ...]
    reason: tuple[str, ...]
    hero_says: tuple[str, ...]
    helper_says: tuple[str, ...]
    done: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True)
class Trouble:
    """What may go wrong at the end of the opening.

    Attributes:
        name: A word or two for the facts of the story.
        kind: What is wrong now, one of `KINDS`.
        event: Sentences that tell it and leave the outcome open.
        cause: What did it, with its article.
        lack: Of kind "short": what is missing.
        goals: The goals that it may befall; all that can have this kind of trouble if empty.
    """

    name: str
    kind: str
    event: tuple[str, ...]
    cause: str = ""
    lack: str = ""
    goals: tuple[str, ...] = ()

    def may_befall(self, goal: Goal) -> bool:
        """Whether a goal can have this trouble."""
        return self.kind in goal.can and (not self.goals or goal.name in self.goals)


@dataclass(frozen=True)
class Attempt:
    """A way out of one kind of trouble.

    Attributes:
        name: A gerund phrase for the facts of the story.
        kind: What it may put right, one of `KINDS`.
        by: What it needs: a possession, a trait, "helper" or "alone".
        try_: Sentences that tell what is done.
        good: Sentences that tell that it worked.
        bad: Sentences that tell that it did not.
    """

    name: str
    kind: str
    by: str
    try_: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]


@dataclass(frozen=True)
class Genre:
    """A sort of stories: its places, its people, what they want and what may go wrong."""

    name: str
    places: tuple[Place, ...]
    spots: tuple[str, ...]
    roles: tuple[str, ...]
    goals: tuple[Goal, ...]
    troubles: tuple[Trouble, ...]


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def _genre(name: str) -> Genre:
    table = _read(f"genre_{name}.toml")
    return Genre(
        name=table["name"],
        places=tuple(Place(**place) for place in table["places"]),
        spots=tuple(table["spots"]),
        roles=tuple(table["roles"]),
        goals=tuple(Goal(**_tuples(goal)) for goal in table["goal"]),
        troubles=tuple(Trouble(**_tuples(trouble)) for trouble in table["trouble"]),
    )


def _attempts(name: str) -> tuple[Attempt, ...]:
    tables = _read(f"attempts_{name}.toml")["attempt"]
    return tuple(Attempt(**_tuples({"try_": table.pop("try"), **table})) for table in tables)


GENRES = tuple(map(_genre, ("village", "fairytale", "city", "sea", "school", "workshop")))
ATTEMPTS = _attempts("things") + _attempts("people")

# ENDINGS[mood][part]: templates that may follow the turn of any plot.
ENDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    mood: _tuples(parts) for mood, parts in _read("endings.toml").items()
}
