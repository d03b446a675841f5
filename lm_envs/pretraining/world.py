"""The people, places, plots and endings of the story world.

Names, roles and places stand here; the sentences stand in the TOML files beside this one, as templates for
`telling.expand`. The facts that a template may name: `{hero}`, the hero's pronouns `{he}`, `{him}`, `{his}`
and `{himself}`, `{helper}`, `{child}` ("girl" or "boy"), `{trait}`, `{place}` ("in a village by the sea"),
`{town}` ("village"), `{in_town}` ("in the village"), `{thing}` and `{goal}`.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

# One gender a name, so that a name alone decides every pronoun that follows.
GIRLS = (
    *("Mira", "Anna", "Lily", "Nora", "Ella", "Ruth", "Clara", "Ida"),
    *("Tessa", "Maya", "Rosa", "Hanna", "Vera", "Greta", "Lena", "Iris"),
)
BOYS = (
    *("Tom", "Ben", "Finn", "Oscar", "Leo", "Jonas", "Peter", "Hugo"),
    *("Noah", "Emil", "Karl", "Simon", "Jack", "Felix", "Otto", "Theo"),
)

TRAITS = (
    *("brave", "shy", "curious", "patient", "clever", "stubborn", "quiet", "cheerful"),
    *("careful", "gentle", "lively", "poor", "proud", "lonely", "young", "hard-working"),
)

# The second character is known by a role, never by a name and never by a pronoun.
HELPERS = (
    *("the baker", "the old sailor", "the teacher", "the blacksmith", "the miller", "the shepherd"),
    *("the gardener", "the doctor", "the innkeeper", "the carpenter", "the tailor", "the clockmaker"),
    *("{his} grandmother", "{his} grandfather", "{his} uncle", "{his} aunt", "{his} mother", "{his} father"),
    *("{his} sister", "{his} brother", "{his} neighbor", "{his} best friend"),
)

INTRODUCTIONS = (
    "{hero} lived {place} and [wanted|hoped|had decided] to {goal}.",
    "{place}, a {trait} {child} named {hero} wanted to {goal}.",
    "{hero} was a {trait} {child} {place} who [wanted|longed] to {goal}.",
    "[Once|One year|One autumn], {place}, {hero} [decided|set out|made a plan] to {goal}.",
    "[Long ago|In those days], a {trait} {child}, {hero}, lived {place} and [wanted|meant] to {goal}.",
    "{hero}, a {trait} {child} {place}, [promised|had long wished] to {goal}.",
)


@dataclass(frozen=True)
class Place:
    """Where a hero lives, as the first sentence says it and as later ones do.

    Attributes:
        phrase: "in a village by the sea"
        short: "village"
        preposition: For `short`: "in" the village, "on" the island.
    """

    phrase: str
    short: str
    preposition: str


PLACES = (
    Place("in a village by the sea", "village", "in"),
    Place("in a fishing village", "village", "in"),
    Place("in a mountain village", "village", "in"),
    Place("near the harbor", "harbor", "at"),
    Place("in the old city", "city", "in"),
    Place("in a crowded city", "city", "in"),
    Place("on a windy island", "island", "on"),
    Place("on a small green island", "island", "on"),
    Place("in a green valley", "valley", "in"),
    Place("at the foot of the mountain", "valley", "in"),
    Place("in a town under the hills", "town", "in"),
    Place("in a town by the river", "town", "in"),
    Place("in a narrow street behind the market", "street", "in"),
    Place("on a farm near the forest", "farm", "on"),
    Place("in the shadow of a castle", "castle", "at"),
    Place("at a school by the lake", "school", "at"),
)


@dataclass(frozen=True)
class Obstacle:
    """What goes wrong at the end of the opening, and how that can turn out.

    Attributes:
        name: A word or two for the facts of the story.
        event: The conflict, one sentence that leaves the outcome open.
        good: Ways in which the hero gets through, each one sentence.
        bad: Ways in which the hero fails, each one sentence.
    """

    name: str
    event: str
    good: tuple[str, ...]
    bad: tuple[str, ...]


@dataclass(frozen=True)
class Plot:
    """What a hero wants, why, and what may stand in the way.

    Attributes:
        name: One word for the facts of the story.
        goal: A verb phrase that follows "wanted to"; it names the thing.
        things: What the goal is about.
        motive: Reasons, each one sentence; goal and motive together name the helper.
        promise: What is said before the conflict, each one sentence.
        obstacles: What may go wrong.
    """

    name: str
    goal: str
    things: tuple[str, ...]
    motive: tuple[str, ...]
    promise: tuple[str, ...]
    obstacles: tuple[Obstacle, ...]


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _plots(name: str) -> tuple[Plot, ...]:
    plots = _read(name)["plot"]
    for plot in plots:
        plot["obstacles"] = [Obstacle(**_tuples(obstacle)) for obstacle in plot["obstacles"]]
    return tuple(Plot(**_tuples(plot)) for plot in plots)


def _tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


PLOTS = _plots("plots_home.toml") + _plots("plots_away.toml")

# ENDINGS[mood][part]: templates that may follow the turn of any plot.
ENDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    mood: _tuples(parts) for mood, parts in _read("endings.toml").items()
}
