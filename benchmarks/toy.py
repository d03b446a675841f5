"""`python -m benchmarks toy`: steps per second of the toy environments beside Gymnasium's FrozenLake."""

from __future__ import annotations

import os
import platform
import statistics
import time
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from lm_envs.registration import ENVIRONMENTS

FROZEN_LAKE = "FrozenLake-v1"


@dataclass(frozen=True)
class Toy:
    """Random play, resets included: single environments without wrappers, vector ones in SAME_STEP mode.

    Seconds are CPU seconds of this one thread: what else runs on the machine takes none of them.
    """

    slots: int = 4096
    single_steps: int = 20_000
    vector_steps: int = 100
    """Steps of the whole batch."""
    repetitions: int = 5
    """Interleaved repetitions; medians and their ratios are reported."""

    def __call__(self) -> None:
        """Times everything once per repetition, in turn, and prints the table."""
        toys = [env_id for env_id in ENVIRONMENTS if "Toy" in env_id]
        single: dict[str, list[float]] = {env_id: [] for env_id in (FROZEN_LAKE, *toys)}
        vector: dict[str, list[float]] = {env_id: [] for env_id in toys}
        for _ in tqdm(range(self.repetitions), desc="repetitions"):
            for env_id, rates in single.items():
                rates.append(self.single(env_id))
            for env_id, rates in vector.items():
                rates.append(self.vector(env_id))
        peer = statistics.median(single[FROZEN_LAKE])
        machine = f"one of {os.cpu_count()} cores ({platform.machine()}), numpy {np.__version__}"
        columns = "single, k steps/s", "x FrozenLake", "vector, M steps/s", "x FrozenLake"
        table = Table("", *columns, title=f"{self.slots} slots, {machine}")
        for env_id, rates in single.items():
            rate = statistics.median(rates)
            row = [env_id, f"{rate / 1e3:.0f}", f"{rate / peer:.2f}"]
            if env_id in vector:
                batch = statistics.median(vector[env_id])
                row += [f"{batch / 1e6:.1f}", f"{batch / peer:.0f}"]
            table.add_row(*row)
        Console(width=100).print(table)

    def single(self, env_id: str) -> float:
        """Steps per second of one environment."""
        env: Any = gymnasium.make(env_id).unwrapped
        actions = np.random.default_rng(0).integers(env.action_space.n, size=self.single_steps).tolist()
        env.reset(seed=0)
        terminated = truncated = False
        while not (terminated or truncated):  # what is made once is made now
            _, _, terminated, truncated, _ = env.step(0)
        env.reset()
        started = time.process_time()
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return self.single_steps / (time.process_time() - started)

    def vector(self, env_id: str) -> float:
        """Steps per second of all slots together."""
        env: Any = gymnasium.make_vec(env_id, self.slots, autoreset_mode=AutoresetMode.SAME_STEP)
        num_actions = env.single_action_space.n
        actions = np.random.default_rng(0).integers(num_actions, size=(self.vector_steps, self.slots))
        env.reset(seed=0)
        is_over = np.zeros(self.slots, bool)
        while not is_over.all():  # what is made once is made now
            _, _, is_over, _, _ = env.step(actions[0])
        started = time.process_time()
        for row in actions:
            env.step(row)
        return actions.size / (time.process_time() - started)
