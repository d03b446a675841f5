"""An n-gram language model over a toy vocabulary: exact probabilities, full support."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from lm_envs.randomness import splitmix64
from lm_envs.tasks.prompts import check_text

_WORD = re.compile(r"\S\d*")


class NGram:
    """The language model of a toy environment: what `LanguageModel` is to the others, as far as they ask.

    The next token's probabilities depend on the n - 1 tokens before it, prompt included. Where a context is
    shorter, token 0 stands in for what is missing. Texts are words without blanks between them.

    Args:
        table: (V, ..., V) float64 with n axes: the probability of the last axis' token after the others.
        words: the V tokens' texts: different ones, each a character and perhaps a number.

    Raises:
        ValueError: a probability is not positive (no full support), or a row does not sum to 1.

    Attributes:
        table: the probabilities, frozen.
        words: the tokens' texts.
        vocab_size: V.
        order: n.
    """

    name = "n-gram"
    eos_token_id: int | None = None
    bos_token_id: int | None = None
    pad_token_id = 0

    def __init__(self, table: np.ndarray, words: Sequence[str]) -> None:
        table = np.array(table, dtype=np.float64)
        if set(table.shape) != {len(words)}:
            raise ValueError(f"table must have shape (V, ..., V) for {len(words)} words, got {table.shape}")
        if not (table > 0).all() or not np.allclose(table.sum(axis=-1), 1, rtol=0, atol=1e-12):
            raise ValueError("every row of table must be positive probabilities that sum to 1")
        self.table = table
        self.table.flags.writeable = False
        self.words = tuple(words)
        self.vocab_size = len(words)
        self.order = table.ndim
        self._ids = {word: i for i, word in enumerate(words)}

    @classmethod
    def random(cls, words: Sequence[str], *, order: int = 2, rare: float | None = None) -> NGram:
        """A fixed, peaked model: the same one for the same arguments, on every platform.

        After each context most of the weight lies on a few tokens: weight (1 + rank)^-2, in an order of its
        own.

        Args:
            words: the V tokens' texts, at least 2.
            order: n >= 1.
            rare: the probability that the last token gets after every context; None: it is like the others.
        """
        size = len(words)
        hashes = splitmix64(np.arange(size**order, dtype=np.uint64)).reshape((size,) * order)
        ranks = hashes.argsort(axis=-1).argsort(axis=-1)
        table = (1.0 + ranks) ** -2
        if rare is not None:
            table[..., -1] = 0
        table /= table.sum(axis=-1, keepdims=True)
        if rare is not None:
            table *= 1 - rare
            table[..., -1] = rare
        return cls(table, words)

    def probabilities(self, contexts: np.ndarray, lengths: np.ndarray | int | None = None) -> np.ndarray:
        """Probabilities of the next token.

        Args:
            contexts: (n, L) token ids.
            lengths: (n,) how many of them count, or one number for all; None: all of them.

        Returns:
            (n, V) float64.
        """
        contexts = np.asarray(contexts)
        lengths = np.broadcast_to(contexts.shape[1] if lengths is None else lengths, len(contexts))
        rows, before = np.arange(len(contexts)), []
        for back in range(self.order - 1, 0, -1):
            at = lengths - back
            before.append(np.where(at >= 0, contexts[rows, np.maximum(at, 0)], 0))
        if not before:
            return np.repeat(self.table[None], len(contexts), axis=0)
        return self.table[tuple(before)]

    def log_probs(
        self,
        contexts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        temperature: float = 1.0,
    ) -> list[np.ndarray]:
        """Log-probability of each token of each completion, in nats, as `LanguageModel.log_probs`."""
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature!r}")
        result = []
        for context, completion in zip(contexts, completions, strict=True):
            text = np.array([[*context, *completion]], dtype=np.int64)
            ends = np.arange(len(context), text.shape[1])
            logits = np.log(self.probabilities(np.repeat(text, len(ends), axis=0), ends)) / temperature
            log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
            result.append(log_probs[np.arange(len(ends)), text[0, ends]])
        return result

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; blanks are skipped.

        Raises:
            ValueError: not a text, or a word that is not in the vocabulary; names it.
        """
        check_text(text, "text")
        ids = []
        for word in _WORD.findall(text):
            if word not in self._ids:
                some = " ".join(self.words[:20]) + (" ..." if self.vocab_size > 20 else "")
                raise ValueError(f"text holds {word!r}, which is not in the vocabulary: {some}")
            ids.append(self._ids[word])
        return ids

    encode_prompt = encode

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """The words of token ids."""
        return "".join([self.words[i] for i in token_ids])
