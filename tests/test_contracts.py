"""What every environment promises, played over whole episodes: all registered ids, a toy with its dials
turned, and multi-turn tasks, one of them with actions, a mask and observations of its own.

An id that cannot be built fails here; none is skipped.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import SubprocVecEnv
from tasks import Board, Dialogue, Walk

import lm_envs
from lm_envs.registration import ENVIRONMENTS

CASES = [*ENVIRONMENTS, "append", "replace", "choices", "dials"]
DIALS = {"reward_timing": "delayed", "reward_noise": 0.5, "slip": 0.3, "info_text": True}
TOYS = ["dials", *(env_id for env_id in ENVIRONMENTS if "Toy" in env_id)]
TEXT_CASES = [case for case in CASES if case not in TOYS]
AUTORESET_MODES = list(AutoresetMode)
OBSERVATIONS = [
    *((case, observation) for case in TEXT_CASES for observation in ("tokens", "embedding", "text")),
    *((case, observation) for case in TOYS for observation in ("tokens", "index", "onehot", "last_k")),
    *(("choices", observation) for observation in Walk.views),
]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tiny_gpt2: str) -> tuple[str, dict[str, Any]]:
    """An id and the arguments to make it with: a registered id gets none of its own."""
    if request.param in ENVIRONMENTS:
        return request.param, arguments(request.param)
    if request.param == "dials":
        return "TextGen-ToyBrackets-v0", DIALS
    if request.param == "choices":
        walk = {"task": Walk(), "actions": "move", "max_new_tokens": 10, "context_length": 50}
        return "TextGen-v0", {**walk, "model": tiny_gpt2}
    task = {"append": Dialogue, "replace": Board}[request.param]()
    return "TextGen-v0", {"task": task, "model": tiny_gpt2, "max_new_tokens": 5}


def arguments(env_id: str) -> dict[str, Any]:
    """What makes episodes short; those of toys are, and choices have a length of their own."""
    is_short = env_id in TOYS or "actions" in ENVIRONMENTS[env_id][2]
    return {} if is_short else {"max_new_tokens": 8}


def draw(rng: np.random.Generator, num_actions: int, info: dict[str, Any]) -> int:
    """A random action, one that is allowed."""
    mask = info.get("action_mask", np.ones(num_actions))
    return int(rng.choice(np.flatnonzero(mask)))


def play(env: gymnasium.Env, episodes: int, seed: int) -> list[Any]:
    """Plays whole episodes with actions of a seed; returns everything that the environment said."""
    rng = np.random.default_rng(seed)
    log = []
    for episode in range(episodes):
        log.append(env.reset(seed=seed if episode == 0 else None))
        over = False
        while not over:
            log.append(env.step(draw(rng, env.action_space.n, log[-1][-1])))
            over = log[-1][2] or log[-1][3]
    return log


def test_gymnasium_check_env(case: tuple[str, dict[str, Any]]) -> None:
    check_env(gymnasium.make(case[0], **case[1]).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("render_mode", ["ansi", "human", "rgb_array"])
def test_gymnasium_check_env_with_rendering(case: tuple[str, dict[str, Any]], render_mode: str) -> None:
    env = gymnasium.make(case[0], render_mode=render_mode, **case[1]).unwrapped
    check_env(env, skip_render_check=True)


def test_sb3_check_env(case: tuple[str, dict[str, Any]]) -> None:
    sb3_check_env(gymnasium.make(case[0], **case[1]))


@pytest.mark.parametrize("case", TEXT_CASES, indirect=True)
def test_sb3_check_env_with_embeddings_and_candidates(case: tuple[str, dict[str, Any]]) -> None:
    env = gymnasium.make(case[0], **{**case[1], "observation": "embedding", "actions": "top_k", "top_k": 4})
    sb3_check_env(env, warn=False)


@pytest.mark.parametrize("case", TEXT_CASES, indirect=True)
def test_every_mode_of_the_task(case: tuple[str, dict[str, Any]]) -> None:
    """Whatever the id's defaults: "token" actions, and all that its task offers, over whole episodes."""
    task = gymnasium.make(case[0], **case[1]).unwrapped.task
    for actions in ("token", *(getattr(task, "choices", None) or ())):
        for observation in getattr(task, "views", None) or {"tokens": None}:
            kwargs = {**case[1], "observation": observation, "actions": actions}
            env = gymnasium.make(case[0], **kwargs)
            log = play(env, 2, 4)
            assert all(env.observation_space.contains(entry[0]) for entry in log)
            assert data_equivalence(log, play(gymnasium.make(case[0], **kwargs), 2, 4))


@pytest.mark.parametrize(("case", "observation"), OBSERVATIONS, indirect=["case"])
def test_whole_episodes(case: tuple[str, dict[str, Any]], observation: str) -> None:
    """Same seed, same episodes; another seed, others; observations in the space; finite rewards."""
    env_id, kwargs = case
    logs = []
    for seed in (1, 1, 2):
        env = gymnasium.make(env_id, **{**kwargs, "observation": observation})
        logs.append(play(env, 4, seed))
        assert all(env.observation_space.contains(entry[0]) for entry in logs[-1])
    assert data_equivalence(logs[0], logs[1])
    assert not data_equivalence(logs[0], logs[2])
    for entry in logs[0]:
        if len(entry) == 5:
            _, reward, terminated, truncated, info = entry
            assert type(reward) is float
            assert np.isfinite(reward)
            assert type(terminated) is type(truncated) is bool
            assert not terminated or info["finish_reason"] in ("eos", "stop", "length", "task")
            if "finish_reason" not in info and "reward_timing" not in kwargs:  # in the middle of a turn
                assert reward == 0.0
                assert not terminated


