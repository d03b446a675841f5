"""The task "dialogue": the customer's understanding, the rewards, the generator, players and data."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm_envs.language_model import LanguageModel
from lm_envs.registration import ENVIRONMENTS
from lm_envs.tasks.base import Append, Completion, Feedback
from lm_envs.tasks.dialogue import VALUES, Dialogue, DialogueState
from lm_envs.tasks.record_task import Player
from lm_envs.testing import check_task

LEVELS = ("easy", "medium", "hard")
MAX_NEW_TOKENS: Any = ENVIRONMENTS["TextGen-Dialogue-v0"][2]["max_new_tokens"]
RECORD = {
    "rules": "late, gift; broken, new one. Ask: number, place.",
    "opening": "Hello, my lamp is broken.",
    "facts": {"number": "47", "place": "mill"},
    "answer": ["new one", "47", "mill"],
    "wrong": ["gift", "cake"],
    "patience": 2,
}


@pytest.fixture(scope="module")
def language_model() -> LanguageModel:
    return LanguageModel.load(lazy=True)


def make(language_model: LanguageModel, **changes: Any) -> Dialogue:
    return Dialogue(language_model, data=[RECORD | changes])


def begin(task: Dialogue, index: int = 0) -> DialogueState:
    return task.start(np.random.default_rng(index), {"task_index": index})


def say(task: Dialogue, state: DialogueState, text: str, turn: int = 0, reason: str = "stop") -> Feedback:
    rng = np.random.default_rng([state.index or 0, turn])
    return task.respond([state], [Completion(text, (), (), reason)], [rng])[0]


def talk(task: Dialogue, *lines: str) -> list[Feedback]:
    """What the customer makes of one line after the other; stops at the episode's end."""
    state, feedbacks = begin(task), []
    for turn, line in enumerate(lines):
        feedbacks.append(say(task, state, line, turn))
        state = feedbacks[-1].state
        if feedbacks[-1].done:
            break
    return feedbacks


def episode(task: Dialogue, player: Player, index: int) -> list[tuple[str, Feedback]]:
    state, turns = begin(task, index), []
    while True:
        line = player(state)
        feedback = say(task, state, line, len(turns))
        turns.append((line, feedback))
        if feedback.done:
            return turns
        state = feedback.state


def total(feedbacks: list[Feedback]) -> float:
    return sum(feedback.reward for feedback in feedbacks)


def test_check_task(language_model: LanguageModel) -> None:
    for level in LEVELS:
        check_task(Dialogue(language_model, level=level))  # type: ignore[arg-type]


def test_a_good_conversation_by_hand(language_model: LanguageModel) -> None:
    good = talk(
        make(language_model),
        " I am sorry. What is the number, please?",
        " Where do you live, please?",
        " Sorry, you get a new one for number 47, the mill.",
        " You are welcome. Goodbye.",
    )
    assert [feedback.reward for feedback in good] == pytest.approx([0.1, 0.1, 0.7, 0.1])
    assert [feedback.done for feedback in good] == [False, False, False, True]
    assert [feedback.info.get("stars") for feedback in good] == [None, None, 5, None]
    assert isinstance(good[0].context, Append)
    assert re.fullmatch(r"User: (It is|Number) 47\.\nDesk:", good[0].context.text)
    assert good[2].context == Append("User: Thank you! 5 stars.\nDesk:")


