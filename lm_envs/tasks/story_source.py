"""What tasks take from the story world: the one place that reads it, by `Story`'s facts and the plots."""

from __future__ import annotations

from lm_envs.pretraining.checks import names, sentences
from lm_envs.pretraining.stories import Mood, Split, Story, story
from lm_envs.pretraining.telling import Dice
from lm_envs.pretraining.world import GENRES


def draw_story(dice: Dice, split: Split, *moods: Mood) -> Story:
    """A story of the split, of one of the moods if any are given."""
    while True:
        drawn = story(dice.below(2**48), split)
        if not moods or drawn.mood in moods:
            return drawn


# Two setups together have at most so many characters: with a task around them they fit into 256 tokens.
TWO_SETUPS = 620


def draw_two(dice: Dice, split: Split) -> tuple[Story, Story]:
    """Two stories of different people with different goals, whose setups fit beside each other."""
    while True:
        one, two = draw_story(dice, split), draw_story(dice, split)
        strangers = not {one.hero, one.helper, one.plot} & {two.hero, two.helper, two.plot}
        if strangers and len(one.setup) + len(two.setup) <= TWO_SETUPS:
            return one, two


def cast(told: Story) -> list[str]:
    """The words by which a reader knows whom and what a story is about: hero, helper and thing."""
    return [told.hero, told.helper.split()[-1], told.thing]


def troubles(plot: str) -> list[str]:
    """What may get in the way of this kind of goal, `Story.obstacle` being one of it."""
    return [
        trouble.name
        for genre in GENRES
        for goal in genre.goals
        if goal.name == plot
        for trouble in genre.troubles
        if trouble.may_befall(goal)
    ]


def in_sentences(text: str) -> list[str]:
    """The sentences of a text; the text itself if it has none."""
    return sentences(text) or [text]


__all__ = ["Story", "cast", "draw_story", "draw_two", "in_sentences", "names", "sentences", "troubles"]
