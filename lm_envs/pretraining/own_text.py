"""A user's own text as what a model learns from: documents of a file, cut into pieces that fit the window."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from lm_envs.pretraining.batches import padded, rows
from lm_envs.pretraining.recipe import Recipe
from lm_envs.pretraining.training import next_token_loss

# One document in so many is held out.
HELD_OUT = 10
SHORTEST = 5_000
# A model of the size that a few megabytes of text can fill; about 5 minutes on 2 cores.
SMALL = {
    **{"steps": 1000, "rows": 16, "shards": 1, "hidden_size": 128, "layers": 4, "heads": 4, "kv_heads": 2},
    **{"intermediate_size": 384, "compiled": False},
}


@dataclass(frozen=True)
class OwnText:
    """The documents of a file.

    Attributes:
        train: What is trained on.
        held_out: What the model is measured on: every tenth document; of fewer than ten, the last tenth of
            the file.
        checksum: Of the file, so that a run is not continued with another one.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    checksum: str

    @classmethod
    def read(cls, path: str | Path) -> OwnText:
        """Reads a UTF-8 file. Blank lines separate documents.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no UTF-8 text (names line and byte), or shorter than 5,000 characters.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file")
        data = path.read_bytes()
        try:
            whole = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise ValueError(
                f"{path}: line {line} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}; "
                "save the file as UTF-8"
            ) from error
        whole = whole.replace("\r\n", "\n").strip()
        if len(whole) < SHORTEST:
            raise ValueError(f"{path}: {len(whole):,} characters of text; at least {SHORTEST:,} are needed")
        documents = [document.strip("\n") for document in re.split(r"\n(?:[ \t]*\n)+", whole)]
        if len(documents) < HELD_OUT:
            cut = len(whole) * (HELD_OUT - 1) // HELD_OUT
            documents, held_out = [whole[:cut]], [whole[cut:]]
        else:
            held_out = documents[HELD_OUT - 1 :: HELD_OUT]
            del documents[HELD_OUT - 1 :: HELD_OUT]
        return cls(tuple(documents), tuple(held_out), hashlib.sha256(data).hexdigest())

    def recipe(self, **settings: int) -> Recipe:
        """How a small model is trained on it: `SMALL` and settings of one's own."""
        return Recipe(**{**SMALL, **settings, "text": self.checksum})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Pieces:
    """A `Source` that gives every piece once, then all again in another order, and so on."""

    pieces: tuple[str, ...]

    def __call__(self, number: int, mixture: Mapping[str, int]) -> str:
        """The piece of a number; there are no kinds of text to weigh."""
        epoch, place = divmod(number, len(self.pieces))
        return self.pieces[_order(len(self.pieces), epoch)[place]]


@lru_cache(maxsize=2)
def _order(count: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(epoch).permutation(count)


def cut(tokenizer: PreTrainedTokenizerBase, documents: Iterable[str]) -> tuple[str, ...]:
    """Cuts documents into pieces that start every `model_max_length` tokens.

    Each is told beyond the window, so that its row ends with the end-of-text token only where the document
    does.
    """
    pieces = []
    step = tokenizer.model_max_length
    for document in documents:
        encoded = tokenizer(
            document,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        starts = [start for start, _ in encoded["offset_mapping"][::step]]
        ends = [*starts[2:], None, None][: len(starts)]
        pieces += [document[start:end] for start, end in zip(starts, ends, strict=True)]
    return tuple(pieces)


@torch.no_grad()
def perplexity(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch: int = 32
) -> float:
    """exp of the mean negative log-probability of a token of the texts' rows (see `batches.rows`)."""
    nats, tokens = 0.0, 0
    for first in range(0, len(texts), batch):
        token_rows = rows(tokenizer, texts[first : first + batch])
        ids, lengths = (torch.from_numpy(array) for array in padded(token_rows, tokenizer.eos_token_id))
        nats += next_token_loss(model, ids, lengths).item()
        tokens += int((lengths - 1).sum())
    return math.exp(nats / tokens)
