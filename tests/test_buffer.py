"""`EpisodeRolloutBuffer` against SB3's transition-wise buffer, brute force and exact enumeration."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from models import save_tiny
from runs import AtRolloutEnd, make_algorithm, make_env
from stable_baselines3.common.buffers import DictRolloutBuffer
from tasks import Board, Dialogue

from lm_envs.language_model import LanguageModel
from lm_envs.sb3 import EpisodeRolloutBuffer, KLCallback, TransformerPolicy

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
    ids = samples.observations.input_ids
    rows, columns = np.divmod(samples.observations.positions.numpy(), ids.shape[1])
    return [ids[row, : column + 1].tolist() for row, column in zip(rows, columns, strict=True)]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_steps=st.integers(1, 12),
    n_envs=st.integers(1, 5),
    batch_size=st.none() | st.integers(1, 70),
)
def test_minibatches_hold_every_transition_once(
    seed: int, n_steps: int, n_envs: int, batch_size: int | None
) -> None:
    buffer, transitions = play(np.random.default_rng(seed), n_steps, n_envs)
    torch.manual_seed(seed)
    for _ in range(2):  # epochs
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
    assert samples.observations.input_ids.tolist() == [context[:-1]]


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
            padded += samples.observations.input_ids.numel()
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


def test_kl_penalty_lowers_the_rewards_that_gae_sees(tiny_gpt2: str) -> None:
    """Oracle: log-probs of each transition's own context by `LanguageModel.log_probs`."""
    env = make_env(tiny_gpt2, task=Board())  # its own model is in float32
    algorithm = make_algorithm(
        env,
        tiny_gpt2,
        policy={"dtype": "float64", "temperature": 0.7},
        rollout_buffer_kwargs={"whiten_advantages": False},
        learning_rate=3e-2,
    )
    raw: list[np.ndarray] = []
    contexts: list[tuple[np.ndarray, np.ndarray]] = []

    class Recorder(AtRolloutEnd):
        def _on_step(self) -> bool:
            raw.append(self.locals["rewards"].copy())
            obs = self.locals["obs_tensor"]
            contexts.append((obs["input_ids"].numpy().copy(), obs["attention_mask"].numpy().sum(1)))
            return True

    def check(algorithm: Any) -> None:
        buffer = algorithm.rollout_buffer
        for step in range(8):
            ids, lengths = contexts[step]
            rows = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
            scores = reference.log_probs(rows, buffer.actions[step][:, None].tolist(), temperature=0.7)
            kl = buffer.log_probs[step] - np.array([score[0] for score in scores])
            np.testing.assert_allclose(buffer.kl[step], kl, atol=1e-9)
            np.testing.assert_allclose(buffer.rewards[step], raw[step] - 0.3 * kl, atol=1e-6)
        raw.clear()
        contexts.clear()
        kls.append(np.abs(buffer.kl).max())

    reference = LanguageModel.load(tiny_gpt2, device="cpu", dtype="float64")
    kls: list[float] = []
    algorithm.learn(3 * 8 * env.num_envs, callback=[KLCallback(0.3), Recorder(check)])
    assert kls[0] < 1e-9  # the policy starts as the reference
    assert kls[-1] > 1e-2


class Loss:
    """PPO's loss with a value and an entropy term, on what a buffer yields."""

    def __init__(self, policy: TransformerPolicy) -> None:
        self.policy = policy

    def gradients(self, batches: Any, total: int) -> dict[str, torch.Tensor]:
        self.policy.optimizer.zero_grad()
        for samples in batches:
            values, log_probs, entropy = self.policy.evaluate_actions(
                samples.observations, samples.actions.long().flatten()
            )
            ratio = (log_probs - samples.old_log_prob).exp()
            advantages = samples.advantages
            clipped = torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
            errors = (samples.returns - values.flatten()) ** 2
            loss = (-clipped + 0.5 * errors - 0.01 * entropy).sum() / total
            loss.backward()
        return {name: parameter.grad.clone() for name, parameter in self.policy.named_parameters()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "task", [None, Dialogue(), Board()], ids=["rows of different lengths", "appended", "replaced"]
)
def test_packed_gradients_equal_those_of_single_transitions(
    tiny_models: dict[str, str], architecture: str, task: Any, dtype: str
) -> None:
    """Over rollouts that cut episodes apart, against SB3's own buffer, one transition a row."""
    model = tiny_models[architecture]
    env = make_env(model, 5, **({"max_new_tokens": 9} if task is None else {"task": task}))
    algorithm = make_algorithm(env, model, n_steps=7, policy={"dtype": dtype}, learning_rate=1e-2, gamma=0.9)
    total = 7 * 5
    single = DictRolloutBuffer(
        7, env.observation_space, env.action_space, "cpu", algorithm.gae_lambda, algorithm.gamma, n_envs=5
    )
    steps: list[tuple] = []
    add = algorithm.rollout_buffer.add

    def recording_add(*arguments: Any) -> None:
        steps.append(arguments)
        add(*arguments)

    algorithm.rollout_buffer.add = recording_add
    compared = []

    def compare(algorithm: Any) -> None:
        packed = algorithm.rollout_buffer
        single.reset()
        for arguments in steps:
            single.add(*arguments)
        steps.clear()
        for name in ("values", "log_probs", "advantages", "returns"):
            getattr(single, name)[:] = getattr(packed, name)
        torch.nn.init.normal_(algorithm.policy.value_net.weight)
        old = algorithm.policy.state_dict()
        jolt = torch.Generator().manual_seed(1)
        moved = {
            name: v + 0.02 * torch.randn(v.shape, generator=jolt, dtype=v.dtype) for name, v in old.items()
        }
        tie = "model.lm_head.weight"
        if architecture == "gpt2":
            moved[tie] = moved["model.transformer.wte.weight"]
        algorithm.policy.load_state_dict(moved)  # so that ratios are not 1
        loss = Loss(algorithm.policy)
        expected = loss.gradients(single.get(11), total)
        for batch_size in (None, 10):
            gradients = loss.gradients(packed.get(batch_size), total)
            for name, gradient in gradients.items():
                scale = expected[name].norm()
                assert scale > 0
                # SB3's buffer keeps old values and log-probs in float32.
                assert (gradient - expected[name]).norm() < 1e-5 * scale, name
        algorithm.policy.optimizer.zero_grad()
        compared.append(len(packed._token_counts))

    algorithm.learn(3 * total, callback=AtRolloutEnd(compare))
    assert len(compared) == 3
    assert max(compared) > 5  # some slot wrote more than one segment


