"""What an agent sees of the episodes and what its actions mean: the observation and action modes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from lm_envs.episodes import Episodes
from lm_envs.spaces import UnicodeText

if TYPE_CHECKING:
    from lm_envs.decoding import Decoder, Snapshot
    from lm_envs.language_model import LanguageModel

OBSERVATIONS = ("tokens", "embedding", "text")


class View:
    """Observations of slots, and the candidates that "top_k" actions choose from.

    The language model's weights are needed (and loaded) for "embedding" and "top_k" only.

    Args:
        language_model: embeds and proposes.
        episodes: what is looked at.
        observation: "tokens", "embedding" or "text".
        num_candidates: k for "top_k" actions; 0 for "token" actions.
    """

    def __init__(
        self, language_model: LanguageModel, episodes: Episodes, observation: str, num_candidates: int
    ) -> None:
        if observation not in OBSERVATIONS:
            raise ValueError(f"observation must be one of {OBSERVATIONS}, got {observation!r}")
        self.language_model = language_model
        self.episodes = episodes
        self.observation = observation
        self.num_candidates = num_candidates
        self._decoder: Decoder | None = None
        self.action_space = spaces.Discrete(num_candidates or language_model.vocab_size)
        self.observation_space = self._make_observation_space()

    @property
    def decoder(self) -> Decoder:
        """The slots' contexts in the language model; made when first needed."""
        if self._decoder is None:
            self._decoder = self.language_model.decoder(self.episodes.num_slots)
        return self._decoder

    @property
    def uses_model(self) -> bool:
        """Whether observations or actions come from the language model."""
        return self.observation == "embedding" or self.num_candidates > 0

    def look(self, slots: np.ndarray) -> tuple[Any, np.ndarray | None]:
        """Fresh observations of n slots, batched as Gymnasium batches them, and their candidates.

        Returns:
            The observation, and (n, k) int64 token ids in order of falling probability (None unless "top_k").

        Raises:
            FloatingPointError: the model's logits or hidden states are not finite.
        """
        a = self.episodes.arrays
        hidden = self.decoder.advance(a.tokens[slots], a.lengths[slots], slots) if self.uses_model else None
        if self.observation == "embedding":
            observation: Any = self._embedding(hidden, slots)
        elif self.observation == "text":
            contexts = zip(a.tokens[slots], a.lengths[slots], strict=True)
            observation = tuple(self.language_model.decode(row[:length].tolist()) for row, length in contexts)
        else:
            attended = np.arange(self.episodes.context_length) < a.lengths[slots][:, None]
            observation = {
                "input_ids": a.tokens[slots],
                "attention_mask": attended.astype(np.int8),
                "completion_mask": a.own[slots],
            }
        return observation, self._candidates(slots) if self.num_candidates else None

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
        return logits.topk(self.num_candidates).indices.cpu().numpy()

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
            longest_token = max(len(token) for token in self.language_model.tokenizer.get_vocab())
            return UnicodeText(length * longest_token)
        return spaces.Dict(
            {
                "input_ids": spaces.Box(0, self.language_model.vocab_size - 1, (length,), np.int64),
                "attention_mask": spaces.Box(0, 1, (length,), np.int8),
                "completion_mask": spaces.Box(0, 1, (length,), np.int8),
            }
        )
