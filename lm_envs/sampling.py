"""The one sampler: temperature, top-k, top-p and action masks, and an exact draw from what they leave."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor
from torch.nn.functional import pad

# Where `sample` raises for logits that it cannot draw from: on a GPU the host would wait for the answer.
CHECKED_DEVICES = ("cpu",)
# Tokens whose probabilities are summed before one of them is looked for.
SUMMED_TOKENS = 256


def check_sampling_arguments(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise ValueError, naming argument, value and range, unless all three are valid."""
    if not isinstance(temperature, Real) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a finite number > 0, got {temperature!r}")
    if top_k is not None and not (isinstance(top_k, Integral) and top_k >= 1):
        raise ValueError(f"top_k must be None or an integer >= 1, got {top_k!r}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be None or in (0, 1], got {top_p!r}")


def filter_logits(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    action_mask: Tensor | None = None,
) -> Tensor:
    """Logits of the distribution that is sampled from: temperature, action mask, top-k, top-p, in this order.

    top-k and top-p keep what the logits processors of Hugging Face transformers keep: ties with the k-th
    largest logit stay; top-p keeps the smallest set of most probable tokens whose probability reaches top_p.

    Args:
        logits: (B, V).
        temperature: divides the logits; > 0.
        top_k: keep the k most probable tokens; None or >= V keeps all.
        top_p: nucleus mass in (0, 1]; None or 1 keeps all.
        action_mask: (B, V) or (V,) bool, False where a token is excluded.

    Returns:
        (B, V), -inf where excluded; float32, or float64 if `logits` is.

    Raises:
        FloatingPointError: a logit is NaN or +inf.
        ValueError: an argument out of range, or a row with no token left to choose.
    """
    filtered, broken, empty = _filter(logits, temperature, top_k, top_p, action_mask)
    _check(broken, empty)
    return filtered


def _check(broken: Tensor, empty: Tensor) -> None:
    if (broken | empty).any():
        if broken.any():
            rows = broken.nonzero()[:, 0].tolist()
            raise FloatingPointError(f"logits of rows {rows} hold NaN or +inf (divided by the temperature)")
        raise ValueError(f"action_mask leaves no token to choose in rows {empty.nonzero()[:, 0].tolist()}")


def _filter(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, action_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Filtered logits (B, V), and which rows (B,) are broken or have no token left."""
    check_sampling_arguments(temperature, top_k, top_p)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if temperature != 1:
        logits = logits / temperature
    largest = logits.amax(-1)  # NaN if any logit is
    broken = ~(largest < torch.inf)
    if action_mask is not None:
        logits = logits.masked_fill(~action_mask.to(logits.device, torch.bool), -torch.inf)
        largest = logits.amax(-1)
    empty = largest == -torch.inf
    if top_k is not None and top_k < logits.shape[-1]:
        smallest_kept = logits.topk(int(top_k)).values[:, -1:]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    if top_p is not None and top_p < 1:
        ascending, order = logits.sort(dim=-1)
        excluded = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        excluded[:, -1] = False  # rounding must not exclude the most probable token
        logits = logits.masked_fill(excluded.scatter(-1, order, excluded), -torch.inf)
    return logits, broken, empty


def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    action_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    deterministic: bool = False,
) -> tuple[Tensor, Tensor]:
    """Draw one token per row from the filtered distribution, by inverting its cumulative distribution.

    Inversion takes a fraction of `torch.multinomial`'s time on CPU at the vocabulary sizes of language
    models.

    Args:
        logits: (B, V); the filter arguments are those of `filter_logits`.
        generator: source of the uniform numbers (one per row), on the logits' device; None: torch's global
            one.
        deterministic: take the most probable token instead.

    Returns:
        tokens (B,) int64, never one of zero probability, and their log-probs (B,) under the filtered
        distribution, float32 or float64. On a GPU, a row that cannot be drawn from gets token -1, which no
        decoder or environment accepts: to raise, the host would have to wait for every draw.

    Raises:
        FloatingPointError, ValueError: as `filter_logits`, on a CPU.
    """
    filtered, broken, empty = _filter(logits, temperature, top_k, top_p, action_mask)
    if logits.device.type in CHECKED_DEVICES:
        _check(broken, empty)
    largest, best = filtered.max(-1, keepdim=True)
    weights = (filtered - largest).exp_()
    if deterministic:
        tokens, total = best, weights.sum(-1, keepdim=True, dtype=torch.float64)
    else:
        uniform = torch.rand((len(logits), 1), generator=generator, device=logits.device, dtype=torch.float64)
        tokens, total = _invert(weights, uniform)
        # Sums are not monotone to the last bit everywhere: never return an excluded token.
        tokens = torch.where(weights.gather(-1, tokens) > 0, tokens, best)
    log_probs = filtered.gather(-1, tokens).double() - largest - total.log()
    tokens = tokens[:, 0].masked_fill(broken | empty, -1)
    return tokens, log_probs[:, 0].to(filtered.dtype)


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Where `uniform` (B, 1) of the sum of weights (B, V) is reached, (B, 1) int64, and that sum, (B, 1).

    First among sums of blocks, then within one: a cumulative sum over a large vocabulary takes longer than
    all else in sampling. In float64: in float32 the sum would drop tokens below 1e-7.
    """
    blocks = pad(weights, (0, -weights.shape[1] % SUMMED_TOKENS)).unflatten(1, (-1, SUMMED_TOKENS))
    sums = blocks.sum(-1, dtype=torch.float64)
    below = sums.cumsum(-1)
    total = below[:, -1:]
    # Rounding may carry a number that is nearly 1 behind the last block, or token.
    block = torch.searchsorted(below, uniform * total, right=True).clamp_(max=sums.shape[1] - 1)
    rest = uniform * total - (below - sums).gather(1, block)
    inside = blocks[torch.arange(len(block), device=block.device), block[:, 0]]
    token = torch.searchsorted(inside.cumsum(-1, dtype=torch.float64), rest, right=True)
    token = block * SUMMED_TOKENS + token.clamp_(max=SUMMED_TOKENS - 1)
    return token.clamp_(max=weights.shape[1] - 1), total
