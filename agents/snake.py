"""`python -m agents.snake`: DQN on Snake's grid, with stable-baselines3 and nothing else."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3
import torch as th
import tyro
from PIL import Image
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

import lm_envs  # noqa: F401  registers the ids
from agents.metrics import mean_interval
from agents.options import check_counts, mistakes_as_messages
from agents.report import save_figure, write_json
from lm_envs.language_model import LanguageModel
from lm_envs.sb3.vec_env import make_vec_env
from lm_envs.tasks import Completion
from lm_envs.tasks.snake import SIZE, Snake

ENV_ID = "TextGen-Snake-v0"
MODES: dict[str, Any] = {"observation": "grid", "actions": "move"}
FIRST_LEARNING_RATE, LAST_LEARNING_RATE = 5e-4, 5e-5
# What is not here is SB3's default. 64 moves are followed by 4 steps on 128 transitions each: a transition is
# replayed 8 times on average. gamma 0.97 looks about 33 moves ahead.
HYPERPARAMETERS: dict[str, Any] = {
    "buffer_size": 200_000,
    "learning_starts": 5_000,
    "batch_size": 128,
    "gamma": 0.97,
    "n_steps": 3,
    "train_freq": 1,
    "gradient_steps": 4,
    "target_update_interval": 2_000,
    "exploration_fraction": 0.15,
    "exploration_final_eps": 0.01,
}
# Hidden units with and without `HeadCentred`: the plain grid needs more of them, and about 1 M moves.
NET_ARCH, PLAIN_NET_ARCH = (128, 128), (256, 256)


class HeadCentred(BaseFeaturesExtractor):
    """The grid seen from the head: the same numbers, shifted so that the head is in the middle.

    What lies one cell to the left is then the same input wherever the snake is; otherwise a perceptron has to
    learn it for each of 100 cells. The window of 19 x 19 cells holds the whole board; what lies beyond the
    board reads -1, as the head does.

    Args:
        observation_space: `Box` of shape (10, 10) with its minimum at the head.
    """

    def __init__(self, observation_space: gymnasium.Space) -> None:
        width = 2 * SIZE - 1
        super().__init__(observation_space, width * width)
        self.padded_width = 3 * SIZE - 2
        self.window: th.Tensor
        offsets = th.arange(width)
        self.register_buffer("window", (offsets[:, None] * self.padded_width + offsets).flatten())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """(B, 10, 10) grids in, (B, 361) features out."""
        head = observations.flatten(1).argmin(1)
        padded = th.nn.functional.pad(observations, (SIZE - 1,) * 4, value=-1.0).flatten(1)
        corner = head // SIZE * self.padded_width + head % SIZE
        return padded.gather(1, corner[:, None] + self.window)


@dataclass(frozen=True)
class Games:
    """Finished games, one number each."""

    eaten: list[int]
    died: list[bool]

    def summary(self) -> dict[str, Any]:
        """Food with a bootstrap 95% interval, and the share of games that ended in death."""
        values = mean_interval([float(number) for number in self.eaten])
        return {
            "games": len(self.eaten),
            "eaten": asdict(values),
            "fewest": min(self.eaten),
            "most": max(self.eaten),
            "died": float(np.mean(self.died)),
        }


def play(choose: Callable[[np.ndarray], np.ndarray], games: int, seed: int, **env_kwargs: Any) -> Games:
    """Plays `games` games at once, the first of every slot; `choose` maps grids (B, 10, 10) to moves (B,)."""
    env = make_vec_env(ENV_ID, games, seed=seed, **MODES, **env_kwargs)
    grids = env.reset()
    ends: dict[int, Mapping[str, Any]] = {}
    while len(ends) < games:
        grids, _, dones, infos = env.step(choose(grids))  # type: ignore[arg-type]
        for slot in np.flatnonzero(dones).tolist():
            ends.setdefault(slot, infos[slot])
    env.close()
    finished = [ends[slot] for slot in range(games)]
    died = [bool(end["reward_parts"]["death"] < 0) for end in finished]
    return Games([int(end["eaten"]) for end in finished], died)


def play_scripted(task: Snake, name: str, games: int) -> Games:
    """Games of one of the task's scripted players, by turns."""
    player, results = task.players()[name], []
    for index in range(games):
        rng = np.random.default_rng(index)
        state, done = task.start(rng, {"task_index": index}), False
        while not done:
            turn = Completion(player(state), (), (), "stop")
            (feedback,) = task.respond([state], [turn], [rng])
            state, done = feedback.state, feedback.done
        results.append((state.eaten, feedback.info["reward_parts"]["death"] < 0))
    return Games([eaten for eaten, _ in results], [died for _, died in results])


