"""The token-level dynamics over B slots: what a token does to a context, when turns and episodes end.

Single and vector environments, text and toys share this one copy. It is numpy only, and loops over no slots
but those that go on to a next turn. What a turn's end means, it asks a `TokenTask`, the token-level face of a
task.

A step is atomic: run it under `Episodes.atomic()`, and any error leaves all slots as they were before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium.error import ResetNeeded

from lm_envs.randomness import RESPOND, START, mix

EOS, STOP, LENGTH = 0, 1, 2
FINISH_REASONS = ("eos", "stop", "length")

# Zero-dimensional object arrays: numpy would take a bare () or {} apart when it is assigned to many slots.
_NO_HISTORY, _NO_OPTIONS = np.empty((), dtype=object), np.empty((), dtype=object)
_NO_HISTORY[()] = ()
_NO_OPTIONS[()] = {}


class Opening(NamedTuple):
    """The first contexts of n episodes."""

    tokens: np.ndarray  # (n, W) token ids, right-padded with anything, W <= L
    lengths: np.ndarray  # (n,) int64
    states: np.ndarray  # (n,) task states


class Turns(NamedTuple):
    """n turns that are over."""

    tokens: np.ndarray  # (n, L) whole contexts, the turn included, right-padded
    starts: np.ndarray  # (n,) int64, where the turn begins in the context
    ends: np.ndarray  # (n,) int64, where it ends (exclusive)
    reasons: np.ndarray  # (n,) int64, index into FINISH_REASONS
    numbers: np.ndarray  # (n,) int64, 1 for an episode's first turn


class Answers(NamedTuple):
    """A task's answers to n turns."""

    rewards: np.ndarray  # (n,) float64, finite
    done: np.ndarray  # (n,) bool
    states: np.ndarray  # (n,) task states
    tokens: np.ndarray  # (n, W) what the context goes on with, or is replaced by
    lengths: np.ndarray  # (n,) int64; may exceed W where the text is longer than any window
    replace: np.ndarray  # (n,) bool
    infos: Sequence[dict[str, Any]]  # n, or none at all


