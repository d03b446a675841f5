"""Short stories from seeds: what the bundled language model learned from, and the prompts of `TextGen-v0`.

A story is one hero with a name, one helper with a role, a goal, a reason, a conflict, and an ending that
turns good or bad. The same seed gives the same story everywhere; nothing here needs torch or numpy.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Literal

from lm_envs.pretraining.telling import Dice, expand
from lm_envs.pretraining.world import (
    BOYS,
    ENDINGS,
    GIRLS,
    HELPERS,
    INTRODUCTIONS,
    PLACES,
    PLOTS,
    TRAITS,
    Obstacle,
    Plot,
)

Gender = Literal["girl", "boy"]
Mood = Literal["good", "bad", "mixed"]
Split = Literal["train", "test"]

# One cast in ten belongs to the test split.
TEST_SHARE = 10


@dataclass(frozen=True)
class Story:
    """A story and the facts that it tells.

    Attributes:
        text: The whole story, one paragraph: always `f"{opening} {ending}"`.
        opening: Up to and including the conflict, whole sentences; the ending may still turn either way.
        ending: How it turned out: two or three sentences.
        mood: The tone of the ending.
        hero: The only name in the story.
        gender: The hero's; every "he" and "she" is the hero.
        helper: The second character, a role such as "the baker" or "her aunt".
        place: Where the hero lives, as the story says it.
        plot: The kind of story, the name of one of `world.PLOTS`.
        goal: What the hero wanted to do.
        thing: What the goal is about.
        obstacle: What got in the way.
        nats: -log of the probability of the choices that made the story, of either split. Their mean is about
            the entropy of the text (above it where different choices give the same words).
    """

    text: str
    opening: str
    ending: str
    mood: Mood
    hero: str
    gender: Gender
    helper: str
    place: str
    plot: str
    goal: str
    thing: str
    obstacle: str
    nats: float


def story(seed: int, split: Split = "train") -> Story:
    """The story of a seed.

    The splits never share an opening: a cast (hero, helper, thing and obstacle, all told in the opening)
    belongs to one split only, by its checksum. One cast in ten is never seen in training.

    Args:
        seed: 0 to 2^48 - 1. Each split has a stream of its own.
        split: "train" or "test".

    Returns:
        The story. Two seeds may give the same text, though hardly ever: the model card counts it.

    Raises:
        TypeError: `seed` is not an integer.
        ValueError: `seed` or `split` is out of range.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"seed must be an integer, got {type(seed).__name__} {seed!r}")
    if not 0 <= seed < 2**48:
        raise ValueError(f"seed must be from 0 to 2**48 - 1, got {seed}")
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", got {split!r}')

    dice = Dice(2 * seed.__index__() + (split == "test"))
    while True:
        dice.nats = 0.0
        facts, plot, obstacle = _cast(dice)
        if _split_of(facts, obstacle) == split:
            return _tell(facts, plot, obstacle, dice)


def _cast(dice: Dice) -> tuple[dict[str, str], Plot, Obstacle]:
    """Draws who, where, what and what gets in the way."""
    child = dice.pick(("girl", "boy"))
    if child == "girl":
        facts = {"hero": dice.pick(GIRLS), "he": "she", "him": "her", "his": "her", "himself": "herself"}
    else:
        facts = {"hero": dice.pick(BOYS), "he": "he", "him": "him", "his": "his", "himself": "himself"}
    plot = dice.pick(PLOTS)
    place = dice.pick(PLACES)
    facts |= {
        "child": child,
        "trait": dice.pick(TRAITS),
        "helper": dice.pick(HELPERS).format_map(facts),
        "place": place.phrase,
        "town": place.short,
        "in_town": f"{place.preposition} the {place.short}",
        "thing": dice.pick(plot.things),
    }
    return facts, plot, dice.pick(plot.obstacles)


def _split_of(facts: dict[str, str], obstacle: Obstacle) -> Split:
    cast = "|".join((facts["hero"], facts["helper"], facts["thing"], obstacle.name))
    return "test" if zlib.crc32(cast.encode()) % TEST_SHARE == 0 else "train"


def _tell(facts: dict[str, str], plot: Plot, obstacle: Obstacle, dice: Dice) -> Story:
    def say(*templates: str) -> str:
        return expand(dice.pick(templates), facts, dice)

    goal = facts["goal"] = say(plot.goal)
    sentences = [say(*INTRODUCTIONS), say(*plot.motive)]
    if dice.below(2):
        sentences.append(say(*plot.promise))
    opening = " ".join(_sentence(text) for text in (*sentences, say(obstacle.event)))
    mood = _mood(dice)
    ending = " ".join(_sentence(say(*templates)) for templates in _ending(mood, obstacle, dice))
    # A trait that no sentence tells carries no information.
    nats = dice.nats if facts["trait"] in opening else dice.nats - math.log(len(TRAITS))
    return Story(
        text=f"{opening} {ending}",
        opening=opening,
        ending=ending,
        mood=mood,
        hero=facts["hero"],
        gender="girl" if facts["child"] == "girl" else "boy",
        helper=facts["helper"],
        place=facts["place"],
        plot=plot.name,
        goal=goal,
        thing=facts["thing"],
        obstacle=obstacle.name,
        nats=nats,
    )


def _sentence(text: str) -> str:
    """With a capital, behind the opening quotation mark if it has one."""
    first = 1 if text.startswith('"') else 0
    return text[:first] + text[first].upper() + text[first + 1 :]


def _mood(dice: Dice) -> Mood:
    moods: tuple[Mood, ...] = ("good", "bad", "mixed")
    return moods[dice.weigh(9, 9, 2)]


def _ending(mood: Mood, obstacle: Obstacle, dice: Dice) -> list[tuple[str, ...]]:
    """The templates of an ending's sentences, in order."""
    parts = ENDINGS[mood]
    if mood == "mixed":
        return [dice.pick((obstacle.good, obstacle.bad)), parts["words"], parts["closings"]]
    short = (("feelings",), ("closings",))
    long = (("feelings", "closings"), ("words", "closings"), ("words", "feelings"), ("feelings", "words"))
    order = dice.pick((short, long)[dice.weigh(1, 3)])
    return [obstacle.good if mood == "good" else obstacle.bad, *(parts[part] for part in order)]
