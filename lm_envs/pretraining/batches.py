"""Training rows: one text a row, every text once; a step has all lengths, each with its like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from lm_envs.pretraining.recipe import TEXTS_PER_SEED, Recipe

# Number of a text, and weights of the text kinds -> the text.
Source = Callable[[int, Mapping[str, int]], str]

# Texts are sorted by length in pools of so many steps, and each step takes as many from each part of a pool:
# all lengths, and with them all kinds of text, are in every step, with little padding. Steps of one length
# each learn far more slowly: see the model card.
POOL = 16
PARTS = 2

Batch = tuple[np.ndarray, np.ndarray]


def rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of whole texts: `<|endoftext|>`, the text, `<|endoftext|>`.

    A model reads all but the last token of a row, so what is beyond `model_max_length` + 1 tokens is cut.
    """
    encoded = tokenizer(list(texts), split_special_tokens=True, verbose=False)["input_ids"]
    longest = tokenizer.model_max_length + 1
    return [[*ids, tokenizer.eos_token_id][:longest] for ids in encoded]


def batches(
    recipe: Recipe, source: Source, tokenizer: PreTrainedTokenizerBase, *, shard: int = 0, start: int = 0
) -> Iterator[list[Batch]]:
    """An endless stream of one shard's training steps, which can be entered anywhere.

    All shards take as long for a step: their parts are of like lengths. A pool has the mixture of its first
    step.

    Args:
        recipe: Rows, shards, seed and mixtures.
        source: The texts; numbers `seed * TEXTS_PER_SEED` and on.
        tokenizer: Makes the ids.
        shard: Which part of each step.
        start: Number of the first step to yield.

    Yields:
        The parts of a step, short texts first: token ids, int64 (B, T), right-padded with the end-of-text id,
        and the length of each row, int64 (B,). The rows of all parts are rows / shards; if that is less than
        `PARTS`, there are fewer parts.
    """
    per_step = recipe.rows // recipe.shards
    pool = start // POOL
    skip = start % POOL
    while True:
        mixture = recipe.mixture(pool * POOL)
        first = recipe.seed * TEXTS_PER_SEED + (pool * recipe.shards + shard) * POOL * per_step
        numbers = range(first, first + POOL * per_step)
        pooled = sorted(rows(tokenizer, [source(number, mixture) for number in numbers]), key=len)
        # Steps are drawn by chance, part by part.
        rng = np.random.default_rng((recipe.seed, pool))
        parts = [part for part in np.array_split(np.arange(per_step), PARTS) if len(part)]
        orders = [rng.permutation(POOL) for _ in parts]
        for step in range(skip, POOL):
            yield [
                padded(
                    [pooled[POOL * part[0] + order[step] * len(part) + row] for row in range(len(part))],
                    tokenizer.eos_token_id,
                )
                for part, order in zip(parts, orders, strict=True)
            ]
        pool, skip = pool + 1, 0


def padded(token_rows: Sequence[Sequence[int]], filler: int) -> Batch:
    """Rows of token ids as one int64 array (B, T), right-padded with `filler`, and their lengths (B,)."""
    lengths = np.array([len(row) for row in token_rows])
    ids = np.full((len(token_rows), lengths.max()), filler)
    for target, row in zip(ids, token_rows, strict=True):
        target[: len(row)] = row
    return ids, lengths
