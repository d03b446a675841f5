"""The token-level dynamics over B slots: what a token does to a context, when turns and episodes end.

Single and vector environments, text and toys share this one copy. It is numpy only, and loops over no slots
but those that go on to a next turn. What a turn's end means, it asks a `TokenTask`, the token-level face of a
task.

A step is atomic: run it under `Episodes.guarded()`, and any error leaves all slots as they were before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium.error import ResetNeeded

from lm_envs.randomness import PAY, RESPOND, START, WRITE, mix

EOS, STOP, LENGTH = 0, 1, 2
FINISH_REASONS = ("eos", "stop", "length")

# Zero-dimensional object arrays: numpy would take a bare () or {} apart when it is assigned to many slots.
_NO_HISTORY, _NO_OPTIONS = np.empty((), dtype=object), np.empty((), dtype=object)
_NO_HISTORY[()] = ()
_NO_OPTIONS[()] = {}

_AHEAD = 64  # episodes of a single slot whose openings are laid out at once
_ALL = slice(None)
_NO_SLOTS = np.zeros(0, np.int64)


class Opening(NamedTuple):
    """The first contexts of n episodes."""

    tokens: np.ndarray  # (n, W) token ids, right-padded with anything, W <= L
    lengths: np.ndarray  # (n,) int64
    states: np.ndarray  # (n,) task states


class Ahead(NamedTuple):
    """The next episodes of one slot."""

    key: np.uint64
    first: int  # number of the first one
    origins: np.ndarray  # (n,) uint64
    opening: Opening  # of all n


class Turns(NamedTuple):
    """n turns that are over."""

    tokens: np.ndarray  # (n, L) whole contexts, the turn included, right-padded
    starts: np.ndarray  # (n,) int64, where the turn begins in the context
    ends: np.ndarray  # (n,) int64, where it ends (exclusive)
    reasons: np.ndarray  # (n,) int64, index into FINISH_REASONS
    numbers: np.ndarray  # (n,) int64, 1 for an episode's first turn


# (n,) tokens and (n,) dice in, (n,) tokens out.
Write = Callable[[np.ndarray, np.ndarray], np.ndarray]
# n running turns and (n,) dice in, (n,) rewards of each one's last token out.
Pay = Callable[[Turns, np.ndarray], np.ndarray]


class Answers(NamedTuple):
    """A task's answers to n turns."""

    rewards: np.ndarray  # (n,) float64, finite
    done: np.ndarray  # (n,) bool
    states: np.ndarray  # (n,) task states
    tokens: np.ndarray  # (n, W) what the context goes on with, or is replaced by
    lengths: np.ndarray  # (n,) int64; may exceed W where the text is longer than any window
    replace: np.ndarray  # (n,) bool
    infos: Sequence[dict[str, Any]] | dict[str, np.ndarray]  # n, or key -> n values


