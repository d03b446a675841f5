"""How cost grows: a step with the text, the slots and the vocabulary; an update's memory; the buffer.

Every case has the points of one curve as contenders, "64" and so on, and the exponent that fits them: 0 is a
constant cost, 1 a linear one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.measuring import Case, fitted_slope, interleave, now, seconds
from benchmarks.speed.rollout import constant
from benchmarks.speed.shapes import model_argument, random_model
from benchmarks.speed.workloads import Workload, collect
from lm_envs.decoding import Decoder
from lm_envs.sampling import sample

SLOPE = "slope"
GENERATED, SLOTS, VOCABULARY = "step, tokens generated", "step, slots", "step, vocabulary"
MEMORY = "update memory, "
BUFFER, STOCK_BUFFER = "EpisodeRolloutBuffer, length", "stock RolloutBuffer, length"
# The window over which the cost at a number of generated tokens is a median of.
WINDOW = 16


def curve(name: str, settings: dict[str, Any], unit: str, values: Mapping[int, list[float]]) -> Case:
    """The case of a curve: x -> values."""
    points = {str(x): measured for x, measured in values.items()}
    case = Case("growth", name, settings, unit, points, str(min(values)))
    case.facts[SLOPE] = fitted_slope(list(values), [case.median(x) for x in points])
    return case


def generated(work: Workload, marks: Sequence[int], repetitions: int) -> Case:
    """Milliseconds of a step, policy and environment, after so many tokens of the same episodes.

    Args:
        work: a model whose window holds the last mark.
        marks: numbers of generated tokens; the cost is the median over the steps just before each.
        repetitions: after one that warms up.
    """
    values: dict[int, list[float]] = {mark: [] for mark in marks}
    env_kwargs = {"prompts": ["Once upon a time"], "reward": constant, "max_new_tokens": max(marks) + 1}
    learner, _ = work.learner(reference=False, env_kwargs=env_kwargs)
    env: Any = learner.env
    for repetition in range(repetitions + 1):
        learner.policy.set_training_mode(True)
        observation = env.reset()
        times = []
        for _ in range(max(marks)):
            started = now(work.device)
            tensors = {key: torch.as_tensor(value).to(work.device) for key, value in observation.items()}
            actions = learner.policy(tensors)[0].cpu().numpy()
            observation = env.step(actions)[0]
            times.append(now(work.device) - started)
        for mark in marks:
            window = times[mark - min(WINDOW, mark) : mark]
            values[mark] += [1e3 * float(np.median(window))] if repetition else []
    return curve(GENERATED, work.settings, "ms / step", values)


def slots(work: Workload, counts: Sequence[int], repetitions: int) -> Case:
    """Milliseconds of decoding and sampling one token in so many slots."""
    language_model = work.language_model()

    def decoder(count: int) -> Decoder:
        return language_model.decoder(count)

    values, _ = interleave(
        {str(count): step_timer(decoder(count), work.device) for count in counts}, repetitions, label=SLOTS
    )
    settings = {"model": work.name, "context": START}
    return curve(SLOTS, settings, "ms / step", {count: values[str(count)] for count in counts})


def vocabulary(sizes: Sequence[int], num_slots: int, repetitions: int, device: str) -> Case:
    """Milliseconds of decoding and sampling one token from so many, with the bundled model's other sizes."""

    def decoder(size: int) -> Decoder:
        model = random_model("long", vocab_size=size).to(device)
        return Decoder(model, num_slots, vocab_size=size, context_length=256)

    timers = {str(size): step_timer(decoder(size), device) for size in sizes}
    values, _ = interleave(timers, repetitions, label=VOCABULARY)
    settings = {"model": "bundled sizes, random weights", "slots": num_slots, "context": START}
    return curve(VOCABULARY, settings, "ms / step", {size: values[str(size)] for size in sizes})


START = 64


