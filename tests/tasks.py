"""Small multi-turn tasks: one appends to the context, one replaces it, one has its own actions and views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from lm_envs.tasks import Append, Completion, Feedback, Replace

WORDS = ("river", "fox", "key", "boat")


@dataclass(frozen=True)
class DialogueState:
    prompt: str
    turns_left: int


class Dialogue:
    """Appends a random word after each of up to `turns` turns; a turn pays 0.1 for every letter e in it."""

    prompts = tuple(f"The {word} says: " for word in WORDS)

    def __init__(self, turns: int = 3) -> None:
        self.turns = turns

    def start(self, rng: np.random.Generator, options: Mapping[str, Any]) -> DialogueState:
        index = options.get("task_index", int(rng.integers(len(self.prompts))))
        return DialogueState(options.get("prompt", self.prompts[index]), int(rng.integers(1, self.turns + 1)))

    def respond(
        self,
        states: Sequence[DialogueState],
        completions: Sequence[Completion],
        rngs: Sequence[np.random.Generator],
    ) -> list[Feedback]:
        return [self._answer(*each) for each in zip(states, completions, rngs, strict=True)]

    def _answer(self, state: DialogueState, completion: Completion, rng: np.random.Generator) -> Feedback:
        reward = 0.1 * completion.text.count("e")
        info = {"reward_parts": {"letters": reward}, "tokens_seen": len(completion.context_ids)}
        if state.turns_left == 1:
            return Feedback(reward, True, info=info)
        reply = Append(f" {WORDS[rng.integers(len(WORDS))]}. ")
        return Feedback(reward, False, replace(state, turns_left=state.turns_left - 1), info, reply)


@dataclass(frozen=True)
class BoardState:
    prompt: str
    counter: int


class Board:
    """Shows a counter; every turn lowers it by a random amount and shows the new board only.

    The game is won at 0, which pays 1; a turn before that pays minus the length of its text over 100.
    """

    def start(self, rng: np.random.Generator, options: Mapping[str, Any]) -> BoardState:
        counter = options.get("task_index", int(rng.integers(1, 6)))
        return BoardState(options.get("prompt", f"counter {counter}"), counter)

    def respond(
        self,
        states: Sequence[BoardState],
        completions: Sequence[Completion],
        rngs: Sequence[np.random.Generator],
    ) -> list[Feedback]:
        return [self._answer(*each) for each in zip(states, completions, rngs, strict=True)]

    def _answer(self, state: BoardState, completion: Completion, rng: np.random.Generator) -> Feedback:
        counter = state.counter - int(rng.integers(1, 4))
        if counter <= 0:
            return Feedback(1.0, True, info={"finish_reason": "task", "reward_parts": {"won": 1.0}})
        board = f"counter {counter}" + "!" * counter
        text = -len(completion.text) / 100
        return Feedback(
            text, False, BoardState(board, counter), {"reward_parts": {"text": text}}, Replace(board)
        )


@dataclass(frozen=True)
class WalkState:
    prompt: str
    place: int
    apples: tuple[int, ...]
    moves: int


class Walk:
    """A walk along five places; some hold an apple, which pays 1. It ends after four moves, or with "sleep".

    A turn is a word: "left", "right", or "sleep", which pays 0.25; others pay -1 and do nothing. The mask
    allows no way out of the map, and no sleep where there is an apple. Apples grow at random.
    """

    MOVES, PLACES = (" left", " right", " sleep"), 5
    choices: ClassVar = {"move": MOVES, "free": MOVES}
    views: ClassVar = {
        "map": spaces.Box(0, 2, (PLACES, 2), np.int8),
        "place": spaces.Discrete(PLACES),
        "vector": spaces.Box(0, 1, (PLACES,), np.float32),
    }

    def start(self, rng: np.random.Generator, options: Mapping[str, Any]) -> WalkState:
        place = options.get("task_index", int(rng.integers(self.PLACES)))
        return self._at(place, tuple(rng.integers(0, 2, self.PLACES).tolist()), 4)

    def respond(
        self,
        states: Sequence[WalkState],
        completions: Sequence[Completion],
        rngs: Sequence[np.random.Generator],
    ) -> list[Feedback]:
        return [self._answer(*each) for each in zip(states, completions, rngs, strict=True)]

    def allowed(self, states: Sequence[WalkState], mode: str) -> np.ndarray:
        if mode == "free":
            return np.ones((len(states), len(self.MOVES)), bool)
        rows = [(s.place > 0, s.place < self.PLACES - 1, not s.apples[s.place]) for s in states]
        return np.array(rows, bool).reshape(len(states), len(self.MOVES))

    def view(self, states: Sequence[WalkState], mode: str) -> np.ndarray:
        if mode == "place":
            return np.array([state.place for state in states], np.int64)
        maps = np.zeros((len(states), self.PLACES, 2), np.int8)
        maps[:, :, 0] = [state.apples for state in states]
        maps[np.arange(len(states)), [state.place for state in states], 1] = 1
        return maps if mode == "map" else maps[:, :, 1].astype(np.float32)

    def _at(self, place: int, apples: tuple[int, ...], moves: int) -> WalkState:
        return WalkState(f"at {place} of {''.join(map(str, apples))}:", place, apples, moves)

    def _answer(self, state: WalkState, completion: Completion, rng: np.random.Generator) -> Feedback:
        word, place = completion.text.strip(), state.place
        if word == "sleep":
            return Feedback(0.25, True, self._at(place, state.apples, 0), {"finish_reason": "task"})
        step = {"left": -1, "right": 1}.get(word, 0)
        place = min(max(place + step, 0), self.PLACES - 1)
        reward = float(state.apples[place]) if step else -1.0
        apples = [*state.apples]
        apples[place] = 0
        apples[rng.integers(self.PLACES)] = 1
        following = self._at(place, tuple(apples), state.moves - 1)
        return Feedback(reward, following.moves == 0, following, context=Append(f" {following.prompt}"))
