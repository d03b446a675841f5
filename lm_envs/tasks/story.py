"""The task of `TextGen-Story-v0`: go on with a story, keep its cast, do not repeat yourself, end well."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from lm_envs.pretraining.telling import Dice
from lm_envs.rewards import KeywordCoverage, RewardFunction, Sentiment, WeightedSum
from lm_envs.rewards.base import words
from lm_envs.tasks.continuation import EnoughFluency
from lm_envs.tasks.record_task import Player, RecordState, SingleTurn
from lm_envs.tasks.records import Check, a_text, texts
from lm_envs.tasks.story_source import cast, draw_story, in_sentences, names, sentences

if TYPE_CHECKING:
    from lm_envs.language_model import LanguageModel

WEIGHTS = {"relevance": 1.0, "variety": 0.5, "arc": 2.0, "coherence": 3.0}


class StoryTask(SingleTurn):
    """Continue the opening of a story; what counts is its cast, its variety, its arc and its language.

    The agent reads an opening and writes the rest:

    > Jonas, a careful boy in a noisy city of trams and bridges, wanted to find a home for a stray kitten
    > before dark, because his aunt could not bear to see it shiver. But a long parade filled the street from
    > wall to wall, and nobody could cross. Jonas tried a long way round that hardly anybody used.

    > *The other way was free, and Jonas walked on happily. A kind family took in the stray kitten, and that
    > night it slept by the stove. "It worked!" called Jonas, and his aunt laughed.*

    ## Reward
    `1.0 relevance + 0.5 variety + 2.0 arc + 3.0 coherence`, from -5 to 3.5; an empty completion gets -3.

    - relevance, 0 to 1: share of the record's `keywords` (hero, helper and thing, as far as the opening tells
      them) that the text names in sentences of its own; 0 if it brings in a new name.
    - variety, 0 to 1: different pairs of words that the opening does not have, divided by all pairs, or by 20
      if there are fewer (distinct-2).
    - arc, -1 to 1: VADER's score of the last two sentences together, minus the lowest score of a sentence of
      the opening if that is negative, at most 1: out of the trouble into a good end.
    - coherence, -1 to 0: typicality under the frozen model, as in `TextGen-v0`: 0 for text as the model
      itself writes it, -1 for text that is a nat a token more surprising.

    ## Levels
    "easy": the conflict is told and what was tried against it, the outcome is open. "medium": the conflict is
    not told yet. "hard": the first sentence only. The sort of story ("fairy tale", "village", "city",
    "sea", "school" or "workshop") is the column `genre`. Whole stories need `max_new_tokens` of 152 at
    "medium" and 184 at "hard".

    ## Data
    `prompt` (text) and `keywords` (a text or a list of texts to be kept). Generated records have `genre`
    and `reference`, the rest of a story that ends well.

    ## Players
    "best" writes `reference`. Tricks: copying the opening (60 words of it), its last sentence, a pleasing
    sentence, a sentence that fits every story with this one's cast, and the bare keywords among happy words.

    ## How it could be hacked
    Each part can be won by nonsense: relevance by a list of the cast, the arc by a happy word or two, variety
    by any list. Coherence takes 3 away for that: `tests/test_task_story.py` shows that no trick gets two
    thirds of the way from an empty text to the best player. A disaster of its own before the happy end does
    not raise the arc, which begins in the opening. A name that stands at the beginning of every
    sentence it is in and is none of the story world's is not seen to be new.

    ## References
    Li et al. 2016 (distinct-n); Hutto & Gilbert 2014 (VADER); Meister et al. 2022 (typicality); Reagan et
    al. 2016, "The emotional arcs of stories are dominated by six basic shapes".

    Args:
        language_model: the frozen model of the environment, the judge of coherence.
        weights: replace some of the weights above, e.g. `{"arc": -1.0}` for sad endings.
        coherence_slack: nats per token below the model's own samples that are still coherent, >= 0.
        kwargs: `data`, `split`, `level` and `reward`, see `SingleTurn`.

    Raises:
        ValueError: a weight of no part, or that is no finite number; bad data, split or level.
    """

    columns: ClassVar[Mapping[str, Check]] = {"prompt": a_text, "keywords": texts}

    def __init__(
        self,
        language_model: LanguageModel,
        *,
        weights: Mapping[str, float] | None = None,
        coherence_slack: float = 0.2,
        **kwargs: Any,
    ) -> None:
        if unknown := sorted((weights or {}).keys() - WEIGHTS.keys()):
            raise ValueError(f"weights must be of {sorted(WEIGHTS)}, got one of {unknown[0]!r}")
        self._weights = {**WEIGHTS, **(weights or {})}
        self._slack = coherence_slack
        super().__init__(language_model, **kwargs)

    def default_reward(self) -> RewardFunction:
        """The weighted sum of the four parts."""
        parts: dict[str, RewardFunction] = {
            "relevance": Relevance(),
            "variety": Variety(),
            "arc": Arc(),
            "coherence": EnoughFluency(self.language_model, self._slack),
        }
        return WeightedSum({name: (self._weights[name], part) for name, part in parts.items()})

    def generate(self, dice: Dice) -> dict[str, Any]:
        """The beginning of a story that ends well."""
        while True:
            told = draw_story(dice, self.split, "good")
            setup = sentences(told.setup)
            prompt = {"easy": told.opening, "medium": " ".join(setup[:-1]), "hard": setup[0]}[self.level]
            reference = told.text[len(prompt) :]
            # A first sentence may leave out a friend whom the rest calls by name.
            if not new_names(prompt, reference):
                break
        return {
            "prompt": prompt,
            "keywords": [word for word in cast(told) if KeywordCoverage([word])([""], [prompt]) == [1.0]],
            "genre": told.genre,
            "reference": reference,
        }

    def prompt_of(self, record: Mapping[str, Any]) -> str:
        """The opening itself."""
        return record["prompt"]

    def players(self) -> dict[str, Player]:
        """See the class."""
        best: dict[str, Player] = {"best": lambda state: state.columns["reference"]}
        return {
            **(best if self.has_column("reference") else {}),
            "copy": lambda state: " " + " ".join(state.prompt.split()[:60]),
            "last sentence": lambda state: " " + in_sentences(state.prompt)[-1],
            "pleasing": lambda state: " In the end they were all happy, and it was a wonderful day.",
            "any story": lambda state: (
                f" {_listed(state)} were safe in the end. Everyone was happy and proud of such good friends."
            ),
            "keywords": lambda state: f" {_listed(state)} love joy happy friends wonderful best feast.",
        }


def _listed(state: RecordState) -> str:
    return " and ".join(state.columns["keywords"])


class Relevance:
    """Share of the column `keywords` that the completion names, 0 if it brings in a new name. Range 0 to 1.

    Sentences that stand in the prompt already do not count. New is a name of the story world, or a capital
    inside a sentence, that the prompt does not have. An empty completion gets 0.
    """

    __name__ = "relevance"

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """B texts in, B floats out."""
        own = [_own_sentences(*row) for row in zip(prompts, completions, strict=True)]
        shares = KeywordCoverage()(prompts, own, **columns)
        rows = zip(shares, prompts, completions, strict=True)
        return [0.0 if new_names(prompt, text) else share for share, prompt, text in rows]


def _own_sentences(prompt: str, completion: str) -> str:
    copied = set(sentences(prompt))
    return " ".join(said for said in in_sentences(completion.strip()) if said not in copied)


# Capitals that are no names.
_CALENDAR = {
    *("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "New", "Year"),
    *("January", "February", "March", "April", "May", "June", "July", "August", "September", "October"),
    *("November", "December", "Christmas", "Easter"),
}


def new_names(prompt: str, completion: str) -> set[str]:
    """Names in the completion that the prompt does not have."""
    inside = set(re.findall(r"(?<=[a-z,;] )[A-Z][a-z]+", completion)) - _CALENDAR
    return (inside | names(completion)) - set(re.findall(r"\w+", prompt))


class Variety:
    """Different pairs of words that the prompt does not have, divided by all pairs or by `least`.

    Distinct-2 (Li et al. 2016) that neither a short text nor a copy of the prompt wins. Range 0 to 1; an
    empty completion gets 0.

    Args:
        least: pairs of words that a text needs for 1.
    """

    __name__ = "variety"

    def __init__(self, least: int = 20) -> None:
        self.least = least

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """B texts in, B floats out; `columns` are not read."""
        return [self.score(*row) for row in zip(prompts, completions, strict=True)]

    def score(self, prompt: str, completion: str) -> float:
        """The share of one completion."""
        said = words(completion)
        new = set(pairwise(said)) - set(pairwise(words(prompt)))
        return len(new) / max(len(said) - 1, self.least)


class Arc:
    """VADER's score of the last two sentences together minus the lowest of one of the prompt.

    The lowest score counts if it is negative; the difference is cut to 1. Range -1 to 1; an empty completion
    gets 0.
    """

    __name__ = "arc"

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """B texts in, B floats out; `columns` are not read."""
        return [self.score(*row) for row in zip(prompts, completions, strict=True)]

    def score(self, prompt: str, completion: str) -> float:
        """The arc of one story."""
        if not completion.strip():
            return 0.0
        tone = Sentiment().score
        end = tone(" ".join(in_sentences(completion.strip())[-2:]))
        return min(1.0, end - min([0.0, *map(tone, sentences(prompt))]))
