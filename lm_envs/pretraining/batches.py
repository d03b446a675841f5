"""Training rows: one story a row, rows of like length together, every story once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from lm_envs.pretraining.stories import Split, story

# Batches are cut from this many batches' worth of stories, sorted by length: little padding, still random.
POOL = 16

# Far more than any run reads, so that the stories of two training seeds do not meet.
STORIES_PER_SEED = 10_000_000
TRAINING_SEEDS = 2**48 // STORIES_PER_SEED


def rows(tokenizer: PreTrainedTokenizerBase, seeds: Sequence[int], split: Split) -> list[list[int]]:
    """Token ids of whole stories: `<|endoftext|>`, the text, `<|endoftext|>`."""
    texts = [story(seed, split).text for seed in seeds]
    return [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]


def batches(
    tokenizer: PreTrainedTokenizerBase, *, rows_per_batch: int, seed: int, start: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """An endless stream of training batches, which can be entered anywhere.

    Args:
        tokenizer: Makes the ids.
        rows_per_batch: B.
        seed: Which stories: `seed * STORIES_PER_SEED` and on.
        start: Number of the first batch to yield.

    Yields:
        Token ids, int64 (B, T), right-padded with the end-of-text id, and the length of each row, int64 (B,).
    """
    pool = start // POOL
    skip = start % POOL
    while True:
        first = seed * STORIES_PER_SEED + pool * POOL * rows_per_batch
        pooled = rows(tokenizer, range(first, first + POOL * rows_per_batch), "train")
        pooled.sort(key=len)
        for number in np.random.default_rng((seed, pool)).permutation(POOL)[skip:]:
            yield padded(pooled[number * rows_per_batch :][:rows_per_batch], tokenizer.eos_token_id)
        pool, skip = pool + 1, 0


def padded(token_rows: Sequence[Sequence[int]], filler: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of token ids as one int64 array (B, T), right-padded with `filler`, and their lengths (B,)."""
    lengths = np.array([len(row) for row in token_rows])
    ids = np.full((len(token_rows), lengths.max()), filler)
    for target, row in zip(ids, token_rows, strict=True):
        target[: len(row)] = row
    return ids, lengths
