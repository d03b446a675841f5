"""A small transformer for a toy environment: a plain Hugging Face folder that `TransformerPolicy` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from lm_envs.toy import NGram, solve
from lm_envs.toy.solve import toy_of
from lm_envs.toy.task import ToyTask


def save_toy_transformer(
    env: Any,
    folder: str | Path,
    *,
    hidden_size: int = 32,
    layers: int = 2,
    heads: int = 2,
    seed: int = 0,
) -> Path:
    """Saves an untrained GPT-2 whose token ids are the toy's, and a tokenizer with the toy's words.

    Absolute positions, because most toys ask for a token by its place. The weights are small, so that every
    token is about as likely as any other at first.

    Args:
        env: a toy environment, single or vector.
        folder: where to; made if it does not exist.
        hidden_size: H, a multiple of `heads`.
        layers: transformer blocks.
        heads: attention heads of each block.
        seed: of the weights; torch's global generator stays as it is.

    Returns:
        The folder, for `TransformerPolicy(model=str(folder))` and `LanguageModel.load(folder)`.

    Raises:
        TypeError: env is not a toy environment.
    """
    task = toy_task(env)
    config = GPT2Config(
        vocab_size=task.rule.vocab_size,
        n_positions=task.states.context_length,
        n_embd=hidden_size,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        GPT2LMHeadModel(config).save_pretrained(folder)
    toy_tokenizer(task.rule.language_model).save_pretrained(folder)
    return Path(folder)


def fit_to_ngram(
    folder: str | Path,
    env: Any,
    *,
    steps: int = 400,
    batch_size: int = 64,
    learning_rate: float = 1e-2,
    tolerance: float = 1e-2,
    seed: int = 0,
) -> float:
    """Fits the transformer in `folder` to the toy's n-gram model, and saves it there.

    Minimises the cross-entropy to the n-gram model's exact distributions after every prefix of uniformly
    random texts: all contexts, rare ones too, count alike. Adam, with a learning rate that falls to 0.

    Args:
        folder: what `save_toy_transformer` wrote for this environment.
        env: the toy environment, in the "tokens" mode and small enough to be solved: the fit is checked on
            every state.
        steps: optimizer steps.
        batch_size: texts of a step.
        learning_rate: the largest.
        tolerance: the largest total-variation distance from the n-gram model that a state may be left with.
        seed: of the texts.

    Returns:
        The largest total-variation distance over all states.

    Raises:
        TypeError: env is not a toy environment.
        ValueError: the state space is too large.
        RuntimeError: some state is further off than the tolerance.
    """
    task = toy_task(env)
    solution = solve(env)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        texts = _random_texts(task, rng, batch_size)
        logits = model(torch.from_numpy(texts)).logits[:, task.states.prompt_length - 1 :]
        loss = -(_targets(task, texts) * logits.log_softmax(-1)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    fitted = solution.evaluate(lambda observation: next_token_probabilities(model, observation)).policy
    distance = float(0.5 * np.abs(fitted - solution.tables.reference).sum(axis=1).max())
    if distance > tolerance:
        raise RuntimeError(
            f"after {steps} steps a state's total-variation distance is {distance:.3g}, above {tolerance:.3g}"
        )
    model.save_pretrained(folder)
    return distance


@torch.no_grad()
def next_token_probabilities(model: Any, observation: dict[str, np.ndarray]) -> np.ndarray:
    """What a causal LM says of the next token of batched "tokens" observations, (m, V) float64."""
    last = observation["attention_mask"].sum(axis=1, dtype=np.int64) - 1
    logits = model(torch.from_numpy(observation["input_ids"].astype(np.int64))).logits
    return logits[torch.arange(len(last)), torch.from_numpy(last)].double().softmax(-1).numpy()


def toy_tokenizer(language_model: NGram) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with the n-gram model's words and ids, and no special tokens."""
    ids = {word: i for i, word in enumerate(language_model.words)}
    tokenizer = Tokenizer(models.WordLevel(ids))
    words = pre_tokenizers.Split(Regex(r"\S\d*"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])  # type: ignore[assignment]
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def toy_task(env: Any) -> ToyTask:
    """The toy in arrays.

    Raises:
        TypeError: env is not a toy environment.
    """
    return toy_of(env)[0]


def _random_texts(task: ToyTask, rng: np.random.Generator, count: int) -> np.ndarray:
    """Prompts with uniformly random completions, without the last token: (count, L - 1) int64."""
    prompts = task.states.prompts(rng.integers(task.states.num_prompts, size=count))
    completions = rng.integers(task.rule.vocab_size, size=(count, task.rule.length - 1))
    return np.concatenate([prompts, completions], axis=1).astype(np.int64)


def _targets(task: ToyTask, texts: np.ndarray) -> Tensor:
    """The n-gram model's distributions of the T tokens behind the prompts, (count, T, V) float32."""
    first, length = task.states.prompt_length, task.rule.length
    probabilities = task.rule.language_model.probabilities
    tables = [probabilities(texts, first + t) for t in range(length)]
    return torch.from_numpy(np.stack(tables, axis=1)).float()
