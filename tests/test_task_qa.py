"""The task "qa" and token F1: questions, answers that stand in the text, players and data."""

from __future__ import annotations

import re
from typing import Any

import pytest
from single_turns import LEVELS, checksum, first_states, judge, longest, progress
from story_reader import beginnings
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from lm_envs.language_model import LanguageModel
from lm_envs.rewards import TokenF1
from lm_envs.tasks.qa import QuestionAnswering
from lm_envs.testing import check_reward, check_task


@pytest.fixture(scope="module")
def bundled() -> LanguageModel:
    return LanguageModel.load(None, lazy=True)


def test_contract(bundled: LanguageModel) -> None:
    check_task(QuestionAnswering(bundled))


# Token F1


def f1(completion: str, reference: str) -> float:
    """By matching words off against each other, one by one."""
    words, wanted = (re.sub(r"[^\w\s]", "", text.lower()).split() for text in (completion, reference))
    words, wanted = ([word for word in said if word not in ("a", "an", "the")] for said in (words, wanted))
    matched, left = 0, list(wanted)
    for word in words:
        if word in left:
            left.remove(word)
            matched += 1
    if not matched:
        return 0.0
    precision, recall = matched / len(words), matched / len(wanted)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("The Cat!", 1.0),
        ("cat", 1.0),
        (" a cat sat", 2 / 3),
        ("cat cat", 2 / 3),
        ("dog", 0.0),
        ("", 0.0),
        ("the", 0.0),
    ],
)
def test_token_f1_by_hand(completion: str, value: float) -> None:
    assert TokenF1()([""], [completion], reference=["a cat"]) == [pytest.approx(value)]


def test_token_f1_is_the_best_of_the_references() -> None:
    texts = ["in the old city", "the city the city the city", "Paris, in May.", "x"]
    references = [["the old city", "city"], ["city city"], ["in may", "may in Paris"], ["y"]]
    expected = [max(f1(text, other) for other in row) for text, row in zip(texts, references, strict=True)]
    assert TokenF1()([""] * 4, texts, references=references) == pytest.approx(expected)


def test_token_f1_with_an_empty_reference() -> None:
    assert TokenF1()(["", ""], ["", "x"], reference=["", ""]) == [1.0, 0.0]


def test_token_f1_is_a_reward() -> None:
    check_reward(TokenF1(), reference=["a cat", ["b", "c"], "no"])


# Questions


def answer(context: str, question: str) -> str | None:
    """What a reader of the beginnings says, by patterns; None if this reader does not know."""
    read = beginnings(context)
    if wish := re.fullmatch(r"Who wanted to (.+)\?", question):
        return next(told.hero for told in read if told.goal == wish[1])
    hero = re.search(r"(?:did|of|for) ([A-Z]\w+)", question)
    told = next(told for told in read if hero and told.hero == hero[1])
    if question.startswith("Where did"):
        return told.place
    if question.startswith("Why did"):
        assert question == f"Why did {told.hero} want to {told.goal}?"
        return told.reason
    if question.startswith("Whom did"):
        return told.friend or None
    return told.goal if question.startswith("What did") else None


@pytest.mark.parametrize("level", LEVELS)
def test_answers_stand_in_the_text(bundled: LanguageModel, level: Any) -> None:
    kinds, read = set(), 0
    for state in first_states(QuestionAnswering(bundled, level=level), 500):
        context, question, reference = (state.columns[key] for key in ("context", "question", "reference"))
        assert state.prompt == f"Text: {context}\nQuestion: {question}\nAnswer:"
        if reference == ["unanswerable"]:
            continue
        kinds.add(re.sub(r"\b[A-Z]\w+(?=\?| )|wanted to .*|want to (?!do\?).*", "", question[3:]))
        if question.startswith("How did it end"):
            assert reference[0] in ("well", "badly")
            continue
        if question.startswith("What got in the way"):
            (told,) = beginnings(context)
            assert reference[0] in told.trouble
        elif not question.startswith("Why"):  # which may name a friend who is introduced there
            assert reference[0].lower() in context.lower(), question
        if (expected := answer(context, question)) is not None:
            read += 1
            assert expected.lower() in [text.lower() for text in reference], question
    assert len(kinds) == (8 if level == "medium" else 5)
    assert read > 200


