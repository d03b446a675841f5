"""One causal language model: its tokenizer, its rules about special tokens, its limits, its scores.

Importing this module loads neither torch nor transformers. `LanguageModel.load(lazy=True)` loads no torch
either for a folder that states its sizes and a generic tokenizer class; the weights come with the first use
of `.model`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lm_envs.errors import ModelError
from lm_envs.model_config import read_sizes
from lm_envs.model_files import check_folder, verify_checksums
from lm_envs.tokenization import encode_chat, encode_text, load_tokenizer, special_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from lm_envs.decoding import Decoder

BUNDLED = Path(__file__).parent / "bundled"
DEVICES = ("cpu", "cuda", "mps", "xpu")
DTYPES = ("float64", "float32", "bfloat16", "float16")


class LanguageModel:
    """A Hugging Face causal LM as the environments see it: light, picklable, weights shared within the
    process.

    Attributes:
        name: what was passed to `load`; "bundled" for None.
        path: the resolved folder, or the hub id.
        tokenizer: the transformers tokenizer.
        vocab_size: V, one more than the largest id the tokenizer knows. Ids from here on (padded embeddings)
            are never scored, sampled or accepted.
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
            path_or_hub_id: a folder, a Hugging Face hub id, or None for the bundled model. A `Path`, and a
                text that is an existing folder, absolute, begins with "." or "~" or holds two slashes, is a
                folder.
            device: a torch device; "auto": CUDA if there is one, else CPU.
            dtype: "float64", "float32", "bfloat16", "float16" or the torch dtype; "auto": bfloat16 on CUDA,
                else float32.
            chat: prompts go through the tokenizer's chat template.
            lazy: check configuration, tokenizer and file headers now, load weights at the first use of
                `.model`.

        Raises:
            ModelError: a file is missing, damaged, unsafe (pickle, remote code) or does not fit; names path
                and file.
            ValueError: device or dtype unknown or, when the weights are loaded, not there; or chat=True
                without a chat template.
        """
        language_model = cls(path_or_hub_id, device=device, dtype=dtype, chat=chat)
        if not lazy:
            _ = language_model.model
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
        self._device, self._dtype = check_device(device), str(dtype).removeprefix("torch.")
        if self._dtype not in ("auto", *DTYPES):
            raise ValueError(f"dtype must be 'auto' or one of {', '.join(DTYPES)}, got {dtype!r}")
        self.name = "bundled" if path_or_hub_id is None else str(path_or_hub_id)
        folder = BUNDLED if path_or_hub_id is None else as_folder(path_or_hub_id)
        if folder is not None:
            check_folder(folder)
        if folder == BUNDLED:
            verify_checksums(folder)
        self.path = self.name if folder is None else str(folder)
        self.chat = chat

        sizes = read_sizes(self.path, folder)
        self.hidden_size = sizes.hidden_size
        self.context_length = sizes.context_length
        self.tokenizer = load_tokenizer(self.path, folder)
        self.vocab_size: int = max(self.tokenizer.get_vocab().values(), default=-1) + 1
        if not 0 < self.vocab_size <= sizes.vocab_size:
            raise ModelError(
                f"{self.path}: the tokenizer knows {self.vocab_size} ids, but vocab_size in config.json is "
                f"{sizes.vocab_size}; accepted: 1 to {sizes.vocab_size} ids"
            )
        if chat and not self.tokenizer.chat_template:
            raise ValueError(f"chat=True, but the tokenizer of {self.name!r} has no chat template")
        self.eos_token_id: int | None = self.tokenizer.eos_token_id
        self.bos_token_id: int | None = self.tokenizer.bos_token_id
        fillers = (self.tokenizer.pad_token_id, self.eos_token_id, 0)
        self.pad_token_id: int = next(token for token in fillers if token is not None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the arguments of `load`: the other process reads the files itself."""
        path = None if self.path == str(BUNDLED) else self.path
        return _rebuild, (path, self._device, self._dtype, self.chat)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, V={self.vocab_size}, L={self.context_length})"

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
            ModelError: the weights do not fit the configuration, or the architecture cannot be decoded
                exactly.
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

        return Decoder(self.model, num_slots, vocab_size=self.vocab_size, context_length=self.context_length)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; no special token is added, and what looks like one in the text stays text.

        Raises:
            ValueError: not a str, a lone surrogate, or (tokenizers of whole words) a word that is a special
                token.
        """
        return encode_text(self.tokenizer, self._special_ids, text)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt, never empty.

        With chat=True, the chat template around it as the user's message. Otherwise the text's ids, after BOS
        if the tokenizer adds one by default; an empty prompt is [BOS].

        Raises:
            ValueError: as `encode`, or an empty prompt for a tokenizer without BOS.
        """
        if self.chat:
            return encode_chat(self.tokenizer, self._special_ids, text)
        ids = self.encode(text)
        if self.bos_token_id is not None and (self._adds_bos or not ids):
            return [self.bos_token_id, *ids]
        if not ids:
            raise ValueError(f"prompt {text!r} is empty, and the tokenizer of {self.name!r} has no BOS token")
        return ids

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens and without any cleaning up of spaces."""
        ids = [int(token_id) for token_id in token_ids]
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text)

    def decode_after(self, context_ids: Sequence[int], token_ids: Sequence[int]) -> str:
        """The text that tokens add to a context's: some tokenizers decode no blank at a text's beginning."""
        context = list(context_ids[-8:])
        before, text = self.decode(context), self.decode([*context, *token_ids])
        return text[len(before) :] if text.startswith(before) else self.decode(token_ids)

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
            ValueError: counts differ, a context is empty, a row is longer than context_length, an id is out
                of range; names the index.
        """
        return self._score(contexts, completions, temperature=temperature)[0]

    def typicality(
        self, contexts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """Log-prob of every completion token, plus the entropy of the distribution it stands in.

        Zero in expectation for tokens that the model samples itself, whatever the model; negative for tokens
        more surprising than it expects, positive for ones less so (Meister et al., "Locally typical
        sampling", 2022, eq. 5).

        Args, Returns and Raises: as `log_probs`, at temperature 1.
        """
        scores = zip(*self._score(contexts, completions, with_entropy=True), strict=True)
        return [log_probs + entropies for log_probs, entropies in scores]

    def _score(
        self, contexts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], **options: Any
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        from lm_envs.completion_scoring import remember, score_completions

        scores = score_completions(
            self.model,
            contexts,
            completions,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            **options,
        )
        if options.get("temperature", 1.0) == 1.0:
            remember(self.model, contexts, completions, scores[0])
        return scores

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
        return np.array([np.exp(-score.mean(dtype=np.float64)) for score in scores])

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return special_ids(self.tokenizer)

    @cached_property
    def _adds_bos(self) -> bool:
        return self.tokenizer.encode("a")[:1] == [self.bos_token_id]


def check_device(device: object) -> str:
    """A device's name; ValueError unless it is "auto" or one of `DEVICES`, with or without a number."""
    name, _, number = str(device).partition(":")
    if str(device) != "auto" and (name not in DEVICES or not (number.isdecimal() or name == str(device))):
        raise ValueError(f"device must be 'auto' or one of {', '.join(DEVICES)}, as 'cuda:1', got {device!r}")
    return str(device)


def _rebuild(path: str | None, device: str, dtype: str, chat: bool) -> LanguageModel:
    return LanguageModel(path, device=device, dtype=dtype, chat=chat)


def as_folder(path_or_hub_id: str | Path) -> Path | None:
    """The folder that is meant, or None for a hub id."""
    path, text = Path(path_or_hub_id).expanduser(), str(path_or_hub_id)
    local = isinstance(path_or_hub_id, Path) or path.is_absolute() or path.is_dir()
    return path.resolve() if local or text.startswith(".") or text.count("/") > 1 else None
