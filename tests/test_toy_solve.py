"""Exact solutions against two independent methods: enumeration of all texts, and sparse value iteration."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from stable_baselines3 import DQN, PPO

from lm_envs.toy import MAX_STATES, policy_array, regret, solve

SMALL = {
    "Copy": {"vocab_size": 2, "length": 3},
    "Reverse": {"vocab_size": 2, "length": 3},
    "Translate": {"vocab_size": 3, "length": 2},
    "Brackets": {"vocab_size": 4, "length": 3},
    "Bigram": {"vocab_size": 3, "length": 4},
    "KeyDoor": {"vocab_size": 3, "length": 4},
}
TIMINGS = ("end", "delayed", "dense", "shaped")
TOLERANCE = 1e-10


def make(name: str, **dials: Any) -> Any:
    return gymnasium.make(f"TextGen-Toy{name}-v0", **{**SMALL[name], **dials})


class Enumeration:
    """Every text of a small toy, written into the environment itself; everything else in plain Python.

    Args:
        env: without slips.
        slip: what they are taken to be.
    """

    def __init__(self, env: Any, gamma: float, slip: float) -> None:
        toy = env.unwrapped
        self.gamma, self.slip, self.states = gamma, slip, toy.task.states
        self.size, self.length = toy.task.rule.vocab_size, toy.task.rule.length
        self.rewards: dict[tuple[int, ...], float] = {}  # context -> reward of its last token
        self.prompts = []
        for index in range(self.states.num_prompts):
            for text in product(range(self.size), repeat=self.length):
                observation, _ = env.reset(options={"task_index": index})
                context = tuple(observation["input_ids"][: self.states.prompt_length].tolist())
                if not any(text):
                    self.prompts.append(context)
                for token in text:
                    context = (*context, token)
                    self.rewards[context] = env.step(token)[1]
        self.reference = toy.language_model.table

    def number(self, context: tuple[int, ...]) -> int:
        tokens = np.zeros((1, self.states.context_length), np.int16)
        tokens[0, : len(context)] = context
        return int(self.states.numbers(tokens, np.array([len(context)]))[0])

    def worth(self, context: tuple[int, ...], values: dict[tuple[int, ...], float]) -> list[float]:
        """Q of every action."""
        tokens = []
        for token in range(self.size):
            following = (*context, token)
            tokens.append(self.rewards[following] + self.gamma * values.get(following, 0.0))
        mean = sum(tokens) / self.size
        return [(1 - self.slip) * token + self.slip * mean for token in tokens]

    def contexts(self) -> list[tuple[int, ...]]:
        """Contexts to which a token can be added, the longest first."""
        return [
            (*prompt, *text)
            for written in reversed(range(self.length))
            for prompt in self.prompts
            for text in product(range(self.size), repeat=written)
        ]

    def optimum(self, kl_coef: float) -> tuple[np.ndarray, np.ndarray]:
        """V* (n,) and Q* (n, V) by the order of states."""
        values: dict[tuple[int, ...], float] = {}
        all_values, all_q = np.zeros(self.states.num_states), np.zeros((self.states.num_states, self.size))
        for context in self.contexts():
            q = self.worth(context, values)
            values[context] = max(q)
            if kl_coef:
                reference = self.reference[context[-1]]
                total = sum(p * math.exp(x / kl_coef) for p, x in zip(reference, q, strict=True))
                values[context] = kl_coef * math.log(total)
            all_values[self.number(context)], all_q[self.number(context)] = values[context], q
        return all_values, all_q

    def expectations(self, policy: np.ndarray) -> tuple[float, float, np.ndarray]:
        """Return, KL and visits of a policy: sums over all texts, each with its probability."""
        expected_return, kl, visits = 0.0, 0.0, np.zeros(len(policy))
        for prompt in self.prompts:
            for text in product(range(self.size), repeat=self.length):
                probability, context = 1 / len(self.prompts), prompt
                for t, token in enumerate(text):
                    row = policy[self.number(context)]
                    reference = self.reference[context[-1]]
                    # This text's share of what all texts with this beginning have in common.
                    share = probability / self.size ** (self.length - t)
                    visits[self.number(context)] += share
                    kl += share * self.gamma**t * float((row * np.log(row / reference)).sum())
                    written = (1 - self.slip) * row[token] + self.slip / self.size
                    probability *= written
                    context = (*context, token)
                    share = probability / self.size ** (self.length - 1 - t)
                    expected_return += share * self.gamma**t * self.rewards[context]
        return expected_return, kl, visits


def random_policy(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    weights = np.random.default_rng(seed).exponential(size=shape)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    ("timing", "gamma", "slip"),
    [("end", 1.0, 0.0), ("delayed", 0.9, 0.3), ("dense", 0.5, 0.0), ("shaped", 1.0, 0.2)],
)
def test_equals_the_enumeration_of_all_texts(name: str, timing: str, gamma: float, slip: float) -> None:
    texts = Enumeration(make(name, reward_timing=timing), gamma, slip)
    env = make(name, reward_timing=timing, slip=slip)
    for kl_coef in (0.0, 0.3):
        solution = solve(env, gamma, kl_coef)
        values, q_values = texts.optimum(kl_coef)
        assert abs(solution.values - values).max() < TOLERANCE
        assert abs(solution.q_values - q_values).max() < TOLERANCE
        starts = values[: texts.states.num_prompts]
        assert solution.optimal_return == pytest.approx(starts.mean(), abs=TOLERANCE)
        policy = random_policy(q_values.shape)
        evaluation = solution.evaluate(policy)
        expected_return, kl, visits = texts.expectations(policy)
        assert evaluation.expected_return == pytest.approx(expected_return, abs=TOLERANCE)
        assert evaluation.kl == pytest.approx(kl, abs=TOLERANCE)
        assert evaluation.objective == pytest.approx(expected_return - kl_coef * kl, abs=TOLERANCE)
        assert abs(evaluation.visits[:-1] - visits[:-1]).max() < TOLERANCE
        assert evaluation.visits[-1] == 1.0


def transition_matrices(env: Any) -> tuple[list[csr_matrix], np.ndarray]:
    """An (n, n) matrix of probabilities per action, the end's row empty; expected rewards (n, V)."""
    table = env.unwrapped.P
    size, actions = len(table), env.action_space.n
    entries: list[list[tuple[float, int, int]]] = [[] for _ in range(actions)]
    rewards = np.zeros((size, actions))
    for state in range(size - 1):
        for action, outcomes in table[state].items():
            for probability, following, reward, _ in outcomes:
                entries[action].append((probability, state, following))
                rewards[state, action] += probability * reward
    matrices = []
    for rows in entries:
        data, row, column = zip(*rows, strict=True)
        matrices.append(csr_matrix((data, (row, column)), shape=(size, size)))
    return matrices, rewards


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kl_coef", [0.0, 0.2])
def test_equals_sparse_value_iteration(name: str, kl_coef: float) -> None:
    gamma = 0.95
    env = make(name, slip=0.1, reward_timing="delayed", **({"length": 5} if name != "Translate" else {}))
    matrices, rewards = transition_matrices(env)
    solution = solve(env, gamma, kl_coef)
    space = env.unwrapped.task.states
    tokens, lengths = space.tokens(np.arange(space.end))
    reference = np.full(rewards.shape, 1 / rewards.shape[1])
    reference[:-1] = env.unwrapped.language_model.table[tokens[np.arange(space.end), lengths - 1]]
    policy = random_policy(rewards.shape, seed=1)
    values, of_policy = np.zeros(len(rewards)), np.zeros(len(rewards))
    for _ in range(space.length + 1):
        q = rewards + gamma * np.stack([matrix @ values for matrix in matrices], axis=1)
        values = q.max(axis=1)
        if kl_coef:
            values = kl_coef * np.log((reference * np.exp(q / kl_coef)).sum(axis=1))
        q_policy = rewards + gamma * np.stack([matrix @ of_policy for matrix in matrices], axis=1)
        of_policy = (policy * (q_policy - kl_coef * np.log(policy / reference))).sum(axis=1)
        values[-1] = of_policy[-1] = 0.0
    assert abs(solution.values - values).max() < TOLERANCE
    assert abs(solution.q_values - q).max() < TOLERANCE
    evaluation = solution.evaluate(policy)
    assert abs(evaluation.values - of_policy).max() < TOLERANCE
    advantages = q_policy - kl_coef * np.log(policy / reference) - of_policy[:, None]
    assert abs(evaluation.advantages - advantages)[:-1].max() < TOLERANCE
    if kl_coef:
        weights = reference * np.exp(q / kl_coef)
        best = weights / weights.sum(axis=1, keepdims=True)
        assert abs(solution.policy - best)[:-1].max() < TOLERANCE


