"""What tasks take from the story world: the one place that reads it, by `Story`'s facts and the plots."""

from __future__ import annotations

from lm_envs.pretraining.checks import names, sentences
from lm_envs.pretraining.stories import Mood, Split, Story, story
from lm_envs.pretraining.telling import Dice
from lm_envs.pretraining.world import GENRES

# In characters: with a task around it, a story of such a length fits into 256 tokens of the bundled model;
# so do two setups. Ten stories in a hundred are longer.
LONGEST_STORY = 700
TWO_SETUPS = 620


def draw_story(dice: Dice, split: Split, *moods: Mood) -> Story:
    """A story of the split that is not too long, of one of the moods if any are given."""
    while True:
        drawn = story(dice.below(2**48), split)
        if len(drawn.text) <= LONGEST_STORY and (not moods or drawn.mood in moods):
            return drawn


def draw_two(dice: Dice, split: Split) -> tuple[Story, Story]:
    """Two stories of different people with different goals, whose setups fit beside each other."""
    while True:
        one, two = draw_story(dice, split), draw_story(dice, split)
        strangers = not {one.hero, one.helper, one.plot} & {two.hero, two.helper, two.plot}
        if strangers and len(one.setup) + len(two.setup) <= TWO_SETUPS:
            return one, two


def cast(told: Story) -> list[str]:
    """The words by which a reader knows whom and what a story is about: hero, helper and thing."""
    return [told.hero, without_article(told.helper), told.thing]


def without_article(helper: str) -> str:
    """What a helper is called, without "the", "his" or "her": "goose girl", "uncle", "Tom"."""
    return helper.split(" ", 1)[-1]


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


__all__ = [
    "Story",
    "cast",
    "draw_story",
    "draw_two",
    "in_sentences",
    "names",
    "sentences",
    "troubles",
    "without_article",
]