class Validation(BaseCallback):
    """Plays greedy games every so often; keeps the weights that ate most, and the learning curve.

    Attributes:
        curve: a row an evaluation.
        best: weights of the policy at its best evaluation.
    """

    def __init__(self, every: int, games: int, seed: int) -> None:
        super().__init__()
        self.every, self.games, self.seed = every, games, seed
        self.curve: list[dict[str, float]] = []
        self.best: dict[str, th.Tensor] = {}
        self._training: list[int] = []
        self._next, self._started = every, time.perf_counter()

    def _on_step(self) -> bool:
        self._training += [info["eaten"] for info in self.locals["infos"] if "episode" in info]
        if self.num_timesteps >= self._next:
            self._next += self.every
            self._evaluate()
        return True

    def _evaluate(self) -> None:
        games = play(greedy_policy(self.model), self.games, self.seed)
        row = {
            "steps": self.num_timesteps,
            "seconds": round(time.perf_counter() - self._started, 1),
            "training": float(np.mean(self._training[-100:])),
            "validation": float(np.mean(games.eaten)),
            "validation_died": float(np.mean(games.died)),
        }
        if not self.curve or row["validation"] > max(before["validation"] for before in self.curve):
            self.best = {key: value.clone() for key, value in self.model.policy.state_dict().items()}
        self.curve.append(row)


