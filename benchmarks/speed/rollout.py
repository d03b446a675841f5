"""Tokens per second of writing: rollouts, the bare environment, the decoder, and the peers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from benchmarks.speed import peers
from benchmarks.speed.measuring import Case, Contender, Stopwatch, interleave, seconds
from benchmarks.speed.workloads import Workload, collect
from lm_envs.sampling import sample

ROLLOUT = "PPO.collect_rollouts"
UNREFERENCED = "PPO.collect_rollouts, no reference model"
UNJUDGED = "PPO.collect_rollouts, no reference model, constant reward"
ENVIRONMENT = "environment alone, random tokens"
UNREWARDED = "environment alone, random tokens, constant reward"
DECODER = "Decoder alone, sampling"
SHARE = "not a model forward or sampling"


def writing(work: Workload, repetitions: int) -> Case:
    """All that writes tokens, beside the faster of the two caches of `model.generate`."""
    contenders: dict[str, Contender] = {
        peers.DYNAMIC: peers.generate(work, None),
        peers.STATIC: peers.generate(work, "static"),
        ROLLOUT: rollout(work, reference=True),
        UNREFERENCED: rollout(work, reference=False),
        UNJUDGED: rollout(work, reference=False, reward=constant),
        ENVIRONMENT: environment(work),
        UNREWARDED: environment(work, reward=constant),
        peers.CONTINUOUS: peers.continuous_batching(work),
    }
    if not work.ragged:
        contenders |= {DECODER: decoder(work), peers.RECOMPUTED: peers.recomputing(work)}
    slow = (peers.CONTINUOUS, peers.RECOMPUTED) if work.device == "cpu" else ()
    values, missing = interleave(contenders, repetitions, cold=slow, label=work.label)
    case = Case("rollout", work.label, work.settings, "tokens/s", values, missing=missing)
    case.peer = case.fastest((peers.DYNAMIC, peers.STATIC))
    return case


def constant(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """A reward that costs nothing."""
    return [0.0] * len(completions)


def rollout(work: Workload, *, reference: bool, **env_kwargs: Any) -> Contender:
    """Stock `collect_rollouts`: environment, policy, values, rewards, advantages, and perhaps the KL."""
    learner, callback = work.learner(reference=reference, env_kwargs=env_kwargs)

    def run() -> float:
        elapsed = seconds(work.device, lambda: collect(learner, callback))
        return work.slots * work.new_tokens / elapsed

    return run


def environment(work: Workload, **env_kwargs: Any) -> Contender:
    """Gymnasium's vector environment alone; of ragged episodes, a random one in the mean length ends a step.

    Random tokens are none of EOS, so that equal episodes have equal lengths.
    """
    env: Any = work.env(**env_kwargs).env
    if env.metadata["autoreset_mode"] != AutoresetMode.SAME_STEP:
        raise ValueError("the environment must be in SAME_STEP mode")
    env.reset(seed=0)
    eos = env.language_model.eos_token_id
    vocab_size = int(env.single_action_space.n)
    rng = np.random.default_rng(0)
    ends = 2 / (work.new_tokens + 1) if work.ragged else 0.0

    def run() -> float:
        shape = work.new_tokens, work.slots
        actions = rng.integers(1, vocab_size, size=shape)
        actions[actions == eos] = 0
        actions[rng.random(shape) < ends] = eos

        def steps() -> None:
            for row in actions:
                env.step(row)

        return actions.size / seconds(work.device, steps)

    return run


def decoder(work: Workload) -> Contender:
    """Prefill the prompts, then decode and sample, with nothing around it."""
    language_model = work.language_model()
    prompts = work.prompts()

    def run() -> float:
        decoder = language_model.decoder(work.slots)

        def write() -> None:
            decoder.prefill(range(work.slots), prompts)
            for step in range(work.new_tokens):
                tokens, _ = sample(decoder.logits())
                if step + 1 < work.new_tokens:
                    decoder.step(tokens.cpu().numpy())

        return work.slots * work.new_tokens / seconds(work.device, write)

    return run


def environment_share(work: Workload, repetitions: int) -> Case:
    """What a rollout without reference spends outside of the policy's forward and of the reward's model.

    That is Gymnasium's step, the rewards' other parts, stable-baselines3's loop, the buffer and the
    advantages. With a reference the same seconds are a smaller share.
    """
    learner, callback = work.learner(reference=False)
    env: Any = learner.env
    watch = Stopwatch(work.device)
    language_model = env.get_attr("language_model")[0]
    for owner, names in (
        (learner.policy, ("forward", "predict_values")),
        (language_model, ("typicality", "log_probs")),
    ):
        for name in names:
            setattr(owner, name, watch.wrap(getattr(owner, name)))

    def run() -> float:
        watch.seconds = 0.0
        elapsed = seconds(work.device, lambda: collect(learner, callback))
        return 1 - watch.seconds / elapsed

    values, _ = interleave({SHARE: run}, repetitions, label=f"{work.label}, share")
    return Case("rollout", f"{work.label}, environment share", work.settings, "of the time", values)


def host_synchronisations(work: Workload) -> Case:
    """How often the host waits for a GPU in a step, as torch's debug mode counts it."""
    decoder = work.language_model().decoder(work.slots)
    prompts = work.prompts()
    learner, callback = work.learner(reference=False)

    def decode() -> None:
        for _ in range(work.new_tokens):
            tokens, _ = sample(decoder.logits())
            decoder.step(tokens.cpu().numpy())

    values = {}
    for name, loop in {"Decoder.step, sampling": decode, ROLLOUT: lambda: collect(learner, callback)}.items():
        decoder.prefill(range(work.slots), prompts)
        loop()  # records the CUDA graphs
        decoder.prefill(range(work.slots), prompts)
        values[name] = [waits(loop) / work.new_tokens]
    return Case("rollout", f"{work.label}, host synchronisations", work.settings, "a step", values)


def waits(run: Callable[[], object]) -> int:
    """Operations of `run` that made the host wait for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
