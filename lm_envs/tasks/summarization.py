"""The task of `TextGen-Summarization-v0`: a story in one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, ClassVar

from lm_envs.pretraining.telling import Dice
from lm_envs.rewards import KeywordCoverage, RewardFunction, Rouge, WeightedSum
from lm_envs.rewards.base import TextReward, text_column, whole_number, words
from lm_envs.tasks.record_task import Player, RecordState, SingleTurn
from lm_envs.tasks.records import Check, a_text, or_nothing, phrases, texts
from lm_envs.tasks.story_source import Story, draw_story, draw_two, in_sentences, names, troubles

if TYPE_CHECKING:
    from lm_envs.language_model import LanguageModel

# What a summary says of an ending.
OUTCOMES = {"good": "it ended well", "bad": "it ended badly", "mixed": "life went on"}


class Summarization(SingleTurn):
    """Tell a story in one sentence: who wanted what, what the trouble was and how it ended.

    > Text: Oscar lived in a busy street full of hammers and saws and hoped to hang a silver swan sign over
    > the door of the old bakery. The glassblower had mixed the beautiful colors for it. But a hay wagon
    > stuck fast in the gate, and nobody could get through.
    > Summary:

    > *Oscar wanted to hang a silver swan sign over the door of the old bakery; trouble: hay wagon.*

    ## Reward
    `0.4 rougeL + 0.6 facts + 0.5 length`, from -0.5 to 1; an empty completion gets 0.

    - rougeL, 0 to 1: ROUGE-L's F-measure for the best of the references.
    - facts, 0 to 1: share of the column `keywords` that the summary holds word for word (hero, goal, trouble
      and, of a whole story, outcome), less as much for each phrase of the column `wrong`: other troubles that
      the hero might have had, other outcomes, and the trouble with the text's next word, for to copy a
      sentence is not to find its point.
    - length, -1 to 0: `max_words / words - 1` beyond `max_words` words.

    Data without the column `keywords` are judged by `rougeL + 0.5 length`, from -0.5 to 1.

    ## Levels
    "easy": the text is a story up to its trouble, the summary leaves the outcome open. "medium": a whole
    story, with its outcome: "it ended well", "it ended badly" or "life went on". "hard": the beginnings of
    two stories, a sentence for each.

    ## Data
    `text` (text) and `reference` (a text or a list of them, all of them good summaries); optionally
    `keywords` and, with these, `wrong` (each a text or a list of texts).

    ## Players
    "best" gives the first reference. Tricks: the first sentence (lead-1), the first three (lead-3), the
    whole text, its first 15 words, the goals that it begins with in the frame of the references with a
    guess for the rest ("frame"), that with all troubles which such a hero may have and with two outcomes
    ("hedge"), that with the five words behind "But" as the trouble ("but"), and that with no trouble at all
    ("goal").

    ## How it could be hacked
    All references are built alike. Their frame, filled with the goal that the text tells at its beginning,
    wins most of ROUGE-L (0.94 at "easy"): therefore 0.6 of the reward is for the facts. Naming every trouble
    there is would win these too, if wrong ones did not count against it: that way it gets 0.31. So would
    the first five words behind "But" (0.91), if the word behind the trouble did not count against them: 0.78,
    0.65 and 0.78 at the three levels. "goal", which says nothing wrong and nothing of the trouble, gets 0.78,
    0.64 and 0.78. The best that was found is to guess where the trouble stands: pairs of words behind "But",
    with commas between them, get 0.87, 0.70 and 0.86. `tests/test_task_summarization.py` shows that no player
    that is a trick gets 0.8.

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
    optional: ClassVar[Mapping[str, Check]] = {"keywords": phrases, "wrong": or_nothing(phrases)}

    def __init__(self, language_model: LanguageModel, *, max_words: int = 40, **kwargs: Any) -> None:
        self._max_words = whole_number("max_words", max_words, 1)
        super().__init__(language_model, **kwargs)

    def default_reward(self) -> RewardFunction:
        """ROUGE-L and, where they are known, facts; less what is too long."""
        parts: dict[str, tuple[float, RewardFunction]] = {"rougeL": (1.0, Rouge("rougeL"))}
        if self.has_column("keywords"):
            parts = {"rougeL": (0.4, Rouge("rougeL")), "facts": (0.6, Facts())}
        return WeightedSum({**parts, "length": (0.5, LengthPenalty(self._max_words))})

    def generate(self, dice: Dice) -> dict[str, Any]:
        """A story, or the beginnings of two, with summaries made of their facts."""
        stories = draw_two(dice, self.split) if self.level == "hard" else (draw_story(dice, self.split),)
        whole = self.level == "medium"
        summaries = [_summaries(told, whole) for told in stories]
        references = [" ".join(same) for same in zip(*summaries, strict=True)]
        facts = [fact for told in stories for fact in (told.hero, told.goal, told.obstacle)]
        others = dict.fromkeys(trouble for told in stories for trouble in troubles(told.plot))
        others |= dict.fromkeys(OUTCOMES.values() if whole else ())
        others |= dict.fromkeys(copied for told in stories for copied in _copied(told))
        return {
            "text": " ".join(told.text if whole else told.setup for told in stories),
            "reference": references,
            "keywords": facts + [OUTCOMES[told.mood] for told in stories if whole],
            "wrong": [other for other in others if KeywordCoverage([other])([""], references[:1]) == [0.0]],
        }

    def prompt_of(self, record: Mapping[str, Any]) -> str:
        """The text, and where the summary begins."""
        return f"Text: {record['text']}\nSummary:"

    def players(self) -> dict[str, Player]:
        """See the class."""
        end = "; it ended well." if self.level == "medium" else "."

        def frame(state: RecordState, troubles: str, end: str) -> str:
            return "".join(f" {wish}; {troubles}{end}" for wish in _wishes(state))

        return {
            "best": lambda state: " " + state.columns["reference"][0],
            "lead-1": lambda state: " " + in_sentences(state.columns["text"])[0],
            "lead-3": lambda state: " " + " ".join(in_sentences(state.columns["text"])[:3]),
            "copy": lambda state: " " + state.columns["text"],
            "first words": lambda state: " " + " ".join(state.columns["text"].split()[:15]),
            "frame": lambda state: frame(state, "trouble: storm", end),
            "hedge": lambda state: frame(
                state, f"trouble: {_troubles(state)}", f"{end[:-1]}; it ended badly." if end != "." else end
            ),
            "but": lambda state: "".join(
                f" {wish}; trouble: {words}{end}"
                for wish, words in zip_longest(_wishes(state), _behind_but(state), fillvalue="")
            ),
            "goal": lambda state: frame(state, "trouble", "."),
        }