def test_observations_are_fresh_arrays(case: tuple[str, dict[str, Any]]) -> None:
    env = gymnasium.make(case[0], **case[1]).unwrapped
    first, info = env.reset(seed=0)
    kept = copy.deepcopy(first)
    action = draw(np.random.default_rng(0), int(env.action_space.n), info)
    second = env.step(action)[0]
    assert data_equivalence(first, kept)
    for value in second.values() if isinstance(second, dict) else [second]:
        value[:] = 1
    env.reset(seed=0)
    assert not data_equivalence(env.step(action)[0], second)


def test_spec_pickles_and_makes_the_same_environment(case: tuple[str, dict[str, Any]]) -> None:
    env = gymnasium.make(case[0], **case[1])
    again = gymnasium.make(pickle.loads(pickle.dumps(env.spec)))
    assert again.observation_space == env.observation_space
    assert data_equivalence(play(env, 1, 5), play(again, 1, 5))


@pytest.mark.parametrize("mode", AUTORESET_MODES)
def test_vector_environment_equals_single_environments(
    case: tuple[str, dict[str, Any]], mode: AutoresetMode
) -> None:
    """Slot by slot, in a rollout that the test does by hand from single environments."""
    env_id, kwargs = case
    num_envs, steps = 3, 25
    vector = gymnasium.make_vec(env_id, num_envs, autoreset_mode=mode, **kwargs)
    assert vector.metadata["autoreset_mode"] == mode
    assert vector.spec is not None
    singles = [gymnasium.make(env_id, **kwargs) for _ in range(num_envs)]
    observation, _ = vector.reset(seed=9)
    for slot, env in enumerate(singles):
        assert data_equivalence(row(observation, slot), env.reset(seed=9 + slot)[0])
    over = np.zeros(num_envs, bool)
    rng, num_actions = np.random.default_rng(0), int(vector.single_action_space.n)
    for _ in range(steps):
        if mode == AutoresetMode.DISABLED and over.any():
            observation, _ = vector.reset(options={"reset_mask": over})
            for slot in np.flatnonzero(over):
                assert data_equivalence(row(observation, slot), singles[slot].reset()[0])
            over[:] = False
        masks = vector.action_masks() if hasattr(vector, "action_masks") else np.ones((num_envs, num_actions))
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        observation, rewards, terminated, truncated, infos = vector.step(actions)
        for slot, env in enumerate(singles):
            if over[slot] and mode == AutoresetMode.NEXT_STEP:
                expected: Any = (env.reset()[0], 0.0, False, False)
            else:
                expected = env.step(int(actions[slot]))[:4]
                if mode == AutoresetMode.SAME_STEP and (expected[2] or expected[3]):
                    assert data_equivalence(infos["final_obs"][slot], expected[0])
                    expected = (env.reset()[0], *expected[1:])
            assert data_equivalence(row(observation, slot), expected[0])
            # A language model may have had its part in the reward: batches round differently.
            assert rewards[slot] == pytest.approx(expected[1], abs=1e-5)
            assert (terminated[slot], truncated[slot]) == expected[2:]
        over = terminated | truncated


def row(observation: Any, slot: int) -> Any:
    if isinstance(observation, dict):
        return {key: value[slot] for key, value in observation.items()}
    return observation[slot]


def make_factory(env_id: str, kwargs: dict[str, Any]) -> Callable[[], gymnasium.Env]:
    return lambda: gymnasium.make(f"lm_envs:{env_id}", **kwargs)


def check_async(env_id: str, kwargs: dict[str, Any]) -> None:
    workers = AsyncVectorEnv(
        [make_factory(env_id, kwargs)] * 2, shared_memory="observation" not in kwargs, context="forkserver"
    )
    try:
        vector = gymnasium.make_vec(env_id, 2, **kwargs)
        assert data_equivalence(workers.reset(seed=3), vector.reset(seed=3))
        rng, num_actions = np.random.default_rng(0), int(vector.single_action_space.n)
        # Few steps, which end no episode: after one, AsyncVectorEnv without shared memory is not comparable.
        for _ in range(3):
            masks = vector.action_masks() if hasattr(vector, "action_masks") else np.ones((2, num_actions))
            actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
            assert data_equivalence(workers.step(actions), vector.step(actions))
    finally:
        workers.close()


def test_async_vector_env_in_subprocesses(case: tuple[str, dict[str, Any]]) -> None:
    check_async(*case)


def test_async_vector_env_with_text_observations(tiny_gpt2: str) -> None:
    check_async("TextGen-v0", {"task": Dialogue(), "model": tiny_gpt2, "observation": "text"})


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_sb3_subprocesses(env_id: str) -> None:
    """One worker only: it takes seconds to import torch."""
    kwargs = arguments(env_id)
    workers = SubprocVecEnv([make_factory(env_id, kwargs)], start_method="forkserver")
    try:
        workers.seed(3)
        observation: Any = workers.reset()
        single, _ = gymnasium.make(env_id, **kwargs).reset(seed=3)
        assert data_equivalence(row(observation, 0), single)
        dones = 0
        for _ in range(10):
            _, rewards, done, _ = workers.step(np.zeros(1, np.int64))
            assert np.isfinite(rewards).all()
            dones += done.sum()
        assert dones
    finally:
        workers.close()


def test_import_registers_without_torch() -> None:
    code = (
        "import sys, gymnasium, lm_envs, importlib; importlib.reload(lm_envs);"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules;"
        "assert all(env_id in gymnasium.registry for env_id in lm_envs.registration.ENVIRONMENTS)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_registering_again_keeps_what_is_registered() -> None:
    before = dict(gymnasium.registry)
    lm_envs.register_all()
    assert gymnasium.registry == before