def test_a_rude_and_long_conversation_by_hand(language_model: LanguageModel) -> None:
    """Two of three turns that got on are not polite, one annoys: 0.2 + 0.5 + 0.2 * 1/4 - 0.1, 3 stars."""
    bad = talk(
        make(language_model),
        "Please wait.",
        "What number?",
        "Where?",
        "A new one for 47 at the mill.",
        "Bye.",
    )
    assert [feedback.reward for feedback in bad] == pytest.approx([-0.1, 0.1, 0.1, 0.55, 0.0])
    assert bad[3].info["stars"] == 3
    assert bad[0].info["reply"] == "That is not what I asked."


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("", "Hello?"),
        (" ...", "Hello?"),
        ("You fool, what is the number?", "That is rude."),
        (
            "What is the number? " + "It is good to see you here at the desk today and so on. " * 2,
            "I do not under",
        ),
        ("please please please number number number?", "I do not understand you."),
        ("You get a new one, or a gift.", "Which one?"),
        ("You get a gift.", "That is not right. Goodbye."),
        ("You do not get a new one.", "That is not right. Goodbye."),
        ("You can't have a new one.", "That is not right. Goodbye."),
        ("You get a new one for 47, the mill.", "And the number?"),  # guessed
        ("Do you want a new one?", "That is not what I asked."),
        ("What are your number and your place?", "One thing at a time!"),
        ("What is your name?", "You do not need that."),
        ("I am glad to help.", "That is not what I asked."),
    ],
)
def test_what_annoys(language_model: LanguageModel, line: str, answer: str) -> None:
    (feedback,) = talk(make(language_model), line)
    assert feedback.info["reply"].startswith(answer)
    assert feedback.reward == pytest.approx(-0.1)
    assert feedback.done == answer.endswith("Goodbye.")


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        ("Please tell me your number.", "47"),
        ("May I have your number", "47"),
        ("We need the number, please!", "47"),
        ("where do you live?", "mill"),
        ("Sorry about the number. What is your PLACE?", "mill"),
    ],
)
def test_how_questions_are_understood(language_model: LanguageModel, line: str, fact: str) -> None:
    (feedback,) = talk(make(language_model), line)
    assert fact in feedback.info["reply"]


@pytest.mark.parametrize(
    ("line", "helped"),
    [
        ("A new one for 47, mill.", True),
        ("No problem, you get a NEW ONE for the mill (47).", True),
        ("Anything else? You get a new one for 47, mill.", True),
        ("You get a new one.", False),
        ("You get a new one for 47.", False),
        ("A new one for 47, 48, mill.", False),
        ("A new one for 47, mill, lake.", False),
        ("A new one for 147, mill.", False),
        ("A newone for 47, mill.", False),
    ],
)
def test_how_promises_are_understood(language_model: LanguageModel, line: str, helped: bool) -> None:
    feedback = talk(make(language_model), "number?", "place?", line)[-1]
    assert ("helped" in feedback.info["reward_parts"]) == helped


def test_patience_ends_the_episode(language_model: LanguageModel) -> None:
    for patience in (1, 3):
        silent = talk(make(language_model, patience=patience), *[""] * 9)
        assert len(silent) == patience
        assert total(silent) == pytest.approx(-0.1 * patience)


def test_asking_again_annoys_and_pays_nothing(language_model: LanguageModel) -> None:
    again = talk(make(language_model), *["What is the number, please?"] * 5)
    assert [feedback.reward for feedback in again] == pytest.approx([0.1, -0.1, -0.1])
    assert again[1].info["reply"] == "I told you that."


def test_talkative_customers_tell_two_facts(language_model: LanguageModel) -> None:
    (feedback,) = talk(make(language_model, talkative=True), "What is the number?")
    assert "47" in feedback.info["reply"]
    assert "mill" in feedback.info["reply"]
    assert feedback.reward == pytest.approx(0.2)


def test_a_customer_without_facts_can_be_fully_satisfied(language_model: LanguageModel) -> None:
    task = make(language_model, facts={}, answer=["new one"])
    assert total(talk(task, "Sorry, you get a new one.", "Thank you.")) == pytest.approx(1.0)


def test_goodbye_is_paid_only_if_polite_short_and_empty_of_promises(language_model: LanguageModel) -> None:
    for line, pay in [("Thank you!", 0.1), ("Bye.", 0.0), ("Thank you. You get a gift.", 0.0), ("", 0.0)]:
        task = make(language_model, facts={}, answer=["new one"])
        assert talk(task, "You get a new one.", line)[-1].reward == pytest.approx(pay)
    assert talk(task, "A new one.", "thank you " + "a " * 9)[-1].reward == 0.0


