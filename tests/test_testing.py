"""check_reward and check_task: silent on good parts, and every planted fault is found and named."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Space
from models import save_tiny
from tasks import Board, Dialogue, Walk, WalkState

from lm_envs.errors import RewardError
from lm_envs.language_model import LanguageModel
from lm_envs.rewards import ExactMatch, Fluency, Sentiment
from lm_envs.tasks import Append, Completion, Feedback, Replace
from lm_envs.tasks.continuation import Continuation
from lm_envs.testing import check_reward, check_task

# --- rewards ----------------------------------------------------------------------------------------------


def length(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def test_good_rewards_pass(recwarn: pytest.WarningsRecorder) -> None:
    check_reward(length)
    check_reward(length, completions=["one"])
    check_reward(length, ["p", "q"], ["a", "b"])
    check_reward(ExactMatch(), references=[["a", "b"], "c", ["4"]])
    check_reward(ExactMatch(), ["p"], ["a"], reference=["a"])
    assert not recwarn.list


def no_columns(prompts: list[str], completions: list[str]) -> list[float]:
    return length(completions)


def other_names(texts: list[str], **columns: Any) -> list[float]:
    return length(texts)


def needs_answer(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    return length(completions)


def empty_is_nan(completions: list[str], **columns: Any) -> list[float]:
    return [len(text) or math.nan for text in completions]


def empty_raises(completions: list[str], **columns: Any) -> list[float]:
    return [1 / len(text) for text in completions]


def one_for_all(completions: list[str], **columns: Any) -> list[float]:
    return [1.0]


def a_number(completions: list[str], **columns: Any) -> float:
    return 1.0


def strings(completions: list[str], **columns: Any) -> list[str]:
    return ["1" for _ in completions]


def whitened(completions: list[str], **columns: Any) -> list[float]:
    values = length(completions)
    return [value - sum(values) / len(values) for value in values]


def randomly(completions: list[str], **columns: Any) -> list[float]:
    return [random.random() for _ in completions]


def sorts_references(completions: list[str], reference: list[str], **columns: Any) -> list[float]:
    reference.sort()
    return [0.0 for _ in completions]


@pytest.mark.parametrize(
    ("reward", "columns", "error", "message"),
    [
        ("sentiment", {}, TypeError, "must be callable, got str"),
        (no_columns, {}, TypeError, r"must accept columns .*\(prompts.*: got an unexpected keyword argument"),
        (other_names, {}, TypeError, "missing a required argument: 'texts'"),
        (needs_answer, {}, TypeError, "missing a required argument: 'answer'"),
        (ExactMatch(), {}, RewardError, "column 'references' or 'reference'"),
        (empty_is_nan, {}, RewardError, r"nan .*completion ''.* finite number"),
        (empty_raises, {}, RewardError, r"ZeroDivisionError.*completion ''"),
        (one_for_all, {}, RewardError, "returned 1 values, expected 8 finite numbers"),
        (a_number, {}, RewardError, "returned float 1.0, expected 8"),
        (strings, {}, RewardError, r"returned '1' \(str\)"),
        (whitened, {}, ValueError, "must not depend on the rest of the batch"),
        (randomly, {}, ValueError, "two equal calls gave"),
        (sorts_references, {"reference": ["b", "a"]}, ValueError, "changes the columns"),
        (length, {"reference": []}, ValueError, "completions must hold at least one text"),
        (length, {"reference": "ab"}, ValueError, "'reference' must have one entry per completion"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_faults_of_rewards(
    reward: Any, columns: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_reward(reward, **columns)


def test_the_empty_completion_is_tried_whatever_the_completions() -> None:
    with pytest.raises(RewardError, match="completion ''"):
        check_reward(empty_raises, ["p"], ["fine"])


def test_texts_and_columns_must_fit_together() -> None:
    with pytest.raises(ValueError, match="'reference' must have one entry per completion"):
        check_reward(ExactMatch(), ["p"], ["a"], reference=["a", "b"])
    with pytest.raises(ValueError, match="got 1 prompts for 2 completions"):
        check_reward(length, ["p"], ["a", "b"])


def test_unpicklable_parts_warn() -> None:
    with pytest.warns(UserWarning, match="reward function cannot be pickled"):
        check_reward(lambda completions, **columns: [0.0] * len(completions))
    task = Good()
    task.own = lambda: None  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="task cannot be pickled"):
        check_task(task)


def test_tolerance_is_for_low_precision() -> None:
    def rounding(completions: list[str], **columns: Any) -> list[float]:
        return [1 + 0.02 * (len(completions) > 1)] * len(completions)

    with pytest.raises(ValueError, match="rest of the batch"):
        check_reward(rounding)
    with pytest.warns(UserWarning, match="pickled"):
        check_reward(rounding, tolerance=0.05)


# --- tasks ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    prompt: str
    turn: int = 0
    notes: list[str] = field(default_factory=list)
    board: Any = None


class Good:
    """Two turns, everything in order; the faulty tasks below change one thing each."""

    def start(self, rng: np.random.Generator, options: Mapping[str, Any]) -> Any:
        return State(options.get("prompt", f"Number {rng.integers(10)}: "), board=np.zeros(3))

    def respond(
        self,
        states: Sequence[Any],
        completions: Sequence[Completion],
        rngs: Sequence[np.random.Generator],
    ) -> Any:
        return [self.answer(*each) for each in zip(states, completions, rngs, strict=True)]

    def answer(self, state: State, completion: Completion, rng: np.random.Generator) -> Any:
        parts = {"reward_parts": {"luck": rng.random(), "length": float(len(completion.text))}}
        if state.turn:
            return Feedback(parts["reward_parts"]["luck"], True, info=parts)
        board = np.append(state.board, rng.random())
        return Feedback(0.0, False, replace(state, turn=1, board=board), parts, Append(" Go on. "))


@pytest.mark.parametrize("task", [Good(), Dialogue(), Board(), Walk()], ids=lambda task: type(task).__name__)
def test_good_tasks_pass(task: Any, tiny_llama: str, recwarn: pytest.WarningsRecorder) -> None:
    check_task(task)
    check_task(task, LanguageModel.load(tiny_llama, lazy=True))
    assert not recwarn.list


def test_the_continuation_task_passes(tiny_llama: str, recwarn: pytest.WarningsRecorder) -> None:
    lm = LanguageModel.load(tiny_llama, lazy=True)
    check_task(Continuation(lm, prompts=["The fox", "At night"]), lm)
    check_task(Continuation(lm, prompts=["The fox"], reward=Sentiment()))
    assert not recwarn.list


class NoRespond:
    def start(self, rng: np.random.Generator, options: Mapping[str, Any]) -> State:
        return State("a")


class Prompts(Good):
    prompts = ("fine", "\ud800")


class Starting(Good):
    """Starts with whatever it was built with."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def start(self, rng: np.random.Generator, options: Mapping[str, Any]) -> Any:
        return self.state


