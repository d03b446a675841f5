"""The whole loop against the truth: PPO finds the soft optimum; critic and GAE against exact V and A."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from small_runs import AtRolloutEnd, make_algorithm
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback

from agents.toy.audit import AuditSettings, audit_ppo, compare, fitted_transformer
from agents.toy.critic import CriticAudit, agreement
from lm_envs.language_model import LanguageModel
from lm_envs.sb3 import KLCallback, make_vec_env
from lm_envs.toy import solve

SMALL = {"vocab_size": 3, "length": 3}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted_transformer(tmp_path_factory.mktemp("fitted"), **SMALL)


TINY = {"vocab_size": 3, "length": 2}


@pytest.fixture(scope="module")
def fitted_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted_transformer(tmp_path_factory.mktemp("fitted"), **TINY)


@pytest.mark.parametrize("kl_coef", [0.1, 0.2, 0.5])
def test_ppo_with_kl_penalty_finds_the_exact_optimum(fitted_tiny: Path, kl_coef: float) -> None:
    settings = AuditSettings(rollouts=100, n_envs=512, n_epochs=2, minibatches=1, learning_rate=4e-4)
    result = audit_ppo(fitted_tiny, kl_coef, settings, **TINY)
    missing = result.optimal_objective - result.objective
    assert 0 < missing < 0.02 * abs(result.optimal_objective)
    assert result.distance < 0.01
    # It began far away: the reference lacks much more.
    assert result.optimal_objective - result.reference_objective > 20 * missing


def test_compare_is_exact_on_known_policies() -> None:
    """Optimum: no gap. Reference: J_ref = its return, KL 0, and V* = J* by the closed form of one step."""
    env = gym.make("TextGen-ToyBigram-v0", vocab_size=3, length=1)
    solution = solve(env, kl_coef=0.2)
    best, reference = compare(solution, solution.policy), compare(solution, solution.tables.reference)
    assert abs(best.gap) < 1e-12
    assert best.distance == 0
    assert abs(reference.kl) < 1e-12
    table = env.unwrapped.language_model.table
    score = 0.5 * np.log(table) + (np.arange(3) == 2)
    soft = table * np.exp(score / 0.2)
    assert reference.objective == pytest.approx((table * score).sum(1).mean(), abs=1e-12)
    assert reference.optimal_objective == pytest.approx(0.2 * np.log(soft.sum(1)).mean(), abs=1e-12)
    optimal = soft / soft.sum(1, keepdims=True)
    assert reference.distance == pytest.approx(0.5 * np.abs(optimal - table).sum(1).mean(), abs=1e-12)


class StepCallback(BaseCallback):
    """Calls a function with the observations that each step's actions were chosen from."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        super().__init__()
        self.function = function

    def _on_step(self) -> bool:
        self.function(self.locals["obs_tensor"])
        return True


def learner(folder: Path, n_envs: int = 32, **kwargs: Any) -> Any:
    env = make_vec_env("TextGen-ToyBigram-v0", n_envs, seed=0, **SMALL)
    return make_algorithm(env, str(folder), **{"n_steps": 6, "gae_lambda": 1.0, **kwargs})


def test_an_untrained_critic_is_off_by_the_exact_values(fitted: Path) -> None:
    """The value head says 0, so its error is V itself, here by enumeration of what may follow."""
    model = learner(fitted, n_envs=2, n_steps=3)
    audit, contexts = CriticAudit(model.env.env), []
    env = model.env.env.unwrapped
    keys = ("input_ids", "attention_mask")
    look = StepCallback(lambda obs: contexts.append([obs[key].numpy() for key in keys]))
    model.learn(1, callback=[look, audit])
    network = LanguageModel.load(fitted, device="cpu")

    def value(tokens: list[int]) -> float:
        if len(tokens) == 4:
            return float(env.task.rule.score(np.array([tokens[:1]]), np.array([tokens[1:]]))[0])
        probabilities = [np.exp(network.log_probs([tokens], [[token]])[0][0]) for token in range(3)]
        return sum(p * value([*tokens, token]) for token, p in enumerate(probabilities))

    exact = [value(row[: mask.sum()].tolist()) for step in contexts for row, mask in zip(*step, strict=True)]
    values = audit.history[0].values
    assert np.isnan(values.correlation)
    assert values.rmse == pytest.approx(np.linalg.norm(exact) / np.sqrt(6), rel=1e-5)


def test_gae_at_lambda_1_is_unbiased(fitted: Path) -> None:
    """With values of 0, GAE estimates the action's worth: the mean over many episodes is the exact one."""
    model = learner(fitted, n_envs=4096, n_steps=3)
    audit, seen = CriticAudit(model.env.env), {}

    def look(model: Any) -> None:
        buffer = model.rollout_buffer
        seen.update(gae=buffer.returns - buffer.values, actions=buffer.actions.copy())

    model.learn(1, callback=[audit, AtRolloutEnd(look)])
    assert audit.evaluation is not None
    first = audit.evaluation.values[:3].mean()  # the states of the three prompts
    error = seen["gae"].std() / np.sqrt(4096)
    assert abs(seen["gae"][0].mean() - first) < 4 * error
    assert audit.history[0].advantages.correlation > 0.3


