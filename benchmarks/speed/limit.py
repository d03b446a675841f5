"""How near decoding comes to what the machine can do: operations and bytes counted from the model's shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from benchmarks.speed.measuring import Case, interleave, seconds
from benchmarks.speed.workloads import Workload

STEP = "Decoder.step"
STEP_AND_LOGITS = "Decoder.step and logits"
MATRIX_RATE, COPY_RATE = "matrix product, GFLOP/s", "copy, GB/s"


@dataclass(frozen=True)
class Cost:
    """Of one decoding step of all slots.

    Attributes:
        operations: floating-point ones; a multiplication and its addition are two.
        bytes: read or written: every weight once, the keys and values of all earlier tokens, the new ones.
    """

    operations: float
    bytes: float

    def seconds(self, operations_per_second: float, bytes_per_second: float) -> float:
        """The least time: whatever of the two takes longer (the roofline model, Williams et al., 2009)."""
        return max(self.operations / operations_per_second, self.bytes / bytes_per_second)


def step_cost(model: Any, slots: int, context: float, *, with_head: bool) -> Cost:
    """Count one step.

    Matrix products: 2 operations a weight and token. Attention: each query meets `context` keys and as many
    values. Norms, activations, the softmax and embedding rows are left out: they are little, and without
    them the limit is stricter.

    Args:
        model: Hugging Face causal LM of linear layers.
        slots: B, tokens of the step.
        context: tokens that each of them attends to, itself included (a mean).
        with_head: with the product that gives logits.
    """
    config = model.config.get_text_config()
    matrices = [
        module.weight for module in model.base_model.modules() if isinstance(module, nn.Linear | Conv1D)
    ]
    if with_head:
        matrices.append(model.get_output_embeddings().weight)
    weights = sum(weight.numel() for weight in matrices)
    item = matrices[0].element_size()
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    stored_heads = getattr(config, "num_key_value_heads", None) or heads
    layers = config.num_hidden_layers
    attention = 2 * 2 * heads * head_size * context * layers
    stored = 2 * stored_heads * head_size * layers  # keys and values of one token
    # The new token's keys and values are written, the others read.
    return Cost(slots * (2 * weights + attention), item * (weights + slots * context * stored))


def reached(work: Workload, repetitions: int, *, short: bool = False) -> Case:
    """The share of the limit that decoding steps reach, prompts prefilled, `new_tokens` steps long.

    Args:
        work: equal lengths.
        repetitions: of rates and steps alike; the machine's rates are its best ones.
        short: small matrices and copies, for a trial.
    """
    language_model = work.language_model()
    prompts = work.prompts()
    steps = work.new_tokens
    tokens = np.ones(work.slots, np.int64)
    dtype = language_model.dtype

    decoder = language_model.decoder(work.slots)

    def decode(with_head: bool) -> Callable[[], float]:
        def run() -> float:
            decoder.prefill(range(work.slots), prompts)  # rewinds, from the second time on
            decoder.step(tokens)

            def write() -> None:
                for _ in range(steps):
                    decoder.step(tokens)
                    if with_head:
                        decoder.logits()

            return seconds(work.device, write) / steps

        return run

    # Two rates and two times a repetition, in turn.
    contenders = {
        MATRIX_RATE: lambda: matrix_rate(work.device, dtype, 512 if short else 2048),
        COPY_RATE: lambda: copy_rate(work.device, 2**24 if short else 2**28),
        STEP: decode(False),
        STEP_AND_LOGITS: decode(True),
    }
    values, _ = interleave(contenders, repetitions, label=f"limit, {work.label}")
    operations, copied = (1e9 * max(values.pop(name)) for name in (MATRIX_RATE, COPY_RATE))
    context = float(np.mean([len(prompt) for prompt in prompts])) + 1 + (steps + 1) / 2
    facts = {MATRIX_RATE: operations / 1e9, COPY_RATE: copied / 1e9, "context, tokens": context}
    shares = {}
    for name, with_head in ((STEP, False), (STEP_AND_LOGITS, True)):
        cost = step_cost(language_model.model, work.slots, context, with_head=with_head)
        least = cost.seconds(operations, copied)
        shares[name] = [least / measured for measured in values[name]]
        facts |= {
            f"{name}, MFLOP/token": cost.operations / work.slots / 1e6,
            f"{name}, MB/token": cost.bytes / work.slots / 1e6,
            f"{name}, least ms": 1e3 * least,
            f"{name}, by bytes alone": cost.bytes / copied / float(np.median(values[name])),
        }
    return Case("limit", work.name, work.settings, "of the limit", shares, facts=facts)


def matrix_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """1e9 operations a second of a square matrix product."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = left @ right
    rounds = 4
    elapsed = seconds(device, lambda: [torch.mm(left, right, out=out) for _ in range(rounds)])
    return rounds * 2 * size**3 / elapsed / 1e9


def copy_rate(device: str, size: int) -> float:
    """1e9 bytes a second of a copy of so many bytes; each is read and written."""
    source = torch.zeros(size // 4, device=device)
    target = torch.ones_like(source)
    rounds = 4
    elapsed = seconds(device, lambda: [target.copy_(source) for _ in range(rounds)])
    return rounds * 2 * size / elapsed / 1e9