@pytest.mark.parametrize("name", SMALL)
def test_reward_timings_have_the_same_optimum(name: str) -> None:
    by_timing = {timing: solve(make(name, reward_timing=timing)) for timing in TIMINGS}
    end = by_timing["end"]
    is_best = np.isclose(end.q_values, end.values[:, None], rtol=0, atol=TOLERANCE)
    policy = random_policy(end.policy.shape)
    for solution in by_timing.values():
        assert solution.optimal_return == pytest.approx(end.optimal_return, abs=TOLERANCE)
        best = np.isclose(solution.q_values, solution.values[:, None], rtol=0, atol=TOLERANCE)
        assert np.array_equal(best, is_best)
        difference = solution.evaluate(policy).advantages - end.evaluate(policy).advantages
        assert abs(difference).max() < TOLERANCE


def test_potential_based_shaping_shifts_q_by_the_potential() -> None:
    shaped, end = (solve(make("Copy", reward_timing=timing)) for timing in ("shaped", "end"))
    space = make("Copy").unwrapped.task.states
    tokens, lengths = space.tokens(np.arange(space.end))
    for state, (row, length) in enumerate(zip(tokens.tolist(), lengths.tolist(), strict=True)):
        lost = sum(row[at] != row[at - 3] for at in range(3, length)) / 3
        assert shaped.values[state] == pytest.approx(end.values[state] + lost, abs=TOLERANCE)


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_policy_gradient_equals_finite_differences(kl_coef: float, gamma: float) -> None:
    solution = solve(make("Bigram", length=3, slip=0.1), gamma, kl_coef)
    logits = np.random.default_rng(0).normal(size=solution.policy.shape)
    gradient = solution.policy_gradient(logits)
    assert not gradient[-1].any()
    for state, action in [(0, 0), (2, 1), (4, 2), (11, 0), (30, 1), (solution.num_states - 2, 2)]:
        ends = []
        for step in (1e-5, -1e-5):
            moved = logits.copy()
            moved[state, action] += step
            weights = np.exp(moved)
            ends.append(solution.evaluate(weights / weights.sum(axis=1, keepdims=True)).objective)
        assert gradient[state, action] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-9)


