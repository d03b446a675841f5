"""`python -m agents.tabular.run`: a tabular agent on one environment, judged by the exact solution."""

from __future__ import annotations

import csv
import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from gymnasium.vector import VectorEnv
from rich.console import Console
from rich.table import Table

from agents.options import parse_env_kwargs
from agents.tabular import ALGORITHMS, TabularAgent, make_env
from agents.tabular.behaviour import Behaviour, EpsilonGreedy, Proposal, Random, Softmax
from agents.tabular.policy_gradient import PolicyGradient
from agents.tabular.schedules import Linear
from agents.tabular.slots import Slots
from agents.tabular.value_agent import ValueAgent
from lm_envs.toy import Solution, regret, solve
from lm_envs.toy.task import ToyTask


class Point(NamedTuple):
    """A point of the learning curve, of the greedy policy (policy gradients: of the policy itself)."""

    timesteps: int
    expected_return: float
    regret: float  # NaN where it is not known


class Judge:
    """What an agent's policy is worth: exactly on a toy that can be solved, else by playing.

    On a toy too large to solve the regret is an estimate by `lm_envs.toy.regret` (gamma = 1, no slips).

    Args:
        agent: who is judged.
        env: environments of its own, to play in.

    Attributes:
        optimal_return: NaN where there is no exact solution.
    """

    episodes = 1000  # to play where there is no exact solution

    def __init__(self, agent: TabularAgent, env: VectorEnv) -> None:
        self.agent, self.env = agent, env
        self.solution: Solution | None = None
        task = getattr(env.unwrapped, "task", None)
        self.has_estimate = isinstance(task, ToyTask) and agent.gamma == 1 and not task.dials.slip
        if isinstance(task, ToyTask):
            try:
                self.solution = solve(env, gamma=agent.gamma)
            except ValueError as error:
                print(f"no exact solution: {error}")
        self.optimal_return = np.nan if self.solution is None else self.solution.optimal_return

    def __call__(self, timesteps: int) -> Point:
        """The agent's policy now."""
        agent = self.agent
        policy = agent.probabilities if isinstance(agent, PolicyGradient) else agent
        if self.solution is None:
            share = regret(self.env, policy, episodes=self.episodes).value if self.has_estimate else np.nan
            return Point(timesteps, self._play(), share)
        return Point(timesteps, self.solution.evaluate(policy).objective, self.solution.regret(policy))

    def _play(self) -> float:
        """The mean discounted return of whole episodes, the same number in every slot."""
        slots, count = Slots(self.env), -(-self.episodes // self.env.num_envs)
        observations = slots.reset(seed=0)
        returns = np.zeros((self.env.num_envs, count))
        played, discount = np.zeros(self.env.num_envs, np.int64), np.ones(self.env.num_envs)
        while (played < count).any():
            greedy = not isinstance(self.agent, PolicyGradient)
            actions, _ = self.agent.predict(observations, deterministic=greedy)
            step = slots.step(actions - slots.first_action)
            at = step.slots
            counts = played[at] < count
            returns[at[counts], played[at[counts]]] += (discount[at] * step.rewards)[counts]
            discount[at] = np.where(step.ended, 1.0, discount[at] * self.agent.gamma)
            played[at] += step.ended
            observations = step.observations
        return float(returns.mean())


@dataclass(frozen=True)
class Tabular:
    """Train a tabular agent, and measure its regret."""

    env: str = "TextGen-ToyBigram-v0"
    """Registered id of an environment with discrete actions and discrete observations."""
    algo: Literal[
        "q_learning",
        "double_q_learning",
        "sarsa",
        "expected_sarsa",
        "q_lambda",
        "monte_carlo",
        "reinforce",
        "actor_critic",
        "value_iteration",
    ] = "q_learning"
    total_timesteps: int = 10_000_000
    """Environment steps (tokens)."""
    n_envs: int = 1024
    """Slots of the vector environment."""
    gamma: float = 1.0
    learning_rate: float | None = None
    """None: the algorithm's own. Value-based agents divide it by a power of the number of updates."""
    behaviour: Literal["epsilon_greedy", "softmax", "random", "language_model"] = "epsilon_greedy"
    """How value-based agents act while they learn."""
    explore: tuple[float, float] | None = None
    """First and last epsilon, or temperature, of the behaviour; None: its own."""
    env_kwargs: str = "{}"
    """Arguments of the environment, as JSON: '{"length": 4, "reward_noise": 0.5}'."""
    seed: int = 0
    points: int = 20
    """Points of the learning curve."""
    out: Path = Path("runs/tabular")
    """Folder of the run."""
    overwrite: bool = False
    """Replace an existing run in `out`."""

    def __call__(self) -> list[Point]:
        """Trains; writes agent.npz, curve.csv and result.json; prints and returns the learning curve."""
        if self.out.exists():
            if not self.overwrite:
                sys.exit(f"{self.out} exists: replace it with --overwrite")
            shutil.rmtree(self.out)
        agent = self.agent()
        judge = Judge(agent, self._env())
        curve: list[Point] = []
        every = max(1, self.total_timesteps // max(self.points, 1))

        def measure(local_variables: dict[str, Any], global_variables: dict[str, Any]) -> bool:
            if agent.num_timesteps >= every * (len(curve) + 1) and agent.num_timesteps < self.total_timesteps:
                curve.append(judge(agent.num_timesteps))
            return True

        start = judge(0)
        began = time.perf_counter()
        agent.learn(self.total_timesteps, callback=measure, progress_bar=True)
        seconds = time.perf_counter() - began
        curve = [start, *curve, judge(agent.num_timesteps)]
        self.out.mkdir(parents=True)
        agent.save(self.out / "agent.npz")
        self._report(agent, curve, judge.optimal_return, seconds)
        return curve

    def agent(self) -> TabularAgent:
        """The untrained agent on its environment."""
        kind = ALGORITHMS[self.algo]
        settings: dict[str, Any] = {"gamma": self.gamma, "seed": self.seed}
        if self.learning_rate is not None:
            settings["learning_rate"] = self.learning_rate
        if issubclass(kind, ValueAgent):
            settings["behaviour"] = self._behaviour(kind)
        return kind(self._env(), **settings)

    def _env(self) -> VectorEnv:
        return make_env(self.env, self.n_envs, **parse_env_kwargs(self.env_kwargs))

    def _behaviour(self, kind: type[ValueAgent]) -> Behaviour:
        explore = None if self.explore is None else Linear(*self.explore, 0.9)
        if self.behaviour == "epsilon_greedy":
            return kind.exploration if explore is None else EpsilonGreedy(explore)
        if self.behaviour == "softmax":
            return Softmax() if explore is None else Softmax(explore)
        return Random() if self.behaviour == "random" else Proposal()

    def _report(self, agent: TabularAgent, curve: list[Point], best: float, seconds: float) -> None:
        last = curve[-1]
        result = {
            "return": last.expected_return,
            "optimal return": best,
            "regret": last.regret,
            "steps": agent.num_timesteps,
            "steps per second, measuring included": agent.num_timesteps / seconds,
            "contexts": len(agent.table.contexts),
        }
        table = Table(title=f"{self.algo} on {self.env}", show_header=False)
        for name, value in result.items():
            table.add_row(name, "unknown" if np.isnan(value) else f"{value:,.4f}".removesuffix(".0000"))
        Console().print(table)
        with (self.out / "curve.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Point._fields)
            writer.writerows(curve)
        settings = asdict(self) | {"out": str(self.out)}
        known = {name: None if np.isnan(value) else value for name, value in result.items()}
        text = json.dumps({"settings": settings, "result": known}, indent=2)
        (self.out / "result.json").write_text(text + "\n", encoding="utf-8")
        print(f"agent            {self.out / 'agent.npz'}\nlearning curve   {self.out / 'curve.csv'}")


if __name__ == "__main__":
    tyro.cli(Tabular, prog="python -m agents.tabular.run")()
