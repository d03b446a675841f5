"""Transformers for toy ids: they speak the toy's words, the policy takes them, they fit the n-gram model."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

import lm_envs  # noqa: F401  registers the ids
from agents.toy.transformer import fit_to_ngram, save_toy_transformer
from lm_envs.language_model import LanguageModel
from lm_envs.registration import ENVIRONMENTS
from lm_envs.sb3 import EpisodeRolloutBuffer, KLCallback, TransformerPolicy, make_vec_env
from lm_envs.toy import solve

TOYS = [env_id for env_id in ENVIRONMENTS if "Toy" in env_id]


@pytest.mark.parametrize("env_id", TOYS)
def test_speaks_the_toys_words_and_trains_on_it(env_id: str, tmp_path: Path) -> None:
    env = make_vec_env(env_id, 4, seed=0)
    toy = env.env.unwrapped.language_model
    folder = save_toy_transformer(env.env, tmp_path, hidden_size=16, layers=1)
    loaded = LanguageModel.load(folder, device="cpu")
    assert (loaded.vocab_size, loaded.eos_token_id) == (toy.vocab_size, toy.eos_token_id)
    text = "".join(reversed(toy.words)) + toy.words[0]
    assert loaded.encode(text) == toy.encode(text)
    assert loaded.decode(toy.encode(text)) == text
    model = PPO(
        TransformerPolicy,
        env,
        rollout_buffer_class=EpisodeRolloutBuffer,
        normalize_advantage=False,
        n_steps=8,
        batch_size=32,
        policy_kwargs={"model": str(folder)},
    )
    model.learn(64, callback=KLCallback(0.1, reference=loaded))
    assert np.isfinite(solve(env.env).regret(model))


def test_words_with_numbers_are_one_token(tmp_path: Path) -> None:
    env = gym.make("TextGen-ToyCopy-v0", vocab_size=60, length=2)
    folder = save_toy_transformer(env, tmp_path)
    loaded, toy = LanguageModel.load(folder, device="cpu"), env.unwrapped.language_model
    for text in ("a a1 b2c", "z1a2 bb"):
        assert loaded.encode(text) == toy.encode(text)


def test_untrained_weights_follow_the_seed_and_favour_no_token_much(tmp_path: Path) -> None:
    env = gym.make("TextGen-ToyCopy-v0")
    state = torch.get_rng_state()
    folders = [save_toy_transformer(env, tmp_path / str(i), seed=seed) for i, seed in enumerate((0, 0, 1))]
    assert torch.equal(state, torch.get_rng_state())
    scores = [LanguageModel.load(f, device="cpu").log_probs([[0, 1]], [[2, 0]])[0] for f in folders]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])
    assert (np.abs(np.exp(scores) - 1 / 3) < 0.15).all()


def test_fit_reaches_the_exact_distributions(tmp_path: Path) -> None:
    env = gym.make("TextGen-ToyBigram-v0", vocab_size=3, length=3)
    folder = save_toy_transformer(env, tmp_path)
    stated = fit_to_ngram(folder, env, steps=200)
    assert stated < 1e-2
    loaded, toy = LanguageModel.load(folder, device="cpu"), env.unwrapped.language_model
    contexts = [[a, b][: 1 + n] for a in range(3) for b in range(3) for n in range(2)]
    worst = 0.0
    for context in contexts:
        fitted = [np.exp(loaded.log_probs([context], [[token]])[0][0]) for token in range(3)]
        worst = max(worst, 0.5 * np.abs(fitted - toy.table[context[-1]]).sum())
    assert worst <= stated + 1e-6


def test_a_fit_that_falls_short_is_refused(tmp_path: Path) -> None:
    env = gym.make("TextGen-ToyBigram-v0", vocab_size=3, length=3)
    folder = save_toy_transformer(env, tmp_path)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(RuntimeError, match="total-variation"):
        fit_to_ngram(folder, env, steps=2)
    assert (folder / "model.safetensors").read_bytes() == before


def test_other_environments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="toy environment"):
        save_toy_transformer(gym.make("CartPole-v1"), tmp_path)
