"""The base of all tabular agents: learning loop, prediction, files. The face is stable-baselines3's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from gymnasium.vector import VectorEnv
from tqdm import tqdm

from agents.tabular import storage
from agents.tabular.behaviour import sample
from agents.tabular.contexts import Contexts
from agents.tabular.schedules import Schedule
from agents.tabular.slots import Slots
from agents.tabular.table import Column, Table


class Batch(NamedTuple):
    """What n slots experienced in one step. Rows are the table's."""

    slots: np.ndarray  # (n,) int64
    rows: np.ndarray  # (n,) int64, of the contexts that were acted in
    actions: np.ndarray  # (n,) int64
    rewards: np.ndarray  # (n,) float64
    next_rows: np.ndarray  # (n,) int64; to be ignored where terminated
    next_actions: np.ndarray  # (n,) int64, already drawn; to be ignored where terminated
    next_probabilities: np.ndarray  # (n, A) that they were drawn from
    terminated: np.ndarray  # (n,) bool: nothing comes after
    ended: np.ndarray  # (n,) bool: terminated or truncated


class TabularAgent(ABC):
    """Learns from all slots of a vector environment at once.

    In each step every slot acts, and then the table is updated with the whole batch; see
    `agents.tabular.table.move` for what happens to contexts that several slots are in. The next actions are
    drawn before the update, as SARSA needs them.

    Args:
        env: a vector environment with discrete actions and observations that are exact keys, see `make_env`.
        learning_rate: step size, or its schedule.
        gamma: discount in [0, 1].
        dense: a row for every possible observation (`Discrete` ones only); None: where that is small.
        seed: of the actions and, at the first `learn`, of the environment.

    Raises:
        TypeError, ValueError: bad arguments, or an environment that a table does not suit.

    Attributes:
        table: what was learned.
        num_timesteps: transitions experienced.
        progress_remaining: 1 before learning, 0 after it.
    """

    settings: ClassVar[tuple[str, ...]] = ("learning_rate", "gamma")  # arguments that are saved

    def __init__(
        self,
        env: VectorEnv,
        *,
        learning_rate: Schedule,
        gamma: float = 1.0,
        dense: bool | None = None,
        seed: int | None = None,
    ) -> None:
        check_unit("gamma", gamma)
        self.learning_rate, self.gamma = learning_rate, gamma
        self.slots = Slots(env)
        self.env = env
        self.num_actions = int(env.single_action_space.n)  # type: ignore[attr-defined]
        self.table = Table(Contexts(env.single_observation_space, dense), self.num_actions, self.columns())
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.num_timesteps = 0
        self.progress_remaining = 1.0
        # Slots are seeded by successive numbers: seeds that are neighbours must not share slots.
        self._env_seed = None if seed is None else int(self.rng.integers(2**31))

    @abstractmethod
    def columns(self) -> dict[str, Column]:
        """What the table holds."""

    @abstractmethod
    def preferences(self, rows: np.ndarray) -> np.ndarray:
        """(n, A): of these rows, what the best action has most of."""

    @abstractmethod
    def behave(self, rows: np.ndarray, observations: Any) -> np.ndarray:
        """(n, A): the probabilities with which the agent acts while it learns."""

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Learns from one step of the slots."""

    def begin(self) -> None:  # noqa: B027 (most agents remember nothing of running episodes)
        """Forgets running episodes: all slots were reset."""

    def learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
    ) -> Self:
        """Learns from so many transitions, rounded up to whole steps of all slots.

        Args:
            total_timesteps: also the span of all schedules.
            callback: as for SB3: a `BaseCallback`, a list of them, or a function of the two dicts locals and
                globals; False ends learning. `self.model` of a callback is this agent; there is no logger.
            progress_bar: show one.
            reset_num_timesteps: count from 0 again.

        Raises:
            ValueError: total_timesteps below 1.
            FloatingPointError: a reward that is NaN or infinite.
        """
        if isinstance(total_timesteps, bool) or total_timesteps < 1:
            raise ValueError(f"total_timesteps must be >= 1, got {total_timesteps!r}")
        if reset_num_timesteps:
            self.num_timesteps = 0
        first = self.num_timesteps
        hook = None if callback is None else _as_callback(callback, self)
        observations = self.slots.reset(self._env_seed)
        self._env_seed = None  # later calls go on with the environment's own stream
        self.begin()
        self.progress_remaining = 1.0
        rows = self.table.rows(observations)
        actions = sample(self.behave(rows, observations), self.rng)
        if hook is not None:
            hook.on_training_start(locals(), globals())
        with tqdm(total=total_timesteps, disable=not progress_bar, unit=" steps") as bar:
            going = True
            while going and self.num_timesteps < first + total_timesteps:
                batch, rows, actions = self._advance(rows, actions)
                if len(batch.slots):
                    self.update(batch)
                self.num_timesteps += len(batch.slots)
                self.progress_remaining = max(0.0, 1 - (self.num_timesteps - first) / total_timesteps)
                bar.update(len(batch.slots))
                if hook is not None:
                    hook.update_locals(locals())
                    going = hook.on_step()
        if hook is not None:
            hook.on_training_end()
        return self

    def _advance(self, rows: np.ndarray, actions: np.ndarray) -> tuple[Batch, np.ndarray, np.ndarray]:
        """One step of all slots: the experience, then the rows and actions to go on with."""
        step = self.slots.step(actions)
        fresh_rows = self.table.rows(step.observations)
        probabilities = self.behave(fresh_rows, step.observations)
        fresh_actions = sample(probabilities, self.rng)
        next_rows, next_actions = fresh_rows, fresh_actions
        if len(step.cut):  # the truncated episode would have gone on elsewhere than the next one begins
            next_rows, next_actions = next_rows.copy(), next_actions.copy()
            next_rows[step.cut] = self.table.rows(step.cut_observations)
            probabilities[step.cut] = self.behave(next_rows[step.cut], step.cut_observations)
            next_actions[step.cut] = sample(probabilities[step.cut], self.rng)
        at = step.slots
        batch = Batch(
            at,
            rows[at],
            actions[at],
            step.rewards,
            next_rows[at],
            next_actions[at],
            probabilities[at],
            step.terminated,
            step.ended,
        )
        return batch, fresh_rows, fresh_actions

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Actions for an observation or a batch of them, as the environment counts them.

        Args:
            observation: unseen contexts are answered from the table's initial values.
            state: handed back; `episode_start` is not used (there is no memory).
            deterministic: the best action, the first one of equals; else drawn as while learning.

        Returns:
            int64 actions, () or (n,), and `state`.
        """
        batch, is_single = self.table.contexts.batch(observation)
        rows = self.table.rows(batch, add=False)
        if deterministic:
            actions = self.preferences(rows).argmax(axis=1)
        else:
            actions = sample(self.behave(rows, batch), self.rng)
        actions = actions + self.slots.first_action
        return (actions[0] if is_single else actions), state

    def get_env(self) -> VectorEnv:
        """The environment, as SB3's callbacks ask for it."""
        return self.env

    def save(self, path: str | Path) -> None:
        """Writes table and settings to an .npz file, without pickles, whole or not at all."""
        storage.save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, env: VectorEnv, **settings: Any) -> Self:
        """An agent from a file.

        Args:
            path: what `save` wrote.
            env: an environment whose observations and actions are those of the saved agent's.
            settings: arguments of the constructor, instead of the saved ones.

        Raises:
            ValueError: no such file format, another kind of agent, or a table that does not fit the
                environment; names both sides.
        """
        return storage.load(cls, Path(path), env, settings)


def check_unit(name: str, value: Any) -> None:
    """Raises ValueError unless a number lies in 0..1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number in 0..1, got {value!r}")


def _as_callback(callback: Any, agent: TabularAgent) -> Any:
    """One SB3 callback out of all that SB3 accepts."""
    from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback

    if isinstance(callback, list):
        callback = CallbackList(callback)
    elif not isinstance(callback, BaseCallback):
        if not isinstance(callback, Callable):  # type: ignore[arg-type]
            raise TypeError(f"callback must be an SB3 callback, a list or a function, got {callback!r:.80}")
        callback = ConvertCallback(callback)
    callback.init_callback(agent)
    return callback
