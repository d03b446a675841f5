"""Weights into memory: safetensors only, nothing missing, checked to decode exactly, shared per process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from lm_envs.decoding import Decoder
from lm_envs.errors import ModelError
from lm_envs.model_files import file_stamp
from lm_envs.scoring import head, hidden_states

# Accepted |difference| of logits, relative to the largest: rounding stays well below, a wrong mask far above.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}

# What older versions of transformers saved beside the weights: masks, and the rotary embedding's angles.
OLD_BUFFERS = re.compile(r"\.(masked_bias|attn\.bias|attention\.bias|rotary_emb\.inv_freq)$")

_shared: WeakValueDictionary[tuple[Any, ...], PreTrainedModel] = WeakValueDictionary()


def shared_model(
    path: str, *, device: torch.device, dtype: torch.dtype, vocab_size: int, context_length: int
) -> PreTrainedModel:
    """The frozen model of a folder or hub id, loaded once per process, path, device and dtype.

    Raises:
        ModelError: as `load_model`.
    """
    key = (path, device, dtype, file_stamp(path))
    model = _shared.get(key)
    if model is None:
        model = load_model(path, device=device, dtype=dtype)
        check_decoding(model, path, vocab_size=vocab_size, context_length=context_length)
        _shared[key] = model
    return model


def load_model(path: str, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A frozen causal LM in evaluation mode, from safetensors, without remote code.

    Raises:
        ModelError: naming path and file, if the weights cannot be read, lack something that the configuration
            asks for, or hold layers that it does not.
    """
    try:
        with no_progress_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
            )
        model, report = loaded
    except Exception as error:  # each file format and architecture raises its own
        raise ModelError(
            f"{path}: model.safetensors and config.json do not make a causal language model: {error}"
        ) from error
    prefix = model.base_model_prefix + "."
    surplus = [
        key for key in report["unexpected_keys"] if key.startswith(prefix) and not OLD_BUFFERS.search(key)
    ]
    for problem, keys in (
        ("lacks weights that config.json asks for", report["missing_keys"]),
        ("holds weights of another shape than config.json asks for", report["mismatched_keys"]),
        ("holds weights that config.json does not ask for", surplus),
    ):
        if keys:
            names = ", ".join(str(key) for key in sorted(keys, key=str)[:3])
            raise ModelError(f"{path}: model.safetensors {problem}: {names} ({len(keys)} in all)")
    return on_device(model.requires_grad_(False).eval(), device)


@torch.no_grad()
def check_decoding(model: PreTrainedModel, path: str, *, vocab_size: int, context_length: int) -> None:
    """Compare, on a few tokens, every way in which this package runs the model with a plain forward pass.

    Catches what a configuration does not tell: capped or scaled logits, recurrent state instead of a KV
    cache, position biases that ignore position_ids, attention that looks ahead.

    Raises:
        ModelError: naming path and architecture, if they differ.
    """
    length = min(6, context_length)
    rows = (np.arange(2 * length).reshape(2, length) * 7 + 1) % vocab_size
    lengths = np.array([length, max(1, length - 2)])
    unsupported = f"{path}: architecture {type(model).__name__} is not supported"
    tokens = torch.from_numpy(rows).to(model.device)
    try:
        expected = model(input_ids=tokens).logits[..., :vocab_size]
        parallel = head(model)(hidden_states(model, tokens))[..., :vocab_size]
        decoder = Decoder(model, 2, vocab_size=vocab_size, context_length=context_length)
        if length > 1:
            decoder.advance(rows, np.maximum(lengths - 1, 1))
        decoder.advance(rows, lengths)
        decoded = decoder.logits()
    except Exception as error:
        raise ModelError(f"{unsupported}: {error}") from error
    # NaN passes, since no comparison with it holds: it is for the sampler to report.
    tolerance = TOLERANCES[model.dtype] * expected.abs().max().clamp(min=1)
    # The parallel pass runs the same kernels in the same order: a tenth will do, and soft caps hide in more.
    if (parallel - expected).abs().max() > tolerance / 10:
        raise ModelError(f"{unsupported}: its logits are not its output embeddings times its hidden states")
    if (decoded - expected[[0, 1], lengths - 1]).abs().max() > tolerance:
        raise ModelError(f"{unsupported}: decoding with a key/value cache differs from a full forward pass")


def on_device(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model on a device; ValueError if there is none such."""
    try:
        return model.to(device)  # type: ignore[arg-type]  # a decorator hides its signature
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError) as error:  # each kind of device has its own
        raise ValueError(f"device={str(device)!r} cannot be used here: {error}") from error


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keeps transformers from drawing one for every folder that it reads or writes."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()
