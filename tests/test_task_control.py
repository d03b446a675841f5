"""The task "control": demands and their rules, generated lists, players and data."""

from __future__ import annotations

import re
from typing import Any

import pytest
from single_turns import LEVELS, checksum, first_states, judge, longest, progress
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from lm_envs.language_model import LanguageModel
from lm_envs.tasks.control import Control, meets
from lm_envs.testing import check_task

VADER = SentimentIntensityAnalyzer()
NUMBERS = {"easy": 2, "medium": 4, "hard": 6}


@pytest.fixture(scope="module")
def bundled() -> LanguageModel:
    return LanguageModel.load(None, lazy=True)


def test_contract(bundled: LanguageModel) -> None:
    check_task(Control(bundled))


TEXT = ' Mira hugged the baker. "Well done, Mira!" he cried, and they were happy.'


@pytest.mark.parametrize(
    ("demand", "yes", "no"),
    [
        ("the word baker", [TEXT, "BAKER"], ["The bakers came.", "bake"]),
        ("not the word baker", ["The bakers came."], [TEXT, "BAKER!", "The baker's oven smoked."]),
        ("begin with Mira", [TEXT, "mira ran"], ["Then Mira ran.", "Miranda ran."]),
        ("exactly 2 sentences", [TEXT, "No. Yes?"], ["One.", "One. Two. Three.", "no end"]),
        ("exactly 1 sentence", ["One."], [TEXT]),
        ("at least 2 sentences", [TEXT, "One. Two! Three?"], ["One."]),
        ("at most 3 words", ["He ran home.", "It's a dog."], ["He ran to school."]),
        ("a happy tone", [TEXT, "I love it."], ["I hate it.", "It is a stone."]),
        ("a sad tone", ["I hate it."], [TEXT, "It is a stone."]),
    ],
)
def test_each_demand(demand: str, yes: list[str], no: list[str]) -> None:
    assert [meets(text, demand) for text in yes] == [True] * len(yes)
    assert [meets(text, demand) for text in no] == [False] * len(no)
    assert not any(meets(text, demand) for text in ("", " \n", "...", " . . "))


def holds(text: str, demand: str) -> bool:
    """The demands again, by other means."""
    # What ends inside a quotation does not end the sentence around it.
    plain = re.sub(r'"[^"]*(\W)"', r"Q\1", text.strip())
    said = re.sub(r"[^\w'-]+", " ", text.lower()).split()
    kind, _, value = demand.rpartition(" ")
    if demand.endswith(("sentences", "sentence")):
        *_, number, _ = demand.split()
        ends = len(re.findall(r"[.!?](?= [A-Z]|$)", plain))
        return ends == int(number) if "exactly" in demand else ends >= int(number)
    if demand.startswith("at most"):
        return len(said) <= int(demand.split()[2])
    if demand.endswith("tone"):
        score = VADER.polarity_scores(text.strip())["compound"]
        return score > 0 if "happy" in demand else score < 0
    return {
        "the word": value.lower() in said,
        "not the word": not re.search(rf"\b{value}\b", text, re.IGNORECASE),  # nor in "mother's"
        "begin with": said[0] == value.lower(),
    }[kind]


@pytest.mark.parametrize("level", LEVELS)
def test_generated_demands_can_be_met_together(bundled: LanguageModel, level: Any) -> None:
    kinds = set()
    for state in first_states(Control(bundled, level=level), 500):
        demands, reference = state.columns["demands"], state.columns["reference"]
        assert len(demands) == len(set(demands)) == NUMBERS[level]
        assert state.prompt == f"Demands: {'; '.join(demands)}.\nStory: {state.columns['opening']}"
        for demand in demands:
            assert meets(reference, demand), (demand, reference)
            assert holds(reference, demand), (demand, reference)
            if wanted := re.fullmatch(r"the word (\w+)", demand):
                assert wanted[1] not in re.findall(r"\w+", state.columns["opening"].lower())
            kinds.add(re.sub(r"\d+|(?<=word )\S+|(?<=with )\S+", "_", demand))
    assert len(kinds) == 8


