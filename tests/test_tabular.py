"""Tabular agents as a whole: exact values, regret, files, predictions, environments, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import lm_envs.toy
from agents.tabular import (
    ALGORITHMS,
    DoubleQLearning,
    EpsilonGreedy,
    ExpectedSarsa,
    Exponential,
    Linear,
    MonteCarlo,
    PolicyGradient,
    Proposal,
    QLambda,
    QLearning,
    Random,
    Reinforce,
    Sarsa,
    Softmax,
    TabularAgent,
    ValueAgent,
    ValueIteration,
    make_env,
)
from agents.tabular.contexts import Contexts
from agents.tabular.run import Tabular
from lm_envs.spaces import UnicodeText

VALUE_AGENTS = [kind for kind in ALGORITHMS.values() if issubclass(kind, ValueAgent)]
LEARNERS = [kind for kind in ALGORITHMS.values() if kind is not ValueIteration]
SMALL = {"vocab_size": 2, "length": 3}


def learned(kind: type[TabularAgent], env: Any, steps: int, **settings: Any) -> Any:
    """An agent after so many steps."""
    return kind(env, seed=0, **settings).learn(steps)


def shown(env: Any) -> Any:
    """The observations of all numbered states but the end."""
    return env.unwrapped.view.observe_states(np.arange(env.unwrapped.task.states.end))


@pytest.mark.parametrize("timing", ["end", "dense"])
@pytest.mark.parametrize("kind", [QLearning, DoubleQLearning, QLambda])
def test_off_policy_values_are_exact(kind: type, timing: str) -> None:
    env = make_env("TextGen-ToyBigram-v0", 64, reward_timing=timing, **SMALL)
    agent = learned(kind, env, 60_000, rate_power=0, gamma=0.9, behaviour=Random())
    solution = lm_envs.toy.solve(env, gamma=0.9)
    np.testing.assert_allclose(agent.q_values(shown(env)), solution.q_values[:-1], atol=1e-9)


def test_proposals_of_the_language_model_teach_off_policy() -> None:
    env = make_env("TextGen-ToyReverse-v0", 64, vocab_size=3, length=2)
    agent = learned(QLearning, env, 60_000, rate_power=0, behaviour=Proposal())
    solution = lm_envs.toy.solve(env)
    np.testing.assert_allclose(agent.q_values(shown(env)), solution.q_values[:-1], atol=1e-9)


@pytest.mark.parametrize("kind", [Sarsa, ExpectedSarsa, MonteCarlo])
def test_on_policy_values_are_those_of_the_behaviour(kind: type) -> None:
    env = make_env("TextGen-ToyCopy-v0", 256, vocab_size=2, length=2, slip=0.2)
    agent = learned(kind, env, 400_000, rate_power=0.9, gamma=0.8, behaviour=Random())
    solution = lm_envs.toy.solve(env, gamma=0.8)
    exact = solution.evaluate(np.full_like(solution.q_values, 0.5)).q_values
    np.testing.assert_allclose(agent.q_values(shown(env)), exact[:-1], atol=0.02)


@pytest.mark.parametrize("kind", [QLearning, DoubleQLearning, QLambda])
def test_off_policy_values_with_slips(kind: type) -> None:
    env = make_env("TextGen-ToyCopy-v0", 256, vocab_size=2, length=2, slip=0.2)
    agent = learned(kind, env, 400_000, rate_power=0.9, behaviour=Random(), **_short_traces(kind))
    np.testing.assert_allclose(agent.q_values(shown(env)), lm_envs.toy.solve(env).q_values[:-1], atol=0.03)


def _short_traces(kind: type) -> dict[str, float]:
    # Random play is greedy half of the time only: long traces would be cut anyway.
    return {"trace_decay": 0.5} if kind is QLambda else {}


@pytest.mark.parametrize("toy", ["Copy", "Brackets", "Bigram", "KeyDoor"])
@pytest.mark.parametrize("kind", VALUE_AGENTS)
def test_default_hyperparameters_solve_small_toys(kind: type, toy: str) -> None:
    size = {"vocab_size": 2, "length": 5} if toy == "Brackets" else SMALL
    env = make_env(f"TextGen-Toy{toy}-v0", 32, **size)
    assert lm_envs.toy.solve(env).regret(learned(kind, env, 100_000)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("behaviour", [Softmax(), EpsilonGreedy(Exponential(1.0, 0.01)), Random()])
def test_behaviours_solve_small_toys(behaviour: Any) -> None:
    env = make_env("TextGen-ToyKeyDoor-v0", 32, **SMALL)
    agent = learned(QLearning, env, 60_000, behaviour=behaviour)
    assert lm_envs.toy.solve(env).regret(agent) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["reinforce", "reinforce without baseline", "actor_critic"])
def test_policy_gradients_solve_small_toys(name: str) -> None:
    env = make_env("TextGen-ToyCopy-v0", 32, vocab_size=2, length=3)
    settings = {"baseline": False} if name.endswith("baseline") else {}
    agent = learned(ALGORITHMS[name.split(maxsplit=1)[0]], env, 150_000, **settings)
    assert lm_envs.toy.solve(env).regret(agent.probabilities) < 0.05


def test_value_iteration_is_exact() -> None:
    env = make_env("TextGen-ToyBigram-v0", 2, slip=0.1)
    agent, solution = ValueIteration(env, gamma=0.9).learn(), lm_envs.toy.solve(env, gamma=0.9)
    np.testing.assert_array_equal(agent.q_values(shown(env)), solution.q_values[:-1])
    assert solution.regret(agent) == pytest.approx(0, abs=1e-12)


def test_double_q_learning_overestimates_less() -> None:
    env = make_env(
        "TextGen-ToyKeyDoor-v0", 64, vocab_size=4, length=3, reward_noise=1.0, reward_timing="dense"
    )
    solution = lm_envs.toy.solve(env)
    biases = {}
    for kind in (QLearning, DoubleQLearning):
        agent = learned(kind, env, 40_000, learning_rate=0.1, rate_power=0, behaviour=Random())
        # The 4 prompts: the noise of both later tokens is in their maxima.
        biases[kind] = (agent.q_values(shown(env)) - solution.q_values[:-1])[:4].mean()
    assert biases[QLearning] > 0.1
    assert abs(biases[DoubleQLearning]) < 0.5 * biases[QLearning]


class Counter(gymnasium.Env):
    """Counts up; every step pays 1. Never ends by itself."""

    observation_space = spaces.Discrete(10)
    action_space = spaces.Discrete(2, start=3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict]:
        """State 0."""
        super().reset(seed=seed)
        self.count = 0
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        """One more."""
        if action not in (3, 4):
            raise ValueError(f"action {action}")
        self.count += 1
        return self.count, 1.0, False, False, {}


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("kind", VALUE_AGENTS[:-1])
def test_truncated_episodes_bootstrap_from_their_last_observation(kind: type, mode: AutoresetMode) -> None:
    makers = [lambda: gymnasium.wrappers.TimeLimit(Counter(), 3)] * 4
    env = SyncVectorEnv(makers, autoreset_mode=mode)
    agent = learned(kind, env, 4_000, rate_power=0, gamma=0.5, initial_value=10.0, behaviour=Random())
    # State 3 is seen, but nothing is done there: it keeps its initial value.
    values = agent.q_values(np.arange(4))
    np.testing.assert_allclose(values, np.repeat([[3.0], [4.0], [6.0], [10.0]], 2, axis=1))
    assert agent.num_timesteps == 4_000


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("kind", LEARNERS)
def test_other_environments(kind: type, mode: AutoresetMode) -> None:
    makers = [lambda: gymnasium.make("FrozenLake-v1", is_slippery=False)] * 8
    env = SyncVectorEnv(makers, autoreset_mode=mode)
    agent = learned(kind, env, 12_000, gamma=0.9)
    lake, rewards, terminated = makers[0](), [], False
    state, _ = lake.reset(seed=0)
    while not terminated and len(rewards) < 20:
        action, _ = agent.predict(state, deterministic=True)
        state, reward, terminated, _, _ = lake.step(int(action))
        rewards.append(reward)
    assert rewards[-1] == 1
    assert len(rewards) == 6 or issubclass(kind, PolicyGradient)  # 6: the shortest way


def test_observations_of_several_parts() -> None:
    env = SyncVectorEnv([lambda: gymnasium.make("Blackjack-v1")] * 16, autoreset_mode="SameStep")
    agent = learned(QLearning, env, 12_000)
    assert agent.predict((20, 10, 0), deterministic=True)[0] == 0  # 20: stick
    assert agent.predict((8, 10, 0), deterministic=True)[0] == 1  # 8: hit


def test_sparse_and_dense_tables_and_all_full_observations_agree() -> None:
    results = []
    for observation, dense in (("index", True), ("index", False), ("tokens", None), ("onehot", None)):
        env = make_env("TextGen-ToyCopy-v0", 8, observation=observation, **SMALL)
        agent = learned(QLearning, env, 4_000, dense=dense)
        results.append(agent.q_values(shown(env)))
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)
    assert (results[0] != 0).any()


def test_contexts_are_exact_keys() -> None:
    texts = Contexts(UnicodeText(10))
    np.testing.assert_array_equal(texts.rows(("a", "", "a\0", "ä", "a"), add=True), [1, 2, 3, 4, 1])
    np.testing.assert_array_equal(texts.rows(("b", "ä"), add=False), [0, 4])
    mixed = Contexts(spaces.Dict(x=spaces.MultiDiscrete([9, 9]), y=spaces.Tuple([spaces.Discrete(300)])))
    batch = {"x": np.array([[1, 2], [2, 1], [1, 2]]), "y": (np.array([258, 2, 258]),)}
    np.testing.assert_array_equal(mixed.rows(batch, add=True), [1, 2, 1])
    single, is_single = mixed.batch({"x": [2, 1], "y": (2,)})
    assert is_single
    assert mixed.rows(single, add=False) == [2]
    other = Contexts(UnicodeText(10))
    other.unpack(texts.pack())
    np.testing.assert_array_equal(other.rows(("ä", "a\0", "", "?"), add=False), [4, 3, 2, 0])


def test_seeds_decide_everything() -> None:
    tables = []
    for seed in (0, 0, 1):
        env = make_env("TextGen-ToyBigram-v0", 8, observation="index", reward_noise=0.1, **SMALL)
        tables.append(DoubleQLearning(env, seed=seed).learn(2_000).table["q"])
    np.testing.assert_array_equal(tables[0], tables[1])
    assert (tables[0] != tables[2]).any()


def test_predict() -> None:
    env = make_env("TextGen-ToyCopy-v0", 4, **SMALL)
    agent = ValueIteration(env, behaviour=EpsilonGreedy(1.0)).learn()
    observations, _ = env.reset(seed=0)
    actions, state = agent.predict(observations, state="mine", deterministic=True)
    assert (actions.shape, actions.dtype, state) == ((4,), np.int64, "mine")
    np.testing.assert_array_equal(actions, observations["input_ids"][:, 0])
    single, _ = agent.predict({key: part[2] for key, part in observations.items()}, deterministic=True)
    assert single == actions[2]
    assert np.ndim(single) == 0
    draws = np.array([agent.predict(observations)[0] for _ in range(50)])
    assert {*draws.ravel().tolist()} == {0, 1}  # epsilon 1: anything
    np.testing.assert_array_equal(QLearning(env).predict(observations, deterministic=True)[0], 0)  # unseen


def test_callbacks_and_counting() -> None:
    from stable_baselines3.common.callbacks import BaseCallback

    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            assert self.model.num_timesteps == self.num_timesteps
            assert self.training_env.num_envs == 8
            return self.num_timesteps < 40

    env = make_env("TextGen-ToyCopy-v0", 8, **SMALL)
    assert QLearning(env).learn(1_000, callback=Stop(verbose=0)).num_timesteps == 40
    agent = QLearning(env).learn(1_000, callback=lambda local, _: local["self"].num_timesteps < 24)
    assert agent.num_timesteps == 24
    assert agent.learn(30, reset_num_timesteps=False).num_timesteps == 24 + 32
    assert agent.learn(30, callback=[Stop()]).num_timesteps == 32
    assert agent.progress_remaining == 0


@pytest.mark.parametrize("observation", ["tokens", "index"])
@pytest.mark.parametrize("kind", ALGORITHMS.values())
def test_files(kind: type[TabularAgent], observation: str, tmp_path: Path) -> None:
    env = make_env("TextGen-ToyBigram-v0", 8, observation=observation, **SMALL)
    agent = learned(kind, env, 2_000, gamma=0.9)
    agent.save(tmp_path / "agent.npz")
    other = kind.load(tmp_path / "agent.npz", env)
    assert [path.name for path in tmp_path.iterdir()] == ["agent.npz"]
    rows = agent.table.rows(shown(env), add=False)
    np.testing.assert_array_equal(other.table.rows(shown(env), add=False), rows)
    for column in agent.columns():
        np.testing.assert_array_equal(other.table[column][rows], agent.table[column][rows])
    assert [getattr(other, name) for name in kind.settings] == [
        getattr(agent, name) for name in kind.settings
    ]
    assert (other.num_timesteps, other.progress_remaining) == (agent.num_timesteps, 0)
    other.learn(400)
    assert kind.load(tmp_path / "agent.npz", env, gamma=0.5).gamma == 0.5


def test_files_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env, path = make_env("TextGen-ToyCopy-v0", 2, observation="index", **SMALL), tmp_path / "agent.npz"
    learned(QLearning, env, 100).save(path)
    before = path.read_bytes()
    larger = make_env("TextGen-ToyCopy-v0", 2, observation="index", vocab_size=2, length=4)
    with pytest.raises(ValueError, match=r"Discrete\(57\).*Discrete\(241\)"):
        QLearning.load(path, larger)
    with pytest.raises(ValueError, match=r"Discrete\(57\).*Dict"):
        QLearning.load(path, make_env("TextGen-ToyCopy-v0", 2, **SMALL))
    with pytest.raises(ValueError, match=r"holds a QLearning.*not a Sarsa"):
        Sarsa.load(path, env)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["column_q"] = arrays["column_q"][:5]
    np.savez(tmp_path / "cut.npz", **arrays)
    with pytest.raises(ValueError, match=r"'q'.*\(5, 2\).*\(57, 2\)"):
        QLearning.load(tmp_path / "cut.npz", env)
    np.savez(tmp_path / "pickled.npz", header=np.array([{}], object))
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    for name in ("pickled", "text", "other"):
        with pytest.raises(ValueError, match="not the file of a tabular agent"):
            QLearning.load(tmp_path / f"{name}.npz", env)
    with pytest.raises(FileNotFoundError):
        QLearning.load(tmp_path / "missing.npz", env)

    def fail(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        learned(QLearning, env, 200).save(path)
    assert path.read_bytes() == before
    assert not [*tmp_path.glob("*.part")]


def test_bad_input() -> None:
    env = make_env("TextGen-ToyCopy-v0", 2, observation="index", **SMALL)
    for settings, message in (
        ({"learning_rate": 1.5}, r"learning_rate must be finite and in \[0, 1\], got 1.5"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"rate_power": -1}, r"rate_power must be a number in 0..1, got -1"),
        ({"gamma": 1.1}, "gamma must be a number in 0..1, got 1.1"),
        ({"initial_value": np.inf}, "initial_value"),
    ):
        with pytest.raises(ValueError, match=message):
            QLearning(env, **settings)
    with pytest.raises(TypeError, match="learning_rate must be a number, Linear or Exponential"):
        QLearning(env, learning_rate="fast")
    with pytest.raises(ValueError, match="trace_decay"):
        QLambda(env, trace_decay=2)
    with pytest.raises(ValueError, match="value_rate"):
        Reinforce(env, value_rate=2)
    with pytest.raises(ValueError, match=r"epsilon must be finite and in \[0, 1\]"):
        EpsilonGreedy(Linear(1.0, -0.1))
    with pytest.raises(ValueError, match="temperature"):
        Softmax(0.0)
    with pytest.raises(ValueError, match="fraction"):
        Linear(1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="start and end must be > 0"):
        Exponential(1.0, 0.0)
    with pytest.raises(ValueError, match="total_timesteps must be >= 1, got 0"):
        QLearning(env).learn(0)
    with pytest.raises(TypeError, match="callback"):
        QLearning(env).learn(1, callback=3)
    with pytest.raises(ValueError, match="observations must be in Discrete"):
        QLearning(env).predict(-1)
    with pytest.raises(ValueError, match="dense=True needs Discrete"):
        QLearning(make_env("TextGen-ToyCopy-v0", 2, **SMALL), dense=True)
    with pytest.raises(ValueError, match="last_k"):
        ValueIteration(make_env("TextGen-ToyCopy-v0", 2, observation="last_k", **SMALL))


def test_environments_that_do_not_suit() -> None:
    with pytest.raises(TypeError, match="VectorEnv"):
        QLearning(gymnasium.make("FrozenLake-v1"))  # type: ignore[arg-type]
    cart = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")], autoreset_mode="SameStep")
    with pytest.raises(TypeError, match="exact keys"):
        QLearning(cart)
    pendulum = SyncVectorEnv([lambda: gymnasium.make("Pendulum-v1")], autoreset_mode="SameStep")
    with pytest.raises(ValueError, match="actions must be Discrete"):
        QLearning(pendulum)
    lake = [lambda: gymnasium.make("FrozenLake-v1")]
    with pytest.raises(ValueError, match="autoreset mode"):
        QLearning(SyncVectorEnv(lake, autoreset_mode="Disabled"))
    with pytest.raises(ValueError, match="Proposal needs a toy"):
        QLearning(make_env("FrozenLake-v1", 2), behaviour=Proposal())
    with pytest.raises(TypeError, match="toy"):
        ValueIteration(make_env("FrozenLake-v1", 2)).learn()


def test_rewards_that_are_not_finite_are_refused() -> None:
    class Broken(Counter):
        def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
            """Pays NaN."""
            return 0, float("nan"), False, False, {}

    env = SyncVectorEnv([Counter, Broken], autoreset_mode="SameStep")
    with pytest.raises(FloatingPointError, match=r"slots \[1\]"):
        QLearning(env).learn(10)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    settings: dict[str, Any] = {"n_envs": 32, "points": 4, "out": out}
    curve = Tabular("TextGen-ToyCopy-v0", total_timesteps=60_000, env_kwargs='{"length": 2}', **settings)()
    assert len(curve) == 5
    assert (curve[0].timesteps, curve[-1].timesteps) == (0, 60_000)
    assert curve[-1].regret == pytest.approx(0, abs=1e-9)
    assert "optimal return" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"agent.npz", "curve.csv", "result.json"}
    with pytest.raises(ValueError, match="exists"):
        Tabular(**settings)()
    hard: dict[str, Any] = {"total_timesteps": 2_000, "overwrite": True}
    too_large = '{"vocab_size": 8, "length": 8, "observation": "index"}'
    unsolved = Tabular("TextGen-ToyCopy-v0", env_kwargs=too_large, **settings | hard)()
    assert 0.5 < unsolved[-1].regret < 1.2  # estimated: next to nothing is learned in 2,000 steps
    lake = Tabular("FrozenLake-v1", total_timesteps=2_000, overwrite=True, **settings | {"n_envs": 8})
    assert np.isnan(lake()[-1].regret)
