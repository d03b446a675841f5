"""Hidden states of whole rows, and log-probs of given tokens without ever keeping a B x T x V tensor.

Shared by `LanguageModel.log_probs` (no gradient) and by policies that train (gradient through it).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Logits held at a time; 2**21 float32 are 8 MiB, which still fits a CPU's last cache level.
LOGITS_PER_CHUNK = 2**21
# Tokens (with padding) of one pass through the layers. On a CPU a few thousand keep the activations in its
# caches, and leave little padding in rows sorted by length; an accelerator wants more to do at a time.
TOKENS_PER_PASS = {"cpu": 2048}
TOKENS_PER_PASS_ELSEWHERE = 32768


def _causal_lm(model: Any) -> Any:
    """The causal LM inside a peft wrapper (whose adapters live inside its layers), or `model` itself."""
    if not hasattr(model, "get_base_model"):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise ValueError("model must not be a peft prompt-learning model: its virtual tokens would be lost")
    return model.get_base_model()


def trunk(model: nn.Module) -> nn.Module:
    """The base model without LM head, of a plain or peft-wrapped Hugging Face causal LM."""
    return cast(nn.Module, _causal_lm(model).base_model)


def head(model: nn.Module) -> nn.Module:
    """The LM head (hidden states (..., H) -> logits) of a plain or peft-wrapped Hugging Face causal LM."""
    return cast(nn.Module, _causal_lm(model).get_output_embeddings())


def hidden_states(model: nn.Module, input_ids: Tensor) -> Tensor:
    """Last hidden states of right-padded rows.

    Args:
        model: Hugging Face causal LM, plain or peft-wrapped.
        input_ids: (B, T) int64. Padding to the right needs no mask: causal attention does not look there.

    Returns:
        (B, T, H) in the model's dtype; values at padded positions are meaningless.
    """
    positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    output = trunk(model)(input_ids=input_ids, position_ids=positions, use_cache=False)
    return cast(Tensor, output.last_hidden_state)


def passes(lengths: np.ndarray, device: torch.device) -> Iterator[slice]:
    """Cut rows that are sorted by length into runs that go through a model together.

    Args:
        lengths: (n,) tokens of each row, ascending.
        device: where the model is; decides how many tokens, padding included, go at a time.

    Yields:
        Slices of the rows, at least one row each.
    """
    tokens = TOKENS_PER_PASS.get(device.type, TOKENS_PER_PASS_ELSEWHERE)
    begin = 0
    while begin < len(lengths):
        # With lengths ascending, a run is as wide as its last row.
        padded = lengths[begin:] * np.arange(1, len(lengths) - begin + 1)
        end = begin + max(1, int(np.searchsorted(padded, tokens, side="right")))
        yield slice(begin, end)
        begin = end


def token_log_probs(
    head: nn.Module,
    hidden: Tensor,
    tokens: Tensor,
    *,
    vocab_size: int,
    temperature: float = 1.0,
    action_mask: Tensor | None = None,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs of `tokens` under softmax(head(hidden)[:, :vocab_size] / temperature).

    Works through the rows in chunks; with gradients enabled, each chunk's logits are recomputed in the
    backward pass, so that at no time more than one chunk of logits exists.

    Args:
        head: maps (n, H) to logits (n, at least vocab_size).
        hidden: (N, H).
        tokens: (N,) int64 in [0, vocab_size).
        vocab_size: logits of ids from here on (padded embeddings) are left out.
        temperature: divides the logits; > 0.
        action_mask: (N, V) or (V,) bool, False where a token is excluded. An excluded token has log-prob
            -inf.
        with_entropy: also return the entropy of each row's distribution.

    Returns:
        log-probs (N,) in nats and entropies (N,) in nats or None; float32, or float64 if the logits are.

    Raises:
        ValueError: temperature is not positive.
        FloatingPointError: a row's logits hold NaN or +inf, or its mask excludes every token.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature!r}")
    if action_mask is not None:
        action_mask = action_mask.expand(len(tokens), vocab_size)

    def score(hidden: Tensor, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        logits = head(hidden)[:, :vocab_size]
        logits = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        normalizer = logits.logsumexp(-1)
        log_probs = logits.gather(-1, tokens[:, None])[:, 0] - normalizer
        if not with_entropy:
            return log_probs, normalizer
        probs = (logits - normalizer[:, None]).exp()
        # H = log Z - E[logit]; an excluded logit is -inf, and 0 * -inf would be NaN.
        finite = logits if mask is None else logits.masked_fill(~mask, 0.0)
        return log_probs, normalizer, normalizer - (probs * finite).sum(-1)

    rows = max(1, LOGITS_PER_CHUNK // vocab_size)
    recompute = torch.is_grad_enabled() and len(tokens) > rows
    parts = []
    for begin in range(0, max(1, len(tokens)), rows):
        chunk = slice(begin, begin + rows)
        arguments = (hidden[chunk], tokens[chunk], None if action_mask is None else action_mask[chunk])
        if recompute:
            parts.append(checkpoint(score, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(score(*arguments))
    log_probs, normalizer, *entropy = (torch.cat(values) for values in zip(*parts, strict=True))
    broken = ~normalizer.isfinite()
    if broken.any():
        raise FloatingPointError(
            f"logits of rows {broken.nonzero()[:8, 0].tolist()} hold NaN or +inf, or exclude every token"
        )
    return log_probs, entropy[0] if entropy else None
