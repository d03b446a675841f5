"""`python -m agents.tabular.sweep`: every tabular agent on every default toy, regret and updates per second.

With the shipped hyperparameters. One core is enough: `OMP_NUM_THREADS=1 taskset -c 1 python -m ...`.
"""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from agents.tabular import ALGORITHMS, make_env
from agents.tabular.run import Judge

TOYS = ("ToyCopy", "ToyReverse", "ToyBrackets", "ToyBigram", "ToyTranslate", "ToyKeyDoor")
LEARNERS = tuple(name for name in ALGORITHMS if name != "value_iteration")


@dataclass(frozen=True)
class Sweep:
    """Regret of tabular agents on the toys."""

    algos: tuple[str, ...] = LEARNERS
    toys: tuple[str, ...] = TOYS
    seeds: tuple[int, ...] = (0,)
    total_timesteps: int = 10_000_000
    n_envs: int = 1024
    out: Path = Path("runs/tabular_sweep.csv")
    """Written anew, a line per run."""

    def __call__(self) -> None:
        """Runs all of them, one after the other, and prints a table: the worst seed's regret and time."""
        table = Table(
            "toy", *self.algos, title="largest regret of the seeds / seconds / million updates per s"
        )
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with self.out.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["toy", "algo", "seed", "regret", "seconds", "updates_per_second"])
            for toy in self.toys:
                cells = []
                for algo in self.algos:
                    runs = [(seed, *self._run(toy, algo, seed)) for seed in self.seeds]
                    for seed, regret, seconds in runs:
                        writer.writerow([toy, algo, seed, regret, seconds, self.total_timesteps / seconds])
                        file.flush()
                    regret, seconds = (max(run[at] for run in runs) for at in (1, 2))
                    cells.append(f"{regret:.2%} / {seconds:.0f} / {self.total_timesteps / seconds / 1e6:.1f}")
                    print(toy, algo, cells[-1], flush=True)
                table.add_row(toy, *cells)
        Console().print(table)

    def _run(self, toy: str, algo: str, seed: int) -> tuple[float, float]:
        """Regret and seconds of one run."""
        kind: Any = ALGORITHMS[algo]
        agent = kind(make_env(f"TextGen-{toy}-v0", self.n_envs), seed=seed)
        judge = Judge(agent, agent.env)
        began = time.perf_counter()
        agent.learn(self.total_timesteps)
        seconds = time.perf_counter() - began
        return judge(agent.num_timesteps).regret, seconds


if __name__ == "__main__":
    tyro.cli(Sweep, prog="python -m agents.tabular.sweep")()
