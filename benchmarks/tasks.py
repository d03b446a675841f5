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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from tqdm import TqdmExperimentalWarning, tqdm

from agents import report
from agents.metrics import Interval, nested_interval
from agents.play import Sampling, choice_log_probs, play, play_script
from lm_envs.decoding import Decoder
from lm_envs.language_model import LanguageModel
from lm_envs.registration import ENVIRONMENTS
from lm_envs.sb3 import EpisodeRolloutBuffer, KLCallback, TransformerPolicy, make_vec_env
from lm_envs.sb3.vec_env import GymVecEnv

TEXT_IDS = tuple(env_id for env_id in ENVIRONMENTS if "Toy" not in env_id)
LEARNERS = ("random", "sampled", "greedy", "ppo")
MIN_SEEDS = 3  # a score of fewer is marked
GAIN = "gain"
SCRIPT = "script: "  # before the name of a scripted player
Cell = tuple[str, str, int]  # id, player, seed


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
    minutes: float = 3.0
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


def make(env_id: str, slots: int, seed: int, split: str = "test", **kwargs: Any) -> GymVecEnv:
    """The batched environment of an id; on choices it shows the task's own view, or the embedding."""
    mode = kwargs.get("actions", action_mode(env_id))
    if mode != "token" and "observation" not in kwargs:
        kwargs["observation"] = observation_mode(env_id)
    return make_vec_env(env_id, slots, seed=seed, split=split, **kwargs)


def task_of(env_id: str, model: str | None = None) -> Any:
    """The task of an id, as it is without arguments but the model."""
    env: Any = gymnasium.make(env_id, model=model).unwrapped
    return env.task


def scripts(env_id: str, model: str | None = None) -> dict[str, Callable[[Any], str]]:
    """The task's scripted players, and one that writes nothing."""
    task = task_of(env_id, model)
    return {"empty": lambda state: ""} | (task.players() if hasattr(task, "players") else {})


def action_mode(env_id: str) -> str:
    """What an action is by default: "token", or the name of the task's choices."""
    return str(ENVIRONMENTS[env_id][2].get("actions", "token"))


def observation_mode(env_id: str) -> str:
    """What learners of choices see: the task's own view if it has one, else the model's embedding."""
    return next(iter(getattr(task_of(env_id), "views", None) or ["embedding"]))


def is_masked(env: GymVecEnv) -> bool:
    """Whether some actions are forbidden."""
    return env.has_attr("action_masks")


def returns_of(env: GymVecEnv, act: Callable[[Any], np.ndarray]) -> tuple[list[float], list[int]]:
    """Returns and lengths, in actions, of the first episode of each slot."""
    observation: Any = env.reset()
    episodes: dict[int, Mapping[str, Any]] = {}
    while len(episodes) < env.num_envs:
        observation, _, dones, infos = env.step(act(observation))
        for slot in np.flatnonzero(dones).tolist():
            episodes.setdefault(slot, infos[slot]["episode"])
    env.close()
    ordered = [episodes[slot] for slot in range(env.num_envs)]
    return [episode["r"] for episode in ordered], [episode["l"] for episode in ordered]


def play_randomly(
    env_id: str, episodes: int, seed: int, model: str | None = None
) -> tuple[list[float], list[int]]:
    """Uniform draws among the actions that are allowed; `model` is the environment's."""
    env = make(env_id, episodes, seed, model=model)
    rng = np.random.default_rng(seed)

    def act(observation: Any) -> np.ndarray:
        size = (episodes, int(env.action_space.n))  # type: ignore[attr-defined]
        if not is_masked(env):
            return rng.integers(size[1], size=episodes)
        return np.where(np.stack(env.env_method("action_masks")), rng.random(size), -1.0).argmax(axis=1)

    return returns_of(env, act)


def play_model(
    env_id: str,
    episodes: int,
    seed: int,
    sampling: Sampling,
    decoder: Decoder | None = None,
    *,
    model: str | None = None,
) -> tuple[list[float], list[int]]:
    """The environment's model (None: the bundled one), or the one behind `decoder`.

    It plays token by token; where an action is a choice, by the log-probs of all that are allowed.
    """
    player = decoder or LanguageModel.load(model).decoder(episodes)
    mode = action_mode(env_id)
    if mode != "token":
        env = make(env_id, episodes, seed, observation="tokens", model=model)
        choices = env.env.unwrapped._core.turns  # type: ignore[attr-defined]
        generator = torch.Generator().manual_seed(seed)

        def act(observation: Mapping[str, np.ndarray]) -> np.ndarray:
            lengths = observation["attention_mask"].sum(axis=1, dtype=np.int64)
            scores = choice_log_probs(player, observation["input_ids"], lengths, choices)
            allowed = torch.from_numpy(np.stack(env.env_method("action_masks"))) if is_masked(env) else None
            return sampling.draw(scores, generator, allowed)[0].numpy()

        return returns_of(env, act)
    played = play(
        player,
        player,  # nobody asks for the KL, and a decoder that is there already costs nothing
        env_id,
        sampling=sampling,
        seed=seed,
        env_kwargs={"split": "test", "model": model},
    )
    return [episode.reward for episode in played], [episode.tokens for episode in played]


