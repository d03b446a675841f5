"""`python -m benchmarks tasks`: the scores of every text environment, one row an id.

A cell is what one player earned with one seed. Each is a line of `tasks.jsonl`, written when it is done: a
run that was stopped goes on with the cells that are missing, and a run with other settings, or another
bundled model, does all of them anew. All players meet the same held-out instances; a seed has instances of
its own.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from tqdm import TqdmExperimentalWarning, tqdm

from agents import report
from agents.play import Sampling, play_script
from benchmarks.players import TEXT_IDS, make, play_model, play_randomly, policy_decoder, scripts
from benchmarks.task_tables import (
    LEARNERS,
    MIN_SEEDS,
    SCRIPT,
    Cell,
    collect,
    markdown,
    score_table,
    trick_table,
)
from lm_envs.language_model import LanguageModel
from lm_envs.sb3 import EpisodeRolloutBuffer, KLCallback, TransformerPolicy


@dataclass(frozen=True)
class Tasks:
    """Score all text ids: random play, the bundled model, PPO, and the tasks' scripted players."""

    ids: tuple[str, ...] = TEXT_IDS
    players: tuple[str, ...] = (*LEARNERS, "scripts")
    """"random", "sampled", "greedy", "ppo", "scripts" (all scripted ones) or "script: NAME"."""
    seeds: tuple[int, ...] = (0, 1, 2)
    episodes: int = 200
    """Held-out instances per cell."""
    total_timesteps: int = 80_000
    """PPO stops after so many tokens ..."""
    minutes: float = 2.5
    """... or so many minutes, whatever comes first; the update in between may last another one."""
    learning_rate: float = 1e-4
    kl_coef: float = 0.05
    """Reward lost per nat of KL to the untrained model."""
    n_envs: int = 64
    out: Path = Path("benchmarks/results")

    def __call__(self) -> None:
        """Plays the cells that are missing, then writes and prints the table."""
        for env_id in self.ids:
            if env_id not in TEXT_IDS:
                raise SystemExit(f"--ids: {env_id!r} is none of {', '.join(TEXT_IDS)}")
        done = finished(self.path)
        cells = [cell for env_id in self.ids for cell in self.cells(env_id)]
        missing = [cell for cell in cells if not self.is_finished(cell, done)]
        self.out.mkdir(parents=True, exist_ok=True)
        with tqdm(missing, unit="cell") as bar:
            for cell in bar:
                bar.set_postfix_str(" ".join(map(str, cell)))
                append(self.path, self.play(*cell))
        self.report(finished(self.path))

    @property
    def path(self) -> Path:
        """The file of results."""
        return self.out / "tasks.jsonl"

    def cells(self, env_id: str) -> Iterator[Cell]:
        """The cells of an id."""
        for player in self.players:
            scripted = player == "scripts"
            for name in [SCRIPT + name for name in scripts(env_id)] if scripted else [player]:
                if name not in LEARNERS and name.removeprefix(SCRIPT) not in scripts(env_id):
                    raise SystemExit(f"--players: {env_id} has no {name!r}, but {', '.join(scripts(env_id))}")
                yield from ((env_id, name, seed) for seed in self.seeds)

    def settings(self, player: str) -> dict[str, Any]:
        """What a cell's result depends on, besides the cell and the code."""
        names = ["episodes"]
        if player == "ppo":
            names += ["total_timesteps", "minutes", "learning_rate", "kl_coef", "n_envs"]
        return {"model": bundled_checksum(), **{name: getattr(self, name) for name in names}}

    def is_finished(self, cell: Cell, done: Mapping[Cell, Mapping[str, Any]]) -> bool:
        """Whether there is a result of this cell with these settings."""
        return cell in done and done[cell]["settings"] == self.settings(cell[1])

    def play(self, env_id: str, player: str, seed: int) -> dict[str, Any]:
        """The result of one cell."""
        started = time.perf_counter()
        instances = 10_000 + 1000 * seed  # seed of the first one
        details: dict[str, Any] = {}
        if player == "random":
            returns, lengths = play_randomly(env_id, self.episodes, instances)
        elif player == "ppo":
            returns, lengths, details = self.train(env_id, seed, instances)
        elif player in LEARNERS:
            sampling = Sampling(greedy=player == "greedy")
            returns, lengths = play_model(env_id, self.episodes, instances, sampling)
        else:
            script = scripts(env_id)[player.removeprefix(SCRIPT)]
            played = play_script(script, env_id, self.episodes, seed=instances, env_kwargs={"split": "test"})
            returns, lengths = [each.reward for each in played], [each.tokens for each in played]
        return {
            "id": env_id,
            "player": player,
            "seed": seed,
            "settings": self.settings(player),
            "mean": round(float(np.mean(returns)), 4),
            "longest": int(max(lengths)),
            "seconds": round(time.perf_counter() - started, 1),
            **details,
            "returns": [round(float(value), 4) for value in returns],
        }

    def train(self, env_id: str, seed: int, instances: int) -> tuple[list[float], list[int], dict[str, Any]]:
        """Trains PPO, then plays: returns, lengths, and the steps and minutes of the training."""
        learner = self.learner(env_id, seed)
        started = time.perf_counter()
        curve = Curve(self.minutes)
        callbacks = CallbackList([KLCallback(kl_coef=self.kl_coef), curve])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TqdmExperimentalWarning)  # SB3's progress bar
            learner.learn(self.total_timesteps, callbacks, progress_bar=True)
        minutes = (time.perf_counter() - started) / 60
        details = {"steps": learner.num_timesteps, "minutes": round(minutes, 2), "curve": curve.points}
        decoder = policy_decoder(cast(TransformerPolicy, learner.policy), self.episodes)
        returns, lengths = play_model(env_id, self.episodes, instances, Sampling(), decoder)
        return returns, lengths, details

    def learner(self, env_id: str, seed: int) -> PPO:
        """PPO with the transformer, on tokens; settings shared by all ids."""
        env = make(env_id, self.n_envs, seed, split="train", actions="token")
        return PPO(
            TransformerPolicy,
            env,
            n_steps=64,
            batch_size=1024,
            learning_rate=self.learning_rate,
            gamma=1.0,
            gae_lambda=0.95,
            n_epochs=2,
            normalize_advantage=False,  # the buffer whitens the whole rollout
            rollout_buffer_class=EpisodeRolloutBuffer,
            seed=seed,
        )

    def report(self, done: Mapping[Cell, Mapping[str, Any]]) -> None:
        """Writes `tasks.md` and prints the same."""
        results = {cell: row for cell, row in done.items() if self.is_finished(cell, done)}
        scores = collect(results)
        tables = [score_table(scores, results), trick_table(scores)]
        lines = [f"# Scores of the text environments\n\n{self.setting(results)}\n"]
        lines += [f"## {table.title}\n\n{markdown(table)}\n" for table in tables]
        report.write_text(self.out / "tasks.md", "\n".join(lines))
        report.console().print(*tables)

    def setting(self, results: Mapping[Cell, Mapping[str, Any]]) -> str:
        """What was played, and how PPO was trained."""
        minutes = [row["minutes"] for row in results.values() if "minutes" in row]
        took = f" (the longest run took {max(minutes):.1f})" if minutes else ""
        return (
            f"Made by `python -m benchmarks tasks`. Mean returns with 95% intervals (two-stage bootstrap "
            f"over seeds, at least {MIN_SEEDS} but where a star stands, and {self.episodes} held-out "
            f"instances a seed, the same for all players). PPO: {self.total_timesteps:,} tokens or "
            f"{self.minutes:g} minutes{took}, "
            f"{self.n_envs} slots, 64 steps a rollout, minibatches of 1024, learning rate "
            f"{self.learning_rate:g}, 2 epochs, gamma 1, lambda 0.95, KL coefficient {self.kl_coef:g}."
        )


class Curve(BaseCallback):
    """Keeps the mean training return after each rollout; ends the training after `minutes`."""

    def __init__(self, minutes: float) -> None:
        super().__init__()
        self.points: list[tuple[int, float]] = []
        self._deadline = time.perf_counter() + 60 * minutes

    def _on_step(self) -> bool:
        return time.perf_counter() < self._deadline

    def _on_rollout_end(self) -> None:
        buffer = self.model.ep_info_buffer
        if buffer:
            mean = float(np.mean([episode["r"] for episode in buffer]))
            self.points.append((self.num_timesteps, round(mean, 4)))


def bundled_checksum() -> str:
    """Names the weights of the bundled model."""
    sums = (Path(LanguageModel.load(lazy=True).path) / "SHA256SUMS").read_text(encoding="utf-8")
    return next(line.split()[0][:12] for line in sums.splitlines() if line.endswith("model.safetensors"))


def finished(path: Path) -> dict[Cell, dict[str, Any]]:
    """The results so far; of a cell with several the last. A line that was cut off is none."""
    rows: dict[Cell, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[row["id"], row["player"], row["seed"]] = row
    return rows


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a line, on the disk when this returns; behind a line that was cut off it begins a new one."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