def test_the_soft_optimum_is_stationary_and_best() -> None:
    solution = solve(make("Bigram"), kl_coef=0.2)
    assert abs(solution.policy_gradient(np.log(solution.policy))).max() < TOLERANCE
    evaluation = solution.evaluate(solution.policy)
    assert evaluation.objective == pytest.approx(solution.optimal_return, abs=TOLERANCE)
    penalised = evaluation.expected_return - 0.2 * evaluation.kl
    assert evaluation.objective == pytest.approx(penalised, abs=TOLERANCE)
    for seed in range(5):
        mixed = 0.9 * solution.policy + 0.1 * random_policy(solution.policy.shape, seed)
        assert solution.evaluate(mixed).objective < solution.optimal_return


def test_large_coefficients_do_not_round_the_values_away() -> None:
    """V -> the reference's own value Q_ref as kl_coef grows, with an error of the order of 1 / kl_coef."""
    solution = solve(make("Bigram"), kl_coef=1e12)
    reference = solve(make("Bigram")).evaluate(solution.tables.reference)
    assert abs(solution.values - reference.values).max() < TOLERANCE


def test_frontier_goes_from_the_reference_to_the_optimum() -> None:
    env = make("Bigram")
    solution = solve(env)
    points = solution.frontier([1e-3, 0.1, 0.3, 1.0, 1e4])
    for point in points[1:3]:
        own = solve(env, kl_coef=point.kl_coef)
        objective = point.expected_return - point.kl_coef * point.kl
        assert objective == pytest.approx(own.optimal_return, abs=TOLERANCE)
    assert points[0].expected_return == pytest.approx(solution.optimal_return, abs=1e-4)
    assert points[-1].kl == pytest.approx(0, abs=1e-6)
    reference = solution.tables.reference
    assert points[-1].expected_return == pytest.approx(solution.evaluate(reference).expected_return, abs=1e-3)
    for more, less in pairwise(points):
        assert more.expected_return > less.expected_return
        assert more.kl > less.kl


