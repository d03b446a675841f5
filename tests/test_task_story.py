"""The task "story": openings, the four parts of the reward, players and data."""

from __future__ import annotations

import re
from typing import Any

import pytest
from single_turns import LEVELS, checksum, first_states, judge, longest, progress
from story_reader import NAMES, sentences
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from lm_envs.language_model import LanguageModel
from lm_envs.tasks.story import Arc, Relevance, StoryTask, Variety, new_names
from lm_envs.testing import check_task

VADER = SentimentIntensityAnalyzer()
PROMPT = "Mira lived in a village and wanted to find the lost goat of the baker. But a thick fog came down."


@pytest.fixture(scope="module")
def bundled() -> LanguageModel:
    return LanguageModel.load(None, lazy=True)


def test_contract(bundled: LanguageModel) -> None:
    check_task(StoryTask(bundled))


# Openings


def test_openings_end_where_the_level_says(bundled: LanguageModel) -> None:
    """The conflict is the first sentence that begins with "But"; the attempts come behind it."""
    for level in LEVELS:
        for state in first_states(StoryTask(bundled, level=level), 200):
            follows = state.columns["reference"]
            assert state.prompt[-1] in '.!?"'
            assert follows[0] == " "
            assert follows[1].isupper() or follows[1] == '"'
            told, rest = sentences(state.prompt), sentences(follows[1:])
            conflicts = [at for at, sentence in enumerate(told) if sentence.startswith("But ")]
            if level == "easy":
                assert conflicts[0] < len(told) - 1
                assert 3 <= len(rest) <= 5
            else:
                assert not conflicts
                assert any(sentence.startswith("But ") for sentence in rest)
            if level == "medium":
                assert follows.startswith(" But ")
            if level == "hard":
                assert re.fullmatch(r"[^.!?]+\.", state.prompt)


def test_keywords_stand_in_the_opening_and_the_cast_is_complete(bundled: LanguageModel) -> None:
    for level in LEVELS:
        for state in first_states(StoryTask(bundled, level=level), 200):
            keywords = state.columns["keywords"]
            assert all(re.search(rf"\b{keyword}\b", state.prompt) for keyword in keywords)
            assert keywords[0] in NAMES
            assert len(keywords) == 3 or level == "hard"


def test_the_best_player_brings_in_nobody_new(bundled: LanguageModel) -> None:
    for level in LEVELS:
        for state in first_states(StoryTask(bundled, level=level), 200):
            told = {word for word in re.findall(r"\w+", state.columns["reference"]) if word in NAMES}
            assert told <= set(re.findall(r"\w+", state.prompt))


def test_genres_are_many(bundled: LanguageModel) -> None:
    genres = {state.columns["genre"] for state in first_states(StoryTask(bundled), 100)}
    assert genres == {"village", "fairy tale", "city", "sea", "school", "workshop"}


@pytest.mark.parametrize(
    ("level", "expected"), [("easy", 1426892381), ("medium", 1023923134), ("hard", 3149081773)]
)
def test_instances_are_the_same_everywhere(bundled: LanguageModel, level: Any, expected: int) -> None:
    assert checksum(StoryTask(bundled, level=level)) == expected


@pytest.mark.parametrize("level", LEVELS)
def test_splits_share_no_prompt(bundled: LanguageModel, level: Any) -> None:
    train = {state.prompt for state in first_states(StoryTask(bundled, level=level), 500)}
    test = {state.prompt for state in first_states(StoryTask(bundled, level=level, split="test"), 200)}
    assert not train & test
    assert len(test) >= 195


def test_levels_leave_more_to_be_told(bundled: LanguageModel) -> None:
    means = []
    for level in LEVELS:
        states = first_states(StoryTask(bundled, level=level), 200)
        means.append(sum(len(state.columns["reference"]) for state in states) / len(states))
    assert means[0] + 50 < means[1] < means[2] - 50


def test_prompts_and_best_answers_fit(bundled: LanguageModel) -> None:
    for level, room in zip(LEVELS, (96, 152, 184), strict=True):
        prompt, answer = longest(StoryTask(bundled, level=level), 1500)
        assert answer <= room
        assert prompt + room <= 256


# Parts of the reward