def policy_decoder(policy: TransformerPolicy, slots: int) -> Decoder:
    """Decodes with the weights of a trained policy."""
    bundled = LanguageModel.load()
    return Decoder(policy.model, slots, vocab_size=bundled.vocab_size, context_length=bundled.context_length)


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


@dataclass(frozen=True)
class Score(Interval):
    """A player's mean return with its interval, over so many seeds."""

    seeds: int

    def __str__(self) -> str:
        return report.cell(Interval(self.mean, self.low, self.high)) + "*" * (self.seeds < MIN_SEEDS)


def collect(results: Mapping[Cell, Mapping[str, Any]]) -> dict[str, dict[str, Score]]:
    """id -> player -> score over all seeds that there are; ids in the order of their registration.

    `GAIN` stands for a further player: what PPO earns more than the bundled model, instance by instance.
    """
    returns: dict[tuple[str, str], list[list[float]]] = {}
    for (env_id, player, seed), row in sorted(results.items(), key=lambda item: item[0][2]):
        returns.setdefault((env_id, player), []).append(row["returns"])
        other = results.get((env_id, "sampled", seed))
        if player == "ppo" and other:
            difference = np.subtract(row["returns"], other["returns"]).tolist()
            returns.setdefault((env_id, GAIN), []).append(difference)
    scores: dict[str, dict[str, Score]] = {env_id: {} for env_id in TEXT_IDS}
    for (env_id, player), groups in returns.items():
        scores[env_id][player] = Score(**vars(nested_interval(groups)), seeds=len(groups))
    return {env_id: row for env_id, row in scores.items() if row}


def tricks(scores: Mapping[str, Score]) -> dict[str, Score]:
    """The scripted players other than the best possible."""
    return {
        name.removeprefix(SCRIPT): score
        for name, score in scores.items()
        if name.startswith(SCRIPT) and name != SCRIPT + "best"
    }


def score_table(
    scores: Mapping[str, Mapping[str, Score]], results: Mapping[Cell, Mapping[str, Any]]
) -> Table:
    """One row an id."""
    columns = ("id", "observation", "actions", "longest episode", *COLUMNS, "best trick", "best possible")
    table = Table(*columns, title="Scores", show_lines=True)
    for env_id, row in scores.items():
        env = gymnasium.make(env_id)
        mode = action_mode(env_id)
        # where an action is a choice, what writes tokens counts otherwise
        played = [(key[1], each["longest"]) for key, each in results.items() if key[0] == env_id]
        longest = [length for player, length in played if mode == "token" or player == "random"]
        best_trick = max(tricks(row).items(), key=lambda item: item[1].mean, default=None)
        table.add_row(
            env_id,
            "tokens" if mode == "token" else observation_mode(env_id),
            f"{mode}, {env.action_space.n}",  # type: ignore[attr-defined]
            f"{max(longest, default='-')} {'tokens' if mode == 'token' else 'choices'}",
            *(str(row.get(player, "-")) for player in (*LEARNERS, GAIN)),
            "-" if best_trick is None else f"{best_trick[1]} ({best_trick[0]})",
            str(row.get(SCRIPT + "best", "-")),
        )
    return table


COLUMNS = ("random policy", "bundled model, sampled", "bundled model, greedy", "PPO", "PPO - sampled, paired")


def trick_table(scores: Mapping[str, Mapping[str, Score]]) -> Table:
    """All scripted players; their share of what the best one earns more than an empty completion."""
    table = Table("id", "player", "score", "share of the best", title="Scripted players", show_lines=True)
    for env_id, row in scores.items():
        best, empty = row.get(SCRIPT + "best"), row.get(SCRIPT + "empty")
        for name, score in {**({"best": best} if best else {}), **tricks(row)}.items():
            share = "-"
            if best and empty and best.mean > empty.mean:
                share = f"{(score.mean - empty.mean) / (best.mean - empty.mean):.0%}"
            table.add_row(env_id, name, str(score), share)
    return table


def markdown(table: Table) -> str:
    """A rich table as a markdown table."""
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    header, *rows = ["| " + " | ".join(cells) + " |" for cells in zip(*columns, strict=True)]
    return "\n".join([header, "|" + "---|" * len(columns), *rows])
