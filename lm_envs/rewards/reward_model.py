"""A sequence-classification model as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lm_envs.errors import ModelError
from lm_envs.language_model import as_folder, check_device
from lm_envs.model_files import check_folder, file_stamp, refuse_remote_code
from lm_envs.rewards.base import check_texts, whole_number


class RewardModel:
    """The score that a sequence-classification model gives to prompt + completion.

    Range: any number for `output="logit"`; 0 to 1 for `output="probability"` (softmax over the labels, or
    sigmoid of a single one). Texts longer than the model's window lose their beginning. What looks like a
    special token in a text stays text; the tokenizer adds its own.

    An empty completion gets the model's score of the prompt alone. A text without any token is scored as one
    EOS (or padding) token.

    The model is loaded at the first call, once per process, and again if its files have changed; from
    safetensors only and without remote code.

    Args:
        path_or_hub_id: local folder or hub id of a model with a sequence-classification head.
        label: index or name (in the config's `id2label`) of the label whose score is the reward; None is
            allowed for models with one label.
        output: "logit" or "probability".
        with_prompt: False scores the completion alone, as sentiment classifiers want it.
        batch_size: rows per forward pass.
        device: "auto" (CUDA if there is one), or a torch device, e.g. "cpu" or "cuda:1".

    Raises:
        ModelError: the folder is missing, damaged, unsafe, or has no classification head.
        ValueError: an argument is out of range.
    """

    __name__ = "reward_model"

    def __init__(
        self,
        path_or_hub_id: str | Path,
        *,
        label: int | str | None = None,
        output: str = "logit",
        with_prompt: bool = True,
        batch_size: int = 16,
        device: str = "auto",
    ) -> None:
        if output not in ("logit", "probability"):
            raise ValueError(f"output must be 'logit' or 'probability', got {output!r}")
        folder = as_folder(path_or_hub_id)
        if folder is not None:
            check_folder(folder)
        self.path = str(folder or path_or_hub_id)
        self.output = output
        self.with_prompt = with_prompt
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.device = check_device(device)
        self.label = _label_index(label, _config(self.path).id2label)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """B texts in, B floats out; `columns` are not read."""
        check_texts(prompts, completions)
        model, tokenizer = _load(self.path, self.device, file_stamp(self.path))
        before = prompts if self.with_prompt else [""] * len(completions)
        ids = [_encode(tokenizer, p + c) for p, c in zip(before, completions, strict=True)]
        # Decoders find a row's last token by the padding id of their config: without one, pad nothing.
        size = 1 if model.config.get_text_config().pad_token_id is None else self.batch_size
        rewards = [0.0] * len(ids)
        by_length = sorted(range(len(ids)), key=lambda row: len(ids[row]))  # little padding
        for start in range(0, len(ids), size):
            rows = by_length[start : start + size]
            logits = _logits(model, [ids[row] for row in rows])
            if self.output == "probability":
                logits = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)
            for row, value in zip(rows, logits[:, self.label].tolist(), strict=True):
                rewards[row] = value
        return rewards


def _logits(model: Any, rows: list[list[int]]) -> Any:
    """One forward pass over right-padded rows: float32 tensor (rows, labels)."""
    import torch

    filler = model.config.get_text_config().pad_token_id or 0
    input_ids = torch.full((len(rows), max(map(len, rows))), filler)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
    with torch.inference_mode():
        output = model(input_ids=input_ids.to(model.device), attention_mask=attention_mask.to(model.device))
    return output.logits.float().cpu()


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids = tokenizer(text, truncation=True, split_special_tokens=True)["input_ids"]
    if ids:
        return ids
    fallback = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.pad_token_id
    return [fallback or 0]


def _label_index(label: int | str | None, id2label: dict[int, str]) -> int:
    if label is None and len(id2label) == 1:
        return 0
    for index, name in id2label.items():
        if label == name or (label == index and type(label) is int):
            return index
    raise ValueError(f"label must be an index or a name of {id2label}, got {label!r}")


def _config(path: str) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # each file format and architecture raises its own
        raise ModelError(f"{path}: cannot read its config.json: {error}") from error
    refuse_remote_code(config.to_dict(), path)
    return config


@lru_cache(maxsize=8)
def _load(path: str, device: str, stamp: tuple[tuple[str, int, int], ...]) -> tuple[Any, Any]:
    """The frozen model and its tokenizer, one copy per process; files with another stamp are read again."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from lm_envs.model_loading import on_device

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"{path}: cannot load the tokenizer: {error}") from error
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        raise ModelError(f"{path}: the weights do not make a sequence classifier: {error}") from error
    wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if wrong:
        raise ModelError(
            f"{path}: weights are missing or have another shape than config.json asks for: {wrong}"
        )
    tokenizer.truncation_side = "left"
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            window = module.num_embeddings - module.padding_idx - 1  # RoBERTa counts from behind the padding
    if window is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, window)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return on_device(model.requires_grad_(False).eval(), torch.device(device)), tokenizer