def test_known_optima() -> None:
    """One right text of V^T per prompt; random tokens are right one time in V."""
    for name in ("Copy", "Reverse", "Translate"):
        solution = solve(gymnasium.make(f"TextGen-Toy{name}-v0"))
        assert solution.optimal_return == pytest.approx(1, abs=TOLERANCE)
        assert solution.uniform_return == pytest.approx(1 / 3, abs=TOLERANCE)
        assert solve(gymnasium.make(f"TextGen-Toy{name}-v0", slip=0.3)).optimal_return == pytest.approx(0.8)
    key_door = solve(gymnasium.make("TextGen-ToyKeyDoor-v0"))
    assert key_door.optimal_return == pytest.approx(1, abs=TOLERANCE)
    assert key_door.uniform_return == pytest.approx(0.8 / 16 + 0.2 / 4, abs=TOLERANCE)


def test_regret() -> None:
    solution = solve(gymnasium.make("TextGen-ToyCopy-v0"))
    uniform = np.full_like(solution.policy, 1 / 3)
    assert solution.regret(solution.policy) == pytest.approx(0, abs=TOLERANCE)
    assert solution.regret(uniform) == pytest.approx(1, abs=TOLERANCE)
    assert solution.regret(0.7 * solution.policy + 0.3 * uniform) == pytest.approx(0.3, abs=TOLERANCE)


@pytest.mark.parametrize("name", SMALL)
def test_the_rules_know_their_optimum(name: str) -> None:
    for env in (make(name), gymnasium.make(f"TextGen-Toy{name}-v0")):
        assert env.unwrapped.task.rule.optimum() == pytest.approx(solve(env).optimal_return, abs=TOLERANCE)


