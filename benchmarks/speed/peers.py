"""Other ways to write and to learn the same tokens: transformers' generation, TRL's GRPOTrainer."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks.speed.measuring import Contender, Unavailable, now, seconds
from benchmarks.speed.workloads import Workload

DYNAMIC, STATIC = "model.generate, DynamicCache", "model.generate, StaticCache"
CONTINUOUS = "transformers continuous batching"
RECOMPUTED = "recomputing the context"
GRPO = "TRL GRPOTrainer"


class GRPOSetting(NamedTuple):
    """How TRL does a step: in how many forward and backward passes, and with which cache it generates."""

    parts: int
    cache: str | None  # "static"; None: the default

    def name(self, slots: int) -> str:
        """For a table."""
        return f"{self.parts} x {slots // self.parts} completions, {self.cache or 'dynamic'} cache"


# What is tried; the fastest counts.
GRPO_SWEEP = tuple(GRPOSetting(parts, cache) for parts in (1, 4) for cache in (None, "static"))


def generate(work: Workload, cache: str | None) -> Contender:
    """`model.generate` (sampling), which must wait for the longest of its rows; only the tokens that an
    episode has count.

    Args:
        work: its prompts and lengths.
        cache: "static", or None for the default, a `DynamicCache`.
    """
    language_model = work.language_model()
    model: Any = language_model.model
    prompts = work.prompts()
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), language_model.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # generate wants its padding on the left
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(work.device), mask.to(work.device)
    calls = iter(range(10**9))

    def run() -> float:
        lengths = work.lengths(seed=next(calls))
        # An EOS that no token is: rows go on to the end, without a processor that would see to it.
        options = {"max_new_tokens": int(lengths.max()), "eos_token_id": model.config.vocab_size}

        def write() -> None:
            with torch.no_grad():
                model.generate(
                    ids,
                    attention_mask=mask,
                    do_sample=True,
                    top_k=0,
                    pad_token_id=language_model.pad_token_id,
                    cache_implementation=cache,
                    **options,
                )

        return int(lengths.sum()) / seconds(work.device, write)

    return run


def continuous_batching(work: Workload) -> Contender:
    """transformers' continuous batching: every request has its own length, and free places are refilled.

    The time to start and stop its thread and to allocate its pages is not counted.
    """
    language_model = work.language_model()
    model: Any = language_model.model
    prompts = work.prompts()
    calls = iter(range(10**9))

    def run() -> float:
        try:
            from transformers import ContinuousBatchingConfig, GenerationConfig
        except ImportError as error:
            raise Unavailable(f"this version of transformers has none: {error}") from error
        lengths = work.lengths(seed=next(calls))
        page = 32
        pages = sum(-(-(len(prompt) + work.new_tokens) // page) + 1 for prompt in prompts)
        config = ContinuousBatchingConfig(
            page_size=page, num_blocks=pages, max_batch_tokens=sum(map(len, prompts)) + len(prompts)
        )
        sampling = GenerationConfig(
            do_sample=True,
            top_k=0,
            eos_token_id=-1,
            pad_token_id=language_model.pad_token_id,
            max_new_tokens=work.new_tokens,
        )
        try:
            with model.continuous_batching_context_manager(
                generation_config=sampling,
                continuous_batching_config=config,
                block=True,
                timeout=5,
                warmup=work.device != "cpu",
            ) as manager:
                started = now(work.device)
                for prompt, length in zip(prompts, lengths.tolist(), strict=True):
                    manager.add_request(prompt, max_new_tokens=length)
                written = _finished(manager, len(prompts))
                elapsed = now(work.device) - started
        except (RuntimeError, ValueError, TypeError, AttributeError, ImportError) as error:
            raise Unavailable(f"{type(error).__name__}: {error}") from error
        if written != lengths.sum():
            raise Unavailable(f"wrote {written} tokens of {lengths.sum()}")
        return written / elapsed

    return run


def _finished(manager: Any, requests: int) -> int:
    """Tokens that all requests wrote."""
    written = finished = 0
    while finished < requests:
        result = manager.get_result(timeout=1)
        if result is not None and result.is_finished():
            written += len(result.generated_tokens)
            finished += 1
        elif result is None and not manager.is_running():
            raise RuntimeError("the generation thread ended early")
    return written


def recomputing(work: Workload) -> Contender:
    """A forward pass over the whole context for every token, timed at the first, middle and last token."""
    language_model = work.language_model()
    model: Any = language_model.model
    prompts = work.prompts()
    longest = max(map(len, prompts))

    def run() -> float:
        elapsed = 0.0
        for new in (0, work.new_tokens // 2, work.new_tokens - 1):
            ids = torch.ones(len(prompts), longest + new, dtype=torch.long, device=work.device)

            def forward(ids: torch.Tensor = ids) -> None:
                with torch.no_grad():
                    model(ids, use_cache=False, logits_to_keep=1).logits.softmax(-1)

            elapsed += seconds(work.device, forward)
        return 3 * len(prompts) / elapsed

    return run


def grpo(work: Workload, reward: Callable[..., list[float]], setting: GRPOSetting) -> Contender:
    """Completion tokens per second of TRL's `GRPOTrainer`: generation, reference and one update.

    Args:
        work: its prompts and its number of new tokens (equal lengths).
        reward: `reward(prompts, completions)`, the environment's.
        setting: of TRL.

    Raises:
        Unavailable: TRL is not installed.
    """
    try:
        from datasets import Dataset
        from transformers import PrinterCallback, TrainerCallback
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        raise Unavailable(f"pip install 'lm-envs[peers]' ({error})") from error

    class Ends(TrainerCallback):
        """When each step ended."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(now(work.device))

    language_model = work.language_model()
    language_model.tokenizer.pad_token = language_model.tokenizer.eos_token
    texts = [language_model.decode(prompt) for prompt in work.prompts()]
    folder = tempfile.TemporaryDirectory(prefix="grpo-")

    def build() -> tuple[Any, Ends]:
        ends = Ends()
        config = GRPOConfig(
            output_dir=folder.name,
            per_device_train_batch_size=work.slots // setting.parts,
            gradient_accumulation_steps=setting.parts,
            num_generations=math.gcd(8, work.slots),
            max_completion_length=work.new_tokens,
            generation_kwargs={"eos_token_id": language_model.model.config.vocab_size},
            cache_implementation=setting.cache,
            beta=0.02,
            num_iterations=1,
            max_steps=2,  # the first one warms up
            learning_rate=1e-6,
            gradient_checkpointing=False,
            bf16=work.device != "cpu",
            use_cpu=work.device == "cpu",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            model_init_kwargs={"dtype": "float32"},
        )
        trainer = GRPOTrainer(
            model=language_model.path if work.model else _bundled_folder(),
            reward_funcs=lambda prompts, completions, **_: reward(prompts, completions),
            args=config,
            train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
            processing_class=language_model.tokenizer,
            callbacks=[ends],
        )
        trainer.remove_callback(PrinterCallback)
        return trainer, ends

    def run() -> float:
        trainer, ends = build()  # a second `train()` of the same one is slower
        logging.getLogger("transformers").setLevel(logging.ERROR)
        trainer.train()
        return work.slots * work.new_tokens / (ends.times[-1] - ends.times[-2])

    return run


def _bundled_folder() -> str:
    from lm_envs.language_model import BUNDLED

    return str(BUNDLED)
