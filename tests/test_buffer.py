"""`EpisodeRolloutBuffer`: what it holds and yields, against lists of single transitions and brute force."""

from __future__ import annotations

import warnings
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_envs import scoring
from lm_envs.sb3 import EpisodeRolloutBuffer

pytestmark = pytest.mark.filterwarnings("ignore:a minibatch holds")
WIDTH, VOCAB = 24, 7


def token_space(width: int = WIDTH, vocab: int = VOCAB, **extra: spaces.Space) -> spaces.Dict:
    ids = spaces.Box(0, vocab - 1, (width,), np.int64)
    return spaces.Dict({"input_ids": ids, "attention_mask": spaces.Box(0, 1, (width,), np.int8), **extra})


def observation(contexts: list[list[int]]) -> dict[str, np.ndarray]:
    ids, mask = np.zeros((len(contexts), WIDTH), np.int64), np.zeros((len(contexts), WIDTH), np.int8)
    for row, context in enumerate(contexts):
        ids[row, : len(context)] = context
        mask[row, : len(context)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def play(
    rng: np.random.Generator, n_steps: int, n_envs: int, **kwargs: Any
) -> tuple[EpisodeRolloutBuffer, list]:
    """A buffer filled with random episodes, and its transitions (slot, step, context, action) one by one."""
    buffer = EpisodeRolloutBuffer(
        n_steps, token_space(), spaces.Discrete(VOCAB), "cpu", n_envs=n_envs, **kwargs
    )

    def prompt() -> list[int]:
        return rng.integers(VOCAB, size=rng.integers(1, 6)).tolist()

    contexts = [prompt() for _ in range(n_envs)]
    starts = np.ones(n_envs, bool)
    transitions = []
    for step in range(n_steps):
        obs = observation(contexts)
        actions = rng.integers(VOCAB, size=n_envs)
        values, log_probs = torch.from_numpy(rng.normal(size=(2, n_envs)))
        buffer.add(obs, actions[:, None], rng.normal(size=n_envs), starts, values[:, None], log_probs)
        obs["input_ids"][:] = -1  # an environment may reuse its arrays
        starts = np.zeros(n_envs, bool)
        for slot in range(n_envs):
            transitions.append((slot, step, contexts[slot], int(actions[slot])))
            reply = rng.choice(["nothing", "append", "replace", "end"], p=[0.6, 0.2, 0.1, 0.1])
            contexts[slot] = [*contexts[slot], int(actions[slot])]
            if reply == "append":
                contexts[slot] += prompt()
            starts[slot] = reply == "end" or len(contexts[slot]) >= WIDTH
            if starts[slot] or reply == "replace":
                contexts[slot] = prompt()
    buffer.compute_returns_and_advantage(torch.from_numpy(rng.normal(size=n_envs)), starts)
    return buffer, transitions


def contexts_of(samples: Any) -> list[list[int]]:
    contexts = []
    for ids, positions in samples.observations.blocks:
        rows, columns = np.divmod(positions.numpy(), ids.shape[1])
        contexts += [ids[row, : column + 1].tolist() for row, column in zip(rows, columns, strict=True)]
    return contexts


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_steps=st.integers(1, 12),
    n_envs=st.integers(1, 5),
    batch_size=st.none() | st.integers(1, 70),
    tokens_per_pass=st.sampled_from([1, 30, 2048]),
)
def test_minibatches_hold_every_transition_once(
    seed: int, n_steps: int, n_envs: int, batch_size: int | None, tokens_per_pass: int
) -> None:
    buffer, transitions = play(np.random.default_rng(seed), n_steps, n_envs)
    torch.manual_seed(seed)
    for _ in range(2):  # epochs
        with mock.patch.dict(scoring.TOKENS_PER_PASS, cpu=tokens_per_pass):
            batches = list(buffer.get(batch_size))
        seen = []
        for samples in batches:
            numbers = zip(
                contexts_of(samples),
                samples.actions.tolist(),
                samples.old_values.tolist(),
                samples.old_log_prob.tolist(),
                samples.advantages.tolist(),
                samples.returns.tolist(),
                strict=True,
            )
            seen += list(numbers)
        expected = [
            (
                context,
                action,
                buffer.values[step, slot],
                buffer.log_probs[step, slot],
                buffer.advantages[step, slot],
                buffer.returns[step, slot],
            )
            for slot, step, context, action in transitions
        ]
        assert sorted(seen) == sorted(expected)
        longest = buffer._action_counts.max()
        if batch_size is None:
            assert len(batches) == 1
        else:
            target = n_steps * n_envs / max(1, round(n_steps * n_envs / batch_size))
            assert all(len(samples.actions) < target + longest + 1 for samples in batches)