def copies(observations: dict[str, np.ndarray]) -> np.ndarray:
    """Writes what ToyCopy asks for with probability 0.7, any other of the tokens a to h alike."""
    ids, lengths = observations["input_ids"], observations["attention_mask"].sum(axis=1)
    wanted = ids[np.arange(len(ids)), lengths - ids.shape[1] // 2]
    return 0.7 * np.eye(8)[wanted] + 0.3 * (1 - np.eye(8)[wanted]) / 7


def test_regret_is_exact_where_it_can_be() -> None:
    env = gymnasium.make("TextGen-ToyCopy-v0", vocab_size=8, length=2)
    # A token is right with probability 0.7; of uniform ones 1 in 8.
    expected = (1 - 0.7) / (1 - 1 / 8)
    assert regret(env, copies) == pytest.approx((expected, expected, expected, True), abs=TOLERANCE)


def test_regret_by_rollouts_covers_the_truth() -> None:
    env = gymnasium.make("TextGen-ToyCopy-v0", vocab_size=8, length=6)
    expected = (1 - 0.7) / (1 - 1 / 8)
    covered = 0
    for seed in range(40):
        result = regret(env, copies, episodes=500, seed=seed)
        assert not result.is_exact
        # Standard errors: sqrt(0.21 / 6 / 500) = 0.008 of 0.7 and 0.006 of 1/8.
        assert result.high - result.low == pytest.approx(2 * 1.96 * 0.0098, rel=0.15)
        covered += result.low <= expected <= result.high
    assert covered >= 34  # 38 of 40 are to be expected; fewer than 34 have a probability of 0.3%


@pytest.mark.parametrize(("fill", "columns"), [(-1.0, 8), (np.nan, 8), (0.1, 8), (1 / 3, 3)])
def test_regret_by_rollouts_checks_the_policy(fill: float, columns: int) -> None:
    env = gymnasium.make("TextGen-ToyCopy-v0", vocab_size=8, length=6)
    with pytest.raises(ValueError, match="policy must"):
        regret(env, lambda observations: np.full((50, columns), fill), episodes=50)


def test_regret_by_rollouts_refuses() -> None:
    large = {"vocab_size": 8, "length": 6}
    with pytest.raises(ValueError, match="slip must be 0 where the space is too large to solve"):
        regret(gymnasium.make("TextGen-ToyCopy-v0", slip=0.1, **large), copies)
    with pytest.raises(ValueError, match="episodes must be an integer >= 2, got 1"):
        regret(gymnasium.make("TextGen-ToyCopy-v0", **large), copies, episodes=1)


def test_regret_needs_something_to_regret() -> None:
    for game in ("Copy", "KeyDoor"):
        solution = solve(make(game, slip=1.0))
        with pytest.raises(ValueError, match="all have the same return"):
            solution.regret(np.full_like(solution.q_values, 1 / solution.q_values.shape[1]))


def test_policy_gradient_where_a_probability_underflows() -> None:
    solution = solve(make("Bigram"), kl_coef=0.1)
    logits = np.zeros_like(solution.q_values)
    limit = logits.copy()
    logits[:, 0], limit[:, 0] = 800.0, 600.0  # exp(-800) is 0 in float64, exp(-600) is not
    gradient = solution.policy_gradient(logits)
    np.testing.assert_allclose(gradient, solution.policy_gradient(limit), atol=1e-12)


def test_noise_changes_nothing() -> None:
    noisy, clean = solve(make("KeyDoor", reward_noise=3.0)), solve(make("KeyDoor"))
    assert np.array_equal(noisy.q_values, clean.q_values)


def test_a_deterministic_policy_has_a_finite_kl() -> None:
    solution = solve(make("Copy"))
    evaluation = solution.evaluate(solution.policy)
    # log 1 / p_ref summed over the three right tokens of each of the eight prompts
    table = make("Copy").unwrapped.language_model.table
    expected = -sum(
        math.log(table[before, token])
        for prompt in product(range(2), repeat=3)
        for before, token in zip((prompt[-1], *prompt), prompt, strict=False)
    )
    assert evaluation.kl == pytest.approx(expected / 8, abs=TOLERANCE)


# Policies of all kinds


def actor_critic_probabilities(model: Any, observation: Any) -> np.ndarray:
    with torch.no_grad():
        tensor, _ = model.policy.obs_to_tensor(observation)
        return model.policy.get_distribution(tensor).distribution.probs.numpy()[0]


@pytest.mark.parametrize("observation", ["index", "onehot", "last_k"])
def test_sb3_models_act_as_in_the_environment(observation: str) -> None:
    env = make("Bigram", observation=observation)
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, seed=0, device="cpu")
    array = policy_array(model, env.unwrapped.view)
    evaluation = solve(env).evaluate(model)
    assert abs(evaluation.policy - array).max() < 1e-12
    numbered = make("Bigram", observation="index")
    for seed in range(5):
        seen, _ = env.reset(seed=seed)
        state, _ = numbered.reset(seed=seed)
        for token in (0, 2, 1, 1):
            expected = actor_critic_probabilities(model, seen)
            assert array[state].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
            seen, *_ = env.step(token)
            state, *_ = numbered.step(token)


