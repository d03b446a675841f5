"""Log-probs and entropies of whole completions: rows packed by length into few forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from lm_envs.sampling import check_sampling_arguments
from lm_envs.scoring import head, hidden_states, passes, token_log_probs
from lm_envs.tokenization import token_array

REMEMBERED_ROWS = 4096
_recent: WeakKeyDictionary[nn.Module, dict[bytes, np.ndarray]] = WeakKeyDictionary()


@torch.no_grad()
def score_completions(
    model: PreTrainedModel,
    contexts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    vocab_size: int,
    context_length: int,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Log-prob of every completion token given all tokens before it, and the entropy it was drawn with.

    Args:
        model: the language model.
        contexts: n lists of at least one token id.
        completions: n lists of token ids, possibly empty.
        vocab_size: ids and logits are those below it.
        context_length: the most tokens of a context and its completion.
        temperature: divides the logits; > 0.
        with_entropy: compute entropies as well.

    Returns:
        Log-probs and entropies, n arrays (len(completion),) each, in nats, float32 (float64 if the model is).
        Without `with_entropy` the second list holds zeros.

    Raises:
        ValueError: counts differ, a context is empty, a row is too long, an id is out of range; names the
            index.
    """
    check_sampling_arguments(temperature, None, None)
    rows = _checked_rows(contexts, completions, vocab_size, context_length)
    kind = np.float64 if model.dtype == torch.float64 else np.float32
    log_probs, entropies = ([np.zeros(len(completion), kind) for completion in completions] for _ in range(2))
    # The last token is only predicted, never put in.
    lengths = np.array([len(row) - 1 for row in rows], np.int64)
    starts = np.array([len(context) - 1 for context in contexts], np.int64)
    order = np.argsort(lengths, kind="stable")
    order = order[[len(completions[i]) > 0 for i in order]]
    for run in passes(lengths[order], model.device):
        batch = order[run]
        columns = np.arange(lengths[batch].max())
        real = columns < lengths[batch, None]
        predicts = real & (columns >= starts[batch, None])
        inputs = np.zeros(real.shape, np.int64)
        inputs[real] = np.concatenate([rows[i][:-1] for i in batch])
        targets = np.concatenate([rows[i][starts[i] + 1 :] for i in batch])
        arrays = inputs, predicts, targets
        ids, chosen, tokens = (torch.from_numpy(array).to(model.device) for array in arrays)
        hidden = hidden_states(model, ids)[chosen]
        scores = token_log_probs(
            head(model),
            hidden,
            tokens,
            vocab_size=vocab_size,
            temperature=temperature,
            with_entropy=with_entropy,
        )
        ends = np.cumsum((lengths - starts)[batch])
        for results, values in zip((log_probs, entropies), scores, strict=True):
            if values is not None:
                for i, part in zip(batch, np.split(values.cpu().numpy(), ends[:-1]), strict=True):
                    results[i] = part
    return log_probs, entropies


def remember(
    model: nn.Module,
    contexts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    log_probs: Sequence[np.ndarray],
) -> None:
    """Keep what a frozen model scored at temperature 1, the last few thousand rows, for `recall`.

    A reward and a KL penalty often ask the same model about the same texts.
    """
    rows = _recent.setdefault(model, {})
    for context, completion, scores in zip(contexts, completions, log_probs, strict=True):
        key = np.array([*context, *completion], np.int64).tobytes()
        rows.pop(key, None)
        rows[key] = scores
    while len(rows) > REMEMBERED_ROWS:
        del rows[next(iter(rows))]


def recall(model: nn.Module, row: np.ndarray) -> np.ndarray | None:
    """The log-probs of the last tokens, (k,), of a context with its completion, (T,) int64, if remembered."""
    return _recent.get(model, {}).get(row.tobytes())


def forget(model: nn.Module) -> None:
    """Forget what `remember` keeps of a model."""
    _recent.pop(model, None)


def _checked_rows(
    contexts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    vocab_size: int,
    context_length: int,
) -> list[np.ndarray]:
    """Each context with its completion, (length,) int64."""
    if len(contexts) != len(completions):
        raise ValueError(f"got {len(contexts)} contexts but {len(completions)} completions")
    rows = []
    for i, (context, completion) in enumerate(zip(contexts, completions, strict=True)):
        if len(context) == 0:
            raise ValueError(f"contexts[{i}] is empty: the first token has nothing to be predicted from")
        parts = (f"contexts[{i}]", context), (f"completions[{i}]", completion)
        row = np.concatenate([token_array(name, part) for name, part in parts])
        if len(row) > context_length:
            raise ValueError(
                f"contexts[{i}] + completions[{i}] is {len(row)} tokens; accepted: up to context_length = "
                f"{context_length}"
            )
        if row.min() < 0 or row.max() >= vocab_size:
            wrong = row[(row < 0) | (row >= vocab_size)][0]
            raise ValueError(f"token id {wrong} in row {i}; accepted: 0 to {vocab_size - 1}")
        rows.append(row)
    return rows
