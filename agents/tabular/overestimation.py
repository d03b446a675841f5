"""`python -m agents.tabular.overestimation`: how far noise lifts Q-learning above the exact values.

The maximum over noisy estimates is above the maximum of what they estimate. Double Q-learning judges the
best action by a table that did not choose it (van Hasselt 2010). Both learn from random play on a toy with
noisy rewards; the figure shows the mean of Q(s, a) - Q*(s, a) over all prompts s and first tokens a, against
steps: what the noise of all later tokens does to the first one's values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from agents.options import check_counts, check_file, mistakes_as_messages
from agents.report import save_figure
from agents.tabular import DoubleQLearning, QLearning, Random, ValueAgent, make_env
from lm_envs.toy import solve


@dataclass(frozen=True)
class Overestimation:
    """Draw the overestimation of Q-learning and double Q-learning against the exact values."""

    env: str = "TextGen-ToyKeyDoor-v0"
    length: int = 4
    reward_noise: float = 1.0
    learning_rate: float = 0.1
    """A constant step, so that noise never averages away."""
    total_timesteps: int = 200_000
    n_envs: int = 64
    seeds: int = 5
    out: Path = Path("runs/overestimation.png")

    def __call__(self) -> dict[str, np.ndarray]:
        """Draws the figure, prints the last biases, and returns the curves: name -> (seeds, points)."""
        from matplotlib.figure import Figure

        check_counts(total_timesteps=self.total_timesteps, n_envs=self.n_envs, seeds=self.seeds)
        check_file(self.out)
        axes = (figure := Figure(figsize=(6, 3.6), layout="constrained")).subplots()
        curves = {}
        for kind in (QLearning, DoubleQLearning):
            runs = [self.curve(kind, seed) for seed in range(self.seeds)]
            steps, curves[kind.__name__] = runs[0][0], np.array([biases for _, biases in runs])
            mean = curves[kind.__name__].mean(axis=0)
            (line,) = axes.plot(steps, mean, label=kind.__name__)
            spread = curves[kind.__name__].min(axis=0), curves[kind.__name__].max(axis=0)
            axes.fill_between(steps, *spread, color=line.get_color(), alpha=0.2, linewidth=0)
            print(f"{kind.__name__:16s} mean of Q - Q* in the prompts: {mean[-1]:+.3f}")
        axes.axhline(0, color="black", linewidth=1, label="exact (Q*)")
        axes.set(xlabel="environment steps", ylabel="mean of Q - Q* in the prompts")
        axes.set_title(f"{self.env}, reward_noise={self.reward_noise:g}: {self.seeds} seeds")
        axes.legend()
        save_figure(figure, self.out)
        print(f"figure           {self.out}")
        return curves

    def curve(self, kind: type[ValueAgent], seed: int) -> tuple[list[int], list[float]]:
        """Steps and biases at 40 moments of one run."""
        dials: dict[str, Any] = {"length": self.length, "reward_noise": self.reward_noise}
        env: Any = make_env(self.env, self.n_envs, reward_timing="dense", **dials)
        solution = solve(env)
        prompts = np.arange(env.unwrapped.task.states.num_prompts)
        observations = env.unwrapped.view.observe_states(prompts)
        agent = kind(env, learning_rate=self.learning_rate, rate_power=0, behaviour=Random(), seed=seed)
        every = max(1, self.total_timesteps // 40)
        steps: list[int] = []
        biases: list[float] = []

        def measure(local_variables: dict[str, Any], global_variables: dict[str, Any]) -> bool:
            if agent.num_timesteps >= every * (len(steps) + 1):
                steps.append(agent.num_timesteps)
                errors = agent.q_values(observations) - solution.q_values[prompts]
                biases.append(float(errors.mean()))
            return True

        agent.learn(self.total_timesteps, callback=measure)
        return steps, biases


if __name__ == "__main__":
    with mistakes_as_messages():
        tyro.cli(Overestimation, prog="python -m agents.tabular.overestimation")()