@pytest.mark.parametrize("observation", ["tokens", "index", "onehot"])
def test_stock_policies_are_audited_too(observation: str) -> None:
    """V by enumeration with the policy's own probabilities, GAE at lambda 0 by its definition."""
    gamma, size = 0.9, 2
    dials: Any = {"vocab_size": size, "length": 2, "reward_timing": "dense"}
    env = gym.make("TextGen-ToyCopy-v0", observation=observation, **dials)
    kind = "MultiInputPolicy" if observation == "tokens" else "MlpPolicy"
    model = PPO(kind, env, n_steps=16, batch_size=16, gae_lambda=0.0, gamma=gamma, seed=0, device="cpu")
    audit, found, seen = CriticAudit(env), {}, []

    def chances(text: tuple[int, ...]) -> np.ndarray:
        observed, _ = env.reset(options={"prompt": "".join("ab"[token] for token in text[:2])})
        for token in text[2:]:
            observed, *_ = env.step(token)
        with torch.no_grad():
            return model.policy.get_distribution(model.policy.obs_to_tensor(observed)[0]).distribution.probs[
                0
            ]

    def worth(text: tuple[int, ...], token: int) -> float:
        longer = (*text, token)
        return float(token == text[len(text) - 2]) / 2 + gamma * (value(longer) if len(longer) < 4 else 0.0)

    def value(text: tuple[int, ...]) -> float:
        return sum(float(p) * worth(text, token) for token, p in enumerate(chances(text)))

    def look(model: Any) -> None:
        buffer = model.rollout_buffer
        found["gae"] = (buffer.returns - buffer.values).ravel()
        found["values"], actions = buffer.values.ravel().copy(), buffer.actions.ravel().astype(int).tolist()
        texts = [tuple(text) for text in seen]
        found["exact"] = np.array([value(text) for text in texts])
        found["advantages"] = [worth(text, a) - value(text) for text, a in zip(texts, actions, strict=True)]

    class Record(gym.Wrapper):
        """Notes the context in which each action is taken."""

        def step(self, action: Any) -> Any:
            arrays = self.env.unwrapped._core.episodes.arrays
            seen.append(arrays.tokens[0, : arrays.lengths[0]].tolist())
            return self.env.step(action)

    model.set_env(Record(gym.make("TextGen-ToyCopy-v0", observation=observation, **dials)))
    model.learn(1, callback=[audit, AtRolloutEnd(look)])
    values, advantages = audit.history[0].values, audit.history[0].advantages
    assert values.rmse == pytest.approx(np.sqrt(np.mean((found["values"] - found["exact"]) ** 2)), abs=1e-6)
    errors = found["gae"] - found["advantages"]
    assert advantages.rmse == pytest.approx(np.sqrt(np.mean(errors**2)), abs=1e-6)


@pytest.mark.parametrize("kl_coef", [0.0, 0.2])
def test_exact_values_make_gae_exact(fitted: Path, kl_coef: float) -> None:
    """At lambda 0, and with deterministic steps, r - penalty + V(s') - V(s) is the advantage itself."""
    model = learner(fitted, gae_lambda=0.0)
    truth = CriticAudit(model.env.env)
    audit = CriticAudit(model.env.env)

    def plug_in(model: Any) -> None:
        buffer = model.rollout_buffer
        buffer.values = truth.evaluation.values[np.stack(truth._states)]
        # The rollout ends with its episodes, so that no value behind it counts.
        beyond, dones = torch.zeros(buffer.n_envs), np.ones(buffer.n_envs)
        RolloutBuffer.compute_returns_and_advantage(buffer, beyond, dones)

    reference = LanguageModel.load(fitted, device="cpu")
    callbacks = [KLCallback(kl_coef, reference=reference), truth, AtRolloutEnd(plug_in), audit]
    model.learn(1, callback=callbacks)
    assert audit.history[0].values.rmse < 1e-12
    # The reference is the fitted model, not the n-gram model itself.
    assert audit.history[0].advantages.rmse < (1e-6 if kl_coef == 0 else 1e-3)
    assert audit.history[0].advantages.correlation > 0.999


def test_the_audit_sees_the_critic_learn(fitted: Path) -> None:
    model = learner(fitted, n_envs=128, n_epochs=4, learning_rate=1e-3)
    audit, logged = CriticAudit(model.env.env, every=4), []
    names = AtRolloutEnd(lambda model: logged.append(set(model.logger.name_to_value)))
    model.learn(17 * 6 * 128, callback=[audit, names])
    assert [found.rollout for found in audit.history] == [1, 5, 9, 13, 17]
    assert audit.history[-1].values.rmse < 0.5 * audit.history[0].values.rmse
    assert {"audit/value_rmse", "audit/advantage_correlation", "audit/objective"} <= logged[0]


def test_agreement_is_pearsons_and_rms() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 4))
    found = agreement(a, b)
    centred = (a - a.mean(), b - b.mean())
    expected = (centred[0] * centred[1]).mean() / (a.std() * b.std())
    assert found.correlation == pytest.approx(expected, abs=1e-12)
    assert found.rmse == pytest.approx(np.linalg.norm(a - b) / np.sqrt(20), abs=1e-12)


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="toy environment"):
        CriticAudit(gym.make("CartPole-v1"))
    env = gym.make("TextGen-ToyBigram-v0", **SMALL)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        CriticAudit(env, every=0)
    with pytest.raises(ValueError, match="does not show the whole state"):
        CriticAudit(gym.make("TextGen-ToyBigram-v0", observation="last_k", **SMALL))
    other = gym.make("TextGen-ToyBigram-v0", observation="index", **SMALL)
    model = PPO("MlpPolicy", other, n_steps=4, batch_size=4, device="cpu")
    with pytest.raises(ValueError, match=r"env must show Discrete\(40\) as in training, got Dict"):
        model.learn(1, callback=CriticAudit(env))
