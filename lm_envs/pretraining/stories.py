"""Short stories from seeds: what the bundled language model learned from, and the prompts of `TextGen-v0`.

A small world is simulated first: a hero with a trait and a possession, a helper, a place, a goal and its
reason; a trouble that the goal can meet, and attempts to get out of it, each possible only by what the hero
has or is. Then a teller chooses order, detail, speech and pronouns from what happened. The same seed gives
the same story everywhere; nothing here needs torch or numpy.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from typing import Literal

from lm_envs.pretraining.telling import Dice, Teller, choose, fill
from lm_envs.pretraining.world import (
    AGAIN,
    ATTEMPTS,
    BONDS,
    BOYS,
    CARRIED,
    ENDINGS,
    FEMALE_RELATIONS,
    GENDERS,
    GENRES,
    GIRLS,
    HELPER_SAYS,
    HERO_SAYS,
    MALE_RELATIONS,
    PLANS,
    POSSESSIONS,
    TRAITS,
    Attempt,
    Genre,
    Goal,
    Place,
    Trouble,
)

Gender = Literal["girl", "boy"]
Mood = Literal["good", "bad", "mixed"]
Split = Literal["train", "test"]

# One combination of a goal and a trouble in ten belongs to the test split.
TEST_SHARE = 10


@dataclass(frozen=True)
class Story:
    """A story and the facts that it tells.

    Attributes:
        text: The whole story, one paragraph: always `f"{opening} {ending}"`.
        setup: Its beginning, up to and including the trouble, whole sentences.
        opening: Up to and including the last attempt; the ending may still turn either way.
        ending: How it turned out, three or four sentences.
        mood: The tone of the ending.
        hero: Whom the story is about, a name.
        gender: The hero's.
        trait: What the hero is like; not always told.
        helper: The second person: a role ("the baker"), a relation ("her aunt") or a friend's name.
        place: Where the hero lives, as the story says it.
        genre: The name of one of `world.GENRES`.
        plot: What kind of goal it is, the name of one of the genre's goals.
        goal: What the hero wanted to do.
        reason: Why.
        thing: What the goal is about.
        possession: What the hero carried; not always told.
        obstacle: The trouble, a word or two that the opening says.
        attempts: What was tried against it, one or two gerund phrases; the last one decided.
        nats: -log of the probability of the choices that made the story, of either split. Their mean is about
            the entropy of the text (above it where different choices give the same words).
    """

    text: str
    setup: str
    opening: str
    ending: str
    mood: Mood
    hero: str
    gender: Gender
    trait: str
    helper: str
    place: str
    genre: str
    plot: str
    goal: str
    reason: str
    thing: str
    possession: str
    obstacle: str
    attempts: tuple[str, ...]
    nats: float


def story(seed: int, split: Split = "train") -> Story:
    """The story of a seed.

    The splits never share an opening: a goal and what comes in its way belong, as a combination, to one
    split only, by their checksum. One combination in ten is never seen in training.

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
        genre = dice.pick(GENRES)
        goal = dice.pick(genre.goals)
        trouble = dice.pick([trouble for trouble in genre.troubles if trouble.may_befall(goal)])
        if split_of(goal, trouble) == split:
            return _tell(_World(genre, goal, trouble, dice), dice)


def split_of(goal: Goal, trouble: Trouble) -> Split:
    """The split that stories with this goal and this trouble belong to."""
    return "test" if zlib.crc32(f"{goal.name}|{trouble.name}".encode()) % TEST_SHARE == 0 else "train"