def test_telegrams_are_understood(language_model: LanguageModel) -> None:
    """A hole that is known and documented: words without grammar are enough."""
    assert total(
        talk(make(language_model), "please number?", "please place?", "sorry new one 47 mill", "thanks")
    ) == pytest.approx(1.0)


@pytest.mark.parametrize("ending", ["stop", "eos", "length"])
def test_every_reply_begins_on_a_line_of_its_own(language_model: LanguageModel, ending: str) -> None:
    task = make(language_model)
    feedback = say(task, begin(task), " What is the number?", reason=ending)
    assert isinstance(feedback.context, Append)
    written = " What is the number?" + "\n" * (ending == "stop")  # the stop string stays in the context
    assert (begin(task).text + written + feedback.context.text) == feedback.state.text


# Players


def test_best_player_is_perfect_and_no_trick_comes_close(language_model: LanguageModel) -> None:
    for level in LEVELS:
        task = Dialogue(language_model, split="test", level=level)  # type: ignore[arg-type]
        means = {}
        for name, player in task.players().items():
            games = [episode(task, player, index) for index in range(200)]
            means[name] = np.mean([sum(feedback.reward for _, feedback in turns) for turns in games])
        empty = means["silence"]
        assert means.pop("best") == pytest.approx(1.0)
        assert (max(means.values()) - empty) / (1.0 - empty) < 0.7


def test_keywords_at_once_do_not_win(language_model: LanguageModel) -> None:
    """However many words are listed, in questions, in promises or in both, the customer leaves unhelped."""
    facts, offers = ["number", "place", "name", "problem"], ["new one", "gift", "cake"]
    for lines in (
        [f"Please, {', '.join(facts)}?"],
        [f"You get a {', a '.join(offers)}."],
        [f"Please, {' '.join(facts)}? You get {' '.join(offers)} for 47 mill."],
        ["number?", "place?", f"You get a {', a '.join(offers)} for 47, the mill."],
    ):
        feedbacks = talk(make(language_model), *lines, *[lines[-1]] * 5)
        assert total(feedbacks) <= 0.0 + 1e-9
        assert not any("helped" in feedback.info["reward_parts"] for feedback in feedbacks)


def test_conversations_fit_the_context(language_model: LanguageModel) -> None:
    """The clumsiest possible conversation that ends well, each turn counted with all tokens it may have."""
    for level in LEVELS:
        task = Dialogue(language_model, level=level)  # type: ignore[arg-type]
        best = task.players()["best"]
        for index in range(300):
            state, turn = begin(task, index), 0
            tokens = len(language_model.encode_prompt(state.prompt))
            while True:
                annoys = state.annoyances < state.columns["patience"] - 1
                line = " Something else, please." if annoys else best(state)
                assert len(language_model.encode(line + "\n")) <= MAX_NEW_TOKENS
                feedback = say(task, state, line, turn, reason="length")
                tokens += MAX_NEW_TOKENS
                if feedback.done:
                    break
                tokens += len(language_model.encode(feedback.context.text))  # type: ignore[union-attr]
                state, turn = feedback.state, turn + 1
            assert tokens <= language_model.context_length


# Generator


def test_records_are_solvable_by_reading(language_model: LanguageModel) -> None:
    """An independent reader finds the answer in the rules by the problem that the customer tells."""
    for level in LEVELS:
        task = Dialogue(language_model, level=level)  # type: ignore[arg-type]
        for index in range(300):
            record = task.record(index)
            rules, asks = re.fullmatch(r"(.*)\. Ask: (.*)\.", record["rules"]).groups()  # type: ignore[union-attr]
            table = dict(rule.split(", ") for rule in rules.split("; "))
            listed = asks.split(", ")
            told = record["facts"].get("problem") or next(p for p in table if f"is {p}" in record["opening"])
            assert table[told] == record["answer"][0]
            assert len(set(table.values())) == len(table)
            assert set(table.values()) <= {record["answer"][0], *record["wrong"]}
            assert record["answer"][0] not in record["wrong"]
            introduced = [name for name in VALUES["name"] if f"I am {name}." in record["opening"]]
            assert set(listed) == {*record["facts"], *(["name"] if introduced else [])}
            values = [value for fact, value in record["facts"].items() if fact != "problem"]
            assert record["answer"][1:] == values
            assert len(record["facts"]) == {"easy": 1, "medium": 2, "hard": 3}[level]
            assert task.prompt_of(record).isascii()


