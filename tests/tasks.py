"""Two small multi-turn tasks: one appends its replies to the context, one replaces the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

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
