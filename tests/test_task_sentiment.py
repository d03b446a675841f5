"""The task "sentiment": the grammar of reviews, the reward, and what tricks get."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from single_turns import LEVELS, checksum, first_states, judge, longest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from lm_envs.language_model import LanguageModel
from lm_envs.rewards import Sentiment, WeightedSum
from lm_envs.tasks.sentiment import SUBJECTS, VERDICTS, FluentBesidePrompt, OnTopic, SentimentSteering
from lm_envs.testing import check_task

VADER = SentimentIntensityAnalyzer()


@pytest.fixture(scope="module")
def bundled() -> LanguageModel:
    return LanguageModel.load(None, lazy=True)


def tone(text: str) -> float:
    return VADER.polarity_scores(text)["compound"]


def test_contract(bundled: LanguageModel) -> None:
    check_task(SentimentSteering(bundled))


# Reviews


def variants(template: str) -> list[str]:
    """All texts of a template without nested choices."""
    before, bracket, rest = template.partition("[")
    if not bracket:
        return [before]
    choices, _, after = rest.partition("]")
    return [before + choice + end for choice in choices.split("|") for end in variants(after)]


def test_praise_is_praise_and_blame_is_blame() -> None:
    """By VADER's lexicon; what it does not know is neutral."""
    for _, aspects in SUBJECTS.values():
        for start, good, bad in aspects:
            assert all(tone(f"{start} {word}.") >= 0 for word in variants(good)), start
            assert all(tone(f"{start} {word}.") <= 0 for word in variants(bad)), start
            assert sum(tone(f"{start} {word}.") > 0 for word in variants(good)) >= 1
    for templates, sign in ((VERDICTS["good"], 1), (VERDICTS["bad"], -1)):
        for template in templates:
            texts = [text.format(it=f"this {it}") for text in variants(template) for it in SUBJECTS]
            assert all(sign * tone(text) >= 0 for text in texts), template


def test_prompts_begin_as_the_level_says(bundled: LanguageModel) -> None:
    """Read back with the grammar's words: praise, both or blame, then a subject without a predicate."""
    for level in LEVELS:
        for state in first_states(SentimentSteering(bundled, level=level), 300):
            aspects = SUBJECTS[state.columns["subject"]][1]
            told = []
            for start, good, bad in aspects:
                found = re.search(rf"{start} ([^.]+)\.", state.prompt)
                if found:
                    assert (found[1] in variants(good)) != (found[1] in variants(bad))
                    told.append(found[1] in variants(good))
            assert {"easy": all(told), "medium": sorted(told) == [False, True], "hard": not any(told)}[level]
            assert 1 <= len(told) <= 2
            assert state.prompt.startswith("Review: ")
            assert any(state.prompt.endswith(f". {start}") for start, _, _ in aspects)


def test_natural_reviews_end_either_way(bundled: LanguageModel) -> None:
    for level, share in zip(LEVELS, (0.6, 0.5, 0.4), strict=True):
        states = first_states(SentimentSteering(bundled, level=level), 600)
        tones = [tone(state.columns["reference"]) for state in states]
        assert np.mean([value > 0 for value in tones]) == pytest.approx(share, abs=0.07)


@pytest.mark.parametrize(
    ("level", "expected"), [("easy", 2614276064), ("medium", 1885979738), ("hard", 3791795904)]
)
def test_instances_are_the_same_everywhere(bundled: LanguageModel, level: Any, expected: int) -> None:
    assert checksum(SentimentSteering(bundled, level=level)) == expected


@pytest.mark.parametrize("level", LEVELS)
def test_splits_share_no_prompt(bundled: LanguageModel, level: Any) -> None:
    train = {state.prompt for state in first_states(SentimentSteering(bundled, level=level), 2000)}
    test = {
        state.prompt for state in first_states(SentimentSteering(bundled, level=level, split="test"), 500)
    }
    assert not train & test
    assert len(train) > 1900
    assert len(test) > 450


def test_levels_begin_worse_and_worse(bundled: LanguageModel) -> None:
    means = [
        np.mean([tone(state.prompt) for state in first_states(SentimentSteering(bundled, level=level), 200)])
        for level in LEVELS
    ]
    assert means[0] > 0.3 > means[1] > -0.2 > means[2]


def test_prompts_and_best_answers_fit(bundled: LanguageModel) -> None:
    for level in LEVELS:
        prompt, answer = longest(SentimentSteering(bundled, level=level), 400)
        assert answer <= 56
        assert prompt + 56 <= 256


# Rewards and players


def test_reward_is_vader_less_what_is_surprising(bundled: LanguageModel) -> None:
    task = SentimentSteering(bundled, data=[{"prompt": "Review: The pie was"}], fluency_weight=0.5)
    (state,) = first_states(task, 1)
    text = " good good good"
    assert judge(task, [state], [text]) == [
        (pytest.approx(tone(text) - 0.5), {"sentiment": tone(text), "fluency": -1.0, "topic": 0.0})
    ]
    task = SentimentSteering(bundled)
    (state,) = first_states(task, 1)
    assert judge(task, [state], [""]) == [(-3.0, {"sentiment": 0.0, "fluency": -1.0, "topic": -1.0})]
    subject = state.columns["subject"]
    texts = [f" This {subject.upper()}!", f" These {subject}s", " Nothing."]
    assert [parts["topic"] for _, parts in judge(task, [state] * 3, texts)] == [0.0, -1.0, -1.0]


