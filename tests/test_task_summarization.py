"""The task "summarization": references made of facts, ROUGE-L, players and data."""

from __future__ import annotations

import re
from typing import Any

import pytest
from rouge_score.rouge_scorer import RougeScorer
from single_turns import LEVELS, checksum, first_states, judge, longest, progress
from story_reader import beginnings

from lm_envs.language_model import LanguageModel
from lm_envs.tasks.summarization import LengthPenalty, Summarization
from lm_envs.testing import check_task

FRAMES = (
    r"(\w+) wanted to ([^;]+); trouble: ([^;.]+)(?:; ([^;.]+))?\.",
    r"(\w+) hoped to ([^,;]+), but had trouble: ([^;.]+)(?:; ([^;.]+))?\.",
)


@pytest.fixture(scope="module")
def bundled() -> LanguageModel:
    return LanguageModel.load(None, lazy=True)


def test_contract(bundled: LanguageModel) -> None:
    check_task(Summarization(bundled))


def facts(summary: str, pattern: str) -> list[tuple[str, ...]]:
    """Who, what, trouble and outcome of each sentence, read back."""
    assert re.fullmatch(rf"(?:{pattern} ?)+", summary)
    return [found.groups("") for found in re.finditer(pattern, summary)]


@pytest.mark.parametrize("level", LEVELS)
def test_references_say_the_same_and_it_stands_in_the_text(bundled: LanguageModel, level: Any) -> None:
    outcomes = set()
    for state in first_states(Summarization(bundled, level=level), 400):
        text, references, keywords = (state.columns[name] for name in ("text", "reference", "keywords"))
        assert state.prompt == f"Text: {text}\nSummary:"
        told, again = (facts(*row) for row in zip(references, FRAMES, strict=True))
        assert told == again
        assert len(told) == (2 if level == "hard" else 1)
        for read, (hero, goal, trouble, outcome) in zip(beginnings(text), told, strict=True):
            assert (hero, goal) == (read.hero, read.goal)
            assert trouble in read.trouble
            assert bool(outcome) == (level == "medium")
            outcomes.add(outcome)
        assert sorted(keywords) == sorted(fact for row in told for fact in row if fact)
        for reference in references:
            assert all(keyword in reference for keyword in keywords)
    assert len(outcomes) == (3 if level == "medium" else 1)


@pytest.mark.parametrize(
    ("level", "expected"), [("easy", 2574746603), ("medium", 1318440241), ("hard", 966931170)]
)
def test_instances_are_the_same_everywhere(bundled: LanguageModel, level: Any, expected: int) -> None:
    assert checksum(Summarization(bundled, level=level)) == expected


@pytest.mark.parametrize("level", LEVELS)
def test_splits_share_no_prompt(bundled: LanguageModel, level: Any) -> None:
    train = {state.prompt for state in first_states(Summarization(bundled, level=level), 500)}
    test = {state.prompt for state in first_states(Summarization(bundled, level=level, split="test"), 200)}
    assert not train & test
    assert len(test) == 200


def test_levels_ask_for_more(bundled: LanguageModel) -> None:
    means = []
    for level in LEVELS:
        states = first_states(Summarization(bundled, level=level), 100)
        means.append(sum(len(state.columns["reference"][0]) for state in states) / 100)
    assert means[0] + 10 < means[1] < means[2] - 10


def test_prompts_and_best_answers_fit(bundled: LanguageModel) -> None:
    for level in LEVELS:
        prompt, answer = longest(Summarization(bundled, level=level), 800)
        assert answer <= 56
        assert prompt + 56 <= 256


@pytest.mark.parametrize(
    ("text", "value"), [("", 0.0), ("a b c d", 0.0), ("a b c d e", -0.2), ("a b " * 8, -0.75)]
)
def test_length_penalty(text: str, value: float) -> None:
    assert LengthPenalty(4).score(text) == pytest.approx(value)


def test_reward_is_rouge_score_and_facts_less_length(bundled: LanguageModel) -> None:
    task = Summarization(bundled)
    states = first_states(task, 20)
    for name, player in task.players().items():
        texts = [player(state) for state in states]
        for state, text, (reward, parts) in zip(states, texts, judge(task, states, texts), strict=True):
            scorer = RougeScorer(["rougeL"])
            rouge = max(
                scorer.score(reference, text)["rougeL"].fmeasure for reference in state.columns["reference"]
            )
            keywords = state.columns["keywords"]
            held, wrong = (
                sum(bool(re.search(rf"\b{word}\b", text, re.IGNORECASE)) for word in words)
                for words in (keywords, state.columns["wrong"])
            )
            over = min(0.0, 40 / len(re.findall(r"\w[\w'-]*", text)) - 1)
            assert parts["rougeL"] == pytest.approx(rouge)
            assert parts["facts"] == pytest.approx(max(0, held - wrong) / len(keywords))
            assert parts["length"] == pytest.approx(over, abs=0.05)
            assert reward == pytest.approx(
                0.4 * parts["rougeL"] + 0.6 * parts["facts"] + 0.5 * parts["length"]
            ), name
    assert judge(task, states[:1], [""])[0][0] == 0.0


