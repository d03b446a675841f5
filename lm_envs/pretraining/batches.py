"""Training rows: one text a row, rows of like length together, every text once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from lm_envs.pretraining.recipe import TEXTS_PER_SEED, Recipe

# Number of a text, and weights of the text kinds -> the text.
Source = Callable[[int, Mapping[str, int]], str]

# Batches are cut from this many batches' worth of texts, sorted by length: little padding, still random.
POOL = 16


def rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of whole texts: `<|endoftext|>`, the text, `<|endoftext|>`.

    A model reads all but the last token of a row, so what is beyond `model_max_length` + 1 tokens is cut.
    """
    encoded = tokenizer(list(texts), split_special_tokens=True, verbose=False)["input_ids"]
    longest = tokenizer.model_max_length + 1
    return [[*ids, tokenizer.eos_token_id][:longest] for ids in encoded]


def batches(
    recipe: Recipe, source: Source, tokenizer: PreTrainedTokenizerBase, *, shard: int = 0, start: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """An endless stream of one shard's training batches, which can be entered anywhere.

    Of a pool of batches, all shards yield the one of the same rank in length at the same time, so that they
    take about as long. A pool has the mixture of its first step.

    Args:
        recipe: Rows, shards, seed and mixtures.
        source: The texts; numbers `seed * TEXTS_PER_SEED` and on.
        tokenizer: Makes the ids.
        shard: Which part of each step.
        start: Number of the first step to yield the batch of.

    Yields:
        Token ids, int64 (B, T), right-padded with the end-of-text id, and the length of each row, int64 (B,),
        with B = rows / shards.
    """
    per_batch = recipe.rows // recipe.shards
    pool = start // POOL
    skip = start % POOL
    while True:
        mixture = recipe.mixture(pool * POOL)
        first = recipe.seed * TEXTS_PER_SEED + (pool * recipe.shards + shard) * POOL * per_batch
        numbers = range(first, first + POOL * per_batch)
        pooled = sorted(rows(tokenizer, [source(number, mixture) for number in numbers]), key=len)
        for batch in np.random.default_rng((recipe.seed, pool)).permutation(POOL)[skip:]:
            yield padded(pooled[batch * per_batch :][:per_batch], tokenizer.eos_token_id)
        pool, skip = pool + 1, 0


def padded(token_rows: Sequence[Sequence[int]], filler: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of token ids as one int64 array (B, T), right-padded with `filler`, and their lengths (B,)."""
    lengths = np.array([len(row) for row in token_rows])
    ids = np.full((len(token_rows), lengths.max()), filler)
    for target, row in zip(ids, token_rows, strict=True):
        target[: len(row)] = row
    return ids, lengths