def test_a_minibatch_of_few_segments_warns_once() -> None:
    buffer, _ = play(np.random.default_rng(0), 6, 4)
    with pytest.warns(UserWarning, match="below 8"):
        list(buffer.get(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(buffer.get(3))


@pytest.mark.parametrize("masked", [False, True])
def test_kl_equals_exact_enumeration(tmp_path: Path, masked: bool) -> None:
    """All completions of 3 tokens of a 6-word vocabulary, each weighted by its probability.

    Oracle: the chain rule over full next-token distributions, by transformers' own models.
    """
    folder = save_tiny(tmp_path, "llama", sentences=("a b c",), word_level=True, dtype=torch.float64)
    reference = LanguageModel.load(folder, device="cpu", dtype="float64")
    size, temperature, length = reference.vocab_size, 0.8, 3
    prompt = reference.encode_prompt("a b")
    mask_space = {"action_mask": spaces.MultiBinary(size)} if masked else {}
    space = token_space(vocab=size, **mask_space)
    policy = TransformerPolicy(
        space, spaces.Discrete(size), lambda _: 0.0, folder, dtype="float64", temperature=temperature
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype), alpha=0.2)
    allowed = np.ones(size, bool)
    if masked:
        allowed[:2] = False  # no <bos>, no <eos>
    completions = np.array(list(itertools.product(np.flatnonzero(allowed), repeat=length)))

    buffer = EpisodeRolloutBuffer(length, space, spaces.Discrete(size), "cpu", n_envs=len(completions))
    buffer.bind(policy, reference.model)
    for step in range(length):
        obs = observation([[*prompt, *completion[:step]] for completion in completions])
        if masked:
            obs["action_mask"] = np.tile(allowed, (len(completions), 1)).astype(np.int8)
        actions = torch.from_numpy(completions[:, step].copy())
        with torch.no_grad():
            tensors = {key: torch.from_numpy(value) for key, value in obs.items()}
            values, log_probs, _ = policy.evaluate_actions(tensors, actions)
        starts = np.full(len(completions), step == 0)
        buffer.add(obs, actions.numpy()[:, None], np.zeros(len(completions)), starts, values, log_probs)
    buffer.compute_returns_and_advantage(torch.zeros(len(completions)), np.ones(len(completions), bool))
    weights = np.exp(buffer.log_probs.sum(0))
    assert weights.sum() == pytest.approx(1, abs=1e-9)

    def distribution(model: Any, context: list[int]) -> np.ndarray:
        logits = model(torch.tensor([context])).logits[0, -1].detach().numpy() / temperature
        logits = np.where(allowed, logits, -np.inf)
        probs = np.exp(logits - logits.max())
        return probs / probs.sum()

    def exact_kl(context: list[int], left: int) -> float:
        if left == 0:
            return 0.0
        p, q = distribution(policy.model, context)[allowed], distribution(reference.model, context)[allowed]
        after = [exact_kl([*context, int(token)], left - 1) for token in np.flatnonzero(allowed)]
        return float((p * (np.log(p / q) + after)).sum())

    expected = exact_kl(prompt, length)
    assert expected > 0.1
    assert (weights * buffer.kl.sum(0)).sum() == pytest.approx(expected, abs=1e-9)


def test_errors() -> None:
    buffer = EpisodeRolloutBuffer(2, token_space(), spaces.Discrete(VOCAB), "cpu")
    with pytest.raises(RuntimeError, match="0 of 2"):
        next(iter(buffer.get(2)))
    with pytest.raises(ValueError, match="input_ids"):
        EpisodeRolloutBuffer(2, spaces.Box(0, 1, (3,)), spaces.Discrete(VOCAB))