class TokenTask(Protocol):
    """A task as the dynamics see it: arrays in, arrays out. None of its functions changes anything."""

    state_dtype: Any  # numpy dtype of the (B,) array that holds the slots' task states
    stop: tuple[str, ...]  # stop strings
    is_infallible: bool  # nothing but `start` with options can raise
    is_random: bool  # whether `respond` and `pay` read their dice, which are made up if not
    written: Write | None  # what tokens turn into when they are written; None: nothing
    pay: Pay | None  # rewards of tokens in the middle of a turn; None: only its end is rewarded

    def start(self, dice: np.ndarray, options: np.ndarray | None, slots: np.ndarray) -> Opening:
        """Begins n episodes; `dice` (n,) uint64 is their only randomness, `slots` (n,) are for errors.

        `options` (n,) are their reset options; None: none has any.
        """

    def stopped(self, tokens: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """(n,) bool, whether each running turn ends in a stop string; called only if `stop` is not empty."""

    def respond(self, states: np.ndarray, turns: Turns, dice: np.ndarray, slots: np.ndarray) -> Answers:
        """Answers n finished turns."""

    def describe(self, states: np.ndarray, turns: Turns) -> Sequence[dict[str, Any]]:
        """Infos of n turns that are cut short and get no answer."""


class Step(NamedTuple):
    """What n slots get for one token each, or one turn each."""

    rewards: np.ndarray  # (n,) float64
    terminated: np.ndarray  # (n,) bool
    truncated: np.ndarray  # (n,) bool, the context window is full
    infos: dict[int, dict[str, Any]]  # slot -> info, for the slots whose turn is over
    info_slots: np.ndarray  # (m,) the slots whose turn is over, where the task describes them in columns
    columns: dict[str, np.ndarray]  # key -> (m,) values


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
        self._ahead: Ahead | None = None
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

    def guarded(self) -> AbstractContextManager[None]:
        """`atomic()` where a step may fail once its actions are checked: it copies all that is known."""
        return nullcontext() if self.task.is_infallible else self.atomic()

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """Undoes everything done to the slots inside, if it ends in an error."""
        saved = self.arrays.copy()
        try:
            yield
        except BaseException:
            self.arrays = saved
            raise

    def index(self, slots: np.ndarray) -> np.ndarray | slice:
        """What indexes these slots: all of them as a slice, which reads and writes without copying."""
        return _ALL if slots is self.all_slots else slots

    def select(self, slots: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """`slots[mask]`, and the very same array if the mask is all true."""
        return slots if np.count_nonzero(mask) == len(slots) else slots[mask]

    def seed(self, slots: np.ndarray, keys: np.ndarray) -> None:
        """Gives slots new keys; their next episode is number 0."""
        self.arrays.keys[slots] = keys
        self.arrays.episodes[slots] = -1

    def begin(self, slots: np.ndarray, options: Mapping[str, Any] | None = None) -> None:
        """Begins a new episode in each of these slots, all with the same reset options."""
        if self.num_slots == 1 and self.task.is_infallible and not options and self.arrays.episodes[0] >= 0:
            self._begin_next()
            return
        a, at = self.arrays, self.index(slots)
        a.episodes[at] += 1
        a.origin[at] = mix(a.keys[at], a.episodes[at])
        a.options[at] = options or _NO_OPTIONS
        self.open(slots, a.options[at] if options else None)

    def _begin_next(self) -> None:
        """`begin` for a single slot without options: the openings of many episodes are laid out at once."""
        a, number = self.arrays, self.arrays.episodes[0] + 1
        ahead = self._ahead
        if ahead is None or a.keys[0] != ahead.key or not ahead.first <= number < ahead.first + _AHEAD:
            origins = mix(a.keys.repeat(_AHEAD), np.arange(number, number + _AHEAD))
            opening = self.task.start(mix(origins, 0, START), None, self.all_slots.repeat(_AHEAD))
            ahead = self._ahead = Ahead(a.keys[0], number, origins, opening)
        i = number - ahead.first
        length = ahead.opening.lengths[i]
        a.episodes[0] = number
        a.origin[0] = a.dice[0] = ahead.origins[i]
        a.options[:] = _NO_OPTIONS
        a.history[:] = _NO_HISTORY
        a.running[0] = True
        a.states[0] = ahead.opening.states[i]
        a.steps[0] = a.turns[0] = 0
        a.returns[0] = 0.0
        a.tokens[0] = self.pad_token_id
        a.tokens[0, :length] = ahead.opening.tokens[i, :length]
        a.own[0] = 0
        a.lengths[0] = a.turn_starts[0] = length

    def open(self, slots: np.ndarray, options: np.ndarray | None) -> None:
        """Lays out the first contexts of episodes whose origin is set."""
        a, at = self.arrays, self.index(slots)
        opening = self.task.start(mix(a.origin[at], 0, START), options, slots)
        a.dice[at] = a.origin[at]
        a.running[at] = True
        a.states[at] = opening.states
        a.steps[at] = 0
        a.returns[at] = 0.0
        a.turns[at] = 0
        a.history[at] = _NO_HISTORY
        self._replace(slots, opening.tokens, opening.lengths)

    def write_on(self, slot: int, token: int) -> bool:
        """Writes a token in the middle of a turn: one that nobody has to answer.

        Args:
            slot: one with a running episode.
            token: a valid token id.

        Returns:
            False if the token would end the turn, fill the window, slip or be paid; nothing is done then, and
            `step` has to.
        """
        a, task = self.arrays, self.task
        end = a.lengths.item(slot) + 1
        if (
            task.stop
            or task.pay is not None
            or task.written is not None
            or token == self.eos_token_id
            or end == self.context_length
            or end - a.turn_starts.item(slot) >= self.max_new_tokens
        ):
            return False
        self._put(slot, token, end)
        return True

    def write_last(self, slot: int, token: int, reward: float) -> None:
        """Writes the token that ends a slot's episode, when the task's answer is known to be this reward."""
        a = self.arrays
        self._put(slot, token, a.lengths.item(slot) + 1)
        a.returns[slot] += reward
        a.running[slot] = False

    def _put(self, slot: int, token: int, end: int) -> None:
        a = self.arrays
        a.tokens[slot, end - 1] = token
        a.own[slot, end - 1] = 1
        a.lengths[slot] = end
        a.steps[slot] += 1

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
        at = self.index(slots)
        self._check_running(slots)
        if self.task.written is not None:
            tokens = self.task.written(tokens, mix(a.dice[at], a.steps[at], WRITE))
        self._write(slots, tokens)
        a.steps[at] += 1
        return self._concluded(slots, self.finish_reasons(slots))

    def write_turns(self, turns: Sequence[Sequence[int]], slots: np.ndarray | None = None) -> Step:
        """Writes one whole turn into each of these slots, as if its tokens were written one by one.

        What the window has no room for is left out, which truncates the episode. A turn that is written
        whole is over: for the reason that its last token gives, or else with STOP.

        Args:
            turns: n rows of at most `max_new_tokens` valid token ids; only the last one may end a turn.
            slots: (n,) different slots, all at the beginning of a turn; None means all.

        Raises:
            ResetNeeded: one of the slots has no running episode.
        """
        a = self.arrays
        slots = self.all_slots if slots is None else slots
        self._check_running(slots)
        is_whole = np.ones(len(slots), bool)
        for i, (slot, turn) in enumerate(zip(slots.tolist(), turns, strict=True)):
            start = a.lengths[slot]
            end = min(start + len(turn), self.context_length)
            a.tokens[slot, start:end] = turn[: end - start]
            a.own[slot, start:end] = 1
            a.lengths[slot] = end
            a.steps[slot] += end - start
            is_whole[i] = end - start == len(turn)
        reasons = self.finish_reasons(slots)
        reasons[(reasons < 0) & is_whole] = STOP
        return self._concluded(slots, reasons)

    def _check_running(self, slots: np.ndarray) -> None:
        running = self.arrays.running[self.index(slots)]
        if np.count_nonzero(running) < len(slots):
            raise ResetNeeded(f"call reset() first: no running episode in slot(s) {slots[~running].tolist()}")

    def _concluded(self, slots: np.ndarray, reasons: np.ndarray) -> Step:
        """What slots get for what was written, when their turns are over for these reasons (-1: not over)."""
        a, at = self.arrays, self.index(slots)
        over = reasons >= 0
        num_over = np.count_nonzero(over)
        if num_over == len(slots) > 0:
            result = self._answered(slots, reasons)
            a.returns[at] += result.rewards
            a.running[at] = ~(result.terminated | result.truncated)
            return result
        result = Step(
            rewards=np.zeros(len(slots)),
            terminated=np.zeros(len(slots), bool),
            truncated=~over & (a.lengths[at] == self.context_length),
            infos={},
            info_slots=_NO_SLOTS,
            columns={},
        )
        if np.count_nonzero(result.truncated):
            cut = slots[result.truncated]
            infos = self.task.describe(a.states[cut], self._turns(cut, np.full(len(cut), LENGTH)))
            result.infos.update(zip(cut.tolist(), infos, strict=False))
        if self.task.pay is not None and num_over < len(slots):
            going = self.select(slots, ~over)
            dice = self._dice(going, PAY)
            result.rewards[~over] = self.task.pay(self._turns(going, np.full(len(going), -1)), dice)
        if num_over:
            part = self._answered(slots[over], reasons[over])
            result.rewards[over] = part.rewards
            result.terminated[over] = part.terminated
            result.truncated[over] = part.truncated
            result.infos.update(part.infos)
            result = result._replace(info_slots=part.info_slots, columns=part.columns)
        a.returns[at] += result.rewards
        a.running[at] = ~(result.terminated | result.truncated)
        return result

    def _answered(self, slots: np.ndarray, reasons: np.ndarray) -> Step:
        """The step of slots whose turns are all over."""
        answers, truncated = self.answer(slots, reasons)
        infos: dict[int, dict[str, Any]] = {}
        columns: dict[str, np.ndarray] = {}
        if isinstance(answers.infos, dict):
            columns = answers.infos
        else:
            infos = dict(zip(slots.tolist(), answers.infos, strict=False))
        return Step(answers.rewards, answers.done, truncated, infos, slots if columns else _NO_SLOTS, columns)

    def finish_reasons(self, slots: np.ndarray) -> np.ndarray:
        """(n,) int64: the reason why each slot's present turn is over, -1 where it is not."""
        a, at = self.arrays, self.index(slots)
        starts, ends = a.turn_starts[at], a.lengths[at]
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
        a, at = self.arrays, self.index(slots)
        answers = self.task.respond(
            a.states[at], self._turns(slots, reasons), self._dice(slots, RESPOND), slots
        )
        a.states[at] = answers.states
        if np.count_nonzero(answers.done) == len(slots):
            return answers, np.zeros(len(slots), bool)
        next_lengths = answers.lengths + np.where(answers.replace, 0, a.lengths[slots])
        truncated = ~answers.done & (next_lengths >= self.context_length)
        goes_on = ~answers.done & ~truncated
        for i in np.flatnonzero(goes_on):
            slot = slots[i]
            turn = a.tokens[slot, a.turn_starts[slot] : a.lengths[slot]].tolist()
            a.history[slot] = (*a.history[slot], (int(a.dice[slot]), tuple(turn)))
            a.turns[slot] += 1
            if answers.replace[i]:
                self._replace(slots[i : i + 1], answers.tokens[i : i + 1], answers.lengths[i : i + 1])
            else:
                a.tokens[slot, a.lengths[slot] : next_lengths[i]] = answers.tokens[i, : answers.lengths[i]]
                a.lengths[slot] = a.turn_starts[slot] = next_lengths[i]
        return answers, truncated

    def halt(self, slots: np.ndarray) -> None:
        """Ends episodes from outside (a time limit)."""
        self.arrays.running[slots] = False

    def _write(self, slots: np.ndarray, tokens: np.ndarray) -> None:
        a = self.arrays
        at = self.index(slots)
        places = a.lengths[at] + slots * self.context_length
        a.tokens.reshape(-1)[places] = tokens
        a.own.reshape(-1)[places] = 1
        a.lengths[at] += 1

    def _replace(self, slots: np.ndarray, tokens: np.ndarray, lengths: np.ndarray) -> None:
        a, at = self.arrays, self.index(slots)
        width = min(tokens.shape[1], self.context_length)
        a.tokens[at] = self.pad_token_id
        if np.count_nonzero(lengths < width) == 0:
            a.tokens[at, :width] = tokens[:, :width]
        else:
            inside = np.arange(width) < lengths[:, None]
            a.tokens[at, :width] = np.where(inside, tokens[:, :width], self.pad_token_id)
        a.own[at] = 0
        a.lengths[at] = lengths
        a.turn_starts[at] = lengths

    def _dice(self, slots: np.ndarray, purpose: int) -> np.ndarray:
        """What the last written tokens' rewards are rolled with, (n,) uint64."""
        a, at = self.arrays, self.index(slots)
        return mix(a.dice[at], a.steps[at], purpose) if self.task.is_random else a.dice[at]

    def _turns(self, slots: np.ndarray, reasons: np.ndarray) -> Turns:
        a, at = self.arrays, self.index(slots)
        return Turns(a.tokens[at], a.turn_starts[at], a.lengths[at], reasons, a.turns[at] + 1)
