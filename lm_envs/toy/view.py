"""What an agent sees of a toy episode: the observation modes, of running slots and of any numbered state."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from lm_envs.episodes import Episodes
from lm_envs.rewards.base import whole_number
from lm_envs.toy.states import StateSpace, in_words

OBSERVATIONS = ("tokens", "index", "onehot", "last_k")
MAX_INDEX = 2**62


class ToyView:
    """Observations of slots, as `lm_envs.view.View` gives them, and of contexts that no slot is in.

    Args:
        states: the task's states.
        episodes: what is looked at.
        observation: "tokens", "index", "onehot" or "last_k".
        last_k: k, the tokens that "last_k" shows, 1..L.

    Raises:
        ValueError: unknown mode, k out of range, or more states than an index can count.
    """

    uses_model = False

    def __init__(self, states: StateSpace, episodes: Episodes, *, observation: str, last_k: int) -> None:
        if observation not in OBSERVATIONS:
            raise ValueError(f"observation must be one of {OBSERVATIONS}, got {observation!r}")
        length, vocab_size = states.context_length, states.vocab_size
        if observation == "index" and states.num_states > MAX_INDEX:
            raise ValueError(
                f'observation="index" counts up to {MAX_INDEX} states, got {in_words(states.num_states)}'
            )
        self.states, self.episodes = states, episodes
        self.observation = observation
        self.last_k = whole_number("last_k", last_k, 1, length)
        # Row n is the mask of a context of n tokens.
        self._attention = np.tri(length + 1, length, -1, np.int8)
        self._completion = self._attention.copy()
        self._completion[:, : states.prompt_length] = 0
        self.action_space = spaces.Discrete(vocab_size)
        self.observation_space: spaces.Space = {
            "tokens": lambda: spaces.Dict(
                {
                    "input_ids": spaces.Box(0, vocab_size - 1, (length,), np.int16),
                    "attention_mask": spaces.Box(0, 1, (length,), np.int8),
                    "completion_mask": spaces.Box(0, 1, (length,), np.int8),
                }
            ),
            "index": lambda: spaces.Discrete(states.num_states),
            "onehot": lambda: spaces.Box(0, 1, (length * vocab_size,), np.int8),
            "last_k": lambda: spaces.MultiDiscrete([vocab_size + 1] * self.last_k),
        }[observation]()

    def look(self, slots: np.ndarray) -> tuple[Any, None]:
        """Fresh observations of n slots, batched as Gymnasium batches them; see `View.look`."""
        a, at = self.episodes.arrays, self.episodes.index(slots)
        return self.observe(a.tokens[at], a.lengths[at]), None

    def look_at_first(self) -> Any:
        """The first slot's fresh observation, not batched; faster than `look`."""
        a = self.episodes.arrays
        if self.observation != "tokens":
            return self.observe(a.tokens[:1], a.lengths[:1])[0]
        length = a.lengths[0]
        return {
            "input_ids": a.tokens[0].copy(),
            "attention_mask": self._attention[length].copy(),
            "completion_mask": self._completion[length].copy(),
        }

    def observe(self, tokens: np.ndarray, lengths: np.ndarray) -> Any:
        """Fresh observations of n contexts of at least one prompt each.

        Args:
            tokens: (n, L) int16, 0 beyond the context.
            lengths: (n,) int64.
        """
        if self.observation == "index":
            return self.states.numbers(tokens, lengths)
        attention_mask = self._attention.take(lengths, axis=0)
        if self.observation == "tokens":
            return {
                "input_ids": tokens.copy(),
                "attention_mask": attention_mask,
                "completion_mask": self._completion.take(lengths, axis=0),
            }
        if self.observation == "onehot":
            hot = (tokens[:, :, None] == np.arange(self.states.vocab_size)).astype(np.int8)
            hot *= attention_mask[:, :, None]
            return hot.reshape(len(tokens), -1)
        at = lengths[:, None] - np.arange(self.last_k, 0, -1)
        shown = np.take_along_axis(tokens, np.maximum(at, 0), axis=1)
        return np.where(at >= 0, shown, self.states.vocab_size).astype(np.int64)

    def observe_states(self, states: np.ndarray) -> Any:
        """Observations of numbered states, (n,) in 0..end - 1."""
        return self.observe(*self.states.tokens(states))

    def state_numbers(self, observations: Any) -> np.ndarray:
        """The numbers of the states that n batched observations show, (n,) int64: all whole texts are one.

        Raises:
            ValueError: observation="last_k", which does not show the whole state.
        """
        if self.observation == "last_k":
            raise ValueError('observation="last_k" does not show the whole state')
        if self.observation == "index":
            return np.asarray(observations, np.int64).reshape(-1)
        if self.observation == "tokens":
            lengths = observations["attention_mask"].sum(axis=1, dtype=np.int64)
            return self.states.numbers(observations["input_ids"], lengths)
        hot = np.asarray(observations).reshape(-1, self.states.context_length, self.states.vocab_size)
        return self.states.numbers(hot.argmax(axis=2), hot.sum(axis=(1, 2), dtype=np.int64))
