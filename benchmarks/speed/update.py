"""Learning from the tokens: whole episodes beside one forward a transition, and beside TRL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from benchmarks.speed import peers
from benchmarks.speed.measuring import Case, Contender, Unavailable, interleave, seconds
from benchmarks.speed.workloads import Workload, collect

EPISODES = "PPO.train, EpisodeRolloutBuffer"
TRANSITIONS = "PPO.train, stock RolloutBuffer"
Reward = Callable[..., list[float]]
OURS = "PPO rollout + reference + one epoch"


def epochs(work: Workload, repetitions: int) -> Case:
    """Transitions per second of one epoch of stock `PPO.train`, with the same policy on both buffers."""
    contenders = {
        EPISODES: epoch(work, per_transition=False),
        TRANSITIONS: epoch(work, per_transition=True),
    }
    values, missing = interleave(contenders, repetitions, cold=(TRANSITIONS,), label=f"update, {work.label}")
    return Case("update", f"{work.label}, epoch", work.settings, "tokens/s", values, TRANSITIONS, missing)


def epoch(work: Workload, *, per_transition: bool) -> Contender:
    """`PPO.train` on a rollout that is collected once."""
    learner, callback = work.learner(
        reference=not per_transition, per_transition=per_transition, dtype="float32"
    )
    collect(learner, callback)
    return lambda: work.slots * work.new_tokens / seconds(work.device, learner.train)


def iterations(work: Workload, repetitions: int) -> Case:
    """Rollout, reference and one epoch, beside all that `GRPOTrainer` does for as many tokens.

    Both are paid the environment's reward. Of TRL's settings the fastest counts.
    """
    learner, callback = work.learner()
    env: Any = learner.env
    reward = env.get_attr("task")[0].reward

    def ours() -> float:
        def iterate() -> None:
            collect(learner, callback)
            learner.train()

        return work.slots * work.new_tokens / seconds(work.device, iterate)

    contenders: dict[str, Contender] = {OURS: ours}
    missing: dict[str, str] = {}
    sweep: dict[peers.GRPOSetting, float] = {}
    try:
        sweep = grpo_sweep(work, reward)
        contenders[peers.GRPO] = peers.grpo(work, reward, max(sweep, key=sweep.__getitem__))
    except Unavailable as reason:
        missing[peers.GRPO] = str(reason)
    values, failed = interleave(contenders, repetitions, label=f"GRPO, {work.label}")
    peer = peers.GRPO if peers.GRPO in values else ""
    return Case(
        *("update", f"{work.label}, iteration", work.settings, "tokens/s", values, peer),
        missing | failed,
        {f"{peers.GRPO}, {setting.name(work.slots)}": rate for setting, rate in sweep.items()},
    )


def grpo_sweep(work: Workload, reward: Reward) -> dict[peers.GRPOSetting, float]:
    """Tokens per second of one step with each of TRL's settings."""
    settings = [setting for setting in peers.GRPO_SWEEP if work.slots % setting.parts == 0]
    progress = tqdm(settings, desc="sweep of TRL's settings", leave=False)
    return {setting: peers.grpo(work, reward, setting)() for setting in progress}