class GlobalRandomness(Good):
    def start(self, rng: np.random.Generator, options: Mapping[str, Any]) -> State:
        return State(f"Number {random.random()}")


class BadOption(Good):
    def start(self, rng: np.random.Generator, options: Mapping[str, Any]) -> Any:
        return None if "task_index" in options else State("a")


class Answering(Good):
    """Every answer is what it was built with, or what that gives for (state, completion, rng)."""

    def __init__(self, answer: Any) -> None:
        self.fixed = answer

    def answer(self, state: State, completion: Completion, rng: np.random.Generator) -> Any:
        return self.fixed(state, completion, rng) if callable(self.fixed) else self.fixed


class Count(Good):
    def respond(self, states: Any, completions: Any, rngs: Any) -> Any:
        return super().respond(states, completions, rngs)[:-1]


class Generates(Good):
    def respond(self, states: Any, completions: Any, rngs: Any) -> Any:
        return iter(super().respond(states, completions, rngs))


class Neighbours(Good):
    def respond(self, states: Any, completions: Any, rngs: Any) -> Any:
        return [Feedback(float(len(states)))] * len(states)


class Counter(Good):
    """Remembers how often it was asked."""

    def __init__(self) -> None:
        self.calls = itertools.count()

    def answer(self, state: State, completion: Completion, rng: np.random.Generator) -> Feedback:
        return Feedback(0.1 * next(self.calls))


