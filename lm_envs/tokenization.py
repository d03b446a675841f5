"""Text to token ids under one rule: what looks like a special token in a text stays text."""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import ArrayLike

from lm_envs.errors import ModelError
from lm_envs.model_files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What transformers calls a tokenizer that tokenizer.json describes completely.
GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_tokenizer(path: str, folder: Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer of `folder`, or of the hub id `path` if that is None; ModelError if it does not load."""
    try:
        if folder is not None and (folder / "tokenizer.json").exists():
            settings = folder / "tokenizer_config.json"
            if settings.exists() and read_json(settings).get("tokenizer_class") in GENERIC_CLASSES:
                from transformers import PreTrainedTokenizerFast  # unlike AutoTokenizer, without torch

                return PreTrainedTokenizerFast.from_pretrained(path)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # the Rust tokenizers raise bare Exceptions
        file = path if folder is None else folder / "tokenizer.json"
        raise ModelError(f"{file}: cannot load the tokenizer: {error}") from error


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that no text may turn into. "Unknown" is not among them: it is a fair answer to an unknown word."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return frozenset((special | set(tokenizer.all_special_ids)) - ({tokenizer.unk_token_id} - ends))


def encode_text(tokenizer: PreTrainedTokenizerBase, special: Set[int], text: str) -> list[int]:
    """Token ids of a text alone.

    Args:
        tokenizer: any transformers tokenizer.
        special: its `special_ids`.
        text: what looks like a special token in it stays text.

    Raises:
        ValueError: not a str, a lone surrogate, or (tokenizers of whole words) a word that is a special
            token.
    """
    _check_text(text)
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    for token_id in ids:
        if token_id in special:
            token = tokenizer.convert_ids_to_tokens(token_id)
            raise ValueError(f"text {_shorten(text)} holds the special token {token!r}, not as text")
    return ids


def encode_chat(tokenizer: PreTrainedTokenizerBase, special: Set[int], text: str) -> list[int]:
    """The chat template around one user message, with the generation prompt behind it.

    The ids are those of `apply_chat_template`. Where the text holds what looks like a special token, the
    template is rendered around a placeholder instead, and what stands between the special tokens before and
    after it is encoded in one piece with the text in it.

    Args:
        tokenizer: one with a chat template.
        special: its `special_ids`.
        text: the message; special tokens come from the template alone.

    Raises:
        ValueError: as `encode_text`, or the template does not hold the message exactly once.
    """
    _check_text(text)

    def render(content: str) -> str:
        message = [{"role": "user", "content": content}]
        return cast(str, tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))

    placeholder = "c5f0d7e1a9"
    rendered = render(placeholder)
    before, found, after = rendered.partition(placeholder)
    if not found or placeholder in after:
        raise ValueError(f"the chat template must hold the message exactly once, but gives {rendered!r}")
    tokens = sorted(tokenizer.convert_ids_to_tokens(list(special)), key=len, reverse=True)
    pattern = re.compile("|".join(re.escape(token) for token in tokens))
    if not pattern.search(text):
        return tokenizer.encode(render(text), add_special_tokens=False)
    begin = max((match.end() for match in pattern.finditer(before)), default=0)
    end = next((match.start() for match in pattern.finditer(after)), len(after))
    left, right = (tokenizer.encode(part, add_special_tokens=False) for part in (before[:begin], after[end:]))
    return [*left, *encode_text(tokenizer, special, before[begin:] + text + after[:end]), *right]


def token_array(name: str, token_ids: ArrayLike) -> np.ndarray:
    """Token ids as int64; ValueError naming them if they are not integers."""
    array = np.asarray(token_ids)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got {array.dtype} {token_ids!r:.60}")
    return array.astype(np.int64, copy=False)


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise ValueError(f"text must be a str, got {type(text).__name__}: {text!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"text {_shorten(text)} has a lone surrogate at index {error.start}") from error


def _shorten(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:57] + "...")
