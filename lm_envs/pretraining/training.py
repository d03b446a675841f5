"""Trains a small Llama on texts; killed at any time, it goes on from its last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed, multiprocessing, nn
from tqdm import tqdm
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from lm_envs.pretraining.batches import Source, batches
from lm_envs.pretraining.recipe import Recipe

# What `nn.functional.cross_entropy` skips.
IGNORED = -100

Optimizers = tuple[torch.optim.Optimizer, ...]
Loss = Callable[[LlamaForCausalLM, Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run, or how far one came.

    Attributes:
        model: On the CPU, in eval mode.
        recipe: What was trained.
        steps: Of the recipe's, how many were done.
        tokens: Trained on, padding not counted.
        seconds: Spent training, over all interruptions.
        processes: How many trained side by side, one thread each; 0: one, with as many threads as torch took.
    """

    model: LlamaForCausalLM
    recipe: Recipe
    steps: int
    tokens: int
    seconds: float
    processes: int


def train(
    recipe: Recipe,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    checkpoint: Path,
    *,
    processes: int | None = None,
    device: str = "auto",
    checkpoint_seconds: float = 45.0,
    progress: bool = True,
) -> Trained:
    """Trains the recipe's model, from the checkpoint if there is one.

    On one kind of CPU, the weights do not depend on how often the run was interrupted, nor on the number of
    processes as long as each has one thread.

    Args:
        recipe: What to train.
        source: The texts. Several processes are spawned: it must be picklable, and a script that calls this
            must guard its main part with `if __name__ == "__main__"`.
        tokenizer: Makes the training rows.
        checkpoint: A safetensors file: read at the start, replaced as a whole while training and at the end.
        processes: 1, or as many as the recipe has shards; None: as many if there are cores for them and
            there is no GPU.
        device: A torch device; "auto": CUDA if there is one, else CPU.
        checkpoint_seconds: How often.
        progress: Show a progress bar.

    Raises:
        ValueError: The checkpoint belongs to another recipe, or the number of processes does not fit.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if processes is None:
        processes = recipe.shards if device == "cpu" and recipe.shards <= _cores() else 1
    if processes not in (1, recipe.shards):
        raise ValueError(f"processes must be 1 or the number of shards, {recipe.shards}, got {processes}")
    run = _Run(recipe, source, tokenizer, checkpoint, device, checkpoint_seconds, progress)
    if processes == 1:
        return run.go()

    # This process takes the first shard. The others end with it: a lost connection is an error.
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    helpers = [
        context.Process(target=_help, args=(run, rank, processes, store.port), daemon=True)
        for rank in range(1, processes)
    ]
    for helper in helpers:
        helper.start()
    try:
        with _one_thread(), _group(store, 0, processes):
            trained = run.go()
    finally:
        for helper in helpers:
            helper.join(timeout=10)
            helper.kill()
    return trained


def next_token_loss(model: LlamaForCausalLM, ids: Tensor, lengths: Tensor) -> Tensor:
    """Cross-entropy of the tokens, each given those before it: the sum over real tokens, in nats.

    Padding stands on the right, where a causal model never looks, so no attention mask is needed.

    Args:
        model: The model.
        ids: int64 (B, T), right-padded.
        lengths: int64 (B,).
    """
    padding = torch.arange(1, ids.shape[1], device=ids.device) >= lengths[:, None]
    targets = ids[:, 1:].masked_fill(padding, IGNORED)
    hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden).flatten(0, 1)
    dtype = torch.float32 if logits.dtype == torch.bfloat16 else logits.dtype
    return nn.functional.cross_entropy(
        logits.to(dtype), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def load_checkpoint(checkpoint: Path, tokenizer: PreTrainedTokenizerBase) -> Trained:
    """The model of a checkpoint, finished or not, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Another version of this package wrote it.
    """
    with safe_open(checkpoint, framework="pt") as file:
        header = file.metadata()
        recipe = _recipe(header["recipe"])
        model = _new_model(recipe, tokenizer)
        _copy_weights(file, model)
    return Trained(model.eval(), recipe, *json.loads(header["progress"]))


@dataclasses.dataclass(frozen=True)
class _Run:
    """The arguments of `train`, which every process gets."""

    recipe: Recipe
    source: Source
    tokenizer: PreTrainedTokenizerBase
    checkpoint: Path
    device: str
    checkpoint_seconds: float
    progress: bool

    def go(self) -> Trained:
        """Trains; in a process group, this process's shard of every step, else all of them."""
        recipe, several = self.recipe, distributed.is_initialized()
        rank = distributed.get_rank() if several else 0
        processes = distributed.get_world_size() if several else int(torch.get_num_threads() == 1)
        model = _new_model(recipe, self.tokenizer)
        nn.Module.to(model, self.device)  # in place
        optimizers = _optimizers(recipe, model)
        done, tokens, seconds = 0, 0, 0.0
        if self.checkpoint.exists():
            done, tokens, seconds = _load(self.checkpoint, recipe, model, optimizers)

        shards = [rank] if several else range(recipe.shards)
        streams = [batches(recipe, self.source, self.tokenizer, shard=shard, start=done) for shard in shards]
        loss_of = _fast_loss(model) if recipe.compiled else next_token_loss
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        saved = last = time.monotonic()
        with tqdm(
            total=recipe.steps,
            initial=done,
            disable=rank > 0 or not self.progress,
            unit="step",
            desc="training",
        ) as bar:
            for step in range(done, recipe.steps):
                _set_learning_rates(recipe, optimizers, step)
                total, count = 0.0, 0
                for stream in streams:
                    parts = [
                        [torch.from_numpy(array).to(self.device) for array in part] for part in next(stream)
                    ]
                    # One backward pass a shard: shards then add up alike in one process and in several.
                    loss = torch.stack([loss_of(model, ids, lengths) for ids, lengths in parts]).sum()
                    loss.backward()
                    total += loss.item()
                    count += sum(int((lengths - 1).sum()) for _, lengths in parts)
                if several:
                    total, count = _add_up(parameters, total, count)
                for parameter in parameters:
                    cast(Tensor, parameter.grad).div_(count)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()

                now = time.monotonic()
                tokens, seconds, last = tokens + count, seconds + now - last, now
                bar.update()
                bar.set_postfix(loss=f"{total / count:.3f}", tokens=f"{tokens / 1e6:.1f}M", refresh=False)
                finished = step + 1 == recipe.steps
                if rank == 0 and (finished or now - saved >= self.checkpoint_seconds):
                    state = (step + 1, tokens, seconds, processes)
                    _save(self.checkpoint, recipe, model, optimizers, state)
                    saved = now
        model.set_attn_implementation("sdpa")
        return Trained(model.cpu().eval(), recipe, recipe.steps, tokens, seconds, processes)


