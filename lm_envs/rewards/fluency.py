"""Fluency of a text by a language model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_envs.rewards.base import check_texts, column_rows

if TYPE_CHECKING:
    from lm_envs.language_model import LanguageModel


class Fluency:
    """How likely a language model finds the completion after its prompt.

    With `p_t` the probability of the completion's token t given all tokens before it, T tokens:

    - `output="log_prob"`: `sum_t(ln p_t) / T`, nats per token, at most 0, higher is more fluent.
    - `output="perplexity"`: `exp` of minus that, at least 1, **lower** is more fluent: weigh it negatively.
    - `output="typicality"`: `sum_t(ln p_t + H_t) / T`, with `H_t` the entropy of the model's distribution;
      0 in expectation for the model's own samples, negative for text more surprising than they are (Meister
      et al., "Locally typical sampling", 2022). Unlike the log-prob it needs no threshold of its own for
      each model, and the dullest text earns nothing by it.

    An empty completion (no text) gets the value of a uniform guess, `-ln V` nats or perplexity V (V the
    vocabulary size), so that saying nothing never pays.

    The columns `prompt_ids` and `completion_ids` (a list of token ids per completion) are scored as they are,
    EOS included, if both are given and this model's tokenizer decodes them to the completion. If not, prompt
    and completion are encoded, each on its own, without an EOS at the end.

    Args:
        language_model: a `LanguageModel`, or what its `load` takes (None is the bundled model).
        output: "log_prob", "perplexity" or "typicality".
    """

    def __init__(
        self,
        language_model: LanguageModel | str | None = None,
        *,
        output: str = "log_prob",
    ) -> None:
        if output not in ("log_prob", "perplexity", "typicality"):
            raise ValueError(f"output must be 'log_prob', 'perplexity' or 'typicality', got {output!r}")
        self.language_model = _lazy_model(language_model)
        self.output = output
        self.__name__ = "fluency" if output == "log_prob" else output

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """B texts in, B floats out. Raises ValueError for texts longer than the model's context."""
        check_texts(prompts, completions)
        size = len(completions)
        given = [
            [None] * size if columns.get(name) is None else column_rows(name, columns[name], size)
            for name in ("prompt_ids", "completion_ids")
        ]
        pairs = [self._token_ids(*row) for row in zip(prompts, completions, *given, strict=True)]
        model = self.language_model
        score = model.typicality if self.output == "typicality" else model.log_probs
        scores = score([context for context, _ in pairs], [ids for _, ids in pairs])
        uniform = -math.log(model.vocab_size)
        means = [
            float(values.mean(dtype=float)) if text and len(values) else uniform
            for text, values in zip(completions, scores, strict=True)
        ]
        return [math.exp(-mean) for mean in means] if self.output == "perplexity" else means

    def _token_ids(
        self,
        prompt: str,
        completion: str,
        prompt_ids: Sequence[int] | None,
        completion_ids: Sequence[int] | None,
    ) -> tuple[Sequence[int], Sequence[int]]:
        """Context and completion as token ids: the given ones if they are this model's, else encoded here."""
        model = self.language_model
        # Ids of another tokenizer would be scored as other words, silently. The text may lack a stop string
        # that was cut off its end, so it need only begin what the ids decode to.
        if (
            prompt_ids is not None
            and completion_ids is not None
            and all(0 <= token < model.vocab_size for token in (*prompt_ids, *completion_ids))
            and model.decode_after(prompt_ids, completion_ids).startswith(completion)
        ):
            return prompt_ids, completion_ids
        return model.encode_prompt(prompt), model.encode(completion)


def _lazy_model(language_model: LanguageModel | str | None) -> LanguageModel:
    from lm_envs.language_model import LanguageModel

    if isinstance(language_model, LanguageModel):
        return language_model
    return LanguageModel.load(language_model, lazy=True)
