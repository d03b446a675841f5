"""Resumable state of episodes in plain arrays: seeds, options and tokens are kept, the rest is replayed.

Task states are never serialised: a task is a function of its dice and of the completions it was given, so the
same `start` and `respond` calls lead to the same states.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping

import numpy as np

from lm_envs.episodes import STOP, EpisodeArrays, Episodes

_COPIED = ("keys", "episodes", "origin", "dice", "running", "steps", "returns")


def pack(arrays: EpisodeArrays) -> dict[str, np.ndarray]:
    """The state of B slots, M earlier turns among them, as arrays that `numpy.savez` writes without pickling.

    Returns:
        The (B,) arrays keys, episodes, origin, dice, running, steps and returns of `EpisodeArrays`; `options`
        (B,) JSON texts; `turns` (B,) earlier turns per slot; `turn_dice` (M,) uint64 and `turn_lengths` (M,)
        int64 of these turns, slot by slot; `turn_tokens` all their tokens; `lengths` (B,) and `tokens` the
        tokens of the turns in progress; `contexts` (B,) uint32 checksums of what is before these.
    """
    own = [
        row[start:end].tolist()
        for row, start, end in zip(arrays.tokens, arrays.turn_starts, arrays.lengths, strict=True)
    ]
    earlier = [turn for turns in arrays.history for turn in turns]
    options = [json.dumps(dict(option)) for option in arrays.options]
    return {
        **{name: getattr(arrays, name).copy() for name in _COPIED},
        "options": np.array(options),
        "turns": arrays.turns.copy(),
        "turn_dice": np.array([dice for dice, _ in earlier], np.uint64),
        "turn_lengths": np.array([len(tokens) for _, tokens in earlier], np.int64),
        "turn_tokens": np.array([token for _, tokens in earlier for token in tokens], np.int64),
        "lengths": np.array([len(tokens) for tokens in own], np.int64),
        "tokens": np.array([token for tokens in own for token in tokens], np.int64),
        "contexts": _checksums(arrays),
    }


def replay(episodes: Episodes, state: Mapping[str, np.ndarray]) -> None:
    """Brings episodes to a packed state by starting them again and answering their earlier turns again.

    Raises:
        ValueError: the state is of another number of slots, or the task does not go the same way again, with
            other prompts, say.
    """
    a = episodes.arrays
    if np.shape(state["keys"]) != a.keys.shape:
        count = np.size(state["keys"])
        raise ValueError(f"the state is of {count} slots, this environment has {len(a.keys)}")
    for name in ("keys", "episodes", "origin"):
        getattr(a, name)[:] = state[name]
    for slot, option in enumerate(state["options"].tolist()):
        a.options[slot] = json.loads(option)
    begun = np.flatnonzero(a.episodes >= 0)
    episodes.open(begun, a.options[begun])

    earlier = _split(state["turn_tokens"], state["turn_lengths"])
    first_turn = np.cumsum(state["turns"]) - state["turns"]
    for number in range(int(state["turns"].max(initial=0))):
        slots = np.flatnonzero(state["turns"] > number)
        a.dice[slots] = state["turn_dice"][first_turn[slots] + number]
        _write(episodes, slots, [earlier[turn] for turn in first_turn[slots] + number])
        reasons = episodes.finish_reasons(slots)
        reasons[reasons < 0] = STOP  # over without a word: a whole turn, see `Episodes.write_turns`
        answers, truncated = episodes.answer(slots, reasons)
        if answers.done.any() or truncated.any():
            raise ValueError("the state cannot be replayed: the task now ends an episode that went on")
    strayed = begun[_checksums(a)[begun] != state["contexts"][begun]]
    if len(strayed):
        raise ValueError(
            f"the state cannot be replayed: slot(s) {strayed.tolist()} would be in another context"
        )
    current = _split(state["tokens"], state["lengths"])
    _write(episodes, begun, [current[slot] for slot in begun])
    for name in _COPIED:
        getattr(a, name)[:] = state[name]
    # An episode that its task has ended is in the state that the last answer left.
    last = begun[~a.running[begun]]
    last = last[episodes.finish_reasons(last) >= 0]
    if len(last):
        answers, truncated = episodes.answer(last, episodes.finish_reasons(last))
        if not (answers.done | truncated).all():
            raise ValueError("the state cannot be replayed: the task now goes on with an episode that ended")


def _checksums(arrays: EpisodeArrays) -> np.ndarray:
    """Of each slot's context before its turn in progress, (B,) uint32."""
    rows = zip(arrays.tokens.astype(np.int64), arrays.turn_starts, strict=True)
    return np.array([zlib.crc32(row[:start].tobytes()) for row, start in rows], np.uint32)


def _split(tokens: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return np.split(tokens, np.cumsum(lengths)[:-1]) if len(lengths) else []


def _write(episodes: Episodes, slots: np.ndarray, turns: list[np.ndarray]) -> None:
    a = episodes.arrays
    for slot, tokens in zip(slots, turns, strict=True):
        end = a.lengths[slot] + len(tokens)
        a.tokens[slot, a.lengths[slot] : end] = tokens
        a.own[slot, a.lengths[slot] : end] = 1
        a.lengths[slot] = end
        a.steps[slot] += len(tokens)


def pack_generator(rng: np.random.Generator) -> np.ndarray:
    """The state of a numpy generator as a () array of JSON text."""
    return np.array(json.dumps(rng.bit_generator.state))


def unpack_generator(rng: np.random.Generator, state: np.ndarray) -> None:
    """Brings a generator to a packed state."""
    rng.bit_generator.state = json.loads(str(state))
