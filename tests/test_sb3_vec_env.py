"""`GymVecEnv` against SB3's own `DummyVecEnv` over monitored single environments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from small_runs import PROMPTS, letters, make_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from tasks import Board, Dialogue

from lm_envs.sb3 import GymVecEnv, make_vec_env


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert ours == theirs


@pytest.mark.parametrize(
    ("kwargs", "limit"),
    [
        ({"prompts": list(PROMPTS), "reward": letters}, None),
        ({"prompts": list(PROMPTS), "reward": letters}, 4),
        ({"task": Dialogue()}, None),
        ({"task": Board()}, 9),
        ({"task": Board()}, 6),
    ],
    ids=["single-turn", "truncated", "dialogue", "board", "limit at the end of a turn"],
)
def test_same_as_dummy_vec_env(tiny_gpt2: str, kwargs: dict[str, Any], limit: int | None) -> None:
    settings = {"model": tiny_gpt2, "max_new_tokens": 6, **kwargs}

    def single() -> gym.Env:
        return Monitor(gym.make("TextGen-v0", max_episode_steps=limit, **settings))

    theirs = DummyVecEnv([single] * 3)
    ours = make_vec_env("TextGen-v0", 3, max_episode_steps=limit, **settings)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    theirs.seed(5)
    ours.seed(5)
    assert_same(ours.reset(), dict(theirs.reset()))
    rng = np.random.default_rng(0)
    episodes = 0
    for _ in range(40):
        actions = rng.integers(ours.action_space.n, size=3)
        our_obs, our_rewards, our_dones, our_infos = ours.step(actions)
        obs, rewards, dones, infos = theirs.step(actions)
        assert_same(our_obs, dict(obs))
        assert_same(our_rewards, rewards)
        assert_same(our_dones, dones)
        for slot in range(3):
            expected = dict(infos[slot])
            if dones[slot]:
                episodes += 1
                assert our_infos[slot]["episode"].pop("t") >= 0
                expected["episode"].pop("t")
            else:
                assert not expected.pop("TimeLimit.truncated")
            assert_same(our_infos[slot], expected)
        assert_same(ours.reset_infos, theirs.reset_infos)
    assert episodes > 3


def test_candidates_of_top_k_actions_reach_their_slots(tiny_gpt2: str) -> None:
    env = make_env(tiny_gpt2, 2, actions="top_k", top_k=3, max_new_tokens=2)
    env.reset()
    assert [info["candidates"].shape for info in env.reset_infos] == [(3,), (3,)]
    _, _, _, infos = env.step(np.array([0, 2]))
    assert [info["candidates"].shape for info in infos] == [(3,), (3,)]
    _, _, dones, infos = env.step(np.array([0, 2]))
    assert dones.all()
    assert all("candidates" in info for info in env.reset_infos)


def test_seeds_and_options_hold_for_one_reset(tiny_gpt2: str) -> None:
    env = make_env(tiny_gpt2, 2, seed=7)
    first = env.reset()
    env.seed(7)
    env.set_options({"prompt": "A light on"})
    second = env.reset()
    language_model = env.get_attr("language_model", 0)[0]
    context = second["input_ids"][0][second["attention_mask"][0] == 1]
    assert language_model.decode(context) == "A light on"
    env.seed(7)
    assert_same(env.reset(), first)
    env.set_options([{"prompt": "A"}, {"prompt": "B"}])
    with pytest.raises(ValueError, match="same for all slots"):
        env.reset()


def test_attributes_and_methods(tiny_gpt2: str) -> None:
    env = make_env(tiny_gpt2, 3, render_mode="ansi")
    env.reset()
    assert env.get_attr("max_new_tokens") == [6, 6, 6]
    assert env.get_attr("max_new_tokens", [0, 2]) == [6, 6]
    assert env.has_attr("language_model")
    assert not env.has_attr("action_masks")
    frames = env.env_method("render", indices=[1])
    assert len(frames) == 1
    assert isinstance(frames[0], str)
    env.set_attr("note", 4)
    assert env.get_attr("note", 1) == [4]
    with pytest.raises(ValueError, match="shared by all slots"):
        env.set_attr("note", 5, indices=[0])
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * 3


def test_refuses_what_it_cannot_adapt(tiny_gpt2: str) -> None:
    with pytest.raises(ValueError, match="SAME_STEP"):
        GymVecEnv(gym.make_vec("TextGen-v0", num_envs=2, model=tiny_gpt2))
    with pytest.raises(ValueError, match="n_envs"):
        make_vec_env("TextGen-v0", 0)
    with pytest.raises(gym.error.Error):
        make_vec_env("NoSuchText-v0")


def test_module_prefix_registers_the_id(tiny_gpt2: str) -> None:
    env = make_vec_env("lm_envs:TextGen-v0", 2, model=tiny_gpt2, prompts=["A fox"], max_new_tokens=4)
    assert env.reset()["input_ids"].shape[0] == 2


@pytest.mark.parametrize("name", ["env_kwargs", "vec_env_cls", "monitor_dir"])
def test_arguments_of_the_other_function_of_this_name(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} is an argument of stable_baselines3's make_vec_env"):
        make_vec_env("TextGen-v0", 2, **{name: {}})
    with pytest.raises(TypeError, match="env_id must be a registered id, got <function"):
        make_vec_env(lambda: gym.make("TextGen-v0"))  # type: ignore[arg-type]
