"""What `EpisodeRolloutBuffer` makes a policy learn: gradients against SB3's own buffer, KL exactly."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from models import save_tiny
from small_runs import AtRolloutEnd, make_algorithm, make_env
from stable_baselines3.common.buffers import DictRolloutBuffer
from tasks import Board, Dialogue
from test_buffer import observation, token_space

from lm_envs.completion_scoring import forget
from lm_envs.language_model import LanguageModel
from lm_envs.sb3 import EpisodeRolloutBuffer, KLCallback, TransformerPolicy
from lm_envs.sb3.segments import score

pytestmark = pytest.mark.filterwarnings("ignore:a minibatch holds")


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


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_reference_does_not_score_again_what_the_reward_asked_it(
    tiny_llama: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the reference's own forward passes over every segment."""
    env = make_env(tiny_llama, reward=None, dtype="float64")
    reference = env.get_attr("language_model", 0)[0]
    policy = {"dtype": "float64", "temperature": temperature}
    algorithm = make_algorithm(env, tiny_llama, policy=policy, learning_rate=3e-2)
    scored: list[int] = []

    def counted(model: Any, segments: Any, actions: torch.Tensor, **kwargs: Any) -> Any:
        scored.append(len(actions))
        return score(model, segments, actions, **kwargs)

    monkeypatch.setattr("lm_envs.sb3.buffer.score", counted)
    shares = []

    def check(algorithm: Any) -> None:
        buffer = algorithm.rollout_buffer
        kl = buffer.kl.copy()
        shares.append(sum(scored) / kl.size)
        forget(reference.model)
        expected = buffer.log_probs - buffer._score(reference.model, algorithm.policy)
        np.testing.assert_allclose(kl, expected, atol=1e-9)
        scored.clear()

    algorithm.learn(3 * 8 * env.num_envs, callback=[KLCallback(0.3), AtRolloutEnd(check)])
    assert len(shares) == 3
    if temperature == 1:
        assert 0 < np.mean(shares) < 0.8  # the episodes that go on
    else:
        assert shares == [1, 1, 1]


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