def greedy_policy(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """What the model thinks best, without exploration."""
    return lambda grids: model.predict(grids, deterministic=True)[0]


def make_model(env: Any, seed: int, head_centred: bool) -> DQN:
    """Stock DQN with the shipped hyperparameters."""
    policy_kwargs: dict[str, Any] = {"net_arch": list(PLAIN_NET_ARCH)}
    if head_centred:
        policy_kwargs = {"net_arch": list(NET_ARCH), "features_extractor_class": HeadCentred}
    fall = FIRST_LEARNING_RATE - LAST_LEARNING_RATE
    return DQN(
        "MlpPolicy",
        env,
        learning_rate=lambda left: LAST_LEARNING_RATE + fall * left,
        policy_kwargs=policy_kwargs,
        seed=seed,
        device="cpu",
        **HYPERPARAMETERS,
    )


@dataclass(frozen=True)
class TrainSnake:
    """Train SB3's DQN on the grid observation, play test games, write curve, numbers and a moving picture.

    The files are `snake_dqn.{csv,json,png,gif}`, `snake_dqn_plain.*` without the head-centred view.
    """

    steps: int = 400_000
    """Moves to train for."""
    num_envs: int = 64
    seed: int = 0
    head_centred: bool = True
    """Let the policy see the grid from the head; otherwise plain MlpPolicy."""
    games: int = 100
    """Test games, from starting positions that training does not draw."""
    out: Path = Path("benchmarks/results")

    def __call__(self) -> None:
        """Trains, tests the weights that validated best, and writes the files."""
        check_counts(self.num_envs, steps=self.steps)
        check_counts(num_envs=self.num_envs, games=self.games)
        self.out.mkdir(parents=True, exist_ok=True)
        env = make_vec_env(ENV_ID, self.num_envs, seed=self.seed, **MODES)
        model = make_model(env, self.seed, self.head_centred)
        validation = Validation(max(self.steps // 10, 1), games=30, seed=10_000)
        model.learn(self.steps, callback=validation, progress_bar=True)
        env.close()
        model.policy.load_state_dict(validation.best)
        tests = {"dqn": play(greedy_policy(model), self.games, seed=20_000, split="test").summary()}
        task = Snake(LanguageModel.load(lazy=True), split="test")
        for name in ("best", "greedy_open", "greedy", "random"):
            tests[name] = play_scripted(task, name, self.games).summary()
        path = self.out / ("snake_dqn" if self.head_centred else "snake_dqn_plain")
        _write_csv(path.with_suffix(".csv"), validation.curve)
        write_json(path.with_suffix(".json"), self._report(validation.curve, tests))
        plot(path.with_suffix(".png"), validation.curve, tests)
        film(path.with_suffix(".gif"), greedy_policy(model), seed=30_000)
        for name, summary in tests.items():
            eaten = summary["eaten"]
            interval = f"{eaten['mean']:.2f} [{eaten['low']:.2f}, {eaten['high']:.2f}]"
            print(f"{name:12} {interval} food a game, {summary['died']:.0%} dead ({summary['games']} games)")

    def _report(self, curve: Sequence[Mapping[str, float]], tests: Mapping[str, Any]) -> dict[str, Any]:
        rates = {"first_learning_rate": FIRST_LEARNING_RATE, "last_learning_rate": LAST_LEARNING_RATE}
        net_arch = NET_ARCH if self.head_centred else PLAIN_NET_ARCH
        settings = {**asdict(self), "out": str(self.out), "net_arch": net_arch, **rates, **HYPERPARAMETERS}
        versions = {"stable_baselines3": stable_baselines3.__version__, "torch": th.__version__}
        best = max(curve, key=lambda row: row["validation"])
        return {
            "env_id": ENV_ID,
            "settings": settings,
            "seconds": curve[-1]["seconds"],
            "best_validation": dict(best),
            "test": dict(tests),
            "versions": versions,
        }


def plot(path: Path, curve: Sequence[Mapping[str, float]], tests: Mapping[str, Any]) -> None:
    """Food a game against moves trained for, with the test result and the scripted players."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), constrained_layout=True)
    steps = [row["steps"] for row in curve]
    training, validation = ([row[key] for row in curve] for key in ("training", "validation"))
    axis.plot(steps, training, color="tab:blue", label="training, last 100 games")
    axis.plot(steps, validation, "o--", color="tab:green", label="validation, 30 greedy games")
    best = max(curve, key=lambda row: row["validation"])
    eaten = tests["dqn"]["eaten"]
    error = [[eaten["mean"] - eaten["low"]], [eaten["high"] - eaten["mean"]]]
    label = f"test, {tests['dqn']['games']} games of the best weights: {eaten['mean']:.1f}"
    axis.errorbar(
        [best["steps"]], [eaten["mean"]], yerr=error, fmt="D", color="tab:orange", capsize=4, label=label
    )
    for name, style, label in (("best", "--", "careful script"), ("greedy_open", ":", "greedy script")):
        mean = tests[name]["eaten"]["mean"]
        axis.axhline(mean, color="black", linestyle=style, linewidth=1, label=f"{label}: {mean:.1f}")
    axis.set(xlabel="moves", ylabel="food eaten in a game", title="SB3 DQN on the grid of TextGen-Snake-v0")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save_figure(figure, path)
    plt.close(figure)


def film(path: Path, choose: Callable[[np.ndarray], np.ndarray], seed: int) -> None:
    """One test game as a GIF."""
    env: Any = gymnasium.make(ENV_ID, **MODES, split="test", render_mode="rgb_array")
    grid, _ = env.reset(seed=seed)
    frames, over = [env.render()], False
    while not over:
        grid, _, terminated, truncated, _ = env.step(int(choose(grid[None])[0]))
        frames.append(env.render())
        over = terminated or truncated
    images: list[Any] = [Image.fromarray(frame[::2, ::2]).quantize(32) for frame in frames]
    temporary = path.with_name("." + path.name)
    images[0].save(
        temporary, format="GIF", save_all=True, append_images=images[1:], duration=80, loop=0, optimize=True
    )
    os.replace(temporary, path)


def _write_csv(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    temporary = path.with_name("." + path.name)
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


if __name__ == "__main__":
    with mistakes_as_messages():
        tyro.cli(TrainSnake, prog="python -m agents.snake")()