def writes_notes(state: State, completion: Completion, rng: np.random.Generator) -> Feedback:
    state.notes.append(completion.text)
    return Feedback()


def writes_board(state: State, completion: Completion, rng: np.random.Generator) -> Feedback:
    state.board[0] += 1
    return Feedback()


def draws_globally(state: State, completion: Completion, rng: np.random.Generator) -> Feedback:
    return Feedback(random.random())


def nan_for_empty(state: State, completion: Completion, rng: np.random.Generator) -> Feedback:
    return Feedback(0.0 if completion.text else math.nan)


def in_second_turn(state: State, completion: Completion, rng: np.random.Generator) -> Feedback:
    return Feedback(0.0, False, replace(state, turn=1)) if state.turn == 0 else Feedback("1")  # type: ignore[arg-type]


@dataclass
class Melting:
    prompt: str = "a"


@dataclass(frozen=True)
class Speechless:
    text: str = "a"


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (NoRespond(), TypeError, "needs a method 'respond', NoRespond has none"),
        (Prompts(), ValueError, r"prompts\[1\] .*surrogate"),
        (Starting(None), TypeError, "start: a state must be a frozen dataclass, got None"),
        (Starting({"prompt": "a"}), TypeError, "frozen dataclass, got {'prompt'"),
        (Starting(Melting()), TypeError, "frozen dataclass, got Melting"),
        (Starting(State), TypeError, "frozen dataclass, got <class"),
        (Starting(Speechless()), TypeError, "a field 'prompt', Speechless has none"),
        (Starting(State(3)), ValueError, "prompt of the state must be a str"),  # type: ignore[arg-type]
        (Starting(State("\udc00")), ValueError, "start: prompt of the state .*surrogate"),
        (GlobalRandomness(), ValueError, "from equal generators: draw from `rng` only"),
        (BadOption(), TypeError, r"start with \{'task_index': 0\}.*frozen dataclass"),
        (Count(), ValueError, "respond must return a list of 8 Feedback, one a completion, got 7"),
        (Generates(), ValueError, "a list of 8 Feedback, one a completion, got list_iterator"),
        (Neighbours(), ValueError, "must not depend on other slots"),
        (Counter(), ValueError, "for equal input"),
        (Answering(draws_globally), ValueError, "for equal input: draw from `rngs` only"),
        (Answering(writes_notes), ValueError, "respond changed a state"),
        (Answering(writes_board), ValueError, "respond changed a state"),
        (Answering(None), TypeError, "must return Feedback, got NoneType for slot 0"),
        (Answering(1.0), TypeError, "must return Feedback, got float for slot 0"),
        (Answering(Feedback(math.nan)), RewardError, "reward of slot 0 must be a finite number, got nan"),
        (Answering(nan_for_empty), RewardError, "must be a finite number, got nan for ''"),
        (Answering(in_second_turn), RewardError, "reward of slot 0 must be a finite number, got '1'"),
        (Answering(Feedback(True)), RewardError, "reward of slot 0 must be a finite number, got True"),
        (Answering(Feedback(np.ones(1))), RewardError, "slot 0 must be a finite number"),  # type: ignore[arg-type]
        (
            Answering(Feedback(info={"reward_parts": {"a": None}})),
            RewardError,
            "a must be a finite number, got None",
        ),
        (Answering(Feedback(info={"reward_parts": [1.0]})), TypeError, "must be a dict name -> float"),
        (Answering(Feedback(info={1: 2})), TypeError, "info must be a dict with str keys"),  # type: ignore[dict-item]
        (Answering(Feedback(info=None)), TypeError, "info must be a dict"),  # type: ignore[arg-type]
        (Answering(Feedback(info={"turns": 2})), ValueError, r"not have the keys \['turns'\]"),
        (Answering(Feedback(done=1)), TypeError, "done must be a bool, got 1"),  # type: ignore[arg-type]
        (Answering(Feedback(done=None)), TypeError, "done must be a bool, got None"),  # type: ignore[arg-type]
        (Answering(Feedback(done=False, state={})), TypeError, "a state must be a frozen dataclass, got {}"),
        (Answering(Feedback(done=False, context="more")), TypeError, "Append, Replace or None"),  # type: ignore[arg-type]
        (Answering(Feedback(done=False, context=Append(1))), ValueError, "Append must be a str"),  # type: ignore[arg-type]
        (Answering(Feedback(done=False, context=Replace("\ud800"))), ValueError, "Replace .*surrogate"),
        (Answering(Feedback(done=False)), ValueError, "not done after 64 turns"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Good) else None,
)
def test_faults_of_tasks(task: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_task(task)


def test_reward_errors_of_tasks_carry_slot_text_and_value() -> None:
    with pytest.raises(RewardError) as caught:
        check_task(Answering(nan_for_empty))
    assert (caught.value.slot, caught.value.text) == (0, "")
    assert math.isnan(caught.value.value)


def test_an_empty_prompt_needs_a_model_with_bos(tiny_llama: str, tiny_qwen2: str) -> None:
    class Silent(Good):
        def start(self, rng: np.random.Generator, options: Mapping[str, Any]) -> State:
            return State("", board=np.zeros(1))

    with pytest.warns(UserWarning, match="pickled"):
        check_task(Silent(), LanguageModel.load(tiny_llama, lazy=True))
    with pytest.raises(ValueError, match=r"prompt of the state is empty, .*qwen2.* no BOS"):
        check_task(Silent(), LanguageModel.load(tiny_qwen2, lazy=True))


def test_a_full_context_ends_endless_episodes(tiny_llama: str) -> None:
    endless = Answering(Feedback(done=False, context=Append(" and so on")))
    check_task(endless, LanguageModel.load(tiny_llama, lazy=True))
    with pytest.raises(ValueError, match="not done after 5 turns"):
        check_task(endless, max_turns=5)


def test_a_prompt_must_leave_room_for_a_completion(tiny_llama: str) -> None:
    lm = LanguageModel.load(tiny_llama, lazy=True)
    with pytest.raises(ValueError, match="a prompt of 80 tokens leaves no room in a context of 80: 'xxx"):
        check_task(Starting(State("x" * (lm.context_length - 1))), lm)


def test_options_may_be_refused() -> None:
    class Strict(Good):
        def start(self, rng: np.random.Generator, options: Mapping[str, Any]) -> State:
            if options:
                raise ValueError("this task has no options")
            return State("a", board=np.zeros(1))

    with pytest.warns(UserWarning, match="pickled"):
        check_task(Strict())


def test_states_may_hold_any_plain_data() -> None:
    class Plain:
        def __init__(self) -> None:
            self.values = {"a": [1, 2], "nan": math.nan}

    class Held(Answering):
        def start(self, rng: np.random.Generator, options: Mapping[str, Any]) -> State:
            return State("a", board=(torch.ones(2), Plain(), {1, 2}, None, np.random.default_rng(0)))

    with pytest.warns(UserWarning, match="pickled"):  # it is local to this test
        check_task(Held(Feedback()))


def test_fluency_in_a_task_is_the_same_alone_and_together(tmp_path: Any) -> None:
    lm = LanguageModel.load(save_tiny(tmp_path, "llama"), lazy=True)
    task = Continuation(lm, prompts=["The fox waits", "At"], reward=Fluency(lm))
    check_task(task, lm)
    check_task(task)  # with the model that the task itself was made with


# --- choices, masks and views -------------------------------------------------------------------------------


class Drifting(Walk):
    """Its masks and views differ from call to call."""

    def __init__(self) -> None:
        self.calls = 0

    def view(self, states: Sequence[WalkState], mode: str) -> np.ndarray:
        self.calls += 1
        return super().view(states, mode) if mode == "place" else np.full((len(states), 5, 2), self.calls % 2)


class Broken(Walk):
    """With any of its promises broken."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def stuck_at_the_end(states: Sequence[WalkState], mode: str) -> np.ndarray:
    return np.array([[True, True, False] if state.moves > 1 else [False] * 3 for state in states])


def crowded(states: Sequence[WalkState], mode: str) -> np.ndarray:
    return np.full((len(states), 3), len(states) > 1)


def far(states: Sequence[WalkState], mode: str) -> np.ndarray:
    return np.array([state.place + 3 for state in states])


def place_only(states: Sequence[WalkState], mode: str) -> np.ndarray:
    return np.array([state.place for state in states])


PLACE = {"place": Walk.views["place"]}


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (Broken(choices={"token": ("a",)}), ValueError, "'token'.*are the environment's own names"),
        (Broken(choices={"move": "abc"}), TypeError, "must be a non-empty sequence of str, got 'abc'"),
        (Broken(choices={"move": ()}), TypeError, r"must be a non-empty sequence of str, got \(\)"),
        (Broken(choices={"move": ("a", 1)}), TypeError, "must be a non-empty sequence of str"),
        (Broken(choices={"move": ("a", "b", "a")}), ValueError, r"\['move'\]\[2\]: 'a' is there twice"),
        (Broken(choices={"move": ("\ud800",)}), ValueError, r"choices\['move'\]\[0\].*surrogate"),
        (Broken(views={"text": PLACE["place"]}), ValueError, "'text'.*are the environment's own names"),
        (Broken(views={"map": Space()}), TypeError, "must be a space with a shape"),
        (
            Broken(views=PLACE, view=far),
            ValueError,
            r"view\(states, 'place'\) gives .* for WalkState.*: not in Discrete",
        ),
        (Broken(views={"map": PLACE["place"]}, view=lambda s, m: [0]), ValueError, "each state alone"),
        (
            Broken(views={"a": Walk.views["map"]}, view=place_only),
            TypeError,
            r"\(8, 5, 2\) of int8, got \(8,\)",
        ),
        (Broken(allowed=crowded), ValueError, r"allowed\(states, 'move'\) must depend on each state alone"),
        (Broken(allowed=stuck_at_the_end), ValueError, "'move'.* allows no choice in WalkState"),
        (
            Broken(allowed=lambda s, m: np.ones((len(s), 2), bool)),
            TypeError,
            r"array \(8, 3\) of bool, got \(8, 2",
        ),
        (
            Broken(allowed=lambda s, m: np.ones((len(s), 3))),
            TypeError,
            r"array \(8, 3\) of bool, .* of float64",
        ),
        (Drifting(), ValueError, r"view\(states, 'map'\) must depend on each state alone"),
    ],
)
def test_faults_of_choices_masks_and_views(task: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_task(task)


def test_choices_are_played() -> None:
    """What only happens behind a choice is found: made-up completions never get there."""

    class Trap(Walk):
        def _answer(self, state: WalkState, completion: Completion, rng: np.random.Generator) -> Feedback:
            feedback = super()._answer(state, completion, rng)
            return replace(feedback, reward=math.nan) if completion.text == " right" else feedback

    with pytest.raises(RewardError, match="finite number, got nan for ' right'"):
        check_task(Trap())