def test_instances_are_the_same_everywhere(language_model: LanguageModel) -> None:
    sums = []
    for level in LEVELS:
        task = Dialogue(language_model, level=level)  # type: ignore[arg-type]
        sums.append(zlib.crc32(repr([task.record(index) for index in range(20)]).encode()))
    assert sums == PINNED


PINNED = [2200236817, 2135955030, 3902045557]


def test_splits_share_no_prompt(language_model: LanguageModel) -> None:
    train, test = (Dialogue(language_model, split=split) for split in ("train", "test"))  # type: ignore[arg-type]
    prompts = [{task.prompt_of(task.record(index)) for index in range(500)} for task in (train, test)]
    assert not prompts[0] & prompts[1]
    assert min(map(len, prompts)) > 450


# Data


def test_the_same_data_in_every_form(language_model: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text(
        "rules,opening,facts,answer,wrong,patience\n"
        '"late, gift; broken, new one. Ask: number, place.","Hello, my lamp is broken.",'
        "number: 47; place: mill,new one; 47; mill,gift; cake,2\n"
    )
    task = Dialogue(language_model, data=path)
    assert task.record(0) == RECORD
    assert task.prompts == [
        "Rules: late, gift; broken, new one. Ask: number, place.\nUser: Hello, my lamp is broken.\nDesk:"
    ]


def test_own_facts_and_offers(language_model: LanguageModel) -> None:
    """Names of several words, and an offer whose name is part of another's."""
    record = {
        "facts": {"order number": "A7", "Street": "Elm Road"},
        "answer": ["gift card", "A7"],
        "wrong": ["gift", "card"],
    }
    feedbacks = talk(
        make(language_model, **record),
        "What is your order number?",
        "And your street?",
        "Sorry, we send a gift card for A7.",
    )
    assert feedbacks[0].info["reply"] == "A7."
    assert feedbacks[1].info["reply"] == "Elm Road."
    assert feedbacks[2].info["stars"] == 4


@pytest.mark.parametrize("answer", [["10 coins back", "47"], ["red lamp", "blue"]])
def test_an_offer_may_have_words_of_a_values_kind(language_model: LanguageModel, answer: list[str]) -> None:
    record = {"facts": {"number": "47", "color": "blue"}, "answer": answer, "wrong": ["gift"]}
    said = f"Sorry, you get a {answer[0]} for {answer[1]}."
    feedbacks = talk(make(language_model, **record), "What is your number?", "And the color?", said)
    assert feedbacks[2].info["stars"] == 4


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("facts", "number 47", r"data\[0\], facts must be facts such as"),
        ("facts", {"number": 47}, r"data\[0\], facts must be a dict of texts"),
        ("facts", 3, r"data\[0\], facts must be a dict of texts"),
        ("answer", [], r"data\[0\], answer must be a non-empty list"),
        ("answer", ["new one", "?"], r"data\[0\], answer must be a non-empty list"),
        ("wrong", " ; ", r"data\[0\], wrong must be a non-empty list"),
        ("patience", 0, r"data\[0\], patience must be an integer in 1\.\.99, got 0"),
        ("patience", "soon", r"data\[0\], patience must be an integer"),
        ("patience", True, r"data\[0\], patience must be an integer"),
        ("opening", None, r"data\[0\], opening must be a str"),
    ],
)
def test_bad_rows(language_model: LanguageModel, column: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(language_model, **{column: value})
