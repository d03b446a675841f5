"""The transition table of a toy, as Gymnasium's toy-text environments have it, made when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from lm_envs.toy.task import ToyTask

Outcome = tuple[float, int, float, bool]  # probability, next state, expected reward, terminated


class Transitions(Mapping[int, dict[int, list[Outcome]]]):
    """`P[state][action]` -> list of (probability, next state, reward, terminated).

    States are those of the index observation. Rewards are expected ones: noise is left out. The end state
    leads to itself.

    Args:
        task: the toy.
    """

    def __init__(self, task: ToyTask) -> None:
        self._task = task
        self._states = task.states

    def __len__(self) -> int:
        return self._states.num_states

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __getitem__(self, state: int) -> dict[int, list[Outcome]]:
        """The outcomes of every action; KeyError if there is no such state."""
        states, task = self._states, self._task
        if isinstance(state, bool) or not isinstance(state, int | np.integer) or not 0 <= state <= states.end:
            raise KeyError(f"state must be an integer in 0..{states.end}, got {state!r}")
        actions = range(states.vocab_size)
        if state == states.end:
            return {action: [(1.0, states.end, 0.0, True)] for action in actions}
        tokens, lengths = states.tokens(np.array([state]))
        followers = np.repeat(tokens, states.vocab_size, axis=0)
        followers[:, lengths[0]] = actions
        after = np.repeat(lengths + 1, states.vocab_size)
        first = states.prompt_length
        rewards = task.rewards(followers[:, :first], followers[:, first:], after - first).tolist()
        numbers = states.numbers(followers, after).tolist()
        is_last = bool(lengths[0] + 1 == states.context_length)
        slip = task.dials.slip
        table = {}
        for action in actions:
            probabilities = [slip / states.vocab_size + (1 - slip) * (token == action) for token in actions]
            table[action] = [
                (probabilities[token], numbers[token], rewards[token], is_last)
                for token in actions
                if probabilities[token] > 0
            ]
        return table
