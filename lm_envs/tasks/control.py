"""The task of `TextGen-Control-v0`: continue a story so that a list of demands is met."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lm_envs.pretraining.telling import Dice
from lm_envs.rewards import KeywordCoverage, RewardFunction, Sentiment, WeightedSum
from lm_envs.rewards.base import check_texts, text_column, words
from lm_envs.tasks.continuation import EnoughFluency
from lm_envs.tasks.record_task import Player, RecordState, SingleTurn
from lm_envs.tasks.records import Check, a_text, texts
from lm_envs.tasks.story_source import cast, draw_story, names, sentences

if TYPE_CHECKING:
    from lm_envs.language_model import LanguageModel


def _holds(text: str, word: str) -> bool:
    return KeywordCoverage([word])([""], [text]) == [1.0]


def _tone(text: str, tone: str) -> bool:
    # VADER's own thresholds of a positive and a negative text.
    score = Sentiment().score(text)
    return score >= 0.05 if tone == "happy" else score <= -0.05


# How a demand is worded, and whether a text that is not empty meets it.
DEMANDS: tuple[tuple[str, Callable[[str, str], bool]], ...] = (
    (r"the word (\w[\w'-]*)", _holds),
    (r"not the word (\w[\w'-]*)", lambda text, word: not _holds(text, word)),
    (r"begin with (\w[\w'-]*)", lambda text, word: words(text)[:1] == [word.lower()]),
    (r"exactly (\d+) sentences?", lambda text, count: len(sentences(text)) == int(count)),
    (r"at least (\d+) sentences?", lambda text, count: len(sentences(text)) >= int(count)),
    (r"at most (\d+) words?", lambda text, count: len(words(text)) <= int(count)),
    (r"a (happy|sad) tone", _tone),
)
NUMBER = {"easy": 2, "medium": 4, "hard": 6}
# In characters: demands, opening and ending fit into 256 tokens.
LONGEST_OPENING = 420


def meets(text: str, demand: str) -> bool:
    """Whether a text meets a demand, see `DEMANDS`; a text without words meets none.

    Raises:
        ValueError: the demand is worded in no known way.
    """
    for pattern, is_met in DEMANDS:
        if found := re.fullmatch(pattern, demand):
            return bool(words(text)) and is_met(text.strip(), found[1])
    raise ValueError(
        f"a demand must be worded as one of {[pattern for pattern, _ in DEMANDS]}, got {demand!r}"
    )


def demands(name: str, value: Any) -> list[str]:
    """A column of demands: a non-empty list of them, or a text with semicolons between them."""
    listed = [part.strip() for part in value.split(";")] if isinstance(value, str) else texts(name, value)
    for demand in listed:
        try:
            meets("", demand)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return listed


class Control(SingleTurn):
    """Write a text that meets a list of demands, each of which a rule can check (controllable generation).

    The agent reads the demands and the opening of a story, and goes on with it:

    > Demands: the word stove; exactly 3 sentences; a happy tone; not the word bell.
    > Story: Jonas, a careful boy in a noisy city of trams and bridges, wanted to find a home for a stray
    > kitten before dark, because his aunt could not bear to see it shiver. [...]

    > *The other way was free, and Jonas walked on happily. A kind family took in the stray kitten, and that
    > night it slept by the stove. [...]*

    ## Demands
    "the word W", "not the word W" (whole words, case ignored), "begin with W", "exactly N sentences", "at
    least N sentences", "at most N words", "a happy tone" (VADER >= 0.05), "a sad tone" (VADER <= -0.05).
    Generated lists hold for the story's own ending, so all of them can be met at once.

    ## Reward
    `share of the demands met + fluency`, from -1 to 1. Fluency is typicality under the frozen model plus
    a slack, cut to -1..0, as in `TextGen-v0`. A completion without words meets no demand; an empty one
    gets -1.

    ## Levels
    The number of demands: "easy" 2, "medium" 4, "hard" 6.

    ## Data
    `opening` (text) and `demands` (a list of demands, or one text with semicolons between them).
    Generated records have `reference`, an ending that meets them all.

    ## Players
    "best" writes `reference`. Tricks: the demanded words in a list that meets every other demand too
    ("words"), copying the demands, copying the opening, a pleasing sentence, a pleasing sentence for this
    hero.

    ## How it could be hacked
    A list of words with full stops in it meets every demand: without fluency it gets as much as the best.
    Fluency takes 1 away for it, and leaves it half of the way from an empty text to the best player. What
    `tests/test_task_control.py` does not exclude: a demanded word in a sentence where it makes little
    sense costs the surprise of that one word only.

    ## References
    Keskar et al. 2019, "CTRL"; Zhou et al. 2023, "Instruction-Following Evaluation for Large Language
    Models" (demands that a program can verify); Hutto & Gilbert 2014 (VADER); Meister et al. 2022
    (typicality).

    Args:
        language_model: the frozen model of the environment, the judge of fluency.
        fluency_weight: weight of fluency, >= 0.
        fluency_slack: nats per token below the model's own samples that are still fluent, >= 0.
        kwargs: `data`, `split`, `level` and `reward`, see `SingleTurn`.

    Raises:
        ValueError: a demand that is worded in no known way; bad data, split or level.
    """

    columns: ClassVar[Mapping[str, Check]] = {"opening": a_text, "demands": demands}

    def __init__(
        self,
        language_model: LanguageModel,
        *,
        fluency_weight: float = 1.0,
        fluency_slack: float = 0.3,
        **kwargs: Any,
    ) -> None:
        self._fluency = fluency_weight, fluency_slack
        super().__init__(language_model, **kwargs)

    def default_reward(self) -> RewardFunction:
        """Demands met, less what is too surprising."""
        weight, slack = self._fluency
        fluency = EnoughFluency(self.language_model, slack)
        return WeightedSum({"demands": (1.0, DemandsMet()), "fluency": (weight, fluency)})

    def generate(self, dice: Dice) -> dict[str, Any]:
        """An opening, and demands that its ending meets."""
        told = draw_story(dice, self.split)
        while len(told.opening) > LONGEST_OPENING:
            told = draw_story(dice, self.split)
        options = _options(told.opening, told.ending, cast(told), dice)
        while len(options) > NUMBER[self.level]:
            options.pop(dice.below(len(options)))
        return {"opening": told.opening, "demands": options, "reference": " " + told.ending}

    def prompt_of(self, record: Mapping[str, Any]) -> str:
        """Demands first: the story is to be continued where the prompt ends."""
        return f"Demands: {'; '.join(record['demands'])}.\nStory: {record['opening']}"

    def players(self) -> dict[str, Player]:
        """See the class."""
        best: dict[str, Player] = {"best": lambda state: state.columns["reference"]}
        return {
            **(best if self.has_column("reference") else {}),
            "words": _word_list,
            "copy demands": lambda state: f" {'; '.join(state.columns['demands'])}.",
            "copy": lambda state: " " + state.columns["opening"],
            "pleasing": lambda state: (
                " In the end they were all happy. It was a wonderful day. Everyone laughed."
            ),
            "pleasing hero": lambda state: " {0} was happy. Everyone loved {0}. {0} was a hero.".format(
                *(names(state.columns["opening"]) or ["Everyone"])
            ),
        }


def _options(opening: str, ending: str, people: Sequence[str], dice: Dice) -> list[str]:
    """Seven demands or so that an ending meets, in an order that says nothing."""
    said, known = words(ending), set(words(opening))
    count = len(sentences(ending))
    # Words that the opening does not give away, and those of the cast that this ending does without.
    new = sorted({word for word in said if len(word) > 3 and word.isalpha() and word not in known})
    absent = [word for name in people if not _holds(ending, word := name.split()[-1])]
    absent += [
        word for word in ("smiled", "said", "home", "never", "day", "heart") if not _holds(ending, word)
    ]
    first = new.pop(dice.below(len(new)))
    options = [
        f"the word {first}",
        f"the word {dice.pick(new)}",
        f"not the word {absent[0]}",
        f"begin with {words(ending)[0].capitalize()}",
        dice.pick((f"exactly {count} sentences", f"at least {count} sentences")),
        f"at most {len(said) + dice.below(5)} words",
        *(f"a {tone} tone" for tone in ("happy", "sad") if _tone(ending, tone)),
    ]
    return [options.pop(dice.below(len(options))) for _ in range(len(options))]


def _word_list(state: RecordState) -> str:
    """Meets every demand with no sentence in it."""
    asked = " ; ".join(state.columns["demands"])
    begin, wanted = re.findall(r"begin with (\S+)", asked), re.findall(r"(?<!not )the word (\S+)", asked)
    count = int((re.findall(r"(\d+) sentence", asked) or [1])[0])
    tone = {"happy": ["love"], "sad": ["hate"]}
    feeling = [word for name, said in tone.items() if f"a {name} tone" in asked for word in said]
    said = [*begin, *wanted, *feeling] or ["Yes"]
    return " " + " ".join(said) + ". No" * (count - 1) + "."


class DemandsMet:
    """Share of the row's demands (column `demands`) that the completion meets. Range 0 to 1; empty: 0."""

    __name__ = "demands"

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """B texts in, B floats out. Raises ValueError without the column, or for a demand that is none."""
        check_texts(prompts, completions)
        asked = text_column(columns, len(completions), "demands")
        rows = zip(completions, asked, strict=True)
        return [sum(meets(text, demand) for demand in wanted) / len(wanted) for text, wanted in rows]