def _help(run: _Run, rank: int, processes: int, port: int) -> None:
    """What each further process does."""
    store = distributed.TCPStore("127.0.0.1", port, is_master=False)
    with _one_thread(), _group(store, rank, processes):
        run.go()


@contextlib.contextmanager
def _group(store: distributed.Store, rank: int, processes: int) -> Iterator[None]:
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch and for the tokenizer: the other cores have processes of their own."""
    threads, parallel = torch.get_num_threads(), os.environ.get("TOKENIZERS_PARALLELISM")
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        del os.environ["TOKENIZERS_PARALLELISM"]
        if parallel is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = parallel


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _add_up(parameters: list[nn.Parameter], loss: float, count: int) -> tuple[float, int]:
    """Sums gradients, losses and token counts over the processes, in one message."""
    grads = [cast(Tensor, parameter.grad) for parameter in parameters]
    message = torch.cat([*(grad.flatten() for grad in grads), torch.tensor([loss, float(count)])])
    distributed.all_reduce(message)
    for grad, summed in zip(grads, message[:-2].split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(summed.view_as(grad))
    return message[-2].item(), int(message[-1])


def _fast_loss(model: LlamaForCausalLM) -> Loss:
    """`next_token_loss`, compiled, with matrix products in bfloat16."""
    device = model.device.type
    if device == "cpu":
        AttentionInterface.register("float32_sdpa", _float32_attention)
        model.set_attn_implementation("float32_sdpa")
    compiled = torch.compile(next_token_loss, dynamic=True)

    def loss(model: LlamaForCausalLM, ids: Tensor, lengths: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return compiled(model, ids, lengths)

    return loss


def _float32_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Causal attention in float32: on CPUs, its gradient takes six times as long in bfloat16."""
    groups = query.shape[1] // key.shape[1]
    with torch.autocast("cpu", enabled=False):
        attended = nn.functional.scaled_dot_product_attention(
            query.float(),
            key.float().repeat_interleave(groups, 1),
            value.float().repeat_interleave(groups, 1),
            is_causal=True,
            scale=options["scaling"],
        )
    return attended.transpose(1, 2).contiguous(), None


