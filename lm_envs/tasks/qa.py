"""The task of `TextGen-QA-v0`: answer a question about a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lm_envs.pretraining.telling import Dice
from lm_envs.rewards import ExactMatch, RewardFunction, TokenF1, WeightedSum
from lm_envs.tasks.record_task import Player, RecordState, SingleTurn
from lm_envs.tasks.records import Check, a_text, texts
from lm_envs.tasks.story_source import Story, draw_story, draw_two, in_sentences, names, without_article

UNANSWERABLE = "unanswerable"
# One question in five has no answer in the text.
UNANSWERABLE_SHARE = 5


class QuestionAnswering(SingleTurn):
    """Answer a question about a short text, in its words, or say that the text does not tell.

    > Text: Finn lived in a green valley of small farms and hoped to play the banjo at the village dance. The
    > miller wanted to dance again after the long winter. But suddenly a storm roared over the fields, and
    > rain beat down on the banjo.
    > Question: Where did Finn live?
    > Answer:

    > *in a green valley of small farms*

    ## Reward
    `0.5 exact_match + 0.5 token_f1`, 0 to 1, both with SQuAD's normalisation (case, punctuation and
    articles do not count), for the best of the references. An empty completion gets 0.

    ## Levels
    - "easy": a story up to its trouble; who wanted something, what, where, about what, whom the hero knew.
      What cannot be answered is of a kind that stories do not tell.
    - "medium": a whole story; also why, what got in the way and how it ended.
    - "hard": two such beginnings. What cannot be answered asks for someone, or for a wish,
      that neither tells of (as in SQuAD 2.0: near misses).

    One question in five has the answer "unanswerable".

    ## Data
    `context` (text), `question` (text) and `reference` (a text or a list of texts, all of them right).

    ## Players
    "best" gives the first reference. Tricks: "unanswerable", which is the most frequent answer, the first
    name in the text, the text's first eight words, its last sentence, the whole text, and the question.

    ## How it could be hacked
    Always "unanswerable" gets its share, 0.2. Longer answers that hold the right one win recall and lose
    precision and the exact match. `tests/test_task_qa.py` shows that no trick gets 0.35.

    ## References
    Rajpurkar et al. 2016, "SQuAD"; Rajpurkar et al. 2018, "Know What You Don't Know" (unanswerable
    questions).

    Args:
        language_model: the frozen model of the environment.
        kwargs: `data`, `split`, `level` and `reward`, see `SingleTurn`.
    """

    columns: ClassVar[Mapping[str, Check]] = {"context": a_text, "question": a_text, "reference": texts}

    def default_reward(self) -> RewardFunction:
        """Half exact match, half token F1."""
        return WeightedSum({"exact_match": (0.5, ExactMatch()), "token_f1": (0.5, TokenF1())})

    def generate(self, dice: Dice) -> dict[str, Any]:
        """A story or two, and a question."""
        told, other = draw_two(dice, self.split)
        if self.level == "hard":
            pair = (told, other) if dice.below(2) else (other, told)
            context = " ".join(one.setup for one in pair)
        else:
            context = told.setup if self.level == "easy" else told.text
        if dice.below(UNANSWERABLE_SHARE):
            question, references = dice.pick(_answerable(told, self.level))
        else:
            question, references = dice.pick(self._unanswerable(told, other, dice)), [UNANSWERABLE]
        return {"context": context, "question": question, "reference": references}

    def _unanswerable(self, told: Story, other: Story, dice: Dice) -> list[str]:
        if self.level != "hard":
            return _never_told(told)
        third = told
        while {third.hero, third.plot} & {
            *(told.hero, told.helper, told.plot),
            *(other.hero, other.helper, other.plot),
        }:
            third = draw_story(dice, self.split)
        return [question for question, _ in _answerable(third, self.level)]

    def prompt_of(self, record: Mapping[str, Any]) -> str:
        """Text, question, and where the answer begins."""
        return f"Text: {record['context']}\nQuestion: {record['question']}\nAnswer:"

    def players(self) -> dict[str, Player]:
        """See the class."""
        return {
            "best": lambda state: " " + state.columns["reference"][0],
            UNANSWERABLE: lambda state: " " + UNANSWERABLE,
            "first name": _first_name,
            "first words": lambda state: " " + " ".join(state.columns["context"].split()[:8]),
            "last sentence": lambda state: " " + in_sentences(state.columns["context"])[-1],
            "copy": lambda state: " " + state.columns["context"],
            "question": lambda state: " " + state.columns["question"],
        }


def _answerable(told: Story, level: str) -> list[tuple[str, list[str]]]:
    """Questions that a story answers, with all that is right."""
    hero, place = told.hero, told.place
    asked = [
        (f"Who wanted to {told.goal}?", [hero]),
        (f"What did {hero} want to do?", [told.goal, f"to {told.goal}"]),
        (f"Where did {hero} live?", [place, place.split(" ", 1)[1]]),
        (f"What was the wish of {hero} about?", [told.thing]),
        (f"Whom did {hero} know?", list(dict.fromkeys([told.helper, without_article(told.helper)]))),
    ]
    if level != "medium":
        return asked
    asked += [
        (f"What got in the way of {hero}?", [told.obstacle]),
        (f"Why did {hero} want to {told.goal}?", [told.reason, f"because {told.reason}"]),
    ]
    endings = {"good": ["well", "happily", "it ended well"], "bad": ["badly", "sadly", "it ended badly"]}
    if told.mood in endings:
        asked.append((f"How did it end for {hero}?", endings[told.mood]))
    return asked


def _never_told(told: Story) -> list[str]:
    """Questions that no story of this world answers."""
    hero, helper = told.hero, told.helper
    # A friend has a name, a role or a relation has none.
    nameless = () if helper[0].isupper() else (f"What was the name of {helper}?",)
    return [
        f"How old was {hero}?",
        *nameless,
        f"What color was the hat of {hero}?",
        f"What did {hero} eat in the morning?",
        f"How many spoons did {hero} have?",
        f"In which month was {hero} born?",
        f"Where was {helper} born?",
        f"What was the name of the dog of {hero}?",
    ]


def _first_name(state: RecordState) -> str:
    context = state.columns["context"]
    return " " + min(names(context) or ["nobody"], key=context.find)
