"""Seeds, clones for planners, and resumable state."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode
from tasks import Board, Dialogue, Walk

from lm_envs.text_env import TextGenEnv
from lm_envs.vector_env import TextGenVectorEnv

TASKS = {"append": Dialogue(), "replace": Board()}


def play(env: Any, steps: int, seed: int) -> list[Any]:
    """Random actions; a single environment is reset where an episode ends."""
    rng = np.random.default_rng(seed)
    log = []
    for _ in range(steps):
        if isinstance(env, TextGenVectorEnv):
            log.append(env.step(rng.integers(env.single_action_space.n, size=env.num_envs)))
            continue
        log.append(env.step(int(rng.integers(env.action_space.n))))
        if log[-1][2] or log[-1][3]:
            log.append(env.reset())
    return log


def same(state: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return state.keys() == other.keys() and all(np.array_equal(state[key], other[key]) for key in state)


# Seeds


def test_reset_goes_on_with_the_seeds_episodes(tiny_gpt2: str) -> None:
    env = TextGenEnv(Dialogue(), tiny_gpt2)
    first = [env.reset(seed=3), *(env.reset() for _ in range(5))]
    second = [env.reset(seed=3), *(env.reset() for _ in range(5))]
    assert data_equivalence(first, second)
    assert len({str(observation["input_ids"]) for observation, _ in first}) > 1


def test_episodes_do_not_depend_on_how_long_earlier_ones_were(tiny_gpt2: str) -> None:
    env = TextGenEnv(Dialogue(), tiny_gpt2, max_new_tokens=3)
    env.reset(seed=3)
    expected = env.reset()
    env.reset(seed=3)
    env.step(1)
    assert data_equivalence(env.reset(), expected)


def test_unseeded_environments_differ(tiny_gpt2: str) -> None:
    states = [TextGenEnv(Dialogue(), tiny_gpt2) for _ in range(2)]
    for env in states:
        env.reset()
    assert states[0].get_state()["keys"] != states[1].get_state()["keys"]
    vector = TextGenVectorEnv(4, Dialogue(), tiny_gpt2)
    vector.reset()
    assert len(set(vector.get_state()["keys"].tolist())) == 4


def test_slots_without_a_seed_share_nobodys(tiny_gpt2: str) -> None:
    env = TextGenVectorEnv(3, Dialogue(), tiny_gpt2)
    env.reset(seed=[7, None, None])
    assert len(set(env.get_state()["keys"].tolist())) == 3


@pytest.mark.parametrize("seed", [1.5, "1", [0.5, 1, 2], [1, -1, 2], [True, 1, 2]])
def test_seeds_that_are_none(tiny_gpt2: str, seed: Any) -> None:
    env = TextGenVectorEnv(3, Dialogue(), tiny_gpt2)
    with pytest.raises((TypeError, ValueError), match=r"seed.* must be .* integer .*got|seed must have one"):
        env.reset(seed=seed)


@pytest.mark.parametrize("vector", [False, True])
def test_a_reset_that_fails_leaves_the_seed(tiny_gpt2: str, vector: bool) -> None:
    env: Any = TextGenVectorEnv(2, Dialogue(), tiny_gpt2) if vector else TextGenEnv(Dialogue(), tiny_gpt2)
    env.reset(seed=3)
    before = env.get_state()
    with pytest.raises(ValueError, match=r"at most \d+ fit"):
        env.reset(seed=5, options={"prompt": "the fox " * 99})
    assert same(env.get_state(), before)
    assert env.np_random_seed == 3


@pytest.mark.parametrize("seed", [[1, 2], [1, 2, 3, 4]])
def test_wrong_number_of_seeds(tiny_gpt2: str, seed: list[int]) -> None:
    with pytest.raises(ValueError, match=r"one entry per slot \(3\)"):
        TextGenVectorEnv(3, Dialogue(), tiny_gpt2).reset(seed=seed)


# Clones


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("vector", [False, True])
def test_restored_clone_goes_the_same_way(tiny_gpt2: str, task: str, vector: bool) -> None:
    kwargs: dict[str, Any] = {"observation": "embedding", "actions": "top_k", "top_k": 4, "max_new_tokens": 3}
    env: Any = TextGenEnv(TASKS[task], tiny_gpt2, **kwargs)
    if vector:
        env = TextGenVectorEnv(3, TASKS[task], tiny_gpt2, **kwargs)
    env.reset(seed=4)
    play(env, 5, 0)
    state = env.clone_state(include_rng=True)
    first = play(env, 30, 1)
    env.restore_state(state)
    assert data_equivalence(first, play(env, 30, 1))


def test_the_cache_comes_along_with_a_clone(tiny_gpt2: str) -> None:
    env = TextGenEnv(Dialogue(), tiny_gpt2, observation="embedding", max_new_tokens=20)
    env.reset(seed=0)
    play(env, 5, 0)
    state = env.clone_state()
    play(env, 30, 1)
    env.restore_state(state)
    before = env._core.view.decoder.tokens_forwarded
    env.step(7)
    assert env._core.view.decoder.tokens_forwarded == before + 1


def test_clone_without_rng_meets_new_dice(tiny_gpt2: str) -> None:
    env = TextGenEnv(Dialogue(9), tiny_gpt2, max_new_tokens=3)
    eos = env.language_model.eos_token_id
    seed = next(s for s in range(50) if env.reset(seed=s) and not env.step(eos)[2])
    env.reset(seed=seed)
    episode = env.get_state()["episodes"].tolist()

    def replies(include_rng: bool) -> set[str]:
        state, seen = env.clone_state(include_rng), set()
        for _ in range(30):
            env.restore_state(state)
            seen.add(str(env.step(eos)[0]["input_ids"]))
        env.restore_state(state)
        return seen

    assert len(replies(include_rng=True)) == 1
    # Dialogue has four replies; 30 draws miss one with probability 0.0007.
    assert len(replies(include_rng=False)) == 4
    assert env.get_state()["episodes"].tolist() == episode


def test_clone_without_rng_counts_episodes_on(tiny_gpt2: str) -> None:
    env = TextGenEnv(Dialogue(), tiny_gpt2)
    env.reset(seed=0)
    without, with_rng = env.clone_state(), env.clone_state(include_rng=True)
    env.reset()
    env.restore_state(without)
    assert env.get_state()["episodes"] == [1]
    env.restore_state(with_rng)
    assert env.get_state()["episodes"] == [0]


def test_clone_without_rng_keeps_a_later_seed(tiny_gpt2: str) -> None:
    env = TextGenEnv(Dialogue(), tiny_gpt2)
    env.reset(seed=0)
    state = env.clone_state()
    env.reset(seed=1)
    expected = [env.reset(), env.reset()]
    env.reset(seed=1)
    env.restore_state(state)
    assert data_equivalence([env.reset(), env.reset()], expected)


def test_clone_of_another_shape_is_refused(tiny_gpt2: str) -> None:
    env, other = TextGenEnv(Dialogue(), tiny_gpt2), TextGenEnv(Dialogue(), tiny_gpt2, context_length=79)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"another environment: .*\(1, 80\).*here \(1, 79\)"):
        other.restore_state(env.clone_state())


def copies(env: Any) -> list[Any]:
    return [pickle.loads(pickle.dumps(env)), copy.deepcopy(env)]


@pytest.mark.parametrize("mode", [{}, {"observation": "embedding"}, {"actions": "top_k", "top_k": 4}])
def test_copies_in_the_middle_of_an_episode_go_on_alone(tiny_gpt2: str, mode: dict[str, Any]) -> None:
    env = TextGenEnv(Dialogue(), tiny_gpt2, dtype="float64", **mode)
    env.reset(seed=0)
    env.step(1)
    twins = copies(env)
    expected = [step[:1] for step in play(env, 12, 0)]
    for twin in twins:
        assert twin.language_model.model is env.language_model.model
        for ours, theirs in zip(expected, play(twin, 12, 0), strict=True):
            for key in ours[0] if isinstance(ours[0], dict) else ():
                np.testing.assert_array_equal(theirs[0][key], ours[0][key])
            if not isinstance(ours[0], dict):
                np.testing.assert_allclose(theirs[0], ours[0], atol=1e-6)


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("way", ["restore", "resume"])
def test_samples_keep_to_the_mask_of_the_state_gone_back_to(tiny_gpt2: str, vector: bool, way: str) -> None:
    make = TextGenEnv if not vector else lambda *args, **kwargs: TextGenVectorEnv(4, *args, **kwargs)
    env, other = (make(Walk(), tiny_gpt2, actions="move") for _ in range(2))
    env.reset(seed=0, options={"task_index": 0})
    cloned, saved, masks = env.clone_state(), env.get_state(), env.action_masks()
    env.step([1] * 4 if vector else 1)  # to the right, from where there is no way to the left
    assert not np.array_equal(env.action_masks(), masks)
    if way == "restore":
        env.restore_state(cloned)
    else:
        env = other
        env.set_state(saved)
    np.testing.assert_array_equal(env.action_space.mask, masks)
    env.step(env.action_space.sample())


# Resumable state


def through_file(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    buffer = io.BytesIO()
    np.savez(buffer, **state)
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("steps", [0, 1, 4, 9, 20])
def test_resumed_vector_environment_goes_the_same_way(
    tiny_gpt2: str, task: str, mode: AutoresetMode, steps: int
) -> None:
    def make() -> TextGenVectorEnv:
        return TextGenVectorEnv(
            3, TASKS[task], tiny_gpt2, max_new_tokens=3, stop="e", autoreset_mode=mode, max_episode_steps=13
        )

    def go(env: TextGenVectorEnv, count: int, seed: int) -> list[Any]:
        if mode != AutoresetMode.DISABLED:
            return play(env, count, seed)
        rng, log = np.random.default_rng(seed), []
        for _ in range(count):
            over = ~env._core.episodes.arrays.running
            if over.any():
                log.append(env.reset(options={"reset_mask": over}))
            log.append(env.step(rng.integers(env.single_action_space.n, size=3)))
        return log

    env, resumed = make(), make()
    env.reset(seed=1, options={"prompt": "The fox"})
    go(env, steps, 0)
    resumed.set_state(through_file(env.get_state()))
    assert data_equivalence(go(env, 30, 5), go(resumed, 30, 5))


def test_resumes_after_a_restore_without_rng(tiny_gpt2: str) -> None:
    """Earlier turns are replayed with the dice they had, not with those of today."""
    env, resumed = (TextGenEnv(Dialogue(9), tiny_gpt2, max_new_tokens=2) for _ in range(2))
    for seed in range(12):
        env.reset(seed=seed)
        for step in range(6):
            if not env._core.episodes.arrays.running[0]:
                break
            env.restore_state(env.clone_state())
            env.step(10 + step)
        resumed.set_state(env.get_state())
        ours, theirs = env._core.view.look(np.array([0])), resumed._core.view.look(np.array([0]))
        assert data_equivalence(ours, theirs)
        assert env._core.episodes.arrays.states[0] == resumed._core.episodes.arrays.states[0]


@pytest.mark.parametrize("actions", ["token", "top_k"])
def test_state_before_the_first_reset(tiny_gpt2: str, actions: str) -> None:
    env, resumed = (TextGenEnv(Dialogue(), tiny_gpt2, actions=actions) for _ in range(2))
    resumed.set_state(through_file(env.get_state()))
    assert data_equivalence(env.reset(), resumed.reset())


def test_top_k_candidates_are_resumed(tiny_gpt2: str) -> None:
    env, resumed = (
        gymnasium.make("TextGen-v0", task=Dialogue(), model=tiny_gpt2, actions="top_k", top_k=4).unwrapped
        for _ in range(2)
    )
    env.reset(seed=0)
    env.step(2)
    resumed.set_state(env.get_state())
    assert data_equivalence(play(env, 20, 0), play(resumed, 20, 0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": Dialogue(), "context_length": 70}, r"does not fit .*\(80, 5, \d+\), here \(70, 5"),
        ({"task": Dialogue(), "max_new_tokens": 6}, r"does not fit .*\(80, 5, \d+\), here \(80, 6"),
        ({"task": Dialogue(), "actions": "top_k", "top_k": 4}, r"does not fit .*\(80, 5, 4\)"),
        ({"prompts": ["The key"]}, r"slot\(s\) \[0\] would be in another context"),
        ({"task": Board()}, r"slot\(s\) \[0\] would be in another context"),
    ],
)
def test_states_of_other_environments_are_refused(
    tiny_gpt2: str, settings: dict[str, Any], message: str
) -> None:
    env = TextGenEnv(Dialogue(), tiny_gpt2, max_new_tokens=5)
    env.reset(seed=0)
    env.step(5)
    other = TextGenEnv(model=tiny_gpt2, **{"max_new_tokens": 5, **settings})
    other.reset(seed=1)
    before = other.get_state()
    with pytest.raises(ValueError, match=message):
        other.set_state(env.get_state())
    assert same(other.get_state(), before)


def test_a_state_with_a_part_missing_is_refused(tiny_gpt2: str) -> None:
    env = TextGenEnv(Dialogue(), tiny_gpt2)
    state = env.get_state()
    del state["np_random"], state["tokens"]
    with pytest.raises(ValueError, match=r"lacks \['np_random', 'tokens'\]"):
        env.set_state(state)