class TokenTask(Protocol):
    """A task as the dynamics see it: arrays in, arrays out. None of its functions changes anything."""

    state_dtype: Any  # numpy dtype of the (B,) array that holds the slots' task states
    stop: tuple[str, ...]  # stop strings

    def start(self, dice: np.ndarray, options: np.ndarray, slots: np.ndarray) -> Opening:
        """Begins n episodes; `dice` (n,) uint64 is their only randomness, `slots` (n,) are for errors."""

    def stopped(self, tokens: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """(n,) bool, whether each running turn ends in a stop string; called only if `stop` is not empty."""

    def respond(self, states: np.ndarray, turns: Turns, dice: np.ndarray, slots: np.ndarray) -> Answers:
        """Answers n finished turns."""

    def describe(self, states: np.ndarray, turns: Turns) -> Sequence[dict[str, Any]]:
        """Infos of n turns that are cut short and get no answer."""


class Step(NamedTuple):
    """What n slots get for one token each."""

    rewards: np.ndarray  # (n,) float64
    terminated: np.ndarray  # (n,) bool
    truncated: np.ndarray  # (n,) bool, the context window is full
    infos: dict[int, dict[str, Any]]  # slot -> info, for the slots whose turn is over


@dataclass
class EpisodeArrays:
    """Everything that B slots know; tokens beyond a slot's length are padding."""

    keys: np.ndarray  # (B,) uint64, from the slot's last seed
    episodes: np.ndarray  # (B,) int64, number of the episode since that seed, from 0; -1 before the first
    origin: np.ndarray  # (B,) uint64, the dice that this episode began with
    dice: np.ndarray  # (B,) uint64, the dice it goes on with (differ after a restore without RNG)
    running: np.ndarray  # (B,) bool
    tokens: np.ndarray  # (B, L) the context
    own: np.ndarray  # (B, L) int8, 1 where the agent wrote the token
    lengths: np.ndarray  # (B,) int64
    turn_starts: np.ndarray  # (B,) int64
    steps: np.ndarray  # (B,) int64, tokens written in this episode
    turns: np.ndarray  # (B,) int64, turns after which this episode went on
    returns: np.ndarray  # (B,) float64, rewards of this episode so far
    states: np.ndarray  # (B,) task states
    options: np.ndarray  # (B,) object, the reset options of this episode
    history: np.ndarray  # (B,) object, earlier turns of this episode: ((dice, token ids), ...)

    def copy(self) -> EpisodeArrays:
        """An independent copy (task states are frozen and shared)."""
        return EpisodeArrays(**{field.name: getattr(self, field.name).copy() for field in fields(self)})


class Episodes:
    """B slots, each in an episode of its own, at its own length."""

    def __init__(
        self,
        task: TokenTask,
        num_slots: int,
        *,
        max_new_tokens: int,
        context_length: int,
        eos_token_id: int | None,
        pad_token_id: int,
        token_dtype: Any = np.int64,
    ) -> None:
        self.task = task
        self.num_slots = num_slots
        self.max_new_tokens = max_new_tokens
        self.context_length = context_length
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        self.all_slots = np.arange(num_slots)
        self.arrays = EpisodeArrays(
            keys=np.zeros(num_slots, np.uint64),
            episodes=np.full(num_slots, -1, np.int64),
            origin=np.zeros(num_slots, np.uint64),
            dice=np.zeros(num_slots, np.uint64),
            running=np.zeros(num_slots, bool),
            tokens=np.full((num_slots, context_length), pad_token_id, token_dtype),
            own=np.zeros((num_slots, context_length), np.int8),
            lengths=np.zeros(num_slots, np.int64),
            turn_starts=np.zeros(num_slots, np.int64),
            steps=np.zeros(num_slots, np.int64),
            turns=np.zeros(num_slots, np.int64),
            returns=np.zeros(num_slots),
            states=np.zeros(num_slots, dtype=task.state_dtype),
            options=np.full(num_slots, _NO_OPTIONS),
            history=np.full(num_slots, _NO_HISTORY),
        )

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """Undoes everything done to the slots inside, if it ends in an error."""
        saved = self.arrays.copy()
        try:
            yield
        except BaseException:
            self.arrays = saved
            raise

    def seed(self, slots: np.ndarray, keys: np.ndarray) -> None:
        """Gives slots new keys; their next episode is number 0."""
        self.arrays.keys[slots] = keys
        self.arrays.episodes[slots] = -1

    def begin(self, slots: np.ndarray, options: Mapping[str, Any] | None = None) -> None:
        """Begins a new episode in each of these slots, all with the same reset options."""
        a = self.arrays
        a.episodes[slots] += 1
        a.origin[slots] = mix(a.keys[slots], a.episodes[slots])
        a.options[slots] = options or _NO_OPTIONS
        self.open(slots)

    def open(self, slots: np.ndarray) -> None:
        """Lays out the first contexts of episodes whose origin and options are set."""
        a = self.arrays
        opening = self.task.start(mix(a.origin[slots], 0, START), a.options[slots], slots)
        a.dice[slots] = a.origin[slots]
        a.running[slots] = True
        a.states[slots] = opening.states
        a.steps[slots] = 0
        a.returns[slots] = 0.0
        a.turns[slots] = 0
        a.history[slots] = _NO_HISTORY
        self._replace(slots, opening.tokens, opening.lengths)

    def step(self, tokens: np.ndarray, slots: np.ndarray | None = None) -> Step:
        """Writes one token into each of these slots.

        Args:
            tokens: (n,) token ids, valid ones.
            slots: (n,) different slots; None means all.

        Raises:
            ResetNeeded: one of the slots has no running episode.
        """
        a = self.arrays
        slots = self.all_slots if slots is None else slots
        running = a.running[slots]
        if not running.all():
            raise ResetNeeded(f"call reset() first: no running episode in slot(s) {slots[~running].tolist()}")
        ends = self._write(slots, tokens)
        a.steps[slots] += 1
        reasons = self.finish_reasons(slots)
        over = reasons >= 0
        result = Step(
            rewards=np.zeros(len(slots)),
            terminated=np.zeros(len(slots), bool),
            truncated=~over & (ends == self.context_length),
            infos={},
        )
        if result.truncated.any():
            cut = slots[result.truncated]
            infos = self.task.describe(a.states[cut], self._turns(cut, np.full(len(cut), LENGTH)))
            result.infos.update(zip(cut.tolist(), infos, strict=False))
        if over.any():
            answers, truncated = self.answer(slots[over], reasons[over])
            result.rewards[over] = answers.rewards
            result.terminated[over] = answers.done
            result.truncated[over] = truncated
            result.infos.update(zip(slots[over].tolist(), answers.infos, strict=False))
            a.returns[slots[over]] += answers.rewards
        a.running[slots] = ~(result.terminated | result.truncated)
        return result

    def finish_reasons(self, slots: np.ndarray) -> np.ndarray:
        """(n,) int64: the reason why each slot's present turn is over, -1 where it is not."""
        a = self.arrays
        starts, ends = a.turn_starts[slots], a.lengths[slots]
        reasons = np.where(ends - starts >= self.max_new_tokens, LENGTH, -1)
        if self.task.stop:
            reasons[self.task.stopped(a.tokens[slots], starts, ends)] = STOP
        if self.eos_token_id is not None:
            reasons[(a.tokens[slots, ends - 1] == self.eos_token_id) & (ends > starts)] = EOS
        return reasons

    def answer(self, slots: np.ndarray, reasons: np.ndarray) -> tuple[Answers, np.ndarray]:
        """Lets the task answer the slots' finished turns, and lays out the next ones.

        Returns:
            The answers, and (n,) bool: the task would go on, but what the agent should read next leaves no
            room for a single token. Such a context stays as it is.
        """
        a = self.arrays
        answers = self.task.respond(
            a.states[slots], self._turns(slots, reasons), mix(a.dice[slots], a.steps[slots], RESPOND), slots
        )
        next_lengths = answers.lengths + np.where(answers.replace, 0, a.lengths[slots])
        truncated = ~answers.done & (next_lengths >= self.context_length)
        goes_on = ~answers.done & ~truncated
        for i in np.flatnonzero(goes_on):
            slot = slots[i]
            turn = a.tokens[slot, a.turn_starts[slot] : a.lengths[slot]].tolist()
            a.history[slot] = (*a.history[slot], (int(a.dice[slot]), tuple(turn)))
            a.turns[slot] += 1
            a.states[slot] = answers.states[i]
            if answers.replace[i]:
                self._replace(slots[i : i + 1], answers.tokens[i : i + 1], answers.lengths[i : i + 1])
            else:
                a.tokens[slot, a.lengths[slot] : next_lengths[i]] = answers.tokens[i, : answers.lengths[i]]
                a.lengths[slot] = a.turn_starts[slot] = next_lengths[i]
        return answers, truncated

    def halt(self, slots: np.ndarray) -> None:
        """Ends episodes from outside (a time limit)."""
        self.arrays.running[slots] = False

    def _write(self, slots: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        a = self.arrays
        at = a.lengths[slots]
        a.tokens[slots, at] = tokens
        a.own[slots, at] = 1
        a.lengths[slots] = at + 1
        return at + 1

    def _replace(self, slots: np.ndarray, tokens: np.ndarray, lengths: np.ndarray) -> None:
        a = self.arrays
        width = min(tokens.shape[1], self.context_length)
        inside = np.arange(width) < lengths[:, None]
        a.tokens[slots] = self.pad_token_id
        a.tokens[slots, :width] = np.where(inside, tokens[:, :width], self.pad_token_id)
        a.own[slots] = 0
        a.lengths[slots] = lengths
        a.turn_starts[slots] = lengths

    def _turns(self, slots: np.ndarray, reasons: np.ndarray) -> Turns:
        a = self.arrays
        return Turns(a.tokens[slots], a.turn_starts[slots], a.lengths[slots], reasons, a.turns[slots] + 1)
