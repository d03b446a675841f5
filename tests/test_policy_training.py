"""How a `TransformerPolicy` trains: LoRA, frozen layers, checkpointing, bfloat16, no dropout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import save_tiny
from small_runs import (
    AtRolloutEnd,
    expected_log_probs,
    make_algorithm,
    make_env,
    make_policy,
    random_contexts,
)
from tasks import Board

from lm_envs.sb3 import KLCallback, TransformerPolicy

# Runs as small as these have few episodes a minibatch.
pytestmark = [
    pytest.mark.filterwarnings("ignore:a minibatch holds"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set"),
]
GPT2_DROPOUT = {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5}
LORA_DROPOUT = {"lora_dropout": 0.5, "init_lora_weights": False}


@pytest.mark.parametrize(
    ("architecture", "config"), [("gpt2", GPT2_DROPOUT), ("llama", {"attention_dropout": 0.5})]
)
@pytest.mark.parametrize("lora", [None, LORA_DROPOUT], ids=["full", "lora"])
def test_dropout_is_off_in_both_modes(tmp_path: Path, architecture: str, config: Any, lora: Any) -> None:
    model = save_tiny(tmp_path, architecture, **config)
    env = make_env(model)
    policy = make_policy(env, model, lora=lora)
    obs = random_contexts(env, 4)
    actions = torch.zeros(4, dtype=torch.long)
    policy.set_training_mode(True)
    training = policy.evaluate_actions(obs, actions)[1]
    policy.set_training_mode(False)
    torch.testing.assert_close(training, policy.evaluate_actions(obs, actions)[1], atol=0, rtol=0)


def snapshot(policy: TransformerPolicy) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}


def changed(policy: TransformerPolicy, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, parameter in policy.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_frozen_layers_stay_and_the_others_train(tiny_models: dict[str, str], architecture: str) -> None:
    model = tiny_models[architecture]
    env = make_env(model)
    algorithm = make_algorithm(env, model, policy={"freeze_layers": 1}, learning_rate=1e-2)
    before = snapshot(algorithm.policy)
    algorithm.learn(3 * 8 * env.num_envs)
    trained = changed(algorithm.policy, before)
    frozen = before.keys() - trained
    if architecture == "gpt2":  # tied: the head is the token embedding
        assert {name for name in frozen if ".h.0." not in name} == {
            "model.transformer.wte.weight", "model.transformer.wpe.weight"
        }  # fmt: skip
    else:
        assert {name for name in frozen if ".layers.0." not in name} == {"model.model.embed_tokens.weight"}
    assert not any(".h.0." in name or ".layers.0." in name for name in trained)


def test_lora_trains_adapters_only(tiny_gpt2: str, tmp_path: Path) -> None:
    env = make_env(tiny_gpt2)
    algorithm = make_algorithm(env, tiny_gpt2, policy={"lora": {"r": 2}}, learning_rate=1e-1)
    policy = algorithm.policy
    before = snapshot(policy)
    algorithm.learn(3 * 8 * env.num_envs)
    trained = changed(policy, before)
    assert trained
    assert all("lora_" in name or name.startswith("value_net") for name in trained)

    obs = random_contexts(env, 4)
    original = expected_log_probs(tiny_gpt2, obs, policy.vocab_size).float()
    rows = torch.arange(4)
    actions, _, adapted = policy(obs)
    assert (adapted - original[rows, actions]).abs().max() > 1e-3
    with policy.model.disable_adapter():  # the cache of the adapted model must not answer for the plain one
        actions, _, plain = policy(obs)
    torch.testing.assert_close(plain, original[rows, actions], atol=1e-4, rtol=0)
    actions, _, adapted = policy(obs)
    policy.save_pretrained(tmp_path)
    merged = expected_log_probs(str(tmp_path), obs, policy.vocab_size).float()
    torch.testing.assert_close(adapted, merged[rows, actions], atol=1e-4, rtol=0)
    assert changed(policy, before) == trained


def test_gradient_checkpointing_gives_the_same_gradients(tiny_llama: str) -> None:
    env = make_env(tiny_llama)
    obs = random_contexts(env, 5)
    gradients = []
    for checkpointing in (False, True):
        policy = make_policy(env, tiny_llama, dtype="float64", gradient_checkpointing=checkpointing)
        policy.set_training_mode(True)
        torch.nn.init.ones_(policy.value_net.weight)
        values, log_probs, entropy = policy.evaluate_actions(obs, torch.arange(5))
        (values.sum() + log_probs.sum() + entropy.sum()).backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters()})
        assert policy.model.is_activation_checkpointing == checkpointing
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-12, rtol=1e-9, msg=name)


def test_gradient_checkpointing_trains(tiny_gpt2: str) -> None:
    env = make_env(tiny_gpt2)
    algorithm = make_algorithm(env, tiny_gpt2, policy={"gradient_checkpointing": True, "lora": {"r": 2}})
    before = snapshot(algorithm.policy)
    algorithm.learn(2 * 8 * env.num_envs)
    assert changed(algorithm.policy, before)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_bfloat16(tiny_models: dict[str, str], architecture: str) -> None:
    model = tiny_models[architecture]
    env = make_env(model, task=Board())
    algorithm = make_algorithm(env, model, policy={"dtype": "bfloat16"}, batch_size=16)
    differences = []

    def check(algorithm: Any) -> None:
        for samples in algorithm.rollout_buffer.get(20):
            _, log_probs, _ = algorithm.policy.evaluate_actions(samples.observations, samples.actions)
            assert log_probs.dtype == torch.float32
            differences.append((log_probs - samples.old_log_prob).abs().detach())

    before = snapshot(algorithm.policy)
    algorithm.learn(3 * 8 * env.num_envs, callback=[KLCallback(0.1), AtRolloutEnd(check)])
    assert {parameter.dtype for parameter in algorithm.policy.parameters()} == {torch.float32}
    assert len(changed(algorithm.policy, before)) == len(before)
    # Matrix products in bfloat16 round differently for batches of another shape: never exactly 0.
    assert torch.cat(differences).mean() < 5e-3
    obs = random_contexts(env, 3)
    exact = expected_log_probs(model, obs, algorithm.policy.vocab_size)
    policy = make_policy(env, model, dtype="bfloat16")
    rounded = policy.get_distribution(obs).distribution.logits
    assert 1e-4 < (rounded - exact).abs().max() < 0.3  # bfloat16 was really used


def test_bfloat16_needs_recomputed_log_probs(tiny_gpt2: str) -> None:
    env = make_env(tiny_gpt2)
    for settings in ({}, {"rollout_buffer_class": None}):
        algorithm = make_algorithm(env, tiny_gpt2, policy={"dtype": "bfloat16"}, **settings)
        with pytest.raises(RuntimeError, match="KLCallback"):
            algorithm.learn(8 * env.num_envs)