def _new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        intermediate_size=recipe.intermediate_size,
        max_position_embeddings=recipe.context_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return LlamaForCausalLM(config).float().train()


def _optimizers(recipe: Recipe, model: nn.Module) -> Optimizers:
    """Muon (Jordan et al. 2024) for hidden matrices, AdamW for the rest: half the loss of AdamW alone."""
    if not hasattr(torch.optim, "Muon"):
        raise ImportError(
            f"pretraining needs torch.optim.Muon, that is torch >= 2.9; this is {torch.__version__}"
        )
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name else others).append(parameter)
    return (
        torch.optim.Muon(matrices, lr=recipe.matrix_lr, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=recipe.other_lr, betas=(0.9, 0.98), weight_decay=0.0),
    )


def _set_learning_rates(recipe: Recipe, optimizers: Optimizers, step: int) -> None:
    """Linear warm-up, then a straight line down to 0."""
    factor = min(1.0, (step + 1) / recipe.warmup_steps) * (1.0 - step / recipe.steps)
    for optimizer, peak in zip(optimizers, (recipe.matrix_lr, recipe.other_lr), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = factor * peak


def _save(
    path: Path,
    recipe: Recipe,
    model: nn.Module,
    optimizers: Optimizers,
    progress: tuple[int, int, float, int],
) -> None:
    """One safetensors file with the weights and the optimizers' tensors; the rest is JSON in its header."""
    tensors = {f"model/{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{index}/{name}": tensor for name, tensor in state.items()}
    header = {"recipe": json.dumps(dataclasses.asdict(recipe)), "progress": json.dumps(progress)}
    temporary = path.with_suffix(".new")
    save_file(tensors, temporary, metadata=header)
    os.replace(temporary, path)


def _load(path: Path, recipe: Recipe, model: nn.Module, optimizers: Optimizers) -> tuple[int, int, float]:
    """Puts a checkpoint's weights and optimizer states in place; returns steps, tokens and seconds done."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        if _recipe(header["recipe"]) != recipe:
            raise ValueError(
                f"the checkpoint {path} was made with other settings, {header['recipe']}; finish that run "
                "with them, or delete the file to start anew"
            )
        _copy_weights(file, model)
        states: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers]
        for key in file.keys():  # noqa: SIM118 (not a dict)
            kind, *place = key.split("/")
            if kind == "optimizer":
                number, index, name = place
                states[int(number)].setdefault(int(index), {})[name] = file.get_tensor(key)
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        steps, tokens, seconds, _ = json.loads(header["progress"])
    return steps, tokens, seconds


@torch.no_grad()
def _copy_weights(file: Any, model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(file.get_tensor(f"model/{name}"))


def _recipe(stated: str) -> Recipe:
    """The recipe that a checkpoint's header states in JSON."""
    fields = json.loads(stated)
    mixtures = tuple((start, weights) for start, weights in fields.pop("mixtures", []))
    try:
        return Recipe(mixtures=mixtures, **fields)
    except TypeError as error:
        raise ValueError(f"the checkpoint is of another version of this package: {error}") from error