def test_value_learners_count_as_greedy() -> None:
    env = make("Bigram", observation="onehot")
    model = DQN("MlpPolicy", env, seed=0, buffer_size=10, device="cpu")
    array = policy_array(model, env.unwrapped.view)
    space = env.unwrapped.task.states
    shown = env.unwrapped.view.observe_states(np.arange(space.end))
    assert array[:-1].argmax(axis=1).tolist() == model.predict(shown, deterministic=True)[0].tolist()
    assert set(np.unique(array[:-1])) == {0.0, 1.0}


def test_functions_of_observations() -> None:
    """A policy that writes what it copies from the observation reaches the optimum."""
    env = gymnasium.make("TextGen-ToyCopy-v0")

    def copying(observations: dict[str, np.ndarray]) -> np.ndarray:
        lengths = observations["attention_mask"].sum(axis=1)
        return np.eye(3)[observations["input_ids"][np.arange(len(lengths)), lengths - 5]]

    assert solve(env).regret(copying) == pytest.approx(0, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("policy", "error", "message"),
    [
        (np.full((3, 2), 0.5), ValueError, r"shape \(57, 2\)"),
        (np.full((57, 2), 0.6), ValueError, "sum to 1, got .* in row 0"),
        (np.full((57, 2), np.nan), ValueError, "sum to 1"),
        (np.tile([1.5, -0.5], (57, 1)), ValueError, "sum to 1"),
        (lambda observations: np.full((56, 2), 0.4), ValueError, "sum to 1, got .* in row 0"),
        (lambda observations: np.full((3, 2), 0.5), ValueError, r"must return \(56, 2\) .*, got \(3, 2\)"),
        ("optimal", TypeError, "policy must be an array, a function or an SB3 model, got 'optimal'"),
    ],
)
def test_bad_policies(policy: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        solve(make("Copy")).evaluate(policy)


# Bad input and size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kl_coef": -0.1}, "kl_coef must be >= 0 and finite, got -0.1"),
        ({"kl_coef": math.inf}, "kl_coef must be >= 0 and finite, got inf"),
        ({"kl_coef": math.nan}, "kl_coef must be a number, got NaN"),
        ({"gamma": 1.1}, r"gamma must be in 0\.\.1, got 1\.1"),
        ({"gamma": -1}, r"gamma must be in 0\.\.1, got -1"),
        ({"gamma": "1"}, "gamma must be a number, got '1'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(make("Copy"), **arguments)


def test_bad_frontier() -> None:
    with pytest.raises(ValueError, match="kl_coefs must be > 0 and finite, got 0"):
        solve(make("Copy")).frontier([0.0])


def test_other_environments_are_refused() -> None:
    for env in (gymnasium.make("CartPole-v1"), None):
        with pytest.raises(TypeError, match="env must be a toy environment"):
            solve(env)


@pytest.mark.parametrize(
    ("dials", "size"),
    [
        ({"vocab_size": 4, "length": 6}, "5591041"),
        ({"vocab_size": 8, "length": 8}, "40210708561921"),
        # V^T prompts times V^(T-1) + ... + 1 texts: log10 of 1024^(1024 + 1023) is 6162.1.
        ({"vocab_size": 1024, "length": 1024}, r"about 10\^6162"),
    ],
)
def test_large_spaces_are_refused(dials: dict[str, int], size: str) -> None:
    with pytest.raises(ValueError, match=f"{size} states .at most {MAX_STATES}."):
        solve(gymnasium.make("TextGen-ToyCopy-v0", **dials))


def test_a_million_states() -> None:
    solution = solve(gymnasium.make("TextGen-ToyCopy-v0", vocab_size=2, length=10))
    assert solution.num_states == 1024 * 1023 + 1
    assert solution.optimal_return == pytest.approx(1, abs=TOLERANCE)
    assert solution.uniform_return == pytest.approx(1 / 2, abs=TOLERANCE)


def test_vector_environments_are_solved_too() -> None:
    batch = gymnasium.make_vec("TextGen-ToyKeyDoor-v0", 2)
    assert np.array_equal(solve(batch).values, solve(gymnasium.make("TextGen-ToyKeyDoor-v0")).values)