@pytest.mark.parametrize(
    ("level", "expected"), [("easy", 4131271996), ("medium", 1679793295), ("hard", 9113260)]
)
def test_instances_are_the_same_everywhere(bundled: LanguageModel, level: Any, expected: int) -> None:
    assert checksum(Control(bundled, level=level)) == expected


@pytest.mark.parametrize("level", LEVELS)
def test_splits_share_no_prompt(bundled: LanguageModel, level: Any) -> None:
    train = {state.prompt for state in first_states(Control(bundled, level=level), 300)}
    test = {state.prompt for state in first_states(Control(bundled, level=level, split="test"), 100)}
    assert not train & test
    assert len(test) == 100


def test_levels_are_met_less_by_chance(bundled: LanguageModel) -> None:
    """All demands at once, by the ending of another story."""
    shares = []
    for level in LEVELS:
        states = first_states(Control(bundled, level=level), 200)
        others = [state.columns["reference"] for state in states[1:] + states[:1]]
        lucky = [
            all(meets(text, demand) for demand in state.columns["demands"])
            for state, text in zip(states, others, strict=True)
        ]
        shares.append(sum(lucky) / len(lucky))
    assert 0.5 > shares[0] > shares[1] >= shares[2]
    assert shares[2] < 0.05


def test_prompts_and_best_answers_fit(bundled: LanguageModel) -> None:
    for level in LEVELS:
        prompt, answer = longest(Control(bundled, level=level), 1000)
        assert answer <= 92
        assert prompt + 92 <= 256


def test_reward_is_the_share_of_demands_less_what_is_surprising(bundled: LanguageModel) -> None:
    data = [{"opening": "Mira baked.", "demands": "the word goat; a sad tone;a happy tone ; at most 3 words"}]
    task = Control(bundled, data=data, fluency_weight=0.5)
    (state,) = first_states(task, 1)
    assert state.columns["demands"] == ["the word goat", "a sad tone", "a happy tone", "at most 3 words"]
    (salad,) = judge(task, [state], [" goat love love"])
    assert salad == (0.75 - 0.5, {"demands": 0.75, "fluency": -1.0})
    assert judge(task, [state], [""]) == [(-0.5, {"demands": 0.0, "fluency": -1.0})]
    states = first_states(Control(bundled), 20)
    for reward, parts in judge(Control(bundled), states, [state.columns["reference"] for state in states]):
        assert parts["demands"] == 1.0
        assert reward == pytest.approx(1 + parts["fluency"])


@pytest.mark.parametrize(("level", "count"), [("easy", 200), ("medium", 30), ("hard", 30)])
def test_tricks_do_not_pay(bundled: LanguageModel, level: Any, count: int) -> None:
    task = Control(bundled, level=level, split="test")
    best, tricks = progress(task, count)
    assert best > 0.9
    assert max(tricks.values()) < 0.6, tricks
    # Without fluency the list of words would win.
    states = first_states(task, 20)
    words = [task.players()["words"](state) for state in states]
    shares = [parts["demands"] for _, parts in judge(task, states, words)]
    assert sum(shares) / len(shares) > 0.95


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"opening": "x"}], r"data\[0\] has no column 'demands'"),
        ([{"opening": "x", "demands": ["the word a b"]}], r"data\[0\], demands: a demand must be worded as"),
        ([{"opening": "x", "demands": "the word a;"}], r"data\[0\], demands: .*got ''"),
        ([{"opening": "x", "demands": []}], r"data\[0\], demands must be"),
        ([{"opening": 3, "demands": "the word a"}], r"data\[0\], opening must be a str"),
    ],
)
def test_bad_data(bundled: LanguageModel, data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Control(bundled, data=data)
