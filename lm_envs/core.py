"""What the single and the vector environment share: everything but Gymnasium's two interfaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.error import InvalidAction

from lm_envs.actions import check_action, check_actions
from lm_envs.episodes import EpisodeArrays, Episodes, Step
from lm_envs.randomness import FORK, mix
from lm_envs.replay import pack, replay
from lm_envs.rewards.base import whole_number
from lm_envs.tasks import Task, make_task
from lm_envs.tasks.tokenized import TokenizedTask
from lm_envs.view import ACTIONS, View

if TYPE_CHECKING:
    from lm_envs.decoding import Snapshot
    from lm_envs.toy.view import ToyView


@dataclass(frozen=True)
class ClonedState:
    """What `clone_state` returns; opaque to users."""

    arrays: EpisodeArrays
    offers: dict[str, np.ndarray]
    cache: Snapshot | None
    include_rng: bool


class EnvCore:
    """A task, a language model, B slots' episodes and the view of them.

    Attributes:
        task: the text task, or the toy.
        language_model: encodes, decodes, embeds and proposes; its weights are loaded when first needed.
        episodes: the dynamics.
        view: observations, candidates, masks and spaces.
        turns: where an action writes a whole turn, the token ids that each writes; else None.
        offers: what the next actions choose from, see `View.look`, of all B slots.
        num_actions: size of the action space.
    """

    def __init__(
        self,
        language_model: Any,
        task: Any,
        episodes: Episodes,
        view: View | ToyView,
        turns: list[list[int]] | None = None,
    ) -> None:
        self.language_model, self.task = language_model, task
        self.episodes, self.view = episodes, view
        self.turns = turns
        self.offers = view.blank_offers() if isinstance(view, View) else {}
        self.num_actions = int(view.action_space.n)

    @classmethod
    def for_text(
        cls,
        num_slots: int,
        task: str | Task,
        model: str | None,
        *,
        max_new_tokens: int = 64,
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
        context_length = whole_number("context_length", context_length, 2, window)
        max_new_tokens = whole_number("max_new_tokens", max_new_tokens, 1, context_length - 1)
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
        if actions == "top_k":
            top_k = whole_number("top_k", top_k, 1, language_model.vocab_size)
        view = View(language_model, task, episodes, observation=observation, actions=actions, top_k=top_k)
        turns = None if actions in ACTIONS else tokenized.choices(actions)
        return cls(language_model, task, episodes, view, turns)

    def token(self, action: Any) -> int:
        """What the single environment's action stands for: a token id, or the number of a choice.

        Raises:
            InvalidAction: it stands for nothing, or is masked.
        """
        action = check_action(action, self.num_actions)
        return int(self._chosen(np.array([action]), np.ones(1, bool))[0]) if self.offers else action

    def tokens(self, actions: Any, used: np.ndarray) -> np.ndarray:
        """What a vector environment's actions stand for, (B,) int64; see `token` and `check_actions`."""
        actions = check_actions(actions, self.num_actions, used)
        return self._chosen(actions, used) if self.offers else actions

    def _chosen(self, actions: np.ndarray, used: np.ndarray) -> np.ndarray:
        (values,) = self.offers.values()
        offered = values[self.episodes.all_slots, actions]
        if self.turns is None:
            return offered
        for slot in np.flatnonzero(used & (offered == 0)).tolist():
            text = self.language_model.decode(self.turns[actions[slot]])
            raise InvalidAction(f"action {actions[slot]} ({text!r}) of slot {slot} is masked now")
        return actions

    def turn(self, text: str) -> list[int]:
        """The token ids of a text as one whole turn; see `TokenizedTask.turn`.

        Raises:
            InvalidAction: the text cannot be encoded, this environment's task does not speak text, or some of
                the turn is written already.
        """
        task, a = self.episodes.task, self.episodes.arrays
        if not isinstance(task, TokenizedTask):
            raise InvalidAction(f"this environment's actions are tokens, got the text {text!r:.80}")
        if written := a.lengths[0] - a.turn_starts[0]:
            raise InvalidAction(f"a text is a whole turn, and {written} tokens of this one are written")
        try:
            return task.turn(str(text))
        except ValueError as error:
            raise InvalidAction(f"action {text!r:.80} cannot be written: {error}") from error

    def step(self, chosen: np.ndarray, slots: np.ndarray | None = None) -> Step:
        """Writes what `tokens` found, into these slots; None means all."""
        if self.turns is None:
            return self.episodes.step(chosen, slots)
        return self.episodes.write_turns([self.turns[number] for number in chosen], slots)

    def steps(self, slots: np.ndarray) -> np.ndarray:
        """How many actions there were in these slots' episodes, (n,) int64."""
        a = self.episodes.arrays
        return a.steps[slots] if self.turns is None else a.turns[slots] + ~a.running[slots]

    @property
    def mask(self) -> Callable[[], np.ndarray]:
        """A function that gives the slots' action masks, (B, N) bool.

        Raises:
            AttributeError: no actions are masked.
        """
        if "action_mask" not in self.offers:
            raise AttributeError("action_masks: this environment masks no actions")
        return lambda: self.offers["action_mask"].astype(bool)

    def clone_state(self, include_rng: bool) -> ClonedState:
        """See `TextGenEnv.clone_state`."""
        arrays = self.episodes.arrays.copy()
        cache = self.view.snapshot() if isinstance(self.view, View) else None
        offers = {key: values.copy() for key, values in self.offers.items()}
        return ClonedState(arrays, offers, cache, include_rng)

    def restore_state(self, state: ClonedState) -> None:
        """See `TextGenEnv.restore_state`."""
        now = self.episodes.arrays
        theirs, ours = (
            (arrays.tokens.shape, {key: values.shape for key, values in offers.items()})
            for arrays, offers in ((state.arrays, state.offers), (now, self.offers))
        )
        if theirs != ours:
            raise ValueError(
                "this state is of another environment: (slots, context_length) "
                f"{theirs[0]} and offers {theirs[1]}, here {ours[0]} and {ours[1]}"
            )
        arrays = state.arrays.copy()
        if not state.include_rng:
            begun = now.episodes >= 0
            arrays.keys = np.where(begun, now.keys, arrays.keys)
            arrays.episodes = np.where(begun, now.episodes, arrays.episodes)
            arrays.dice = mix(np.where(begun, now.dice, arrays.dice), FORK)
        self.episodes.arrays = arrays
        self.offers = {key: values.copy() for key, values in state.offers.items()}
        if isinstance(self.view, View) and state.cache is not None:
            self.view.restore(state.cache)

    def get_state(self) -> dict[str, np.ndarray]:
        """See `TextGenEnv.get_state`."""
        e = self.episodes
        limits = np.array([e.context_length, e.max_new_tokens, self.num_actions])
        return {**pack(e.arrays), "limits": limits}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """See `TextGenEnv.set_state`."""
        ours = self.get_state()
        if missing := sorted({*ours, "np_random"} - set(state)):
            raise ValueError(f"the state lacks {missing}")
        theirs, here = (tuple(each["limits"].tolist()) for each in (state, ours))
        if theirs != here:
            raise ValueError(
                "the state does not fit this environment: (context_length, max_new_tokens, number of "
                f"actions) {theirs}, here {here}"
            )
        with self.episodes.atomic():
            replay(self.episodes, state)
            begun = np.flatnonzero(self.episodes.arrays.episodes >= 0)
            if len(begun) and self.offers:
                for key, values in (self.view.look(begun)[1] or {}).items():
                    self.offers[key][begun] = values


def draw_keys(rng: np.random.Generator, size: int) -> np.ndarray:
    """`size` new keys, (size,) uint64."""
    return rng.integers(0, 2**64 - 1, size=size, dtype=np.uint64, endpoint=True)


def _check_stop(stop: str | Sequence[str]) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) or not isinstance(stop, Sequence) else tuple(stop)
    if not all(isinstance(text, str) and text for text in stops):
        raise ValueError(f"stop must be a non-empty str or a list of them, got {stop!r:.80}")
    return stops
