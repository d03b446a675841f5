"""A copy of a language model's weights to train: without dropout, and only as much of it as was asked for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from lm_envs.language_model import LanguageModel
from lm_envs.scoring import trunk


def trainable_copy(
    language_model: LanguageModel,
    *,
    freeze_layers: int = 0,
    lora: Mapping[str, Any] | None = None,
    gradient_checkpointing: bool = False,
) -> nn.Module:
    """Copy a language model's weights for training; the original, shared and frozen, stays as it is.

    Dropout is set to zero everywhere, and not switched by train() and eval(): a dropout mask makes the
    probability that an action was sampled with differ from the one it is evaluated with, and gradient
    checkpointing needs train().

    Args:
        language_model: where the weights are copied from.
        freeze_layers: the lowest blocks that are not trained. The embeddings below them are not either, and
            with them the LM head where it is tied to them.
        lora: arguments of `peft.LoraConfig`; None trains the weights themselves. {} takes peft's defaults.
        gradient_checkpointing: recompute the blocks' activations in the backward pass.

    Returns:
        A Hugging Face causal LM, wrapped by peft if `lora` is given.

    Raises:
        ValueError: freeze_layers out of range, or a LoRA configuration that peft refuses.
        ImportError: lora without peft installed.
    """
    model: nn.Module = copy.deepcopy(language_model.model)
    model.requires_grad_(True)
    if lora is not None:
        model = _with_lora(model, lora)
    _freeze(model, freeze_layers)
    _remove_dropout(model)
    if gradient_checkpointing:
        _enable_checkpointing(model)
    return model


def adapter_state(model: nn.Module) -> tuple[Any, ...]:
    """Which adapters of a peft model act, and whether merged; what was cached holds under one state only."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    layer = next(layers, None)
    return () if layer is None else (*layer.active_adapters, layer.disable_adapters, *layer.merged_adapters)


def _with_lora(model: nn.Module, lora: Mapping[str, Any]) -> nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("lora needs the package peft: pip install 'lm-envs[lora]'") from error
    try:
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError(f"lora must be peft.LoraConfig arguments, got {lora!r}: {error}") from error


def _freeze(model: nn.Module, layers: int) -> None:
    if layers == 0:
        return
    base = trunk(model)
    blocks = next((m for m in base.modules() if isinstance(m, nn.ModuleList)), nn.ModuleList())
    if not isinstance(layers, int) or isinstance(layers, bool) or not 0 <= layers <= len(blocks):
        raise ValueError(f"freeze_layers must be from 0 to {len(blocks)}, the model's blocks, got {layers!r}")
    for module in base.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(False)
    blocks[:layers].requires_grad_(False)


def _enable_checkpointing(model: Any) -> None:
    # transformers renamed it in the course of version 5.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _remove_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        # Attention implementations take a float such as Llama's `attention_dropout`, OPT's `layerdrop`.
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