@pytest.mark.parametrize("level", LEVELS)
def test_tricks_do_not_pay(bundled: LanguageModel, level: Any) -> None:
    best, tricks = progress(Summarization(bundled, level=level, split="test"), 200)
    assert best == 1.0
    assert max(tricks.values()) < 0.8, tricks


@pytest.mark.parametrize("level", LEVELS)
def test_naming_every_trouble_does_not_pay(bundled: LanguageModel, level: Any) -> None:
    # Told by the first records of the train split: which troubles stories with a goal of this verb have.
    known: dict[str, set[str]] = {}
    for state in first_states(Summarization(bundled), 600):
        _, goal, trouble = state.columns["keywords"]
        known.setdefault(goal.split()[0], set()).add(trouble)
    task = Summarization(bundled, level=level, split="test")
    states = first_states(task, 100)
    ending = "; it ended well" if level == "medium" else ""
    texts = []
    for state in states:
        hero, goal = state.columns["keywords"][:2]
        troubles = ", ".join(sorted(known[goal.split()[0]])[:4])
        texts.append(f" {hero} wanted to {goal}; trouble: {troubles}{ending}.")
    mean = sum(reward for reward, _ in judge(task, states, texts)) / len(states)
    assert mean < 0.75


def test_a_copied_trouble_counts_for_nothing(bundled: LanguageModel) -> None:
    task = Summarization(bundled, split="test")
    for state in first_states(task, 50):
        trouble, summary = state.columns["keywords"][2], state.columns["reference"][0]
        (copied, *_) = re.findall(rf"\b{trouble}\W+\w+", state.columns["text"], re.IGNORECASE)
        texts = [summary, summary.replace(trouble, copied), summary.replace(trouble, f"a {trouble}, alas")]
        shares = [parts["facts"] for _, parts in judge(task, [state] * 3, texts)]
        assert shares == pytest.approx([1, 2 / 3, 1])


def test_wrong_facts_stand_in_no_reference(bundled: LanguageModel) -> None:
    for level in LEVELS:
        for state in first_states(Summarization(bundled, level=level), 200):
            references, wrong = " ".join(state.columns["reference"]), state.columns["wrong"]
            assert len(wrong) >= 2
            assert not [phrase for phrase in wrong if re.search(rf"\b{phrase}\b", references)]


def test_players_read_data_without_names(bundled: LanguageModel) -> None:
    task = Summarization(bundled, data=[{"text": "no name is here", "reference": "x"}])
    (state,) = first_states(task, 1)
    for name, player in task.players().items():
        assert player(state), name


def test_own_data_with_and_without_keywords(bundled: LanguageModel) -> None:
    row = {"text": "A cat sat on the mat.", "reference": "a cat sat"}
    known_row = row | {"keywords": ["cat", "mat"]}
    plain, known, strict = (
        Summarization(bundled, data=[each]) for each in (row, known_row, known_row | {"wrong": "dog"})
    )
    short = Summarization(bundled, data=[row], max_words=2)
    for task, text, expected in (
        (plain, " a cat", 2 * 1 * (2 / 3) / (1 + 2 / 3)),
        (known, " a cat", 0.4 * 0.8 + 0.3),
        (strict, " a cat", 0.4 * 0.8 + 0.3),
        (strict, " a cat dog", 0.4 * 0.8 * 5 / 6),
        (short, " a cat sat", 1 - 0.5 / 3),
    ):
        assert judge(task, first_states(task, 1), [text])[0][0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"data": [{"text": "x"}]}, r"data\[0\] has no column 'reference'"),
        ({"data": [{"text": "x", "reference": []}]}, r"data\[0\], reference must be"),
        ({"data": [{"text": None, "reference": "y"}]}, r"data\[0\], text must be a str"),
        ({"max_words": 0}, "max_words must be an integer >= 1, got 0"),
    ],
)
def test_bad_arguments(bundled: LanguageModel, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Summarization(bundled, **kwargs)
