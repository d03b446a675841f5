"""What the single and the vector environment share: everything but Gymnasium's two interfaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_envs.actions import check_action, check_actions
from lm_envs.episodes import EpisodeArrays, Episodes
from lm_envs.randomness import FORK, mix
from lm_envs.replay import pack, replay
from lm_envs.tasks import Task, make_task
from lm_envs.tasks.tokenized import TokenizedTask
from lm_envs.view import View

if TYPE_CHECKING:
    from lm_envs.decoding import Snapshot
    from lm_envs.toy.view import ToyView

ACTIONS = ("token", "top_k")


@dataclass(frozen=True)
class ClonedState:
    """What `clone_state` returns; opaque to users."""

    arrays: EpisodeArrays
    candidates: np.ndarray
    cache: Snapshot | None
    include_rng: bool


class EnvCore:
    """A task, a language model, B slots' episodes and the view of them.

    Attributes:
        task: the text task, or the toy.
        language_model: encodes, decodes, embeds and proposes; its weights are loaded when first needed.
        episodes: the dynamics.
        view: observations, candidates and spaces.
        candidates: (B, k) int64, what the next "top_k" actions choose from; k = 0 for "token" actions.
        num_actions: size of the action space.
    """

    def __init__(
        self,
        language_model: Any,
        task: Any,
        episodes: Episodes,
        view: View | ToyView,
    ) -> None:
        self.language_model, self.task = language_model, task
        self.episodes, self.view = episodes, view
        self.candidates = np.zeros((episodes.num_slots, view.num_candidates), np.int64)
        self.num_actions = int(view.action_space.n)

    @classmethod
    def for_text(
        cls,
        num_slots: int,
        task: str | Task,
        model: str | None,
        *,
        max_new_tokens: int = 56,
        stop: str | Sequence[str] = (),
        context_length: int | None = None,
        truncate_prompts: bool = False,
        observation: str = "tokens",
        actions: str = "token",
        top_k: int = 50,
        chat: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        **task_kwargs: Any,
    ) -> EnvCore:
        """The core of text environments; `TextGenEnv` documents the arguments."""
        from lm_envs.language_model import LanguageModel

        language_model = LanguageModel.load(model, device=device, dtype=dtype, chat=chat, lazy=True)
        window = language_model.context_length
        if context_length is None:
            context_length = window
        context_length = whole("context_length", context_length, 2, window)
        max_new_tokens = whole("max_new_tokens", max_new_tokens, 1, context_length - 1)
        task = make_task(task, language_model, task_kwargs)
        tokenized = TokenizedTask(
            task,
            language_model,
            stop=_check_stop(stop),
            max_new_tokens=max_new_tokens,
            context_length=context_length,
            truncate_prompts=truncate_prompts,
        )
        episodes = Episodes(
            tokenized,
            num_slots,
            max_new_tokens=max_new_tokens,
            context_length=context_length,
            eos_token_id=language_model.eos_token_id,
            pad_token_id=language_model.pad_token_id,
        )
        if actions not in ACTIONS:
            raise ValueError(f"actions must be one of {ACTIONS}, got {actions!r}")
        candidates = 0
        if actions == "top_k":
            candidates = whole("top_k", top_k, 1, language_model.vocab_size)
        view = View(language_model, episodes, observation, candidates)
        return cls(language_model, task, episodes, view)

    def token(self, action: Any) -> int:
        """The token id that the single environment's action stands for; InvalidAction if none."""
        action = check_action(action, self.num_actions)
        return int(self.candidates[0, action]) if self.view.num_candidates else action

    def tokens(self, actions: Any, used: np.ndarray) -> np.ndarray:
        """The token ids that a vector environment's actions stand for, (B,) int64; see `check_actions`."""
        actions = check_actions(actions, self.num_actions, used)
        return self.candidates[self.episodes.all_slots, actions] if self.view.num_candidates else actions

    def clone_state(self, include_rng: bool) -> ClonedState:
        """See `TextGenEnv.clone_state`."""
        arrays, cache = self.episodes.arrays.copy(), self.view.snapshot()
        return ClonedState(arrays, self.candidates.copy(), cache, include_rng)

    def restore_state(self, state: ClonedState) -> None:
        """See `TextGenEnv.restore_state`."""
        now = self.episodes.arrays
        if state.arrays.tokens.shape != now.tokens.shape or state.candidates.shape != self.candidates.shape:
            raise ValueError(
                "this state is of another environment: (slots, context_length) "
                f"{state.arrays.tokens.shape} and candidates {state.candidates.shape}, "
                f"here {now.tokens.shape} and {self.candidates.shape}"
            )
        arrays = state.arrays.copy()
        if not state.include_rng:
            begun = now.episodes >= 0
            arrays.keys = np.where(begun, now.keys, arrays.keys)
            arrays.episodes = np.where(begun, now.episodes, arrays.episodes)
            arrays.dice = mix(np.where(begun, now.dice, arrays.dice), FORK)
        self.episodes.arrays = arrays
        self.candidates = state.candidates.copy()
        if state.cache is not None:
            self.view.restore(state.cache)

    def get_state(self) -> dict[str, np.ndarray]:
        """See `TextGenEnv.get_state`."""
        return pack(self.episodes.arrays)

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """See `TextGenEnv.set_state`."""
        with self.episodes.atomic():
            replay(self.episodes, state)
            begun = np.flatnonzero(self.episodes.arrays.episodes >= 0)
            _, candidates = self.view.look(begun)
            if candidates is not None:
                self.candidates[begun] = candidates


def draw_keys(rng: np.random.Generator, size: int) -> np.ndarray:
    """`size` new keys, (size,) uint64."""
    return rng.integers(0, 2**64 - 1, size=size, dtype=np.uint64, endpoint=True)


def whole(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int; ValueError naming it unless it is an integer in low..high."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer in {low}..{high}, got {value!r}")
    return int(value)


def _check_stop(stop: str | Sequence[str]) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) or not isinstance(stop, Sequence) else tuple(stop)
    if not all(isinstance(text, str) and text for text in stops):
        raise ValueError(f"stop must be a non-empty str or a list of them, got {stop!r:.80}")
    return stops
