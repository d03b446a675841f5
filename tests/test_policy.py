"""`TransformerPolicy` against plain forward passes of the model it was made from."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from models import ARCHITECTURES, save_tiny
from small_runs import (
    AtRolloutEnd,
    expected_log_probs,
    make_algorithm,
    make_env,
    make_policy,
    random_contexts,
)
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from tasks import Board, Dialogue
from transformers import AutoModelForCausalLM

from lm_envs.sb3 import TransformerPolicy
from lm_envs.sb3.segments import Segments

# Runs as small as these have few episodes a minibatch.
pytestmark = [
    pytest.mark.filterwarnings("ignore:a minibatch holds"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set"),
]
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}


def tensors(observation: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in observation.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_construction_keeps_the_pretrained_weights(tiny_models: dict[str, str], architecture: str) -> None:
    model = tiny_models[architecture]
    algorithm = make_algorithm(make_env(model), model)
    pretrained = AutoModelForCausalLM.from_pretrained(model).state_dict()
    weights = algorithm.policy.model.state_dict()
    assert weights.keys() == pretrained.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, pretrained[name]), name
    assert not algorithm.policy.value_net.weight.any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_entry_agrees_with_a_plain_forward(tiny_models: dict[str, str], architecture: str) -> None:
    env = make_env(tiny_models[architecture])
    policy = make_policy(env, tiny_models[architecture], dtype="float64", temperature=0.7)
    torch.nn.init.normal_(policy.value_net.weight)
    obs = random_contexts(env, 5)
    expected = expected_log_probs(tiny_models[architecture], obs, env.action_space.n, 0.7)

    actions, values, log_probs = policy(obs)
    rows = torch.arange(5)
    torch.testing.assert_close(log_probs, expected[rows, actions], atol=1e-9, rtol=0)
    evaluated_values, evaluated, entropy = policy.evaluate_actions(obs, actions)
    torch.testing.assert_close(evaluated, expected[rows, actions], atol=1e-9, rtol=0)
    torch.testing.assert_close(entropy, -(expected.exp() * expected).sum(1), atol=1e-9, rtol=0)
    torch.testing.assert_close(values, policy.predict_values(obs), atol=1e-9, rtol=0)
    torch.testing.assert_close(values, evaluated_values, atol=1e-9, rtol=0)
    assert values.shape == (5, 1)
    assert values.std() > 0
    torch.testing.assert_close(policy.get_distribution(obs).distribution.logits, expected, atol=1e-9, rtol=0)
    numpy_obs = {key: value.numpy() for key, value in obs.items()}
    best, _ = policy.predict(numpy_obs, deterministic=True)
    np.testing.assert_array_equal(best, expected.argmax(1))
    one, _ = policy.predict({key: value[2] for key, value in numpy_obs.items()}, deterministic=True)
    assert one.shape == ()
    assert one == expected[2].argmax()


def test_actions_follow_the_distribution(tiny_gpt2: str) -> None:
    env = make_env(tiny_gpt2)
    policy = make_policy(env, tiny_gpt2, temperature=0.5)
    obs = {key: value.repeat(4000, 1) for key, value in random_contexts(env, 1).items()}
    torch.manual_seed(0)
    one = {key: value[:1] for key, value in obs.items()}
    expected = expected_log_probs(tiny_gpt2, one, policy.vocab_size, 0.5)
    for actions in (policy(obs)[0], policy._predict(obs)):
        frequencies = torch.bincount(actions, minlength=policy.vocab_size) / 4000
        assert (frequencies - expected[0].exp()).abs().max() < 0.03


class Meddler(AtRolloutEnd):
    """In the middle of rollouts, does what an EvalCallback and SB3's bootstrapping do."""

    def __init__(self, function: Any, model: str) -> None:
        super().__init__(function)
        self.env = make_env(model, 2, seed=9, task=Dialogue())
        self.obs: Any = self.env.reset()

    def _on_step(self) -> bool:
        if self.n_calls % 3 == 0:
            for _ in range(2):
                actions, _ = self.model.predict(self.obs, deterministic=self.n_calls % 2 == 0)
                self.obs = self.env.step(actions)[0]
            self.model.policy.predict_values(tensors(self.obs))
        return True


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("task", [None, Dialogue(), Board()], ids=["story", "dialogue", "board"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_first_epoch_ratio_is_one(
    tiny_models: dict[str, str], architecture: str, task: Any, dtype: str
) -> None:
    """Also with predictions on another environment in the middle of rollouts, and ten updates later."""
    model = tiny_models[architecture]
    env = make_env(model, **({} if task is None else {"task": task}))
    algorithm = make_algorithm(
        env, model, policy={"dtype": dtype, "temperature": 0.8}, n_steps=11, n_epochs=2, learning_rate=1e-2
    )
    differences = []

    def check(algorithm: Any) -> None:
        for samples in algorithm.rollout_buffer.get(20):
            _, log_probs, _ = algorithm.policy.evaluate_actions(samples.observations, samples.actions)
            differences.append((log_probs - samples.old_log_prob).abs().max().item())

    algorithm.learn(11 * env.num_envs * 6, callback=Meddler(check, model))
    assert algorithm._n_updates >= 10
    assert len(differences) >= 12
    assert max(differences) < TOLERANCE[dtype]


def test_a_step_forwards_one_token_per_row(tiny_gpt2: str) -> None:
    env = make_env(tiny_gpt2, 3, prompts=["A fox waits by the river"], max_new_tokens=8)
    policy = make_policy(env, tiny_gpt2)
    other = make_env(tiny_gpt2, 2, seed=3).reset()
    obs = env.reset()
    actions, _, _ = policy(tensors(obs))
    for _ in range(4):
        obs, _, dones, _ = env.step(actions.numpy())
        assert not dones.any()
        before = policy._caches["rollout"].tokens_forwarded
        policy.predict(other)
        actions, _, _ = policy(tensors(obs))
        assert policy._caches["rollout"].tokens_forwarded == before + 3
    assert policy._caches["predict"].tokens_forwarded == other["attention_mask"].sum()


def test_values_to_bootstrap_from_cost_a_token(tiny_gpt2: str) -> None:
    """A rollout's last observations, and a truncated episode's; others cost no less than before."""
    env = make_env(tiny_gpt2, 4)
    policy = make_policy(env, tiny_gpt2, dtype="float64")
    torch.nn.init.normal_(policy.value_net.weight)
    obs = random_contexts(env, 4)

    def whole(obs: dict[str, torch.Tensor]) -> torch.Tensor:
        return policy.evaluate_actions(obs, torch.zeros(len(obs["input_ids"]), dtype=torch.long))[0]

    def check(obs: dict[str, torch.Tensor], tokens: int) -> None:
        before = policy._caches["rollout"].tokens_forwarded
        with torch.no_grad():
            values = policy.predict_values(obs)
        torch.testing.assert_close(values, whole(obs), atol=1e-9, rtol=0)
        assert policy._caches["rollout"].tokens_forwarded == before + tokens

    actions, _, _ = policy(obs)
    rows, lengths = torch.arange(4), obs["attention_mask"].sum(1)
    following = {key: value.clone() for key, value in obs.items()}
    following["input_ids"][rows, lengths] = actions
    following["attention_mask"][rows, lengths] = 1
    check({key: value[2:3] for key, value in following.items()}, 1)
    check(following, 3)  # slot 2 is there already, and counts as an observation like any other
    policy(obs)
    fresh = random_contexts(env, 4, seed=1)
    mixed = {key: torch.cat([value[:2], fresh[key][2:]]) for key, value in following.items()}
    check(mixed, 2)
    check(fresh, 0)
    check({key: value[:3] for key, value in following.items()}, 0)
    assert policy.predict_values(following).requires_grad
    actions, values, log_probs = policy(following)
    torch.testing.assert_close(values, whole(following), atol=1e-9, rtol=0)
    expected = expected_log_probs(tiny_gpt2, following, policy.vocab_size)
    torch.testing.assert_close(log_probs, expected[rows, actions], atol=1e-9, rtol=0)


def test_caches_are_dropped_when_weights_may_have_changed(tiny_gpt2: str) -> None:
    env = make_env(tiny_gpt2)
    policy = make_policy(env, tiny_gpt2)
    obs = random_contexts(env, 3)

    def step() -> None:
        policy.evaluate_actions(obs, torch.zeros(3, dtype=torch.long))[1].sum().backward()
        policy.optimizer.step()

    state = {name: value + 0.1 for name, value in policy.state_dict().items()}

    def load() -> None:
        policy.load_state_dict(state)

    def train() -> None:
        policy.set_training_mode(True)

    for change in (step, load, train, policy.double):
        policy(obs)
        policy._predict(obs)
        assert set(policy._caches) == {"rollout", "predict"}
        change()
        assert not policy._caches
        actions, _, log_probs = policy(obs)
        _, evaluated, _ = policy.evaluate_actions(obs, actions)
        torch.testing.assert_close(log_probs, evaluated, atol=1e-4, rtol=0)


def test_copies_and_pickles_share_nothing(tiny_gpt2: str, tmp_path: Path) -> None:
    env = make_env(tiny_gpt2)
    policy = make_policy(env, tiny_gpt2, optimizer_class="AdamW", optimizer_kwargs={"weight_decay": 0.1})
    obs = random_contexts(env, 3)
    policy(obs)
    policy.save(str(tmp_path / "policy.pt"))
    copies = [
        copy.deepcopy(policy),
        pickle.loads(pickle.dumps(policy)),
        TransformerPolicy.load(str(tmp_path / "policy.pt"), device="cpu"),
    ]
    for other in copies:
        assert not other._caches
        assert isinstance(other.optimizer, torch.optim.AdamW)
        actions, _, _ = other(obs)
        torch.testing.assert_close(
            other.evaluate_actions(obs, actions)[1], policy.evaluate_actions(obs, actions)[1]
        )
        other.optimizer.zero_grad()
        other.evaluate_actions(obs, actions)[1].sum().backward()
        other.optimizer.step()
        assert not other._caches
        assert policy._caches


def test_sb3s_own_save_and_load(tiny_gpt2: str, tmp_path: Path) -> None:
    env = make_env(tiny_gpt2)
    algorithm = make_algorithm(env, tiny_gpt2)
    algorithm.learn(8 * env.num_envs)
    algorithm.save(tmp_path / "run.zip")
    loaded = PPO.load(tmp_path / "run.zip", env=env, device="cpu")
    for name, weight in algorithm.policy.state_dict().items():
        assert torch.equal(weight, loaded.policy.state_dict()[name])
    loaded.learn(8 * env.num_envs)


def test_action_masks_from_the_observation(tiny_gpt2: str) -> None:
    env = make_env(tiny_gpt2)
    size = int(env.action_space.n)
    masked_space = spaces.Dict({**env.observation_space.spaces, "action_mask": spaces.MultiBinary(size)})
    policy = TransformerPolicy(masked_space, env.action_space, lambda _: 1e-3, tiny_gpt2, dtype="float64")
    obs = random_contexts(env, 6)
    allowed = torch.rand(6, size, generator=torch.Generator().manual_seed(0)) < 0.05
    allowed[:, 0] = True
    obs["action_mask"] = allowed.to(torch.int8)
    expected = expected_log_probs(tiny_gpt2, obs, size).masked_fill(~allowed, -torch.inf).log_softmax(-1)
    rows = torch.arange(6)
    for _ in range(20):
        actions, _, log_probs = policy(obs)
        assert allowed[rows, actions].all()
        torch.testing.assert_close(log_probs, expected[rows, actions], atol=1e-9, rtol=0)
    _, evaluated, entropy = policy.evaluate_actions(obs, actions)
    torch.testing.assert_close(evaluated, expected[rows, actions], atol=1e-9, rtol=0)
    probs = expected.exp()
    torch.testing.assert_close(entropy, -(probs * expected.clamp(min=-1e9)).sum(1), atol=1e-9, rtol=0)
    assert allowed[rows, policy._predict(obs, deterministic=True)].all()


def test_refuses_what_does_not_fit(tiny_gpt2: str, tiny_llama: str, tmp_path: Path) -> None:
    env = make_env(tiny_gpt2)
    with pytest.raises(ValueError, match='actions="token"'):
        make_policy(make_env(tiny_gpt2, actions="top_k", top_k=4), tiny_gpt2)
    with pytest.raises(ValueError, match='observation="tokens"'):
        make_policy(make_env(tiny_gpt2, observation="embedding"), tiny_gpt2)
    with pytest.raises(ValueError, match="tokens of its model"):
        make_policy(env, save_tiny(tmp_path / "words", word_level=True))
    with pytest.raises(ValueError, match="up to 80 tokens"):
        make_policy(env, save_tiny(tmp_path / "short", max_position_embeddings=32))
    for kwargs, named in (
        ({"temperature": 0.0}, "temperature"),
        ({"dtype": "float16"}, "dtype"),
        ({"value_scale": 0.0}, "value_scale"),
        ({"freeze_layers": 3}, "freeze_layers"),
        ({"freeze_layers": -1}, "freeze_layers"),
        ({"freeze_layers": 0.5}, "freeze_layers"),
        ({"lora": {"rank": 4}}, "lora"),
        ({"optimizer_class": "Adamant"}, "optimizer_class"),
    ):
        with pytest.raises(ValueError, match=named):
            make_policy(env, tiny_gpt2, **kwargs)
    with pytest.raises(OSError, match="nowhere"):
        make_policy(env, str(tmp_path / "nowhere"))


def test_broken_weights_are_reported(tiny_gpt2: str) -> None:
    env = make_env(tiny_gpt2)
    policy = make_policy(env, tiny_gpt2)
    obs = random_contexts(env, 2)
    torch.nn.init.constant_(policy.model.get_output_embeddings().weight, torch.nan)
    with pytest.raises(FloatingPointError):
        policy(obs)
    with pytest.raises(FloatingPointError):
        policy.predict({key: value.numpy() for key, value in obs.items()}, deterministic=True)
    with pytest.raises(FloatingPointError):
        policy.evaluate_actions(obs, torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_save_pretrained_loads_as_any_model(
    tiny_models: dict[str, str], architecture: str, tmp_path: Path
) -> None:
    model = tiny_models[architecture]
    env = make_env(model)
    algorithm = make_algorithm(env, model, algorithm=A2C, learning_rate=1e-2)
    algorithm.learn(2 * 8 * env.num_envs)
    algorithm.policy.save_pretrained(tmp_path)
    obs = random_contexts(env, 4)
    saved = expected_log_probs(str(tmp_path), obs, env.action_space.n)
    logits = algorithm.policy.get_distribution(obs).distribution.logits
    torch.testing.assert_close(logits.double(), saved, atol=1e-4, rtol=0)
    assert (saved - expected_log_probs(model, obs, env.action_space.n)).abs().max() > 1e-2
    again = make_env(str(tmp_path))
    np.testing.assert_array_equal(again.reset()["input_ids"], make_env(model).reset()["input_ids"])


def test_plain_observations_are_segments_of_one_action(tiny_gpt2: str) -> None:
    obs = random_contexts(make_env(tiny_gpt2), 4)
    ((input_ids, positions),) = Segments.from_observation(obs).blocks
    assert input_ids.shape == (4, int(obs["attention_mask"].sum(1).max()))
    last = input_ids.flatten()[positions]
    lengths = obs["attention_mask"].sum(1).long()
    torch.testing.assert_close(last, obs["input_ids"][torch.arange(4), lengths - 1])


def test_wrappers_that_change_tokens_are_refused(tiny_gpt2: str) -> None:
    normalized = VecNormalize(make_env(tiny_gpt2))
    with pytest.raises(ValueError, match="with VecNormalize, set norm_obs=False"):
        make_policy(normalized, tiny_gpt2).predict(normalized.reset())
    stacked = VecFrameStack(make_env(tiny_gpt2, context_length=20), 3)
    policy = make_policy(stacked, tiny_gpt2)
    with pytest.raises(ValueError, match="VecFrameStack, say"):
        policy.predict(stacked.reset())
