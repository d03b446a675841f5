"""`python -m benchmarks toy`: steps per second of the toy environments beside Gymnasium's own."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table

from agents.options import check_counts
from benchmarks.speed.measuring import Case, interleave
from lm_envs.registration import ENVIRONMENTS

FROZEN_LAKE, CART_POLE = "FrozenLake-v1", "CartPole-v1"
TAXI = max(env_id for env_id in gymnasium.registry if env_id.startswith("Taxi-v"))
SINGLE, VECTOR = "single, ", "vector, "


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
        counts = {name: getattr(self, name) for name in ("slots", "single_steps", "vector_steps")}
        check_counts(repetitions=self.repetitions, **counts)
        case = self.case(self.repetitions)
        machine = f"one of {os.cpu_count()} cores ({platform.machine()}), numpy {np.__version__}"
        columns = "single, k steps/s", "x FrozenLake", "vector, M steps/s", "x FrozenLake", "x CartPole's"
        table = Table("", *columns, title=f"{self.slots} slots, {machine}")
        for env_id in (FROZEN_LAKE, TAXI, CART_POLE, *self.toys):
            row = [env_id, "-", "-", "-", "-", "-"]
            if (single := SINGLE + env_id) in case.values:
                row[1:3] = f"{case.median(single) / 1e3:.0f}", f"{case.ratio(single):.2f}"
            if (vector := VECTOR + env_id) in case.values:
                beside = case.ratio(vector, VECTOR + CART_POLE)
                row[3:] = f"{case.median(vector) / 1e6:.1f}", f"{case.ratio(vector):.0f}", f"{beside:.2f}"
            table.add_row(*row)
        Console(width=110).print(table)

    @property
    def toys(self) -> list[str]:
        """The toy environments' ids."""
        return [env_id for env_id in ENVIRONMENTS if "Toy" in env_id]

    def case(self, repetitions: int) -> Case:
        """Steps per second of all environments, beside a single FrozenLake."""
        singles = {
            SINGLE + env_id: partial(self.single, env_id) for env_id in (FROZEN_LAKE, TAXI, *self.toys)
        }
        vectors = {VECTOR + env_id: partial(self.vector, env_id) for env_id in (CART_POLE, *self.toys)}
        values, _ = interleave(singles | vectors, repetitions, label="toys")
        settings = {"slots": self.slots, "threads": 1}
        return Case("toy", "steps", settings, "steps/s", values, SINGLE + FROZEN_LAKE)

    def single(self, env_id: str) -> float:
        """Steps per second of one environment."""
        env: Any = gymnasium.make(env_id).unwrapped
        actions = np.random.default_rng(0).integers(env.action_space.n, size=self.single_steps).tolist()
        env.reset(seed=0)
        terminated = truncated = False
        for action in actions:  # what is made once, at the end of an episode, is made now
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
        env.reset()
        started = time.process_time()
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return self.single_steps / (time.process_time() - started)

    def vector(self, env_id: str) -> float:
        """Steps per second of all slots together."""
        options: dict[str, Any] = {} if env_id == CART_POLE else {"autoreset_mode": AutoresetMode.SAME_STEP}
        env: Any = gymnasium.make_vec(env_id, self.slots, vectorization_mode="vector_entry_point", **options)
        num_actions = env.single_action_space.n
        actions = np.random.default_rng(0).integers(num_actions, size=(self.vector_steps, self.slots))
        env.reset(seed=0)
        if env_id != CART_POLE:
            is_over = np.zeros(self.slots, bool)
            while not is_over.all():  # what is made once is made now
                _, _, is_over, _, _ = env.step(actions[0])
        started = time.process_time()
        for row in actions:
            env.step(row)
        return actions.size / (time.process_time() - started)
