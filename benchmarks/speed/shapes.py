"""Models to measure: the bundled one, and shapes of well-known ones with random weights, built here.

Speed does not depend on what the weights are. A shape's tokenizer is the bundled one, its vocabulary filled
up with tokens that no text is encoded to.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, PretrainedConfig, Qwen2Config

from lm_envs.language_model import BUNDLED
from lm_envs.model_loading import no_progress_bar

BUNDLED_NAME = "bundled"
# A step after 1024 generated tokens needs room for them and for a short prompt.
LONG_CONTEXT = 1088


def shape(name: str, **changes: Any) -> PretrainedConfig:
    """Configuration of a model.

    Args:
        name: "gpt2": GPT-2 small, 124 M parameters. "qwen2": Qwen2-0.5B with a window of 1024 tokens.
            "long": the bundled model's sizes with a longer window. "tiny": for tests.
        changes: of the configuration.

    Raises:
        ValueError: no such shape.
    """
    if name == "gpt2":
        return GPT2Config(**({"bos_token_id": 0, "eos_token_id": 0} | changes))
    if name in ("qwen2", "tiny"):
        sizes = {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        if name == "tiny":
            sizes |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
            sizes |= {"num_attention_heads": 4, "vocab_size": 2048, "max_position_embeddings": 256}
        return Qwen2Config(**(sizes | changes))
    if name == "long":
        config = AutoConfig.from_pretrained(BUNDLED)
        for key, value in ({"max_position_embeddings": LONG_CONTEXT} | changes).items():
            setattr(config, key, value)
        return config
    raise ValueError(f"shape must be one of gpt2, qwen2, long, tiny, got {name!r}")


def random_model(name: str, **changes: Any) -> Any:
    """A frozen causal LM of that shape in float32, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(shape(name, **changes), dtype=torch.float32)
    return model.eval().requires_grad_(False)


def model_argument(name: str, folder: Path, **changes: Any) -> str | None:
    """What environments and policies take as `model`.

    Args:
        name: "bundled", a shape's name (it is saved under `folder`, unless it is there), or a model's folder.
        folder: of the models that are built.
        changes: of a shape's configuration.
    """
    if name == BUNDLED_NAME:
        return None
    if Path(name).is_dir():
        return name
    target = folder / "-".join([name, *(str(value) for value in changes.values())])
    if not target.exists():
        model = random_model(name, **changes)
        with no_progress_bar():
            model.to(torch.bfloat16).save_pretrained(target)  # half the file; it is loaded as float32
        _save_tokenizer(target, model.config.vocab_size)
    return str(target)


def _save_tokenizer(folder: Path, vocab_size: int) -> None:
    tokenizer = json.loads((BUNDLED / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    if vocab_size < len(vocab):
        raise ValueError(f"vocab_size must be at least {len(vocab)}, the tokenizer's, got {vocab_size}")
    vocab |= {f"unused{number}": number for number in range(len(vocab), vocab_size)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    shutil.copy(BUNDLED / "tokenizer_config.json", folder)