def _summaries(told: Story, whole: bool) -> list[str]:
    """Sentences that all say the same: goal, trouble and, of a whole story, outcome."""
    end = f"; {OUTCOMES[told.mood]}." if whole else "."
    return [
        f"{told.hero} wanted to {told.goal}; trouble: {told.obstacle}{end}",
        f"{told.hero} hoped to {told.goal}, but had trouble: {told.obstacle}{end}",
    ]


def _copied(told: Story) -> list[str]:
    """The trouble with the word that comes next in the text: what a copied sentence holds."""
    return re.findall(rf"\b{told.obstacle}\W+\w+", told.setup, re.IGNORECASE)


_WISH = re.compile(r"(?:want|wanted|hoped|longed|decided|plan|mind|began|out) to ([^,.]+)")


def _wishes(state: RecordState) -> list[str]:
    """Who wanted what, by the first wish of each story."""
    wishes: list[str] = []
    seen: set[str] = set()
    # The first story, and what comes after the sentence that tells its trouble: a second one has a new hero.
    for told in re.split(r"(?<=[.!?\"]) But [^.!?]*[.!?]\"? ", state.columns["text"], maxsplit=1):
        new = names(told) - seen
        if (wish := _WISH.search(told)) and new:
            wishes.append(f"{min(new, key=told.find)} wanted to {wish[1]}")
        seen |= new
    return wishes or [f"Somebody wanted to {in_sentences(state.columns['text'])[0].rstrip('.')}"]


def _behind_but(state: RecordState) -> list[str]:
    """Five words behind each "But"."""
    return re.findall(r"\bBut ((?:[\w'-]+\W+){5})", state.columns["text"])


def _troubles(state: RecordState) -> str:
    """All the troubles that stories with such goals have."""
    # Who knows the goals knows these; in which order they stand says nothing.
    true, wrong = state.columns.get("keywords", ())[2::3], state.columns.get("wrong", ())
    others = {each for each in wrong if not KeywordCoverage(true)([""], [each])[0]}
    return ", ".join(sorted({*true, *others} - {*OUTCOMES.values()}))


class Facts:
    """Share of the row's keywords that the completion holds, less as much for each wrong phrase: 0 to 1.

    Reads the column `keywords` as `KeywordCoverage` does and, where it is given, a column `wrong` of phrases
    that are not true, so that naming all there is to name wins nothing. An empty completion gets 0.
    """

    __name__ = "facts"

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """B texts in, B floats out. Raises ValueError without the column `keywords`."""
        shares = KeywordCoverage()(prompts, completions, **columns)
        sizes = [len(words) for words in text_column(columns, len(completions), "keywords")]
        wrong = columns.get("wrong") or [None] * len(completions)
        rows = zip(shares, sizes, wrong, completions, strict=True)
        return [max(0.0, share - _count(phrases, text) / size) for share, size, phrases, text in rows]


def _count(phrases: Any, text: str) -> int:
    """How many of the phrases a text holds."""
    listed = [phrases] if isinstance(phrases, str) else phrases or ()
    return sum(KeywordCoverage([phrase])([""], [text]) == [1.0] for phrase in listed)


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
