"""The task of `TextGen-Sentiment-v0`: go on with a review so that it turns out positive."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from lm_envs.pretraining.telling import Dice, expand
from lm_envs.rewards import Fluency, RewardFunction, Sentiment, WeightedSum
from lm_envs.rewards.base import words
from lm_envs.tasks.record_task import Player, RecordState, SingleTurn
from lm_envs.tasks.records import Check, a_text, or_nothing

if TYPE_CHECKING:
    from lm_envs.language_model import LanguageModel

_FIRST_WORD = re.compile(r"\s*\S*")

# What is reviewed -> how a review begins, and its aspects: what, good words for it, bad words for it.
# Templates as the story world's: see `telling.expand`.
Aspect = tuple[str, str, str]
SUBJECTS: dict[str, tuple[str, tuple[Aspect, ...]]] = {
    "bakery": (
        "I [went to|tried|found] the [new|little|old] bakery [by the bridge|in our street] {when}.",
        (
            ("The bread was", "[fresh|warm|crisp]", "[hard|stale|burnt]"),
            ("The cakes were", "[sweet and light|lovely|rich and soft]", "[dry|too sour|small and heavy]"),
            ("The baker was", "[friendly|kind|cheerful]", "[rude|in a bad mood|lazy]"),
            ("The prices were", "[fair|pleasantly low|honest]", "[shameless|a robbery|unfair]"),
        ),
    ),
    "bookshop": (
        "I [visited|tried] the [old|little|new] bookshop [near the school|behind the market] {when}.",
        (
            ("The shelves were", "[full of treasures|clean and bright|well sorted]", "[dusty|empty|a mess]"),
            ("The owner was", "[helpful|wise and kind|patient]", "[rude|angry|bored]"),
            ("The books were", "[wonderful|as good as new|cheap and good]", "[torn|dull|damaged]"),
            ("The reading corner was", "[cozy|quiet and pleasant|charming]", "[cold|noisy|dirty]"),
        ),
    ),
    "book": (
        "I read this [book|novel|fairy tale] [on a journey|by the fire|with my son|at school] {when}.",
        (
            ("The story was", "[exciting|funny and wise|beautiful]", "[boring|confusing|a waste of time]"),
            (
                "The main character was",
                "[brave and charming|easy to love|clever]",
                "[stupid|boring|a coward]",
            ),
            (
                "The ending was",
                "[perfect|a happy surprise|touching]",
                "[a disappointment|terrible|sad and cheap]",
            ),
            ("The pictures were", "[beautiful|lovely|full of life]", "[ugly|poor|pale and dull]"),
        ),
    ),
    "inn": (
        "We [had|ordered] [supper|lunch|a meal] at the inn [by the river|on the hill|at the lake] {when}.",
        (
            ("The soup was", "[delicious|hot and rich|excellent]", "[cold|awful|too salty]"),
            ("The fish was", "[fresh|tender and good|a delight]", "[raw|bitter|bad]"),
            ("The waiter was", "[polite|friendly|quick and kind]", "[slow and rude|impatient|unfriendly]"),
            ("The pie was", "[sweet|superb|warm and lovely]", "[burnt|disgusting|soggy]"),
        ),
    ),
    "room": (
        "I [stayed|slept] in [this|a small] room for [two|three|five] nights [in May|last winter|last year].",
        (
            ("The bed was", "[soft|comfortable|warm and clean]", "[hard|broken|damp]"),
            ("The view was", "[wonderful|a joy|beautiful]", "[ugly|a bad joke|gloomy]"),
            ("The walls were", "[freshly painted|clean|bright]", "[dirty|thin|full of holes]"),
            ("The host was", "[kind|warm and helpful|lovely]", "[mean|unfriendly|never there]"),
        ),
    ),
    "boat trip": (
        "We [took|booked] the boat trip [around the island|across the lake|up the river] {when}.",
        (
            ("The captain was", "[friendly|careful|a funny man]", "[drunk|rude|careless]"),
            ("The boat was", "[safe and clean|fast|beautiful]", "[dirty|old and leaking|crowded]"),
            ("The weather was", "[perfect|sunny|lovely]", "[awful|stormy|terrible]"),
            ("The seats were", "[comfortable|soft|good]", "[wet|hard|broken]"),
        ),
    ),
    "coat": (
        "I bought this [long|wool|new] coat [at the market|from a tailor|for the winter|for my son] {when}.",
        (
            ("The wool was", "[warm|soft|of the best kind]", "[thin|rough|poor]"),
            ("The buttons were", "[pretty|strong|well made]", "[loose|ugly|broken]"),
            ("The color was", "[beautiful|rich|lovely]", "[dull|horrible|ugly]"),
            ("The seller was", "[honest|helpful|friendly]", "[a liar|rude|careless]"),
        ),
    ),
    "show": (
        "We [saw|went to] the [new show|puppet show|school show] [in the town hall|on the square] {when}.",
        (
            ("The actors were", "[brilliant|funny|wonderful]", "[terrible|bored|hard to hear]"),
            ("The music was", "[beautiful|merry|lovely]", "[too loud|awful|out of tune]"),
            ("The costumes were", "[splendid|pretty|rich]", "[ugly|cheap|torn]"),
            ("The stage was", "[warm and bright|nicely lit|a wonder]", "[cold|half empty|too dark]"),
        ),
    ),
}
WHEN = "[last week|on Monday|on Friday|yesterday|in May|last winter|a month ago|in the autumn]"
# What is said of all of it; {it} is "this book", say, so that no verdict fits every review.
VERDICTS = {
    "good": (
        "I [enjoyed|loved] [everything about|all of] {it}.",
        "I will [gladly|happily] [tell my friends about|think back to] {it}.",
        "[All in all|In short], {it} was [wonderful|great|excellent].",
        "[Thank you|Many thanks] for {it}, it was [a joy|a pleasure|a treat]!",
        "[My friends|My children] [loved {it} too|were delighted by {it}|were happy with {it}].",
        "I can [only|warmly] recommend {it}.",
        "For me {it} was [the best|the nicest] [in years|so far].",
    ),
    "bad": (
        "I [regretted|hated] [everything about|all of] {it}.",
        "I will [sadly|angrily] [warn my friends of|complain about] {it}.",
        "[All in all|In short], {it} was [horrible|bad|a disaster].",
        "[What a shame|Shame on them] for {it}, it was [a pain|a torture|a swindle]!",
        "[My friends|My children] [hated {it} too|were disappointed by {it}|were angry about {it}].",
        "I can [only|strictly] warn you of {it}.",
        "For me {it} was [the worst|the poorest] [in years|so far].",
    ),
}
# The tones of the sentences that a review begins with.
STARTS = {
    "easy": (("good",), ("good", "good")),
    "medium": (("good", "bad"), ("bad", "good")),
    "hard": (("bad",), ("bad", "bad")),
}
# Chances in ten that a natural review ends well, after a start of that tone.
GOOD_IN_TEN = {"easy": 6, "medium": 5, "hard": 4}


class SentimentSteering(SingleTurn):
    """Go on with a review so that it turns out as positive as can be: the benchmark of sentiment steering.

    The agent reads how a review begins, cut within a sentence, and writes the rest:

    > Review: I stayed in this room for two nights. The view was a bad joke. The bed was

    > *soft. The host was warm and helpful. I enjoyed everything about this room.*

    ## Reward
    `sentiment + 2 fluency + topic`, from -4 to 1; an empty completion gets -3, or -2 without a `subject`.

    - sentiment, -1 to 1: VADER's score of the completion. `reward=RewardModel("path/or/hub-id",
      label="POSITIVE")` judges by a classifier instead.
    - fluency, -1 to 0: as in `TextGen-v0`, but beside the prompt: how much more surprising than a review's
      beginning its rest may be. So it tells texts apart for a model that knows no reviews, too.
    - topic: -1 for a completion that does not name the `subject`, else 0.

    How far a trained policy is from the frozen model, the other half of this benchmark, is the KL that the
    training tools log (`lm_envs.sb3`).

    ## Levels
    How the review begins. "easy": with praise. "medium": with praise and blame. "hard": with blame.

    ## Data
    `prompt` (text), and `subject` (text) if the completion should name it. Generated records have a subject
    (bakery, book, room, ...) and `reference`, the rest of the review as its grammar goes on, positive in 6, 5
    or 4 of 10 (easy, medium, hard).

    ## Players
    "best": the most positive of 30 rests that the grammar offers. Tricks: "great great great", a list of
    praise, the same praise for every review, and copying the prompt. "reference" is a natural review.

    ## How it could be hacked
    By VADER alone "great great great" gets 0.99, more than a good review (0.96): fluency takes 2 away for
    it. The same praise for every review is fluent, and costs the topic. `tests/test_task_sentiment.py` shows
    that no trick gets 90% of the way from an empty text to the best player with the bundled model, nor 75%
    with a word model of this grammar. Where a reviewer would always praise in the same words, so may an
    agent, if they name the subject: watch the diversity of its samples beside the reward.

    ## References
    Hutto & Gilbert 2014 (VADER); Ziegler et al. 2019, "Fine-Tuning Language Models from Human
    Preferences" (continuations steered to positive sentiment under a KL penalty); Meister et al. 2022
    (typicality).

    Args:
        language_model: the frozen model of the environment, the judge of fluency.
        fluency_weight: weight of fluency, >= 0.
        fluency_slack: nats per token that a rest may be more surprising than the prompt lets expect, >= 0.
        kwargs: `data`, `split`, `level` and `reward`, see `SingleTurn`.

    Raises:
        ValueError: bad data, split or level.
    """

    columns: ClassVar[Mapping[str, Check]] = {"prompt": a_text}
    optional: ClassVar[Mapping[str, Check]] = {"subject": or_nothing(a_text)}

    def __init__(
        self,
        language_model: LanguageModel,
        *,
        fluency_weight: float = 2.0,
        fluency_slack: float = 0.1,
        **kwargs: Any,
    ) -> None:
        self._fluency = fluency_weight, fluency_slack
        super().__init__(language_model, **kwargs)

    def default_reward(self) -> RewardFunction:
        """VADER's score, less what is too surprising or beside the point."""
        weight, slack = self._fluency
        fluency = FluentBesidePrompt(self.language_model, slack)
        return WeightedSum(
            {"sentiment": (1.0, Sentiment()), "fluency": (weight, fluency), "topic": (1.0, OnTopic())}
        )

    def generate(self, dice: Dice) -> dict[str, Any]:
        """A review, cut after the subject of a sentence."""
        subject = dice.pick(tuple(SUBJECTS))
        intro, aspects = SUBJECTS[subject]
        told = dice.pick(STARTS[self.level])
        order = list(aspects)
        drawn = [order.pop(dice.below(len(order))) for _ in range(len(told) + 1)]
        sentences = [expand(intro.replace("{when}", WHEN), {}, dice)]
        sentences += [_said(aspect, tone, dice) for aspect, tone in zip(drawn, told, strict=False)]
        prompt = " ".join(("Review:", *sentences, drawn[-1][0]))
        tone = "good" if dice.below(10) < GOOD_IN_TEN[self.level] else "bad"
        return {"prompt": prompt, "subject": subject, "reference": rest(prompt, subject, tone, dice)}

    def prompt_of(self, record: Mapping[str, Any]) -> str:
        """How the review begins."""
        return record["prompt"]

    def players(self) -> dict[str, Player]:
        """See the class."""
        praise = " wonderful. I loved everything about it. Thank you, it was a joy!"
        best = {"best": _best} if self._records is None else {}
        natural: dict[str, Player] = {"reference": lambda state: state.columns["reference"]}
        return {
            **best,
            "great": lambda state: " great" * 12,
            "praise list": lambda state: (
                " great, wonderful, excellent, lovely, perfect, superb, best, happy, joy."
            ),
            "pleasing": lambda state: praise,
            "copy": lambda state: " " + state.prompt,
            **(natural if self.has_column("reference") else {}),
        }


class FluentBesidePrompt:
    """`t(completion) - 1.25 t(prompt) + slack`, cut to -1..0, with the typicality t, which is 0 on average
    for the model's own text and negative for what surprises it. An empty completion gets -1.

    The prompt's first word is what its t is conditioned on; positive ones count as 0.

    Args:
        language_model: the judge.
        slack: nats per token, >= 0.
    """

    __name__ = "fluency"

    def __init__(self, language_model: LanguageModel, slack: float) -> None:
        if not slack >= 0:
            raise ValueError(f"fluency_slack must be >= 0 nats per token, got {slack!r}")
        self._typicality = Fluency(language_model, output="typicality")
        self.slack = slack

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """B texts in, B floats out."""
        cuts = [_FIRST_WORD.match(prompt).end() for prompt in prompts]  # type: ignore[union-attr]
        first, rests = [], []
        for prompt, cut in zip(prompts, cuts, strict=True):
            first.append(prompt[:cut])
            rests.append(prompt[cut:])
        expected = self._typicality(first, rests)
        values = self._typicality(prompts, completions, **columns)
        rows = zip(completions, values, rests, expected, strict=True)
        return [
            min(0.0, max(-1.0, value - 1.25 * (min(0.0, usual) if rest else 0.0) + self.slack))
            if text
            else -1.0
            for text, value, rest, usual in rows
        ]


class OnTopic:
    """-1 for a completion that lacks a word of its `subject`, else 0; 0 without that column."""

    __name__ = "topic"

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """B texts in, B floats out."""
        subjects = columns.get("subject") or [None] * len(completions)
        return [
            0.0 if subject is None or set(words(subject)) <= set(words(text)) else -1.0
            for subject, text in zip(subjects, completions, strict=True)
        ]


def rest(prompt: str, subject: str, tone: str, dice: Dice) -> str:
    """How a review of this subject goes on after the prompt: a predicate, an aspect, a verdict or two."""
    (last,) = (aspect for aspect in SUBJECTS[subject][1] if prompt.endswith(aspect[0]))
    others = [aspect for aspect in SUBJECTS[subject][1] if aspect[0] not in prompt]
    sentences = [_said(last, tone, dice)[len(last[0]) + 1 :]]
    if dice.below(2):
        sentences.append(_said(dice.pick(others), tone, dice))
    verdicts = list(VERDICTS[tone])
    for _ in range(1 + dice.below(2)):
        sentences.append(expand(verdicts.pop(dice.below(len(verdicts))), {"it": f"this {subject}"}, dice))
    return " " + " ".join(sentences)


def _said(aspect: Aspect, tone: str, dice: Dice) -> str:
    start, good, bad = aspect
    return f"{start} {expand(good if tone == 'good' else bad, {}, dice)}."


def _best(state: RecordState) -> str:
    dice = Dice(zlib.crc32(state.prompt.encode()))
    offered = [rest(state.prompt, state.columns["subject"], "good", dice) for _ in range(30)]
    return max(offered, key=Sentiment().score)
