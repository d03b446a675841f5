"""The sizes of a model, from its config.json as it stands where that suffices: no torch, no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_envs.errors import ModelError
from lm_envs.model_files import read_json, refuse_remote_code

# What the sizes are called in the config.json of most architectures; the others go through AutoConfig.
ALIASES = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions"),
}
# Attention that sees less than all positions. Contexts stay inside it, where it equals full attention.
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")
CAUSAL = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class ModelSizes:
    """Sizes that a configuration states."""

    vocab_size: int  # embedding rows, padded ones included
    hidden_size: int
    context_length: int  # what the positions and every attention window leave room for


def read_sizes(path: str, folder: Path | None) -> ModelSizes:
    """Sizes of the model in `folder`, or of the hub id `path` if that is None.

    Raises:
        ModelError: naming the file, if it is missing, damaged, asks for remote code or is no causal language
            model.
    """
    source = path if folder is None else str(folder / "config.json")
    config = {} if folder is None else read_json(folder / "config.json")
    sizes = _standard_names(config)
    if None in sizes.values():
        config = _auto_config(path, source)
        sizes = _standard_names(config)
    for key, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ModelError(f"{source}: {key} must be a positive integer, got {value!r}")
    architectures = config.get("architectures") or []
    causal = not architectures or any(name.endswith(CAUSAL) for name in architectures)
    if config.get("is_encoder_decoder") or not causal:
        raise ModelError(f"{source}: {', '.join(architectures)} is not a causal language model")
    return ModelSizes(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        context_length=min([sizes["max_position_embeddings"], *_windows(config)]),
    )


def _standard_names(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: next((config[alias] for alias in aliases if alias in config), None)
        for key, aliases in ALIASES.items()
    }


def _auto_config(path: str, source: str) -> dict[str, Any]:
    """The configuration with its architecture's defaults, sizes under standard names. Imports torch."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # network, hub, file format and architecture raise their own
        raise ModelError(f"{source}: cannot read the model's configuration: {error}") from error
    refuse_remote_code(config.to_dict(), source)
    text = config.get_text_config()
    sizes = {key: getattr(text, key, None) for key in ALIASES}
    return {**text.to_dict(), **sizes, "architectures": config.architectures}


def _windows(config: Mapping[str, Any]) -> list[int]:
    """Lengths up to which keys in a cache equal those of a full forward pass, where some are limited."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    windows = []
    if "longrope" in (rope.get("rope_type"), rope.get("type")):  # later on it turns all earlier keys anew
        key = "original_max_position_embeddings"
        windows.append(rope.get(key) or config.get(key))
    layer_types = config.get("layer_types")
    everywhere_full = layer_types and set(layer_types) == {"full_attention"}
    if config.get("use_sliding_window", True) and not everywhere_full:
        windows += [config.get(key) for key in WINDOWS]
    return [window for window in windows if window]
