"""`python -m agents generate`: completions of given prompts, from a trained or any other model."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro

from agents.options import check_counts
from agents.play import Sampling
from lm_envs.language_model import LanguageModel


@dataclass(frozen=True)
class Generate:
    """Write completions for prompts."""

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    """The prompts; none: every line of `prompts_file`, or of standard input."""
    prompts_file: Path | None = None
    """A UTF-8 text file with one prompt a line."""
    model: str | None = None
    """Folder (a run's `model` folder, say) or hub id; None: the bundled model."""
    max_new_tokens: int = 64
    chat: bool = False
    """Apply the tokenizer's chat template to each prompt."""
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0

    def __call__(self) -> None:
        """Prints each prompt with its completion."""
        check_counts(max_new_tokens=self.max_new_tokens)
        check_counts(0, seed=self.seed)
        prompts = self._prompts()
        language_model = LanguageModel.load(self.model, chat=self.chat)
        for prompt, completion in zip(prompts, complete(language_model, prompts, self), strict=True):
            print(
                f"{prompt}\033[1m{completion}\033[0m\n" if sys.stdout.isatty() else f"{prompt}{completion}\n"
            )

    def _prompts(self) -> list[str]:
        if self.prompts and self.prompts_file:
            raise ValueError("give prompts as arguments or with --prompts-file, not both")
        prompts = list(self.prompts)
        if not prompts:
            try:
                source = self.prompts_file.read_text("utf-8") if self.prompts_file else sys.stdin.read()
            except UnicodeDecodeError as error:
                raise ValueError(f"{self.prompts_file or 'standard input'} is not UTF-8: {error}") from error
            prompts = [line for line in source.splitlines() if line]
        if not prompts:
            raise ValueError("no prompt: give prompts as arguments, with --prompts-file or on standard input")
        return prompts


def complete(language_model: LanguageModel, prompts: list[str], settings: Generate) -> list[str]:
    """The completion of each prompt, up to EOS, `max_new_tokens` or the end of the context window.

    Raises:
        ValueError: a prompt is longer than the context window.
    """
    contexts = [language_model.encode_prompt(prompt) for prompt in prompts]
    for prompt, context in zip(prompts, contexts, strict=True):
        if len(context) > language_model.context_length:
            raise ValueError(
                f"prompt {prompt!r:.60} has {len(context)} tokens, and {language_model.name} takes "
                f"{language_model.context_length}"
            )
    decoder = language_model.decoder(len(prompts))
    generator = torch.Generator(decoder.hidden.device).manual_seed(settings.seed)
    written: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    decoder.prefill(live, contexts)
    for _ in range(settings.max_new_tokens):
        tokens, _ = settings.sampling.draw(decoder.logits(live), generator)
        for slot, token in zip(live, tokens.tolist(), strict=True):
            written[slot].append(token)
        full = language_model.context_length
        live = [
            slot
            for slot in live
            if written[slot][-1] != language_model.eos_token_id
            and len(contexts[slot]) + len(written[slot]) < full
        ]
        if not live:
            break
        decoder.step([written[slot][-1] for slot in live], live)
    return list(map(language_model.decode_after, contexts, written))