def test_fluency_is_beside_the_prompt(bundled: LanguageModel) -> None:
    """By log-probs and entropies of a plain forward pass."""
    prompt, text = "Review: The pie was", " nice and warm."

    def typicality(before: str, after: str) -> float:
        first, then = bundled.encode_prompt(before), bundled.encode(after)
        with torch.no_grad():
            logits = bundled.model(torch.tensor([first + then])).logits[0, len(first) - 1 : -1].double()
        log_probs = logits.log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return float((log_probs[torch.arange(len(then)), then] + entropy).mean())

    surprise = typicality(prompt, text) - 1.25 * typicality("Review:", " The pie was")
    for slack in (0.0, max(0.0, 0.1 - surprise), max(0.0, 0.6 - surprise) + 2):
        (value,) = FluentBesidePrompt(bundled, slack)([prompt], [text])
        assert value == pytest.approx(min(0.0, max(-1.0, surprise + slack)), abs=1e-4)
    (value,) = FluentBesidePrompt(bundled, 0.0)(["Review"], [text])  # no rest of a prompt to compare with
    assert value == pytest.approx(max(-1.0, min(0.0, typicality("Review", text))), abs=1e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_tricks_do_not_pay_with_the_bundled_model(bundled: LanguageModel, level: Any) -> None:
    task = SentimentSteering(bundled, level=level, split="test")
    states = first_states(task, 60)
    means = {
        name: np.mean([value for value, _ in judge(task, states, [player(state) for state in states])])
        for name, player in task.players().items()
    }
    best = means.pop("best") + 3
    assert best > 3.5
    assert max(means.values()) + 3 < 0.85 * best


class Trigrams:
    """The task's fluency by a word model with two words of memory: counts, and 1% for all words."""

    __name__ = "fluency"

    def __init__(self, texts: list[tuple[str, str]]) -> None:
        self.counts: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for prompt, text in texts:
            for context, word in self.steps("", prompt + text):
                self.counts[context][word] += 1
        self.size = len({word for counter in self.counts.values() for word in counter})

    @staticmethod
    def steps(prompt: str, text: str) -> list[tuple[tuple[str, ...], str]]:
        before, after = (re.findall(r"\w+|[^\w\s]", part.lower()) for part in (prompt, text))
        said = [*before, *after, "<end>"]
        return [(tuple(said[max(0, at - 2) : at]), said[at]) for at in range(len(before), len(said))]

    def typicality(self, prompt: str, text: str) -> float:
        values = []
        for context, word in self.steps(prompt, text):
            counter = self.counts[context]
            other = 0.01 / self.size if counter else 1 / self.size
            known = {key: 0.99 * n / counter.total() + other for key, n in counter.items()}
            rest = (self.size - len(known)) * other * math.log(other)
            entropy = -sum(p * math.log(p) for p in known.values()) - rest
            values.append(math.log(known.get(word, other)) + entropy)
        return sum(values) / len(values)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        values = [self.typicality(*row) if row[1] else -1.0 for row in zip(prompts, completions, strict=True)]
        return [min(0.0, max(-1.0, value + 0.1)) for value in values]


@pytest.mark.parametrize("level", LEVELS)
def test_tricks_do_not_pay_with_a_model_that_knows_reviews(bundled: LanguageModel, level: Any) -> None:
    train = SentimentSteering(bundled, level=level)
    fluency = Trigrams([(record["prompt"], record["reference"]) for record in map(train.record, range(3000))])
    parts = {"sentiment": (1.0, Sentiment()), "fluency": (2.0, fluency), "topic": (1.0, OnTopic())}
    reward = WeightedSum(parts)
    task = SentimentSteering(bundled, level=level, split="test", reward=reward)
    states = first_states(task, 200)
    means, tones = {}, {}
    for name, player in task.players().items():
        answers = judge(task, states, [player(state) for state in states])
        means[name] = np.mean([reward for reward, _ in answers])
        tones[name] = np.mean([parts["sentiment"] for _, parts in answers])
    assert means["best"] > 0.8
    for name in ("great", "praise list", "pleasing", "copy"):
        assert (means[name] + 3) / (means["best"] + 3) < 0.75, name
    assert (means["reference"] + 3) / (means["best"] + 3) < 0.88
    # By VADER alone the first two would win.
    assert min(tones["great"], tones["praise list"]) > tones["best"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"data": [{"text": "x"}]}, r"data\[0\] has no column 'prompt'"),
        ({"data": [{"prompt": 3}]}, r"data\[0\], prompt must be a str"),
        ({"data": []}, "data must be a non-empty list"),
        ({"fluency_slack": -1.0}, "slack"),
        ({"fluency_weight": float("inf")}, "'fluency'.*finite"),
    ],
)
def test_bad_arguments(bundled: LanguageModel, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SentimentSteering(bundled, **kwargs)
