"""Tabular update rules against hand-worked examples, textbook loops and exact gradients."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

import lm_envs.toy
from agents.tabular import (
    ActorCritic,
    DoubleQLearning,
    EpsilonGreedy,
    ExpectedSarsa,
    Exponential,
    Linear,
    MonteCarlo,
    Proposal,
    QLambda,
    QLearning,
    Random,
    Reinforce,
    Sarsa,
    Softmax,
    make_env,
)
from agents.tabular.agent import Batch
from agents.tabular.behaviour import sample
from agents.tabular.schedules import at
from agents.tabular.table import move


class Idle(gymnasium.Env):
    """Six states, two actions; only its spaces are used."""

    observation_space = spaces.Discrete(6)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict]:
        """State 0."""
        super().reset(seed=seed)
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        """Nothing happens."""
        return 0, 0.0, False, False, {}


def idle(num_envs: int = 1) -> SyncVectorEnv:
    """Slots of `Idle`."""
    return SyncVectorEnv([Idle] * num_envs, autoreset_mode="SameStep")


def experience(*steps: tuple, slots: list[int] | None = None) -> Batch:
    """(row, action, reward, next row, next action, terminated) of slots 0, 1, ... as a batch."""
    rows, actions, rewards, next_rows, next_actions, terminated = map(np.array, zip(*steps, strict=True))
    chances = np.tile([0.25, 0.75], (len(rows), 1))
    slots = list(range(len(rows))) if slots is None else slots
    return Batch(
        np.array(slots),
        rows,
        actions,
        rewards.astype(float),
        next_rows,
        next_actions,
        chances,
        terminated,
        terminated,
    )


@pytest.mark.parametrize(
    ("kind", "after_one_step", "after_the_last"),
    [
        # Q(0,1) = 4, Q(1,.) = (1, 3), r = 2, gamma = 0.9, step 0.5, next action 0, behaviour (1/4, 3/4)
        (QLearning, 4 + 0.5 * (2 + 0.9 * 3 - 4), 3.0),
        (Sarsa, 4 + 0.5 * (2 + 0.9 * 1 - 4), 3.0),
        (ExpectedSarsa, 4 + 0.5 * (2 + 0.9 * 2.5 - 4), 3.0),
        (QLambda, 4 + 0.5 * (2 + 0.9 * 3 - 4), 3.0),
    ],
)
def test_one_step_by_hand(kind: type, after_one_step: float, after_the_last: float) -> None:
    for terminated, expected in ((False, after_one_step), (True, after_the_last)):
        agent = kind(idle(), learning_rate=0.5, rate_power=0, gamma=0.9)
        agent.begin()
        agent.table["q"][:2] = [[0, 4], [1, 3]]
        agent.update(experience((0, 1, 2.0, 1, 0, terminated)))
        assert agent.table["q"][0, 1] == pytest.approx(expected)
        assert agent.table["q"][0, 0] == 0


@pytest.mark.parametrize(
    ("coin", "expected"),
    # Heads: A's best action is 1, B says 2. Tails: B's best is 0, A says 1.
    [(0.1, (4 + 0.5 * (2 + 0.9 * 2 - 4), 6.0)), (0.9, (4.0, 6 + 0.5 * (2 + 0.9 * 1 - 6)))],
)
def test_double_q_by_hand(coin: float, expected: tuple[float, float]) -> None:
    agent = DoubleQLearning(idle(), learning_rate=0.5, rate_power=0, gamma=0.9)
    agent.table["q"][:2], agent.table["q_other"][:2] = [[0, 4], [1, 3]], [[0, 6], [5, 2]]

    class Coin:
        def random(self, n: int) -> np.ndarray:
            return np.full(n, coin)

    agent.rng = Coin()  # type: ignore[assignment]
    agent.update(experience((0, 1, 2.0, 1, 0, False)))
    assert (agent.table["q"][0, 1], agent.table["q_other"][0, 1]) == pytest.approx(expected)
    np.testing.assert_allclose(agent.q_values(np.array([1])), [[3, 2.5]])


def test_monte_carlo_by_hand_counts_first_visits() -> None:
    agent = MonteCarlo(idle(), learning_rate=0.5, rate_power=0, gamma=0.9)
    agent.begin()
    for step in ((0, 1, 1.0, 1, 0, False), (1, 0, 2.0, 0, 1, False), (0, 1, 4.0, 2, 0, True)):
        agent.update(experience(step))
    # G = 1 + 0.9 * (2 + 0.9 * 4), 2 + 0.9 * 4; the second visit of (0, 1) does not count
    np.testing.assert_allclose(agent.table["q"][:2], [[0, 0.5 * 6.04], [0.5 * 5.6, 0]])
    np.testing.assert_array_equal(agent.table["visits"][:2], [[0, 1], [1, 0]])


@pytest.mark.parametrize("baseline", [False, True])
def test_reinforce_by_hand(baseline: bool) -> None:
    agent = Reinforce(idle(), learning_rate=0.5, value_rate=0.1, gamma=0.9, baseline=baseline)
    agent.begin()
    agent.table["values"][:2] = [1.0, 3.0]
    agent.update(experience((0, 1, 1.0, 1, 0, False)))
    agent.update(experience((1, 0, 2.0, 2, 0, True)))
    weights = [2.8 - baseline * 1, 0.9 * (2 - baseline * 3)]
    expected = [[-0.25 * weights[0], 0.25 * weights[0]], [0.25 * weights[1], -0.25 * weights[1]]]
    np.testing.assert_allclose(agent.table["logits"][:2], expected)
    np.testing.assert_allclose(agent.table["values"][:2], [1.18, 2.9] if baseline else [1, 3])


def test_actor_critic_by_hand() -> None:
    agent = ActorCritic(idle(), learning_rate=0.5, value_rate=0.1, gamma=0.9)
    agent.table["values"][:2] = [1.0, 3.0]
    agent.update(experience((0, 1, 1.0, 1, 0, False)))
    delta = 1 + 0.9 * 3 - 1
    np.testing.assert_allclose(agent.table["logits"][0], [-0.25 * delta, 0.25 * delta])
    np.testing.assert_allclose(agent.table["values"][:2], [1 + 0.1 * delta, 3])


def test_equal_contexts_of_a_batch_make_one_mean_step_of_the_policy() -> None:
    agent = ActorCritic(idle(3), learning_rate=1.0, value_rate=0.5)
    steps = ((0, 1, 1.0, 1, 0, True), (0, 1, 3.0, 1, 0, True), (2, 0, 1.0, 1, 0, True))
    agent.update(experience(*steps))
    np.testing.assert_allclose(agent.table["logits"][[0, 2]], [[-1, 1], [0.5, -0.5]])
    np.testing.assert_allclose(agent.table["values"][[0, 2]], [0.75 * 2, 0.5])


@settings(max_examples=60, deadline=None)
@given(
    cells=st.lists(st.integers(0, 4), max_size=12),
    rate=st.floats(0, 1),
    power=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 99),
)
def test_move_equals_one_by_one(cells: list[int], rate: float, power: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, visits, targets = rng.normal(size=5), rng.integers(0, 3, 5).astype(float), rng.normal(size=5)
    slow, counts = values.copy(), visits.copy()
    for cell in cells:
        counts[cell] += 1
        slow[cell] += rate * counts[cell] ** -power * (targets[cell] - slow[cell])
    at_cells = np.array(cells, np.int64)
    move(values, visits, at_cells, targets[at_cells] - values[at_cells], rate=rate, power=power)
    np.testing.assert_allclose(values, slow, atol=1e-12)
    np.testing.assert_array_equal(visits, counts)


def test_move_with_rate_and_power_1_averages_all_targets() -> None:
    rng = np.random.default_rng(0)
    values, visits, targets = np.array([7.0]), np.zeros(1), rng.normal(size=20)
    for part in np.split(targets, [3, 4, 11]):
        move(values, visits, np.zeros(len(part), np.int64), part - values[0], rate=1.0, power=1.0)
    assert values[0] == pytest.approx(targets.mean())


def textbook_q_lambda(q: np.ndarray, steps: list[tuple], alpha: float, gamma: float, decay: float) -> None:
    """Sutton and Barto 1998, figure 7.14, with replacing traces; loops over a dict."""
    traces: dict[tuple[int, int], float] = {}
    for row, action, reward, next_row, next_action, terminated in steps:
        best = q[next_row].max()
        delta = reward + (0.0 if terminated else gamma * best) - q[row, action]
        greedy = q[next_row, next_action] == best
        traces[row, action] = 1.0
        for pair, e in traces.items():
            q[pair] += alpha * delta * e
        traces = {pair: gamma * decay * e for pair, e in traces.items()} if greedy and not terminated else {}


def wander(seed: int, states: list[int], length: int) -> list[tuple]:
    """A trajectory with many repetitions."""
    rng = np.random.default_rng(seed)
    rows, actions = rng.choice(states, length + 1), rng.integers(0, 2, length + 1)
    ends = rng.random(length) < 0.1
    return [
        (rows[i], actions[i], rng.normal(), rows[i + 1], actions[i + 1], bool(ends[i])) for i in range(length)
    ]


@pytest.mark.parametrize("decay", [0.0, 0.8, 1.0])
def test_q_lambda_equals_the_textbook(decay: float) -> None:
    # The slots' states are apart, so each must go its way as if it were alone.
    ways = [wander(0, [0, 1, 2], 60), wander(1, [3, 4, 5], 60)]
    start = np.random.default_rng(2).normal(size=(6, 2))
    agent = QLambda(idle(2), learning_rate=0.3, rate_power=0, gamma=0.95, trace_decay=decay)
    agent.begin()
    agent.table["q"][:] = start
    for steps in zip(*ways, strict=True):
        agent.update(experience(*steps))
    expected = start.copy()
    for way in ways:
        textbook_q_lambda(expected, way, 0.3, 0.95, decay)
    np.testing.assert_allclose(agent.table["q"], expected, atol=1e-12)
    assert not np.allclose(expected, start)


def test_q_lambda_joins_the_traces_of_slots() -> None:
    agent = QLambda(idle(2), learning_rate=0.5, rate_power=0, trace_decay=0.5)
    agent.begin()
    agent.update(experience((0, 0, 0.0, 1, 0, False), (2, 0, 0.0, 0, 0, False)))
    agent.update(experience((1, 0, 1.0, 3, 0, True), (0, 0, 3.0, 3, 0, True)))
    # (0, 0) is in the traces of slot 0 with e = 1/2 and error 1, and of slot 1 with e = 1 and error 3.
    mean, step = (0.5 * 1 + 1 * 3) / 1.5, 1 - (1 - 0.25) * (1 - 0.5)
    np.testing.assert_allclose(agent.table["q"][:3, 0], [step * mean, 0.5, 0.25 * 3])


def test_schedules() -> None:
    linear, exponential = Linear(1.0, 0.2, 0.5), Exponential(1.0, 0.01)
    assert [at(linear, p) for p in (1.0, 0.75, 0.5, 0.0)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert [at(exponential, p) for p in (1.0, 0.5, 0.0)] == pytest.approx([1.0, 0.1, 0.01])
    assert at(0.3, 0.7) == 0.3


def test_behaviours_give_the_stated_probabilities() -> None:
    values, env = np.array([[1.0, 3.0, 3.0, 0.0]]), idle()
    greedy = EpsilonGreedy(0.2).probabilities(values, None, env, 1.0)
    np.testing.assert_allclose(greedy, [[0.05, 0.45, 0.45, 0.05]])
    soft = Softmax(Linear(2.0, 1.0)).probabilities(values, None, env, 1.0)
    np.testing.assert_allclose(soft, np.exp(values / 2) / np.exp(values / 2).sum())
    np.testing.assert_allclose(Random().probabilities(values, None, env, 1.0), np.full((1, 4), 0.25))


@pytest.mark.parametrize("observation", ["tokens", "index"])
def test_proposals_are_the_language_models(observation: str) -> None:
    env = make_env("TextGen-ToyBigram-v0", 5, observation=observation)
    texts = [env.reset(seed=0)[0], *(env.step(np.arange(5) % 5)[0] for _ in range(3))]
    contexts = np.array([[0, 1, 2, 3, 4]]).T  # the tokens just written: what a bigram model looks at
    proposed = Proposal().probabilities(np.zeros((5, 5)), texts[-1], env, 1.0)
    np.testing.assert_array_equal(proposed, env.unwrapped.language_model.probabilities(contexts))


def test_samples_follow_the_probabilities() -> None:
    chances = np.tile([0.0, 0.5, 0.2, 0.3, 0.0], (40_000, 1))
    counts = np.bincount(sample(chances, np.random.default_rng(0)), minlength=5) / 40_000
    np.testing.assert_allclose(counts, chances[0], atol=0.01)
    assert counts[0] == counts[4] == 0


@pytest.mark.parametrize(("baseline", "gamma"), [(False, 1.0), (True, 1.0), (True, 0.8)])
def test_policy_gradient_is_exact_on_average(baseline: bool, gamma: float) -> None:
    env = make_env("TextGen-ToyKeyDoor-v0", 2048, vocab_size=2, length=3, observation="index", slip=0.2)
    solution = lm_envs.toy.solve(env, gamma=gamma)
    logits = np.random.default_rng(0).normal(size=solution.q_values.shape)
    estimates = []

    class Recorder(Reinforce):
        def climb(self, rows: np.ndarray, actions: np.ndarray, weights: np.ndarray) -> None:
            gradients = np.eye(2)[actions] - np.exp(logits[rows]) / np.exp(logits[rows]).sum(1)[:, None]
            total = np.zeros_like(logits)
            np.add.at(total, rows, gradients * weights[:, None])
            estimates.append(total / 2048)  # the episodes of all slots end together

    agent = Recorder(env, learning_rate=0.0, value_rate=0.0, gamma=gamma, baseline=baseline, seed=1)
    agent.table["logits"][:] = logits
    agent.table["values"][:] = np.random.default_rng(1).normal(size=len(logits))
    agent.learn(2048 * 3 * 60)
    exact = solution.policy_gradient(logits)
    error = np.std(estimates, axis=0, ddof=1) / np.sqrt(len(estimates))
    z = (np.mean(estimates, axis=0) - exact)[error > 0] / error[error > 0]
    assert len(estimates) == 60
    assert abs(z).max() < 4
    assert 0.5 < np.sqrt((z**2).mean()) < 1.5
    assert abs(exact).max() > 10 * error.max()