def test_tokens_are_stored_once() -> None:
    """An episode of T tokens takes O(T), wherever it is cut into turns, and its segment is one row."""
    buffer = EpisodeRolloutBuffer(12, token_space(), spaces.Discrete(VOCAB), "cpu", n_envs=1)
    context = [1, 2, 3]
    for step in range(12):
        buffer.add(
            observation([context]),
            np.array([[4]]),
            np.zeros(1),
            np.array([step == 0]),
            torch.zeros(1, 1),
            torch.zeros(1),
        )
        context = [*context, 4, *([5, 6] if step == 5 else [])]
    buffer.compute_returns_and_advantage(torch.zeros(1, 1), np.ones(1, bool))
    (samples,) = buffer.get(None)
    assert sum(len(tokens) for tokens in buffer._tokens) == 3 + 11 + 2
    ((input_ids, _),) = samples.observations.blocks
    assert input_ids.tolist() == [context[:-1]]


def test_lengths_are_mixed_but_padding_is_small() -> None:
    rng = np.random.default_rng(0)
    buffer = EpisodeRolloutBuffer(1, token_space(), spaces.Discrete(VOCAB), "cpu", n_envs=400)
    contexts = [rng.integers(VOCAB, size=n).tolist() for n in rng.integers(2, WIDTH + 1, 400)]
    zeros = torch.zeros(400)
    actions = np.zeros((400, 1), np.int64)
    buffer.add(observation(contexts), actions, np.zeros(400), np.ones(400), zeros[:, None], zeros)
    buffer.compute_returns_and_advantage(zeros, np.ones(400))
    torch.manual_seed(0)
    tokens = sum(len(context) for context in contexts)
    compositions = []
    for _ in range(2):
        padded, composition = 0, []
        for samples in buffer.get(40):
            padded += sum(ids.numel() for ids, _ in samples.observations.blocks)
            composition.append(frozenset(map(tuple, contexts_of(samples))))
        assert padded < 1.4 * tokens  # 1.8 in random order
        compositions.append(composition)
    assert len(compositions[0]) == 10
    assert not set(compositions[0]) & set(compositions[1])


def gae(buffer: Any, rewards: np.ndarray, last_values: np.ndarray, dones: np.ndarray) -> np.ndarray:
    """Brute force: A_t = sum_k (gamma lambda)^k delta_{t+k}, to the end of the episode or the rollout."""
    advantages = np.zeros_like(rewards)
    n_steps, n_envs = rewards.shape
    for slot in range(n_envs):
        ends = [*(buffer.episode_starts[1:, slot] > 0), bool(dones[slot])]
        for first in range(n_steps):
            discount = 1.0
            for step in range(first, n_steps):
                after = last_values[slot] if step == n_steps - 1 else buffer.values[step + 1, slot]
                delta = (
                    rewards[step, slot] + buffer.gamma * after * (not ends[step]) - buffer.values[step, slot]
                )
                advantages[first, slot] += discount * delta
                discount *= buffer.gamma * buffer.gae_lambda
                if ends[step]:
                    break
    return advantages


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0)])
def test_gae(gamma: float, gae_lambda: float, whiten: bool) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        buffer, _ = play(rng, 9, 3, gamma=gamma, gae_lambda=gae_lambda, whiten_advantages=whiten)
        last_values, dones = rng.normal(size=3), np.array([True, False, True])
        buffer.compute_returns_and_advantage(torch.from_numpy(last_values), dones)
        expected = gae(buffer, buffer.rewards, last_values, dones)
        # SB3 keeps episode starts in float32, and with them its intermediate results.
        np.testing.assert_allclose(buffer.returns, expected + buffer.values, atol=1e-5)
        if whiten:
            expected = (expected - expected.mean()) / (expected.std() + 1e-8)
        np.testing.assert_allclose(buffer.advantages, expected, atol=1e-5)


def test_a_minibatch_of_few_segments_warns_once() -> None:
    buffer, _ = play(np.random.default_rng(0), 6, 4)
    with pytest.warns(UserWarning, match="below 8"):
        list(buffer.get(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(buffer.get(3))


def test_errors() -> None:
    buffer = EpisodeRolloutBuffer(2, token_space(), spaces.Discrete(VOCAB), "cpu")
    with pytest.raises(RuntimeError, match="0 of 2"):
        next(iter(buffer.get(2)))
    with pytest.raises(ValueError, match="input_ids"):
        EpisodeRolloutBuffer(2, spaces.Box(0, 1, (3,)), spaces.Discrete(VOCAB))
