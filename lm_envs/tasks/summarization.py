"""The task of `TextGen-Summarization-v0`: a story in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from lm_envs.pretraining.telling import Dice
from lm_envs.rewards import KeywordCoverage, RewardFunction, Rouge, WeightedSum
from lm_envs.rewards.base import TextReward, whole_number, words
from lm_envs.tasks.record_task import Player, RecordState, SingleTurn
from lm_envs.tasks.records import Check, a_text, texts
from lm_envs.tasks.story_source import Story, draw_story, draw_two, names, sentences

if TYPE_CHECKING:
    from lm_envs.language_model import LanguageModel

# What a summary says of an ending.
OUTCOMES = {"good": "it ended well", "bad": "it ended badly", "mixed": "life went on"}


class Summarization(SingleTurn):
    """Tell a story in one sentence: who wanted what, what the trouble was and how it ended.

    > Text: Ella was a stubborn girl in a green valley who wanted to heal a sick sparrow. The clockmaker had
    > made it a bed of moss in a box. "It needs quiet and warm milk, Ella," said the clockmaker. But hunters
    > came up the hill, and their dogs heard the sparrow.
    > Summary:

    > *Ella wanted to heal a sick sparrow; the trouble was dogs.*

    ## Reward
    `0.5 rougeL + 0.5 facts + 0.5 length`, from -0.5 to 1; an empty completion gets 0.

    - rougeL, 0 to 1: ROUGE-L's F-measure for the best of the references.
    - facts, 0 to 1: share of the column `keywords` that the summary holds word for word: hero, goal,
      trouble and, of a whole story, outcome.
    - length, -1 to 0: `max_words / words - 1` beyond `max_words` words.

    Data without the column `keywords` are judged by `rougeL + 0.5 length`, from -0.5 to 1.

    ## Levels
    "easy": the text is the opening of a story, the summary leaves the outcome open. "medium": a whole
    story, with its outcome: "it ended well", "it ended badly" or "life went on". "hard": the openings of
    two stories, a sentence for each.

    ## Data
    `text` (text) and `reference` (a text or a list of them, all of them good summaries); optionally
    `keywords` (a text or a list of texts).

    ## Players
    "best" gives the first reference. Tricks: the first sentence (lead-1), the first three (lead-3), the
    whole text, its first 15 words, the first sentence's goal in the frame of the references with a guess
    for the rest ("frame"), and that with both outcomes ("hedge").

    ## How it could be hacked
    All references are built alike. Their frame, filled with the goal that the first sentence tells and
    with a guess, wins most of ROUGE-L (0.86 at "medium"): therefore half of the reward is for the facts,
    and the frame gets 0.8 at most in all. `tests/test_task_summarization.py` shows it for every trick.

    ## References
    Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries" (package rouge-score); Nallapati et
    al. 2017, "SummaRuNNer" (lead-3 as the baseline to beat).

    Args:
        language_model: the frozen model of the environment.
        max_words: words that a summary may have without a penalty, at least 1.
        kwargs: `data`, `split`, `level` and `reward`, see `SingleTurn`.

    Raises:
        ValueError: `max_words` is out of range; bad data, split or level.
    """

    columns: ClassVar[Mapping[str, Check]] = {"text": a_text, "reference": texts}

    def __init__(self, language_model: LanguageModel, *, max_words: int = 40, **kwargs: Any) -> None:
        self._max_words = whole_number("max_words", max_words, 1)
        super().__init__(language_model, **kwargs)

    def default_reward(self) -> RewardFunction:
        """ROUGE-L and, where they are known, facts; less what is too long."""
        parts: dict[str, tuple[float, RewardFunction]] = {"rougeL": (1.0, Rouge("rougeL"))}
        if self._records is None or "keywords" in self._records[0]:
            parts = {"rougeL": (0.5, Rouge("rougeL")), "facts": (0.5, KeywordCoverage())}
        return WeightedSum({**parts, "length": (0.5, LengthPenalty(self._max_words))})

    def generate(self, dice: Dice) -> dict[str, Any]:
        """A story, or the openings of two, with summaries made of their facts."""
        stories = draw_two(dice, self.split) if self.level == "hard" else (draw_story(dice, self.split),)
        whole = self.level == "medium"
        summaries = [_summaries(told, whole) for told in stories]
        facts = [fact for told in stories for fact in (told.hero, told.goal, told.obstacle)]
        return {
            "text": " ".join(told.text if whole else told.opening for told in stories),
            "reference": [" ".join(same) for same in zip(*summaries, strict=True)],
            "keywords": facts + [OUTCOMES[told.mood] for told in stories if whole],
        }

    def prompt_of(self, record: Mapping[str, Any]) -> str:
        """The text, and where the summary begins."""
        return f"Text: {record['text']}\nSummary:"

    def players(self) -> dict[str, Player]:
        """See the class."""
        return {
            "best": lambda state: " " + state.columns["reference"][0],
            "lead-1": lambda state: " " + sentences(state.columns["text"])[0],
            "lead-3": lambda state: " " + " ".join(sentences(state.columns["text"])[:3]),
            "copy": lambda state: " " + state.columns["text"],
            "first words": lambda state: " " + " ".join(state.columns["text"].split()[:15]),
            "frame": _frame,
            "hedge": lambda state: _frame(state) + " It ended badly.",
        }


def _summaries(told: Story, whole: bool) -> list[str]:
    """Sentences that all say the same: goal, trouble and, of a whole story, outcome."""
    outcome = OUTCOMES[told.mood]
    if not whole:
        return [
            f"{told.hero} wanted to {told.goal}; the trouble was {told.obstacle}.",
            f"{told.hero} hoped to {told.goal}, but had trouble: {told.obstacle}.",
        ]
    return [
        f"{told.hero} wanted to {told.goal}; the trouble was {told.obstacle}, and {outcome}.",
        f"{told.hero} hoped to {told.goal}, but had trouble: {told.obstacle}. In the end {outcome}.",
    ]


def _frame(state: RecordState) -> str:
    """What the first sentence gives, in the frame of all summaries, with a guess for the rest."""
    first = sentences(state.columns["text"])[0].rstrip(".")
    hero = min(names(first), key=first.find)
    return f" {hero} wanted to {first.rpartition(' to ')[2]}; the trouble was a storm, and it ended well."


class LengthPenalty(TextReward):
    """0 up to `limit` words, beyond it `limit / words - 1`. Range (-1, 0]; an empty completion gets 0.

    Args:
        limit: words, at least 1.
    """

    __name__ = "length"

    def __init__(self, limit: int) -> None:
        self.limit = whole_number("limit", limit, 1)

    def score(self, completion: str) -> float:
        """The penalty of one completion."""
        return min(0.0, self.limit / max(1, len(words(completion))) - 1.0)
