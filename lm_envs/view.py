"""What an agent sees of the episodes, and what it may do: the observation and action modes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from lm_envs.episodes import Episodes
from lm_envs.spaces import MaskedDiscrete, UnicodeText

if TYPE_CHECKING:
    from lm_envs.decoding import Decoder, Snapshot
    from lm_envs.language_model import LanguageModel

OBSERVATIONS = ("tokens", "embedding", "text")
ACTIONS = ("token", "top_k")


class View:
    """Observations of slots, and what is offered to their actions: candidates, or a mask.

    The language model's weights are needed (and loaded) for "embedding" and "top_k" only.

    Args:
        language_model: embeds and proposes.
        task: may have observation and action modes of its own, see `lm_envs.tasks.Task`.
        episodes: what is looked at.
        observation: "tokens", "embedding", "text" or one of the task's views.
        actions: "token", "top_k" or one of the task's choices.
        top_k: number of candidates for "top_k".

    Attributes:
        is_masked: whether the task allows some choices only.

    Raises:
        ValueError: a mode that does not exist; names those that do.
        TypeError: a view of the task is not a space with a shape.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        task: Any,
        episodes: Episodes,
        *,
        observation: str,
        actions: str,
        top_k: int,
    ) -> None:
        self._views = getattr(task, "views", None) or {}
        choices = getattr(task, "choices", None) or {}
        for name, mode, modes in (
            ("observation", observation, (*OBSERVATIONS, *self._views)),
            ("actions", actions, (*ACTIONS, *choices)),
        ):
            if mode not in modes:
                raise ValueError(f"{name} must be one of {modes}, got {mode!r}")
        self.language_model = language_model
        self.task = task
        self.episodes = episodes
        self.observation, self.actions = observation, actions
        num_actions = {"token": language_model.vocab_size, "top_k": top_k}
        self.is_masked = actions in choices and hasattr(task, "allowed")
        kind = MaskedDiscrete if self.is_masked else spaces.Discrete
        self.action_space = kind(num_actions.get(actions) or len(choices[actions]))
        self._decoder: Decoder | None = None
        self.observation_space = self._make_observation_space()

    def __getstate__(self) -> dict[str, Any]:
        # Copies share the frozen weights, and read the contexts anew.
        return {**self.__dict__, "_decoder": None}

    @property
    def decoder(self) -> Decoder:
        """The slots' contexts in the language model; made when first needed."""
        if self._decoder is None:
            self._decoder = self.language_model.decoder(self.episodes.num_slots)
        return self._decoder

    @property
    def uses_model(self) -> bool:
        """Whether observations or actions come from the language model."""
        return self.observation == "embedding" or self.actions == "top_k"

    def blank_offers(self) -> dict[str, np.ndarray]:
        """What `look` offers, of the same shapes, of slots that nobody has looked at yet."""
        num_slots, num_actions = self.episodes.num_slots, int(self.action_space.n)
        if self.actions == "top_k":
            return {"candidates": np.zeros((num_slots, num_actions), np.int64)}
        return {"action_mask": np.zeros((num_slots, num_actions), np.int8)} if self.is_masked else {}

    def look(self, slots: np.ndarray) -> tuple[Any, dict[str, np.ndarray]]:
        """Fresh observations of n slots, batched as Gymnasium batches them, and what actions choose from.

        Returns:
            The observation, and, for "top_k", `candidates`: (n, k) int64 token ids in order of falling
            probability; for masked choices `action_mask`: (n, N) int8, 1 for what is allowed.

        Raises:
            FloatingPointError: the model's logits or hidden states are not finite.
            ValueError: the task's view or mask has the wrong form.
        """
        a = self.episodes.arrays
        hidden = self.decoder.advance(a.tokens[slots], a.lengths[slots], slots) if self.uses_model else None
        offers = {}
        if self.actions == "top_k":
            offers["candidates"] = self._candidates(slots)
        elif self.is_masked:
            offers["action_mask"] = self._mask(slots)
        if self.observation == "embedding":
            observation: Any = self._embedding(hidden, slots)
        elif self.observation == "text":
            observation = self.texts(slots)
        elif self.observation in self._views:
            observation = self._view(slots)
        else:
            attended = np.arange(self.episodes.context_length) < a.lengths[slots][:, None]
            observation = {
                "input_ids": a.tokens[slots],
                "attention_mask": attended.astype(np.int8),
                "completion_mask": a.own[slots],
                **{key: mask.copy() for key, mask in offers.items() if key == "action_mask"},
            }
        return observation, offers

    def texts(self, slots: np.ndarray) -> tuple[str, ...]:
        """The contexts of n slots, decoded without special tokens."""
        a = self.episodes.arrays
        contexts = zip(a.tokens[slots], a.lengths[slots], strict=True)
        return tuple(self.language_model.decode(row[:length].tolist()) for row, length in contexts)

    def text_space(self, num_tokens: int) -> UnicodeText:
        """The texts of so many tokens."""
        longest_token = max(len(token) for token in self.language_model.tokenizer.get_vocab())
        return UnicodeText(num_tokens * longest_token)

    def snapshot(self) -> Snapshot | None:
        """The language model's cache, if it is used."""
        return self.decoder.snapshot() if self.uses_model else None

    def restore(self, snapshot: Snapshot) -> None:
        """Goes back to a snapshot."""
        if self.uses_model:
            self.decoder.restore(snapshot)

    def _candidates(self, slots: np.ndarray) -> np.ndarray:
        from lm_envs.sampling import filter_logits

        logits = filter_logits(self.decoder.logits(slots))
        return logits.topk(int(self.action_space.n)).indices.cpu().numpy()

    def _mask(self, slots: np.ndarray) -> np.ndarray:
        a, shape = self.episodes.arrays, (len(slots), int(self.action_space.n))
        allowed = np.asarray(self.task.allowed(a.states[slots].tolist(), self.actions))
        if allowed.dtype != np.bool_ or allowed.shape != shape:
            got = f"{allowed.dtype} {allowed.shape}"
            raise ValueError(f"task.allowed() must be a bool array {shape}, got {got}")
        stuck = a.running[slots] & ~allowed.any(axis=1)
        if stuck.any():
            raise ValueError(f"task.allowed() allows no action in slot(s) {slots[stuck].tolist()}")
        return allowed.astype(np.int8)

    def _view(self, slots: np.ndarray) -> np.ndarray:
        space = self._views[self.observation]
        view = np.array(self.task.view(self.episodes.arrays.states[slots].tolist(), self.observation))
        if view.dtype != space.dtype or view.shape != (len(slots), *space.shape):
            raise ValueError(
                f"task.view() must be an array {(len(slots), *space.shape)} of {space.dtype}, "
                f"got {view.shape} of {view.dtype}"
            )
        return view

    def _embedding(self, hidden: Any, slots: np.ndarray) -> np.ndarray:
        a, budget = self.episodes.arrays, self.episodes.max_new_tokens
        left = budget - (a.lengths[slots] - a.turn_starts[slots])
        left = np.minimum(left, self.episodes.context_length - a.lengths[slots])
        embedding = np.empty((len(slots), self.language_model.hidden_size + 1), np.float32)
        embedding[:, :-1] = hidden.float().cpu().numpy()
        embedding[:, -1] = left / budget
        broken = ~np.isfinite(embedding).all(axis=1)
        if broken.any():
            raise FloatingPointError(f"hidden states of slots {slots[broken].tolist()} hold NaN or infinity")
        return embedding

    def _make_observation_space(self) -> spaces.Space:
        if self.observation == "embedding":
            return spaces.Box(-np.inf, np.inf, (self.language_model.hidden_size + 1,), np.float32)
        length = self.episodes.context_length
        if self.observation == "text":
            return self.text_space(length)
        if self.observation in self._views:
            space = self._views[self.observation]
            if not isinstance(space, spaces.Space) or space.shape is None:
                name = f"task.views[{self.observation!r}]"
                raise TypeError(f"{name} must be a space with a shape, got {space!r}")
            return space
        keys: dict[str, spaces.Space] = {
            "input_ids": spaces.Box(0, self.language_model.vocab_size - 1, (length,), np.int64),
            "attention_mask": spaces.Box(0, 1, (length,), np.int8),
            "completion_mask": spaces.Box(0, 1, (length,), np.int8),
        }
        if self.is_masked:
            keys["action_mask"] = spaces.Box(0, 1, (int(self.action_space.n),), np.int8)
        return spaces.Dict(keys)
