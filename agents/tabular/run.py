"""`python -m agents tabular`: a tabular agent on one environment, judged by the exact solution."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gymnasium.vector import VectorEnv

from agents.options import check_counts, check_folder, check_positive, check_share, parse_env_kwargs
from agents.tabular import ALGORITHMS, TabularAgent, make_env
from agents.tabular.behaviour import Behaviour, EpsilonGreedy, Proposal, Random, Softmax
from agents.tabular.schedules import Linear
from agents.tabular.value_agent import ValueAgent
from agents.toy.judge import Judge, Point, learn
from agents.toy.run import finish


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
    """Points of the learning curve, at equal distances on a logarithmic axis."""
    out: Path = Path("runs/tabular")
    """Folder of the run."""
    overwrite: bool = False
    """Replace an existing run in `out`."""

    def __call__(self) -> list[Point]:
        """Trains; writes agent.npz, curve.csv and result.json; prints and returns the learning curve."""
        check_counts(total_timesteps=self.total_timesteps, n_envs=self.n_envs, points=self.points)
        check_counts(0, seed=self.seed)
        check_positive(learning_rate=self.learning_rate)
        check_share(gamma=self.gamma)
        check_folder(self.out, self.overwrite, "result.json")
        try:
            judge = Judge(self.agent(), self._env())
        except TypeError as error:  # arguments that it does not take, or observations that are no keys
            raise ValueError(f"{self.env} with {self.env_kwargs}: {error}") from error
        curve, seconds = learn(judge, self.total_timesteps, self.points)
        settings = asdict(self) | {"out": str(self.out), "env_kwargs": parse_env_kwargs(self.env_kwargs)}
        finish(self.out, judge, curve, seconds, settings)
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
