"""`python -m benchmarks regret`: the regret of every learner on every default toy.

With the shipped hyperparameters, one run after the other on one thread. Finished runs are kept in a CSV file
and not made again: the command goes on where it was stopped. Remove the file when the learners change.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from agents.options import check_counts
from agents.tabular import ALGORITHMS, make_env
from agents.toy import learners
from agents.toy.judge import Judge
from agents.toy.run import one_thread

TABULAR = tuple(name for name in ALGORITHMS if name != "value_iteration")
GROUPS = {"tabular agents": TABULAR, "DQN": ("dqn",), "PPO": ("ppo",)}
TABULAR_STEPS = learners.TIMESTEPS["q_learning"]


class Row(NamedTuple):
    """A run, as the CSV file holds it."""

    toy: str  # "ToyCopy" for "TextGen-ToyCopy-v0"
    algo: str
    seed: int
    timesteps: int  # that were asked for
    regret: float  # exact: of PPO and policy gradients the stochastic policy's, else the greedy one's
    expected_return: float | None
    seconds: float  # wall clock, of learning
    cpu_seconds: float | None  # what it would take on a core of its own
    updates_per_second: float  # environment steps per second of wall clock
    threads: int | None


@dataclass(frozen=True)
class Regret:
    """Regret of learners on the toys."""

    algos: tuple[str, ...] = (*TABULAR, "dqn", "ppo")
    toys: tuple[str, ...] = tuple(env_id.removeprefix("TextGen-")[:-3] for env_id in learners.TOYS)
    seeds: tuple[int, ...] = (0, 1, 2)
    total_timesteps: int | None = None
    """Environment steps of a run; None: the algorithm's own."""
    out: Path = Path("runs/regret.csv")
    """Finished runs; read first, and added to."""
    include: tuple[Path, ...] = ()
    """Further such files, whose runs count as finished; later files, and `out`, replace earlier ones'."""

    def __call__(self) -> list[Row]:
        """Makes the runs that are missing; prints and returns those that were asked for."""
        check_counts(total_timesteps=self.total_timesteps)
        wanted = [
            (f"Toy{toy.removeprefix('Toy')}", algo, seed, self._steps(algo))
            for algo in self.algos
            for toy in self.toys
            for seed in self.seeds
        ]
        rows = {row[:4]: row for path in (*self.include, self.out) for row in read(path)}
        with tqdm([key for key in wanted if key not in rows], unit=" runs") as bar:
            for key in bar:
                bar.set_description(f"{key[1]} on {key[0]}, seed {key[2]}")
                rows[key] = run(*key)
                write(self.out, rows.values())
        write(self.out, rows.values())
        found = [rows[key] for key in wanted]
        for title, algos in GROUPS.items():
            shown = [row for row in found if row.algo in algos]
            if shown:
                Console(width=max(80, 20 + 18 * len(self.algos))).print(table(title, shown))
        return found

    def _steps(self, algo: str) -> int:
        if algo not in (*TABULAR, *learners.FAMILIES):
            raise SystemExit(f"algos must be among {', '.join((*TABULAR, 'dqn', 'ppo'))}, got {algo}")
        if self.total_timesteps is not None:
            return self.total_timesteps
        return learners.TIMESTEPS.get(algo, TABULAR_STEPS)


def run(toy: str, algo: str, seed: int, timesteps: int) -> Row:
    """Trains one learner with the shipped hyperparameters, on one thread."""
    env_id = f"TextGen-{toy}-v0"
    learner: Any
    if algo in learners.FAMILIES:
        learner = learners.FAMILIES[algo](env_id, {}, seed)
    else:
        learner = ALGORITHMS[algo](make_env(env_id, 1024), seed=seed)  # type: ignore[call-arg]
    env = learner.env if algo in TABULAR else learner.env.env
    judge = Judge(learner, env)
    with one_thread():
        began, began_cpu = time.perf_counter(), time.process_time()
        learner.learn(timesteps, callback=learners.callbacks(learner))
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    point = judge()
    return Row(
        toy,
        algo,
        seed,
        timesteps,
        point.regret,
        point.expected_return,
        seconds,
        cpu_seconds,
        point.timesteps / seconds,
        1,
    )


def read(path: Path) -> Iterator[Row]:
    """The runs in a CSV file, none if there is no such file.

    Columns that older files lack: timesteps follows from the others, the rest is not known.
    """
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if None in line.values():
                continue  # a line that was cut off
            seconds, rate = float(line["seconds"]), float(line["updates_per_second"])
            yield Row(
                line["toy"],
                line["algo"],
                int(line["seed"]),
                int(line.get("timesteps") or round(seconds * rate)),
                float(line["regret"]),
                float(line["return"]) if line.get("return") else None,
                seconds,
                float(line["cpu_seconds"]) if line.get("cpu_seconds") else None,
                rate,
                int(line["threads"]) if line.get("threads") else None,
            )


def write(path: Path, rows: Any) -> None:
    """Writes the CSV file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("." + path.name)
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([name.replace("expected_return", "return") for name in Row._fields])
        writer.writerows(rows)
    os.replace(temporary, path)


def table(title: str, rows: list[Row]) -> Table:
    """One line per toy: the largest regret and time of its seeds."""
    algos, toys, seeds = (
        list(dict.fromkeys(getattr(row, at) for row in rows)) for at in ("algo", "toy", "seed")
    )
    caption = "cpu s: seconds of one core; s: of wall clock"
    result = Table(
        title=f"{title}: largest regret / seconds of {len(seeds)} seeds", caption=caption, min_width=60
    )
    result.add_column("toy")
    for algo in algos:
        result.add_column(algo, justify="right")
    for toy in toys:
        cells = []
        for algo in algos:
            runs = [row for row in rows if (row.toy, row.algo) == (toy, algo)]
            is_cpu = all(row.cpu_seconds is not None for row in runs)
            seconds = max((row.cpu_seconds if is_cpu else None) or row.seconds for row in runs)
            cells.append(f"{max(row.regret for row in runs):.2%} / {seconds:.0f} {'cpu ' * is_cpu}s")
        result.add_row(toy, *cells)
    return result
