"""What decides the weights of a pretrained model, beside the text itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lm_envs.pretraining.corpus import DRILL_MIXTURE, LATE_MIXTURE, MIXTURE

# Far more than any run reads, so that the texts of two training seeds do not meet.
TEXTS_PER_SEED = 10_000_000
TRAINING_SEEDS = 2**40 // TEXTS_PER_SEED


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights.

    Attributes:
        steps: Optimizer steps; the learning rate falls to 0 over them.
        seed: Of the initial weights and of the choice of texts.
        rows: Texts a step.
        shards: Into how many parts a step's texts are split. The gradients of the parts are added up, in one
            process each if there are cores for it, else one after the other: the sum is the same.
        mixtures: The curriculum: from which share of the steps (0 to 1, the first one 0) which weights of the
            text kinds hold.
        vocab_size: Of the tokenizer, the special token and the 256 bytes included.
        tokenizer_texts: How many texts the tokenizer learns from.
        context_length: The model's window, in tokens. What a text has beyond it is cut off.
        hidden_size: Width.
        layers: Depth.
        heads: Attention heads.
        kv_heads: Heads of keys and values, each shared by `heads / kv_heads` attention heads; few make
            decoding fast.
        intermediate_size: Width of the feed-forward layers.
        matrix_lr: Peak learning rate of Muon, for the hidden matrices.
        other_lr: Peak learning rate of AdamW, for embeddings and norms.
        warmup_steps: Steps over which the learning rate rises.
        compiled: Compile the model, and multiply matrices in bfloat16: twice as fast on processors that
            multiply it (AMX, GPUs). Compiling needs a C++ compiler and a minute.
        text: What is learned from: the checksum of a text of one's own, or empty for the corpus.
    """

    steps: int = 8500
    seed: int = 0
    rows: int = 64
    shards: int = 2
    mixtures: tuple[tuple[float, Mapping[str, int]], ...] = (
        (0.0, MIXTURE),
        (0.68, DRILL_MIXTURE),
        (0.82, LATE_MIXTURE),
    )
    vocab_size: int = 2048
    tokenizer_texts: int = 20_000
    context_length: int = 256
    hidden_size: int = 192
    layers: int = 5
    heads: int = 6
    kv_heads: int = 2
    intermediate_size: int = 512
    matrix_lr: float = 0.03
    other_lr: float = 3e-3
    warmup_steps: int = 100
    compiled: bool = True
    text: str = ""

    def __post_init__(self) -> None:
        if self.shards < 1 or self.rows < 1 or self.rows % self.shards:
            raise ValueError(
                f"rows must be a multiple of shards, both >= 1, got {self.rows} and {self.shards}"
            )
        most = TEXTS_PER_SEED // self.rows
        if not 1 <= self.steps <= most:
            raise ValueError(f"steps must be from 1 to {most}, got {self.steps}")
        if not 0 <= self.seed < TRAINING_SEEDS:
            raise ValueError(f"seed must be from 0 to {TRAINING_SEEDS - 1}, got {self.seed}")
        starts = [start for start, _ in self.mixtures]
        if starts[:1] != [0.0] or starts != sorted(starts):
            raise ValueError(
                f"mixtures must start at rising shares of the steps, the first at 0, got {starts}"
            )

    def mixture(self, step: int) -> Mapping[str, int]:
        """The weights of the text kinds at a step."""
        return next(weights for start, weights in reversed(self.mixtures) if start * self.steps <= step)