class _World:
    """What is the case in a story: who, where and what, and what happened in which order.

    `state` holds what is true now: what the hero has, is and has at hand, and what is wrong. An attempt is
    possible if its kind of trouble and what it needs are true; it uses up what it needed, and sets the
    trouble right or not.
    """

    def __init__(self, genre: Genre, goal: Goal, trouble: Trouble, dice: Dice) -> None:
        self.genre, self.goal, self.trouble = genre, goal, trouble
        self.place: Place = dice.pick(genre.places)
        self.spot = dice.pick(genre.spots)
        self.thing = dice.pick(goal.things)
        self.gender: Gender = dice.pick(("girl", "boy"))
        self.hero = dice.pick(GIRLS if self.gender == "girl" else BOYS)
        self.introduction, self.helper = self._helper(dice)
        self.trait = dice.pick(TRAITS)
        self.possession = dice.pick(tuple(POSSESSIONS))
        self.mood: Mood = ("good", "bad", "mixed")[dice.weigh(9, 9, 2)]

        self.state = {"alone", "helper", self.trait, self.possession, trouble.kind}
        if trouble.kind == "quarrel":
            self.state.remove("helper")
        self.tried: list[tuple[Attempt, bool]] = []
        ends_well = self.mood == "good" or (self.mood == "mixed" and dice.below(2) == 0)
        if dice.weigh(1, 5) == 0:
            self._try(False, dice)
        self._try(ends_well, dice)

    def _helper(self, dice: Dice) -> tuple[str, str]:
        """How the second person is introduced, and called from then on."""
        his = "her" if self.gender == "girl" else "his"
        sort = dice.weigh(6, 5, 1)
        if sort == 0:
            role = dice.pick(self.genre.roles)
            return role, role
        if sort == 1:
            relation = f"{his} {dice.pick(MALE_RELATIONS + FEMALE_RELATIONS)}"
            return relation, relation
        name = dice.pick([name for name in GIRLS + BOYS if name != self.hero])
        return f"{his} {dice.pick(BONDS)} {name}", name

    def _try(self, works: bool, dice: Dice) -> None:
        tried = [way for way, _ in self.tried]
        possible = [
            way for way in ATTEMPTS if way.kind in self.state and way.by in self.state and way not in tried
        ]
        # What is the hero's own is used rather than left.
        own = [3 if way.by in (self.trait, self.possession) else 1 for way in possible]
        way = possible[dice.weigh(*own)]
        self.tried.append((way, works))
        if way.by != "alone":
            self.state.discard(way.by)
        if works:
            self.state.remove(self.trouble.kind)

    def facts(self) -> dict[str, str]:
        """What templates may name."""
        she = self.gender == "girl"
        helper_she = GENDERS[self.helper.split()[-1]] == "she"
        return {
            "hero": self.hero,
            "hero_s": f"{self.hero}'s",
            "child": self.gender,
            "trait": self.trait,
            "he": "she" if she else "he",
            "him": "her" if she else "him",
            "his": "her" if she else "his",
            "himself": "herself" if she else "himself",
            "helper": self.helper,
            "helper_s": f"{self.helper}'s",
            "helper_he": "she" if helper_she else "he",
            "helper_him": "her" if helper_she else "him",
            "helper_his": "her" if helper_she else "his",
            "introduction": self.introduction,
            "introduction_s": f"{self.introduction}'s",
            "place": self.place.phrase,
            "town": self.place.town,
            "in_town": self.place.in_town,
            "spot": self.spot,
            "thing": self.thing,
            "possession": POSSESSIONS[self.possession],
            # The event has brought it in: a fox is "the fox" from then on.
            "cause": re.sub(r"^an? ", "the ", self.trouble.cause),
            "lack": self.trouble.lack,
        }


def _tell(world: _World, dice: Dice) -> Story:
    teller = Teller(world.facts(), dice)
    facts = teller.facts
    goal = facts["goal"] = fill(choose(world.goal.goal, dice), facts)
    # Its facts stay open: the teller may have to introduce the helper in it.
    reason = choose(dice.pick(world.goal.reason), dice)
    setup = " ".join(_setup(world, teller, reason))
    opening = " ".join((setup, *_attempts(world, teller)))
    ending = " ".join(_ending(world, teller))

    nats = dice.nats
    used = [way.by for way, _ in world.tried]
    # What no sentence tells carries no information.
    nats -= 0.0 if world.trait in opening or world.trait in used else math.log(len(TRAITS))
    nats -= 0.0 if facts["possession"] in opening else math.log(len(POSSESSIONS))
    return Story(
        text=f"{opening} {ending}",
        setup=setup,
        opening=opening,
        ending=ending,
        mood=world.mood,
        hero=world.hero,
        gender=world.gender,
        trait=world.trait,
        helper=world.helper,
        place=world.place.phrase,
        genre=world.genre.name,
        plot=world.goal.name,
        goal=goal,
        reason=fill(reason, facts),
        thing=world.thing,
        possession=facts["possession"],
        obstacle=world.trouble.name,
        attempts=tuple(way.name for way, _ in world.tried),
        nats=nats,
    )


def _setup(world: _World, teller: Teller, reason: str) -> list[str]:
    """Who, where, what for and why; what the hero has, if it will matter; what was said; the trouble.

    A story in which more happens has less talk.
    """
    dice = teller.dice
    told = [
        teller.say(reason + "." if sentence == "REASON" else sentence.replace("{reason}", reason))
        for sentence in dice.pick(PLANS)
    ]
    if world.possession in [way.by for way, _ in world.tried] or dice.weigh(1, 4) == 0:
        told.append(teller.say(*CARRIED))
    speeches = [(HERO_SAYS, world.goal.hero_says), (HELPER_SAYS, world.goal.helper_says)]
    if not teller.has_introduced:
        speeches = speeches[1:]
    if not teller.has_introduced or (len(world.tried) == 1 and dice.below(2)):
        frames, words = dice.pick(speeches)
        told.append(teller.say(dice.pick(frames).replace("{speech}", dice.pick(words))))
    return [*told, teller.say(*world.trouble.event)]


def _attempts(world: _World, teller: Teller) -> list[str]:
    """What was tried; of the last attempt only that it was made."""
    first, *second = [way for way, _ in world.tried]
    told = [teller.say(*first.try_)]
    for way in second:
        told += [teller.say(*first.bad), teller.say(*AGAIN), teller.say(*way.try_)]
    return told


def _ending(world: _World, teller: Teller) -> list[str]:
    """How the last attempt went, what became of the goal, and what was felt, said or left of it."""
    dice = teller.dice
    way, works = world.tried[-1]
    told = [
        teller.say(*(way.good if works else way.bad)),
        teller.say(*(world.goal.done if works else world.goal.lost)),
    ]
    order: tuple[str, ...] = ("words", "closings")
    if world.mood != "mixed":
        single = (("feelings",), ("closings",), ("words",))
        order = dice.pick(
            single if dice.weigh(2, 1) == 0 else (("words", "closings"), ("feelings", "closings"))
        )
    return told + [teller.say(*ENDINGS[world.mood][part]) for part in order]
