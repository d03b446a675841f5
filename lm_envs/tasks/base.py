"""What a task is: it asks, reads a completion, answers and scores.

A task works in turns. `start` gives the prompt; when the agent has finished a turn (EOS, a stop string, or
`max_new_tokens`), `respond` reads the completion and says what it is worth, whether the episode is over and,
if not, how the context changes. Tokens, budgets, context windows and autoresets are the environment's.

Tasks are functional: everything an episode knows is in the frozen state that `start` returns and `respond`
replaces, and every random draw comes from the generator that is passed in. So an episode can be cloned by
keeping a reference to its state, and replayed from its seed and its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class Completion:
    """One finished turn.

    Attributes:
        text: `token_ids` decoded, without special tokens, cut before the stop string if there is one.
        token_ids: every token of the turn, EOS and the tokens of the stop string included.
        context_ids: the tokens that the turn was written after (prompt and earlier turns).
        finish_reason: what ended the turn: "eos", "stop" (a stop string) or "length" (`max_new_tokens`).
        slot: the row of a vector environment that wrote it, for error messages to name.
    """

    text: str
    token_ids: tuple[int, ...]
    context_ids: tuple[int, ...]
    finish_reason: str
    slot: int = 0


@dataclass(frozen=True)
class Append:
    """The context goes on with this text (a reply, say), encoded as it stands: no BOS, no chat template."""

    text: str


@dataclass(frozen=True)
class Replace:
    """The context is replaced by this prompt (a game's next board, say), encoded as first prompts are."""

    text: str


@dataclass(frozen=True)
class Feedback:
    """A task's answer to one completion.

    Attributes:
        reward: finite float, paid on the token that ended the turn.
        done: True ends the episode (`terminated`).
        state: the state after this turn, also if it was the last; None keeps the state as it was.
        info: merged into the step's info, e.g. `{"reward_parts": {"sentiment": 0.4}}`. A task that ends an
            episode for a reason of its own (the game is won) may put `{"finish_reason": "task"}` here; the
            other keys that the environment writes are refused.
        context: what the agent reads next; None lets the next turn follow on the completion. Ignored if the
            episode ends.
        truncated: True ends an episode that is not done by a limit of the task's own (`truncated`): learners
            then count on a value that was to come.
    """

    reward: float = 0.0
    done: bool = True
    state: Any = None
    info: Mapping[str, Any] = field(default_factory=dict)
    context: Append | Replace | None = None
    truncated: bool = False


class TaskState(Protocol):
    """What an episode knows: a frozen dataclass with at least the prompt."""

    @property
    def prompt(self) -> str:
        """The text that the episode's first context is made of."""


@runtime_checkable
class Task(Protocol):
    """A turn-level task. Named tasks are built as `TaskClass(language_model, **task_kwargs)`.

    A task that draws from a fixed list may offer it as an attribute `prompts`: the environment then checks,
    when it is built, that every one of them leaves room for `max_new_tokens`. A state may carry an attribute
    `index`, the number of its prompt in that list, for error messages to name.

    A task may offer discrete actions and observations of its own, by any of these optional attributes. What
    they say depends on the states given alone, those of finished episodes among them.

    choices: Mapping[str, Sequence[str]]
        Action modes: name -> N different completions. With `actions=name` the action space is `Discrete(N)`,
        and action i writes completion i as one whole turn.
    allowed(states, mode) -> np.ndarray
        Which of a mode's choices n states allow, (n, N) bool, at least one in each running episode. An
        environment refuses the others, and shows the mask. Without it, all are always allowed.
    views: Mapping[str, gymnasium.Space]
        Observation modes: name -> space of one observation, one with a shape. With `observation=name`, the
        environment shows `view` instead of text.
    view(states, mode) -> np.ndarray
        What n states look like, (n, *shape) in the space's dtype.
    frame(state) -> np.ndarray
        A state as a picture, (height, width, 3) uint8, for "rgb_array"; otherwise the text is drawn.
    """

    def start(self, rng: np.random.Generator, options: Mapping[str, Any]) -> TaskState:
        """Begins an episode.

        Args:
            rng: the only source of randomness; a generator for this episode of this slot alone.
            options: empty, `{"prompt": str}` (use this text) or `{"task_index": int}` (use this item, do
                not draw one).

        Returns:
            The episode's first state.

        Raises:
            ValueError: an option that this task cannot follow; names the value and the accepted range.
        """

    def respond(
        self,
        states: Sequence[Any],
        completions: Sequence[Completion],
        rngs: Sequence[np.random.Generator],
    ) -> list[Feedback]:
        """Answers the finished turns of n >= 1 slots at once: one feedback each, in order.

        Batched, because reward models and user simulators are fastest that way; what a slot gets must not
        depend on its neighbours.

        Args:
            states: the n current states.
            completions: the n turns just finished.
            rngs: n independent generators, new ones for every turn.
        """
