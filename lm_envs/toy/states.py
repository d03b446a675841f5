"""The states of a toy task, numbered: a state is a prompt and the tokens written so far.

States are ordered by the number of tokens, then by prompt, then by the tokens read as a number in base V with
the first token most significant. So in layer t (t tokens written), state s leads by token x to state s * V +
x of layer t + 1, counting from the layers' first states; no table is needed. All whole texts are one state,
the last one: nothing is left to decide there.
"""

from __future__ import annotations

import math
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lm_envs.toy.rules import Rule


class StateSpace:
    """Numbers and contexts of a rule's states.

    Args:
        rule: whose prompts and texts.

    Attributes:
        num_prompts: N.
        sizes: states in layers 0 to T - 1.
        offsets: first state of layers 0 to T - 1; Python integers, as they may be huge.
        end: the state of all whole texts.
        num_states: all of them, the end included.
    """

    def __init__(self, rule: Rule) -> None:
        self.vocab_size, self.length = rule.vocab_size, rule.length
        self.prompt_base, self.prompt_length = rule.prompt_base, rule.prompt_length
        self.num_prompts = self.prompt_base**self.prompt_length
        self.sizes = [self.num_prompts * self.vocab_size**t for t in range(self.length)]
        self.offsets = [0, *accumulate(self.sizes[:-1])]
        self.end = sum(self.sizes)
        self.num_states = self.end + 1
        self.context_length = self.prompt_length + self.length

    def prompts(self, indices: np.ndarray) -> np.ndarray:
        """Prompts 0 to N - 1 as tokens, (n, P) int16."""
        return digits(indices, self.prompt_base, self.prompt_length)

    def contexts(self, layer: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """States start to stop - 1 of layer 0 to T (T: every whole text apart).

        Returns:
            Prompts (n, P) int16, and completions (n, T) int16 whose first `layer` tokens count.
        """
        states = np.arange(start, stop)
        texts = self.vocab_size**layer
        completions = np.zeros((len(states), self.length), np.int16, order="F")
        completions[:, :layer] = digits(states % texts, self.vocab_size, layer)
        return self.prompts(states // texts), completions

    def tokens(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The contexts of states.

        Args:
            states: (n,) integers in 0..end - 1: at the end there is no one context.

        Returns:
            Tokens (n, L) int16, 0 beyond the context, and lengths (n,) int64.

        Raises:
            ValueError: a number out of range.
        """
        states = np.asarray(states, np.int64)
        if states.size and not 0 <= states.min() <= states.max() < self.end:
            raise ValueError(f"states must be in 0..{self.end - 1}, got {states.min()} to {states.max()}")
        layers = np.searchsorted(np.array(self.offsets), states, side="right") - 1
        tokens = np.zeros((len(states), self.context_length), np.int16)
        for layer in np.unique(layers).tolist():
            rows = layers == layer
            local = states[rows] - self.offsets[layer]
            texts = self.vocab_size**layer
            ids = [self.prompts(local // texts), digits(local % texts, self.vocab_size, layer)]
            tokens[rows, : self.prompt_length + layer] = np.concatenate(ids, axis=1)
        return tokens, layers + self.prompt_length

    def numbers(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The states of contexts, the inverse of `tokens`: (n, L) and (n,) in, (n,) int64 out."""
        written = lengths - self.prompt_length
        result = np.zeros(len(tokens), np.int64)
        for at in range(self.prompt_length):
            result = result * self.prompt_base + tokens[:, at]
        for at in range(self.length):
            on = at < written
            result = np.where(on, result * self.vocab_size + tokens[:, self.prompt_length + at], result)
        offsets = np.array([*self.offsets, self.end])
        return np.where(written < self.length, result, 0) + offsets[written]

    @cached_property
    def _place_values(self) -> np.ndarray:
        values = [self.vocab_size**at for at in range(self.length)]
        values += [self.vocab_size**self.length * self.prompt_base**at for at in range(self.prompt_length)]
        return np.array(values[::-1], np.float64)

    def text_numbers(self, tokens: np.ndarray) -> np.ndarray:
        """Which of all whole texts, fewer than 2^53, these contexts (n, L) are, (n,) int64."""
        return (tokens.astype(np.float64) @ self._place_values).astype(np.int64)  # integers, so exact

    def text_number(self, context: list[int]) -> int:
        """Which of all whole texts this one context of L tokens is."""
        number = 0
        for token in context[: self.prompt_length]:
            number = number * self.prompt_base + token
        for token in context[self.prompt_length :]:
            number = number * self.vocab_size + token
        return number


def in_words(number: int) -> str:
    """A count for messages; Python refuses to write numbers of thousands of digits."""
    return str(number) if number < 10**18 else f"about 10^{math.log10(number):.0f}"


def digits(numbers: np.ndarray, base: int, count: int) -> np.ndarray:
    """`count` digits of each number (or Python integer, dtype object), the most significant one first.

    Returns:
        (n, count) int16, in column-major order.
    """
    result = np.empty((len(numbers), count), np.int16, order="F")
    for at in reversed(range(count)):
        rest = numbers // base
        result[:, at] = numbers - rest * base
        numbers = rest
    return result