def test_endings_have_the_tone_of_the_answer(bundled: LanguageModel) -> None:
    analyzer = SentimentIntensityAnalyzer()
    right = []
    for state in first_states(QuestionAnswering(bundled, level="medium"), 1500):
        if state.columns["question"].startswith("How did it end"):
            end = " ".join(state.columns["context"].split()[-20:])
            happy = analyzer.polarity_scores(end)["compound"] > 0
            right.append(happy == (state.columns["reference"][0] == "well"))
    assert len(right) > 80
    assert sum(right) / len(right) > 0.8


@pytest.mark.parametrize("level", LEVELS)
def test_one_question_in_five_cannot_be_answered(bundled: LanguageModel, level: Any) -> None:
    states = first_states(QuestionAnswering(bundled, level=level), 1000)
    unknown = [state for state in states if state.columns["reference"] == ["unanswerable"]]
    assert len(unknown) / len(states) == pytest.approx(0.2, abs=0.04)
    for state in unknown:
        context, question = state.columns["context"], state.columns["question"]
        if level == "hard":  # someone or something that neither text tells of
            name = re.search(r"(?:did|of) ([A-Z]\w+)", question)
            asked = name[1] if name else question[len("Who wanted to ") : -1]
            assert not re.search(rf"\b{asked}\b", context)
        else:
            assert re.search("How old|the name of|hat|eat|spoons|born", question)
            assert not re.search("name of [A-Z]", question)  # who has one


@pytest.mark.parametrize(
    ("level", "expected"), [("easy", 2331310439), ("medium", 3237156500), ("hard", 414371183)]
)
def test_instances_are_the_same_everywhere(bundled: LanguageModel, level: Any, expected: int) -> None:
    assert checksum(QuestionAnswering(bundled, level=level)) == expected


@pytest.mark.parametrize("level", LEVELS)
def test_splits_share_no_prompt(bundled: LanguageModel, level: Any) -> None:
    train = {state.prompt for state in first_states(QuestionAnswering(bundled, level=level), 500)}
    test = {
        state.prompt for state in first_states(QuestionAnswering(bundled, level=level, split="test"), 200)
    }
    assert not train & test
    assert len(test) == 200


def test_levels_have_more_to_read(bundled: LanguageModel) -> None:
    means = []
    for level in LEVELS:
        states = first_states(QuestionAnswering(bundled, level=level), 200)
        means.append(sum(len(state.columns["context"]) for state in states) / 200)
    assert means[0] + 100 < min(means[1:])


def test_prompts_and_best_answers_fit(bundled: LanguageModel) -> None:
    for level in LEVELS:
        prompt, longest_answer = longest(QuestionAnswering(bundled, level=level), 800)
        assert longest_answer <= 24
        assert prompt + 24 <= 256


# Players and data


@pytest.mark.parametrize("level", LEVELS)
def test_tricks_do_not_pay(bundled: LanguageModel, level: Any) -> None:
    best, tricks = progress(QuestionAnswering(bundled, level=level, split="test"), 200)
    assert best == 1.0
    assert max(tricks.values()) < 0.35, tricks


def test_reward_is_half_exact_match_and_half_f1(bundled: LanguageModel) -> None:
    data = [
        {"context": "Rome is old.", "question": "What is old?", "reference": ["Rome", "the city of Rome"]}
    ]
    task = QuestionAnswering(bundled, data=data)
    (state,) = first_states(task, 1)
    for text, expected in ((" rome.", 1.0), (" city of Rome", 1.0), (" old Rome", 0.5 * 2 / 3), ("", 0.0)):
        assert judge(task, [state], [text])[0][0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"context": "x", "question": "y"}], r"data\[0\] has no column 'reference'"),
        ([{"context": "x", "question": "y", "reference": [3]}], r"data\[0\], reference must be"),
        ([{"context": "x", "question": 3, "reference": "z"}], r"data\[0\], question must be a str"),
    ],
)
def test_bad_data(bundled: LanguageModel, data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuestionAnswering(bundled, data=data)
