"""One causal language model: its tokenizer, its rules about special tokens, its limits, its scores.

Importing this module loads neither torch nor transformers, and neither does `LanguageModel.load(lazy=True)` load torch
for a folder that names its tokenizer class and sizes plainly: weights come with the first use of `.model`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_envs.errors import ModelError
from lm_envs.model_files import check_folder, read_json, refuse_remote_code, verify_checksums

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lm_envs.decoding import Decoder

BUNDLED = Path(__file__).parent / "bundled"
DTYPES = ("float64", "float32", "bfloat16", "float16")
# Tokens (with padding) of one scoring forward; bounds its memory.
SCORING_TOKENS = 8192
# Attention that sees less than max_position_embeddings; contexts stay inside it, where it equals full attention.
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")


class LanguageModel:
    """A Hugging Face causal LM as the environments see it. Light: weights are shared per process and loaded late.

    Attributes:
        name: what was passed to `load`; "bundled" for None.
        path: the resolved folder, or the hub id.
        tokenizer: the transformers tokenizer.
        vocab_size: V, one more than the largest id the tokenizer knows. Ids from here on (padded embeddings) are
            never scored, sampled or accepted.
        context_length: the most tokens the model can take at once.
        hidden_size: H.
        eos_token_id, bos_token_id: None where the tokenizer has none.
        pad_token_id: filler for right padding: the tokenizer's, else EOS, else 0.
        chat: whether prompts go through the chat template.
    """

    @classmethod
    def load(
        cls,
        path_or_hub_id: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        chat: bool = False,
        lazy: bool = False,
    ) -> LanguageModel:
        """Load a model.

        Args:
            path_or_hub_id: a folder, a Hugging Face hub id, or None for the bundled model. What exists as a folder,
                is absolute, or starts with "." or "~" is a folder.
            device: a torch device; "auto": CUDA if there is one, else CPU.
            dtype: "float64", "float32", "bfloat16", "float16" or the torch dtype; "auto": bfloat16 on CUDA, else
                float32.
            chat: prompts go through the tokenizer's chat template.
            lazy: check configuration, tokenizer and file headers now, load weights at the first use of `.model`.

        Raises:
            ModelError: a file is missing, damaged, unsafe (pickle, remote code) or does not fit; names path and file.
            ValueError: device or dtype unknown, or chat=True without a chat template.
        """
        language_model = cls(path_or_hub_id, device=device, dtype=dtype, chat=chat)
        if not lazy:
            language_model.model  # noqa: B018  (loads and checks the weights)
        return language_model

    def __init__(
        self,
        path_or_hub_id: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        chat: bool = False,
    ) -> None:
        """As `load(..., lazy=True)`."""
        self._device, self._dtype = str(device), str(dtype).removeprefix("torch.")
        if self._device.partition(":")[0] not in ("auto", "cpu", "cuda", "mps", "xpu"):
            raise ValueError(f"device must be 'auto', 'cpu', 'cuda', 'cuda:N', 'mps' or 'xpu', got {device!r}")
        if self._dtype not in ("auto", *DTYPES):
            raise ValueError(f"dtype must be 'auto' or one of {', '.join(DTYPES)}, got {dtype!r}")
        self.name = "bundled" if path_or_hub_id is None else str(path_or_hub_id)
        folder = BUNDLED if path_or_hub_id is None else _as_folder(path_or_hub_id)
        if folder is not None:
            check_folder(folder)
            if folder == BUNDLED:
                verify_checksums(folder)
        self.path = self.name if folder is None else str(folder)
        config = _read_config(self.path, folder)
        self.context_length: int = config["context_length"]
        self.hidden_size: int = config["hidden_size"]
        self.tokenizer: PreTrainedTokenizerBase = _load_tokenizer(self.path, folder)
        self.vocab_size: int = max(self.tokenizer.get_vocab().values(), default=-1) + 1
        if not 0 < self.vocab_size <= config["vocab_size"]:
            raise ModelError(
                f"{self.path}: the tokenizer knows {self.vocab_size} ids, but config.json gives the model "
                f"{config['vocab_size']}; accepted: 1 to {config['vocab_size']}"
            )
        self.chat = chat
        if chat and not self.tokenizer.chat_template:
            raise ValueError(f"chat=True, but the tokenizer of {self.name!r} has no chat template")
        self.eos_token_id: int | None = self.tokenizer.eos_token_id
        self.bos_token_id: int | None = self.tokenizer.bos_token_id
        fillers = (self.tokenizer.pad_token_id, self.eos_token_id, 0)
        self.pad_token_id: int = next(token for token in fillers if token is not None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the arguments of `load`: the other process reads the files itself."""
        path = None if self.name == "bundled" else self.path
        return _rebuild, (path, self._device, self._dtype, self.chat)

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, vocab_size={self.vocab_size}, context_length={self.context_length})"

    @cached_property
    def device(self) -> torch.device:
        """Where the weights are."""
        import torch

        if self._device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self._device)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        import torch

        if self._dtype == "auto":
            return torch.bfloat16 if self.device.type == "cuda" else torch.float32
        return getattr(torch, self._dtype)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The frozen model (evaluation mode, no gradients), one per process, path, device and dtype.

        Raises:
            ModelError: the weights do not fit the configuration, or the architecture cannot be decoded exactly.
        """
        from lm_envs.model_loading import shared_model

        return shared_model(
            self.path,
            device=self.device,
            dtype=self.dtype,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
        )

    def decoder(self, num_slots: int) -> Decoder:
        """A `Decoder` of this model with `num_slots` empty slots."""
        from lm_envs.decoding import Decoder

        return Decoder(
            self.model, num_slots, vocab_size=self.vocab_size, context_length=self.context_length
        )

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        tokenizer = self.tokenizer
        added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special = added | set(tokenizer.all_special_ids)
        ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        return frozenset(special - ({tokenizer.unk_token_id} - ends))

    @cached_property
    def _adds_bos(self) -> bool:
        default = self.tokenizer.encode("a")
        return self.bos_token_id is not None and default[:1] == [self.bos_token_id]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; no special token is added, and what looks like one in the text stays text.

        Raises:
            ValueError: not a str, a lone surrogate, or (tokenizers of whole words) a word that is a special token.
        """
        _check_text(text)
        ids = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        for token_id in ids:
            if token_id in self._special_ids:
                token = self.tokenizer.convert_ids_to_tokens(token_id)
                raise ValueError(f"text {_shorten(text)} holds the special token {token!r}, which is not text")
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt, never empty: through the chat template with chat=True, else as the model was
        trained, that is after BOS if its tokenizer adds one by default. An empty prompt is [BOS].

        Raises:
            ValueError: as `encode`, or an empty prompt for a tokenizer without BOS.
        """
        _check_text(text)
        if self.chat:
            return self._encode_chat(text)
        bos = [] if self.bos_token_id is None else [self.bos_token_id]
        ids = self.encode(text)
        if not ids and not bos:
            raise ValueError(f"prompt {text!r} is empty, and the tokenizer of {self.name!r} has no BOS token")
        return bos + ids if self._adds_bos or not ids else ids

    def _encode_chat(self, text: str) -> list[int]:
        """The chat template around one user message, special tokens coming from the template alone.

        The template is rendered around a placeholder. What stands between the special tokens before and after it
        is encoded in one piece with the text in it, as the template would have been.
        """
        placeholder = "c5f0d7e1a9"
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": placeholder}], tokenize=False, add_generation_prompt=True
        )
        before, found, after = rendered.partition(placeholder)
        if not found or placeholder in after:
            raise ValueError(f"the chat template of {self.name!r} does not hold the user's message exactly once")
        special = sorted(self.tokenizer.convert_ids_to_tokens(list(self._special_ids)), key=len, reverse=True)
        pattern = "|".join(map(re.escape, special)) or r"(?!)"
        begin = max((match.end() for match in re.finditer(pattern, before)), default=0)
        first = re.search(pattern, after)
        end = first.start() if first else len(after)
        outside = (before[:begin], after[end:])
        left, right = (self.tokenizer.encode(part, add_special_tokens=False) for part in outside)
        return left + self.encode(before[begin:] + text + after[:end]) + right

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens and without any cleaning up of spaces."""
        ids = [int(token_id) for token_id in token_ids]
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def log_probs(
        self,
        contexts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        temperature: float = 1.0,
    ) -> list[np.ndarray]:
        """Log-prob of every completion token given all tokens before it, in few parallel forward passes.

        Args:
            contexts: n lists of at least one token id.
            completions: n lists of token ids, possibly empty.
            temperature: divides the logits; > 0.

        Returns:
            n arrays (len(completion),) in nats, float32 (float64 if the model is).

        Raises:
            ValueError: counts differ, a context is empty, a row is longer than context_length, an id is out of range;
                names the index.
        """
        import torch

        from lm_envs.scoring import head, hidden_states, token_log_probs

        rows = self._check_rows(contexts, completions)
        float_dtype = np.float64 if self.dtype == torch.float64 else np.float32
        results = [np.empty(0, float_dtype) for _ in rows]
        pending = sorted((i for i in range(len(rows)) if len(completions[i])), key=lambda i: len(rows[i]))
        while pending:
            # Ascending lengths: a batch is as wide as its last row.
            count = 1
            while count < len(pending) and (count + 1) * len(rows[pending[count]]) <= SCORING_TOKENS:
                count += 1
            batch, pending = pending[:count], pending[count:]
            lengths = np.array([len(rows[i]) - 1 for i in batch])  # the last token is only predicted
            columns = np.arange(lengths.max())
            real = columns < lengths[:, None]
            inputs = np.full(real.shape, self.pad_token_id)
            inputs[real] = np.concatenate([rows[i][:-1] for i in batch])
            predicts = real & (columns >= np.array([len(contexts[i]) - 1 for i in batch])[:, None])
            targets = np.concatenate([np.asarray(completions[i], np.int64) for i in batch])
            with torch.no_grad():
                hidden = hidden_states(
                    self.model,
                    torch.from_numpy(inputs).to(self.device),
                    torch.from_numpy(real).to(self.device, torch.int64),
                )
                scores, _ = token_log_probs(
                    head(self.model),
                    hidden[torch.from_numpy(predicts).to(self.device)],
                    torch.from_numpy(targets).to(self.device),
                    vocab_size=self.vocab_size,
                    temperature=temperature,
                )
            ends = np.cumsum([len(completions[i]) for i in batch])
            for i, part in zip(batch, np.split(scores.cpu().numpy(), ends[:-1]), strict=True):
                results[i] = part.astype(float_dtype)
        return results

    def perplexity(
        self, contexts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """exp(-mean log-prob) of each completion given its context, (n,) float64.

        Raises:
            ValueError: as `log_probs`, or a completion is empty (its perplexity is undefined).
        """
        for i, completion in enumerate(completions):
            if len(completion) == 0:
                raise ValueError(f"completions[{i}] is empty: its perplexity is undefined")
        scores = self.log_probs(contexts, completions)
        return np.array([np.exp(-score.astype(np.float64).mean()) for score in scores])

    def _check_rows(
        self, contexts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        if len(contexts) != len(completions):
            raise ValueError(f"got {len(contexts)} contexts but {len(completions)} completions")
        rows = []
        for i, (context, completion) in enumerate(zip(contexts, completions, strict=True)):
            if len(context) == 0:
                raise ValueError(f"contexts[{i}] is empty: the first token has nothing to be predicted from")
            row = np.concatenate([np.asarray(context, np.int64), np.asarray(completion, np.int64)])
            if len(row) > self.context_length:
                raise ValueError(
                    f"contexts[{i}] and completions[{i}] hold {len(row)} tokens; accepted: up to context_length = "
                    f"{self.context_length}"
                )
            if row.min() < 0 or row.max() >= self.vocab_size:
                wrong = row[(row < 0) | (row >= self.vocab_size)][0]
                raise ValueError(f"token id {wrong} in row {i}; accepted: 0 to {self.vocab_size - 1}")
            rows.append(row)
        return rows


def _rebuild(path: str | None, device: str, dtype: str, chat: bool) -> LanguageModel:
    return LanguageModel(path, device=device, dtype=dtype, chat=chat)


def _as_folder(path_or_hub_id: str | Path) -> Path | None:
    """The folder that is meant, or None for a hub id."""
    path = Path(path_or_hub_id).expanduser()
    text = str(path_or_hub_id)
    if isinstance(path_or_hub_id, Path) or path.is_dir() or path.is_absolute() or text.startswith("."):
        return path.resolve()
    return None


def _read_config(path: str, folder: Path | None) -> dict[str, int]:
    """vocab_size, hidden_size and context_length, from config.json as it stands where that suffices."""
    names = {
        "vocab_size": ("vocab_size",),
        "hidden_size": ("hidden_size", "n_embd", "d_model"),
        "context_length": ("max_position_embeddings", "n_positions", "n_ctx"),
    }
    source = path if folder is None else str(folder / "config.json")
    config: Mapping[str, Any] = {} if folder is None else read_json(folder / "config.json")
    found = {key: next((config[n] for n in aliases if n in config), None) for key, aliases in names.items()}
    if None in found.values():  # a hub id, or an architecture with names or defaults of its own
        config = _auto_config(path)
        found = {key: config.get(key, config.get("max_position_embeddings")) for key in names}
    for key, value in found.items():
        if not isinstance(value, int) or value < 1:
            raise ModelError(f"{source}: {key} must be a positive integer, got {value!r}")
    architectures = config.get("architectures") or []
    causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)
    if config.get("is_encoder_decoder") or (architectures and not causal):
        raise ModelError(f"{source}: {architectures} is not a causal language model")
    limits = [found["context_length"], *_windows(config)]
    return {**found, "context_length": min(limits)}


def _auto_config(path: str) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # network, hub, file format and architecture raise their own
        raise ModelError(f"{path}: cannot read its config.json: {error}") from error
    refuse_remote_code(config.to_dict(), path)
    text = config.get_text_config()
    standard = {key: getattr(text, key, None) for key in ("vocab_size", "hidden_size", "max_position_embeddings")}
    return {**text.to_dict(), "architectures": config.architectures, **standard}


def _windows(config: Mapping[str, Any]) -> list[int]:
    windows = [config[key] for key in WINDOWS if config.get(key)]
    layer_types = config.get("layer_types")
    if not config.get("use_sliding_window", True) or (layer_types and set(layer_types) == {"full_attention"}):
        windows = []
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if "longrope" in (rope.get("rope_type"), rope.get("type")):  # past this length all earlier keys change
        original = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
        windows += [original] if original else []
    return windows


def _load_tokenizer(path: str, folder: Path | None) -> PreTrainedTokenizerBase:
    try:
        if folder is not None and (folder / "tokenizer.json").exists():
            settings = folder / "tokenizer_config.json"
            kind = json.loads(settings.read_text("utf-8")).get("tokenizer_class") if settings.exists() else None
            if kind in ("PreTrainedTokenizerFast", "TokenizersBackend"):
                from transformers import PreTrainedTokenizerFast  # unlike AutoTokenizer, without torch

                return PreTrainedTokenizerFast.from_pretrained(path)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # the Rust tokenizers raise bare Exceptions
        file = path if folder is None else folder / "tokenizer.json"
        raise ModelError(f"{file}: cannot load the tokenizer: {error}") from error


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise ValueError(f"text must be a str, got {type(text).__name__}: {text!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text {_shorten(text)} has a lone surrogate at character {error.start}; it is no Unicode text"
        ) from error


def _shorten(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:57] + "...")
