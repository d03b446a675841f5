"""Tiny causal language models with random weights, saved as any model would be."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

ARCHITECTURES = ("gpt2", "llama", "qwen2")
CONTEXT_LENGTH = 80

SENTENCES = (
    "Mira finds a silver key under the old bridge.",
    "The baker is sad because the oven will not burn.",
    "A fox waits by the river until the rain is over.",
    '"We did it!" says Tom, and everybody is happy.',
    "At night the small boat comes home with the light on.",
    "Nobody knew why the garden was so quiet that day.",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tiny(
    folder: str | Path,
    architecture: str = "gpt2",
    *,
    sentences: tuple[str, ...] = SENTENCES,
    word_level: bool = False,
    bos: bool = True,
    add_bos: bool = False,
    eos: bool = True,
    pad: bool = False,
    chat: bool = False,
    surplus_ids: int = 0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **config: object,
) -> str:
    """Save a random model of 2 layers and 16 hidden units with a tokenizer of at most 300 ids; return its
    folder.

    Args:
        architecture: "gpt2", "llama" or "qwen2".
        sentences: what the tokenizer is trained on.
        word_level: one id a word (the special tokens are words too) instead of byte-level BPE.
        bos, eos, pad: whether the tokenizer has `<bos>`, `<eos>`, `<pad>`.
        add_bos: its post-processor puts `<bos>` in front by default.
        chat: it has a chat template.
        surplus_ids: rows of the embedding that the tokenizer does not know.
        dtype: of the saved weights.
        seed: of the weights.
        config: overrides of the configuration.
    """
    tokenizer = build_tokenizer(
        sentences, word_level=word_level, bos=bos, add_bos=add_bos, eos=eos, pad=pad, chat=chat
    )
    model = build_model(architecture, len(tokenizer) + surplus_ids, seed=seed, **config).to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def build_tokenizer(
    sentences: tuple[str, ...] = SENTENCES,
    *,
    word_level: bool = False,
    bos: bool = True,
    add_bos: bool = False,
    eos: bool = True,
    pad: bool = False,
    chat: bool = False,
) -> PreTrainedTokenizerFast:
    """A tokenizer trained on the sentences; the arguments are those of `save_tiny`."""
    named = {"bos_token": "<bos>" if bos else None, "eos_token": "<eos>" if eos else None}
    named["pad_token"] = "<pad>" if pad else None
    special = [token for token in named.values() if token]
    special += ["<|im_start|>", "<|im_end|>"] if chat else []
    if word_level:
        named["unk_token"] = "<unk>"
        words = sorted({word for sentence in sentences for word in sentence.split()})
        ids = {word: i for i, word in enumerate([*special, "<unk>", *words])}
        tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=290,
            special_tokens=special,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(sentences, trainer)
    if add_bos:
        first = tokenizer.token_to_id("<bos>")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", first)]
        )
    given = {key: token for key, token in named.items() if token}
    if chat:
        given["additional_special_tokens"] = ["<|im_start|>", "<|im_end|>"]
        given["chat_template"] = CHAT_TEMPLATE
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **given)


def build_model(architecture: str, vocab_size: int, *, seed: int = 0, **config: object) -> PreTrainedModel:
    """A model whose weights are large enough for distributions far from uniform; dropout at its default."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT_LENGTH,
        "initializer_range": 0.4,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    grouped = {**shape, "intermediate_size": 32, "num_key_value_heads": 2}
    build: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel], dict]] = {
        "gpt2": (GPT2Config, GPT2LMHeadModel, shape),
        "llama": (LlamaConfig, LlamaForCausalLM, {**grouped, "tie_word_embeddings": False}),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM, {**grouped, "tie_word_embeddings": True}),
    }
    config_class, model_class, arguments = build[architecture]
    return model_class(config_class(**{**arguments, **config})).eval()
