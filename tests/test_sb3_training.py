"""Whole trainings with stock SB3 algorithms: they learn, and touch nothing but their own weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from models import save_tiny
from small_runs import AtRolloutEnd, make_algorithm, make_env
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from tasks import Board, Dialogue

from lm_envs.language_model import LanguageModel
from lm_envs.sb3 import GymVecEnv, KLCallback

pytestmark = pytest.mark.filterwarnings("ignore:a minibatch holds")


def mean_return(env: GymVecEnv, act: Callable[[Any], Any], episodes: int = 60) -> float:
    obs = env.reset()
    returns: list[float] = []
    while len(returns) < episodes:
        obs, _, _, infos = env.step(act(obs))
        returns += [info["episode"]["r"] for info in infos if "episode" in info]
    return float(np.mean(returns))


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_transformer_learns_and_the_environments_model_stays(tiny_gpt2: str, algorithm: type) -> None:
    env = make_env(tiny_gpt2, 16)
    frozen = env.get_attr("language_model")[0]
    rows, completions = [[1, 2, 3], [4]], [[5, 6], [7, 8, 9]]
    before = frozen.log_probs(rows, completions)
    updates = {"n_epochs": 2, "batch_size": 96} if algorithm is PPO else {}
    model = make_algorithm(env, tiny_gpt2, algorithm=algorithm, n_steps=12, learning_rate=1e-2, **updates)
    evaluation = make_env(tiny_gpt2, 8, seed=77)
    untrained = mean_return(evaluation, lambda obs: model.predict(obs)[0])
    model.learn(12 * 16 * 16, callback=KLCallback(0.01))
    trained = mean_return(evaluation, lambda obs: model.predict(obs)[0])
    assert trained > 2 * untrained + 2
    for old, new in zip(before, frozen.log_probs(rows, completions), strict=True):
        np.testing.assert_array_equal(old, new)
    fresh = LanguageModel.load(tiny_gpt2, device="cpu")
    assert fresh.model is frozen.model
    assert not any(weight.requires_grad for weight in frozen.model.parameters())


def test_dialogue_is_learned(tiny_llama: str) -> None:
    env = make_env(tiny_llama, 16, task=Dialogue())
    model = make_algorithm(env, tiny_llama, n_steps=24, n_epochs=2, batch_size=96, learning_rate=1e-2)
    evaluation = make_env(tiny_llama, 8, seed=77, task=Dialogue())
    untrained = mean_return(evaluation, lambda obs: model.predict(obs)[0])
    model.learn(24 * 16 * 12)
    assert mean_return(evaluation, lambda obs: model.predict(obs)[0]) > 2 * untrained + 0.5


def test_mlp_policies_learn_on_embeddings_and_top_k_actions(tiny_gpt2: str) -> None:
    """Two tokens an episode: what DQN learns in as few steps at six tokens hangs on the seed."""

    def env(seed: int) -> GymVecEnv:
        choices = {"observation": "embedding", "actions": "top_k", "top_k": 8}
        return make_env(tiny_gpt2, 8, seed=seed, max_new_tokens=2, **choices)

    rng = np.random.default_rng(0)
    at_random = mean_return(env(77), lambda obs: rng.integers(8, size=8))
    common = {"learning_rate": 3e-3, "gamma": 1.0, "seed": 0, "device": "cpu"}
    ppo = PPO("MlpPolicy", env(0), n_steps=24, batch_size=64, **common)
    dqn = DQN(
        "MlpPolicy",
        env(0),
        learning_starts=200,
        gradient_steps=8,
        batch_size=64,
        target_update_interval=100,
        exploration_fraction=0.5,
        **common,
    )
    for model in (ppo, dqn):
        model.learn(2500)
        learned = mean_return(env(77), lambda obs, m=model: m.predict(obs, deterministic=True)[0])
        assert learned > 3 * at_random, type(model).__name__


def test_trains_alike_on_sb3s_own_vec_env(tiny_gpt2: str) -> None:
    """`DummyVecEnv` over single environments with `Monitor`: the same run, bit for bit."""
    settings = {"model": tiny_gpt2, "task": Dialogue(), "max_new_tokens": 6}
    batched = make_env(tiny_gpt2, 3, task=Dialogue())
    single = DummyVecEnv([lambda: Monitor(gym.make("TextGen-v0", **settings))] * 3)
    weights = []
    for env in (batched, single):
        env.seed(0)
        model = make_algorithm(env, tiny_gpt2, learning_rate=1e-2)
        model.learn(4 * 8 * 3, callback=KLCallback(0.1))
        weights.append([weight.detach().clone() for weight in model.policy.parameters()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*weights, strict=True))


def test_a_single_slot_trains(tiny_gpt2: str) -> None:
    model = make_algorithm(make_env(tiny_gpt2, 1), tiny_gpt2, n_steps=20)
    model.learn(40, callback=KLCallback(0.1))
    assert all(weight.isfinite().all() for weight in model.policy.parameters())


def test_sb3s_own_buffer_and_eval_callback_work(tiny_gpt2: str) -> None:
    env = make_env(tiny_gpt2, 4)
    model = make_algorithm(env, tiny_gpt2, rollout_buffer_class=None)
    evaluation = EvalCallback(make_env(tiny_gpt2, 2, seed=5), n_eval_episodes=4, eval_freq=5, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the environment brings its own episode statistics
        model.learn(2 * 8 * 4, callback=evaluation)
    assert np.isfinite(evaluation.last_mean_reward)


def test_truncated_episodes_bootstrap(tiny_gpt2: str) -> None:
    """SB3 adds gamma times the value of `terminal_observation` to the reward of a truncated step."""
    env = make_env(tiny_gpt2, 3, max_episode_steps=3, task=Board())
    model = make_algorithm(env, tiny_gpt2, gamma=0.9, n_steps=3)
    model.policy.value_net.bias.data.fill_(2.0)

    def check(model: Any) -> None:
        bootstrapped = 0.9 * 2.0 * model.policy.value_scale
        np.testing.assert_allclose(model.rollout_buffer.rewards[-1], bootstrapped, rtol=1e-6)

    model.learn(1, callback=AtRolloutEnd(check))


def test_kl_penalty_keeps_the_policy_near(tiny_gpt2: str) -> None:
    drifts = []
    for kl_coef in (0.0, 3.0):
        env = make_env(tiny_gpt2, 16)
        model = make_algorithm(env, tiny_gpt2, n_steps=12, n_epochs=2, learning_rate=3e-3)
        seen: list[float] = []
        recorder = AtRolloutEnd(lambda model, seen=seen: seen.append(model.rollout_buffer.kl.mean()))
        model.learn(12 * 16 * 10, callback=[KLCallback(kl_coef), recorder])
        assert abs(seen[0]) < 1e-5
        drifts.append(np.mean(seen[-3:]))
    assert drifts[0] > 0.5
    assert drifts[1] < drifts[0] / 3


@pytest.mark.parametrize("n_steps", [3, 24])
def test_kl_of_an_episode_does_not_depend_on_the_length_of_rollouts(
    tiny_gpt2: str, tmp_path: Path, n_steps: int
) -> None:
    """Weights that stay: what each rollout estimates is the total over a long run divided by its episodes."""
    env = make_env(tiny_gpt2, 16, max_new_tokens=24)
    model = make_algorithm(env, tiny_gpt2, n_steps=n_steps, learning_rate=1e-12)
    logged: list[float] = []
    totals: list[float] = []

    class Recorder(AtRolloutEnd):
        ended = 0

        def _on_step(self) -> bool:
            self.ended += int(self.locals["dones"].sum())
            return True

    def record(model: Any) -> None:
        totals.append(model.rollout_buffer.kl.sum())
        if model.ep_info_buffer:
            logged.append(model.logger.name_to_value["kl/per_episode"])

    recorder = Recorder(record)
    reference = LanguageModel.load(save_tiny(tmp_path, seed=1), device="cpu")
    model.learn(16 * 240, callback=[KLCallback(0.1, reference=reference), recorder])
    late = np.array(logged[len(logged) // 2 :])  # the first episodes to end are short ones
    relative = late / (sum(totals) / recorder.ended)
    assert abs(relative.mean() - 1) < 0.15
    assert relative.min() > 0.5
    assert relative.max() < 2


def test_the_penalty_ends_with_its_learn(tiny_gpt2: str) -> None:
    env = make_env(tiny_gpt2, 4)
    model = make_algorithm(env, tiny_gpt2, learning_rate=3e-2)
    kls: list[float] = []
    recorder = AtRolloutEnd(lambda model: kls.append(float(np.abs(model.rollout_buffer.kl).max())))
    model.learn(8 * 4 * 2, callback=[KLCallback(1.0), recorder])
    assert kls[-1] > 0
    model.learn(8 * 4, callback=recorder)
    assert kls[-1] == 0


def test_adaptive_coefficient_follows_its_formula(tiny_gpt2: str) -> None:
    env = make_env(tiny_gpt2, 4)
    model = make_algorithm(env, tiny_gpt2, learning_rate=3e-2)
    logged: list[tuple[float, float]] = []
    ended: list[int] = []

    class Recorder(AtRolloutEnd):
        dones = 0

        def _on_step(self) -> bool:
            self.dones += int(self.locals["dones"].sum())
            return True

    def record(model: Any) -> None:
        values = model.logger.name_to_value
        logged.append((values["kl/per_episode"], values["kl/coef"]))
        ended.append(recorder.dones)
        recorder.dones = 0
        per_token = model.rollout_buffer.kl.sum() / (8 * 4)
        assert values["kl/per_token"] == pytest.approx(per_token)
        length = np.mean([episode["l"] for episode in model.ep_info_buffer])
        assert values["kl/per_episode"] == pytest.approx(per_token * length)

    recorder = Recorder(record)
    callback = KLCallback(0.2, target=3.0, gain=0.5)
    model.learn(6 * 8 * 4, callback=[callback, recorder])
    coefficients = [coefficient for _, coefficient in logged]
    assert coefficients[0] == 0.2
    assert len(set(coefficients)) == 6
    for (kl, coefficient), following in zip(logged, coefficients[1:], strict=False):
        error = np.clip((kl - 3.0) / 3.0, -0.2, 0.2)
        assert following == pytest.approx(coefficient * (1 + 0.5 * error))
    last = model.rollout_buffer.kl_coef
    model.learn(8 * 4, callback=[KLCallback(0.2, target=3.0), recorder], reset_num_timesteps=False)
    assert logged[-1][1] == last  # goes on where it was
    model.learn(8 * 4, callback=[KLCallback(0.7), recorder], reset_num_timesteps=False)
    assert logged[-1][1] == 0.7  # fixed: as asked


def test_kl_callback_refuses_what_it_cannot_bind(tiny_gpt2: str, tmp_path: Any) -> None:
    for kwargs, named in (
        ({"kl_coef": -1.0}, "kl_coef"),
        ({"kl_coef": 0.0, "target": 2.0}, "kl_coef"),
        ({"kl_coef": float("nan")}, "kl_coef"),
        ({"target": 0.0}, "target"),
        ({"gain": 0.0}, "gain"),
    ):
        with pytest.raises(ValueError, match=named):
            KLCallback(**kwargs)
    env = make_env(tiny_gpt2)
    other = LanguageModel.load(save_tiny(tmp_path, word_level=True), device="cpu")
    with pytest.raises(ValueError, match="tokens, not 290"):
        make_algorithm(env, tiny_gpt2).learn(1, callback=KLCallback(reference=other))
    with pytest.raises(TypeError, match="EpisodeRolloutBuffer"):
        make_algorithm(env, tiny_gpt2, rollout_buffer_class=None).learn(1, callback=KLCallback())
    with pytest.raises(TypeError, match="TransformerPolicy"):
        PPO("MultiInputPolicy", env, device="cpu", batch_size=8, n_steps=2).learn(1, callback=KLCallback())
    with pytest.warns(UserWarning, match="normalize_advantage=False"):
        make_algorithm(env, tiny_gpt2, normalize_advantage=True).learn(1, callback=KLCallback())
