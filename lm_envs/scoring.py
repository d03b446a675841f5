"""Hidden states of whole rows, and log-probs of given tokens without ever keeping a B x T x V tensor.

Shared by `LanguageModel.log_probs` (no gradient) and by policies that train (gradient through it).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from lm_envs.sampling import check_sampling_arguments

# Logits held at a time; 2**21 float32 are 8 MiB, which still fits a CPU's last cache level. With fewer rows
# than these a chunk's time would be that of reading a large head and of adding up its gradients.
LOGITS_PER_CHUNK = 2**21
FEWEST_ROWS_PER_CHUNK = 128
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

    Works through the rows in chunks, whose logits are computed once more in the backward pass, so that at no
    time more than one chunk of logits exists. Gradients of gradients are not supported.

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
    check_sampling_arguments(temperature, None, None)
    if action_mask is not None:
        action_mask = action_mask.expand(len(tokens), vocab_size)
    weights = [weight for weight in head.parameters() if weight.requires_grad]
    log_probs, entropy = _ChunkedLogProbs.apply(
        head, vocab_size, temperature, with_entropy, hidden, tokens, action_mask, *weights
    )
    return log_probs, entropy if with_entropy else None


class _ChunkedLogProbs(torch.autograd.Function):
    """The log-probs and entropies of `token_log_probs`, with logits x, x / temperature normalised by log Z.

    d log p(a) / dx_j = (1[j = a] - p_j) / temperature
    d entropy / dx_j = -p_j (log p_j + entropy) / temperature
    """

    @staticmethod
    def forward(  # noqa: PLR0917  (torch passes arguments by position)
        ctx: Any,
        head: nn.Module,
        vocab_size: int,
        temperature: float,
        with_entropy: bool,
        hidden: Tensor,
        tokens: Tensor,
        mask: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.head, ctx.vocab_size, ctx.temperature = head, vocab_size, temperature
        parts = []
        for chunk in _chunks(len(tokens), vocab_size):
            logits = _scaled(head(hidden[chunk]), ctx)
            if mask is not None:
                logits = logits.masked_fill(~mask[chunk], -torch.inf)
            normalizer = logits.logsumexp(-1)
            log_probs = logits.gather(-1, tokens[chunk, None])[:, 0] - normalizer
            entropy = torch.zeros_like(normalizer)
            if with_entropy:
                probs = (logits - normalizer[:, None]).exp_()
                if mask is not None:  # an excluded logit is -inf, and 0 * -inf would be NaN
                    logits.masked_fill_(~mask[chunk], 0.0)
                # H = log Z - E[logit]
                entropy = normalizer - probs.mul_(logits).sum(-1)
            parts.append((log_probs, entropy, normalizer))
        log_probs, entropy, normalizer = (torch.cat(values) for values in zip(*parts, strict=True))
        broken = ~normalizer.isfinite()
        if broken.any():
            raise FloatingPointError(
                f"logits of rows {broken.nonzero()[:8, 0].tolist()} hold NaN or +inf, or exclude every token"
            )
        ctx.save_for_backward(hidden, tokens, mask, normalizer, entropy, *weights)
        return log_probs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_probs: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, tokens, mask, normalizer, entropy, *weights = ctx.saved_tensors
        through_entropy = bool(grad_entropy.any())  # with a coefficient of 0 there are gradients, all 0
        grad_hidden = torch.empty_like(hidden)
        grads: list[Tensor | None] = [None] * len(weights)
        for chunk in _chunks(len(tokens), ctx.vocab_size):
            rows = hidden[chunk].detach().requires_grad_()
            with torch.enable_grad():
                output = ctx.head(rows)
            scale = grad_log_probs[chunk, None] / ctx.temperature
            log_probs = _scaled(output.detach(), ctx) - normalizer[chunk, None]
            if mask is not None:
                log_probs.masked_fill_(~mask[chunk], -torch.inf)
            grad = log_probs.exp()
            if through_entropy:
                if mask is not None:
                    log_probs.masked_fill_(~mask[chunk], 0.0)
                entropy_scale = grad_entropy[chunk, None] / ctx.temperature
                grad *= log_probs.add_(entropy[chunk, None]).mul_(-entropy_scale).sub_(scale)
            else:
                grad *= -scale
            grad.scatter_add_(-1, tokens[chunk, None], scale)
            if mask is not None:
                grad.masked_fill_(~mask[chunk], 0.0)
            grad = pad(grad, (0, output.shape[-1] - ctx.vocab_size)).to(output.dtype)
            grad_hidden[chunk], *new = torch.autograd.grad(output, [rows, *weights], grad, allow_unused=True)
            grads = [
                b if a is None else a if b is None else a.add_(b) for a, b in zip(grads, new, strict=True)
            ]
        return None, None, None, None, grad_hidden, None, None, *grads


def _scaled(logits: Tensor, ctx: Any) -> Tensor:
    """The logits of the vocabulary, divided by the temperature, in float32 or float64."""
    logits = logits[:, : ctx.vocab_size]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if ctx.temperature == 1 else logits / ctx.temperature


def _chunks(rows: int, vocab_size: int) -> Iterator[slice]:
    """At least one chunk, which may be empty."""
    size = max(FEWEST_ROWS_PER_CHUNK, LOGITS_PER_CHUNK // vocab_size)
    for begin in range(0, max(1, rows), size):
        yield slice(begin, begin + size)