@pytest.mark.parametrize(
    ("completion", "names"),
    [
        (" Mira found the goat. The baker was happy.", set()),
        (" Clara found the goat.", {"Clara"}),
        (" Then Zoltan came, and Mira ran.", {"Zoltan"}),
        (' "Well done, Mira!" said the baker. Never before had she laughed so. I know.', set()),
        (" She came back on a Sunday, at New Year.", set()),
        (" She met Mirabelle.", {"Mirabelle"}),
        ("", set()),
    ],
)
def test_new_names(completion: str, names: set[str]) -> None:
    assert new_names(PROMPT, completion) == names


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        (" Mira found the GOAT, and the baker smiled.", 1.0),
        (" The goats of Mira came home.", 1 / 3),
        (" Mira and Clara found the goat of the baker.", 0.0),
        (f" {PROMPT}", 0.0),
        (f" {PROMPT} It was Mira.", 1 / 3),
        ("", 0.0),
    ],
)
def test_relevance(completion: str, value: float) -> None:
    assert Relevance()([PROMPT], [completion], keywords=[["Mira", "baker", "goat"]]) == [value]


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("", 0.0),
        ("joy", 0.0),
        ("a b c d e", 4 / 20),
        ("a b " * 3, 2 / 20),
        (" ".join(f"w{i}" for i in range(41)), 1.0),
        (" ".join(["x"] * 41), 1 / 40),
    ],
)
def test_variety_is_distinct_2_that_needs_some_length(completion: str, value: float) -> None:
    assert Variety()([""], [completion]) == [pytest.approx(value)]


def test_variety_of_a_copy_is_none() -> None:
    said = " ".join(f"w{i}" for i in range(41))
    assert Variety()([said, said], [said, f"{said} and more"]) == [0.0, pytest.approx(2 / 42)]


def test_arc_by_hand() -> None:
    def tone(text: str) -> float:
        return VADER.polarity_scores(text)["compound"]

    prompt, sad, happy = "It was a terrible day.", "The wolf killed the goat.", "Mira was happy and loved."
    assert tone(sad) < tone(prompt) < 0 < tone(happy) < 1
    arc = Arc()
    assert arc([prompt], [f" {happy}"]) == [min(1.0, tone(happy) - tone(prompt))]
    assert arc([f"It was a day. {prompt}"], [f" {sad}"]) == [tone(sad) - tone(prompt)]
    assert arc(["It was a day."], [f" {happy}"]) == [tone(happy)]
    assert arc(["It was a day."], [f" {happy} {sad}"]) == [tone(f"{happy} {sad}")]
    # no sentence before the last two counts, so that a disaster of one's own does not pay
    assert arc(["It was a day."], [f" {sad} {sad} It was {happy} Mira sang."]) == [tone(f"It was {happy}")]
    assert arc([f"{happy} {happy}"], [f" {sad}"]) == [tone(sad)]
    assert arc([prompt], [""]) == [0.0]
    assert arc([""], [" happy"]) == [tone("happy")]


def test_reward_is_the_weighted_sum_and_weights_can_be_replaced(bundled: LanguageModel) -> None:
    default, own = StoryTask(bundled), StoryTask(bundled, weights={"arc": -3.0, "coherence": 0.0})
    states = first_states(default, 3)
    texts = [state.columns["reference"] for state in states]
    for (reward, parts), (other, same) in zip(
        judge(default, states, texts), judge(own, states, texts), strict=True
    ):
        assert parts == same
        assert reward == pytest.approx(
            parts["relevance"] + 0.5 * parts["variety"] + 2 * parts["arc"] + 3 * parts["coherence"]
        )
        assert other == pytest.approx(parts["relevance"] + 0.5 * parts["variety"] - 3 * parts["arc"])
    empty = {"relevance": 0.0, "variety": 0.0, "arc": 0.0, "coherence": -1.0}
    assert judge(default, states[:1], [""]) == [(-3.0, empty)]


# Players and data


@pytest.mark.parametrize(("level", "count"), [("easy", 200), ("medium", 30), ("hard", 30)])
def test_tricks_do_not_pay(bundled: LanguageModel, level: Any, count: int) -> None:
    best, tricks = progress(StoryTask(bundled, level=level, split="test"), count)
    assert best > 2.7
    assert max(tricks.values()) < 2 / 3, tricks


def test_own_data_and_reward(bundled: LanguageModel) -> None:
    data = [{"prompt": "Zoe sang.", "keywords": "Zoe"}, {"prompt": "Max ran.", "keywords": ["Max", "dog"]}]

    def how_many(prompts: list[str], completions: list[str], keywords: Any, **columns: Any) -> list[float]:
        return [float(len(words)) for words in keywords]

    task = StoryTask(bundled, data=data, reward=how_many)
    states = first_states(task, 2)
    assert [state.prompt for state in states] == ["Zoe sang.", "Max ran."]
    assert [reward for reward, _ in judge(task, states, [" a", " b"])] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"weights": {"plot": 1.0}}, "weights must be of .*'relevance'.*'plot'"),
        ({"weights": {"arc": float("nan")}}, "'arc'.*finite"),
        ({"coherence_slack": -1.0}, "slack"),
        ({"data": [{"prompt": "x"}]}, r"data\[0\] has no column 'keywords'"),
        ({"data": [{"prompt": "x", "keywords": []}]}, r"data\[0\], keywords must be"),
        ({"data": [{"prompt": "x", "keywords": "y"}], "level": "hard"}, "cannot be used with data"),
        ({"level": "hardest"}, "level must be"),
    ],
)
def test_bad_arguments(bundled: LanguageModel, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StoryTask(bundled, **kwargs)