def step_timer(decoder: Decoder, device: str, steps: int = 8) -> Callable[[], float]:
    """A function that returns milliseconds per step, from a context of `START` tokens on."""
    contexts = np.ones((decoder.num_slots, START), np.int64)

    def run() -> float:
        decoder.clear()
        decoder.advance(contexts, np.full(decoder.num_slots, START))

        def write() -> None:
            for _ in range(steps):
                tokens, _ = sample(decoder.logits())
                decoder.step(tokens.cpu().numpy())

        return 1e3 * seconds(device, write) / steps

    return run


def update_memory(
    work: Workload,
    folder: Path,
    *,
    slots: Sequence[int],
    lengths: Sequence[int],
    vocabularies: Sequence[int],
) -> list[Case]:
    """Megabytes that a minibatch's forward and backward hold at most, one curve a dimension.

    Args:
        work: what is varied, and the shape's name; its smallest vocabulary serves where that is not varied.
        folder: of the models that are built.
        slots: episodes of the minibatch.
        lengths: tokens of an episode that are learned from.
        vocabularies: sizes.
    """

    def measured(vocab_size: int, **changes: Any) -> list[float]:
        model = model_argument(work.name, folder, vocab_size=vocab_size)
        return [activation_megabytes(replace(work, model=model, **changes))]

    smallest = min(vocabularies)
    curves: dict[str, dict[int, list[float]]] = {
        "episodes": {count: measured(smallest, slots=count) for count in slots},
        "length": {length: measured(smallest, new_tokens=length) for length in lengths},
        "vocabulary": {size: measured(size) for size in vocabularies},
    }
    return [curve(MEMORY + name, work.settings, "MB", values) for name, values in curves.items()]


def activation_megabytes(work: Workload) -> float:
    """Peak of what a forward and backward pass over a rollout allocates, in 1e6 bytes.

    Parameters, their gradients and the optimizer's state are there before, and are not counted; what the
    backward pass holds of a gradient before it is added is.
    """
    learner, callback = work.learner(reference=False, dtype="float32", env_kwargs={"reward": constant})
    collect(learner, callback)
    policy: Any = learner.policy
    policy.set_training_mode(True)
    policy.optimizer.zero_grad()
    (batch,) = learner.rollout_buffer.get(None)

    def learn() -> None:
        values, log_prob, entropy = policy.evaluate_actions(batch.observations, batch.actions)
        ratio = torch.exp(log_prob - batch.old_log_prob)
        error = (values.flatten() - batch.returns) ** 2
        (error.mean() - (ratio * batch.advantages).mean() - 0.01 * entropy.mean()).backward()

    learn()  # now there are gradients
    if work.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        learn()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    return peak_bytes(learn) / 1e6


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that `run` has allocated at a time on the CPU, above what there was before, in bytes."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would write a line at each start and stop
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    allocations = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = np.cumsum([size for _, size in allocations])
    return int(max(0, held.max(initial=0)))


def buffer_bytes(work: Workload, lengths: Sequence[int]) -> list[Case]:
    """Bytes a rollout buffer holds for an episode of so many tokens."""
    cases = []
    for name, per_transition in ((BUFFER, False), (STOCK_BUFFER, True)):
        values = {}
        for length in lengths:
            changed = replace(work, new_tokens=length)
            learner, callback = changed.learner(
                reference=False,
                per_transition=per_transition,
                env_kwargs={"reward": constant, "truncate_prompts": True},
            )
            collect(learner, callback)
            values[length] = [stored_bytes(learner.rollout_buffer) / work.slots]
        cases.append(curve(name, work.settings | {"new tokens": "see x"}, "bytes / episode", values))
    return cases


def stored_bytes(holder: object) -> int:
    """Bytes of all arrays and tensors that an object's attributes hold, in lists and dicts too."""
    seen: dict[int, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, np.ndarray | torch.Tensor):
            seen[id(value)] = value.nbytes
        elif isinstance(value, Mapping):
            for item in value.values():
                walk(item)
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)

    for value in vars(holder).values():
        walk(value)
    return sum(seen.values())
