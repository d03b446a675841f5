"""Seeds, errors that must leave everything as it was, clones for planners, and resumable state."""

from __future__ import annotations

import io
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode
from tasks import Board, Dialogue

from lm_envs.errors import RewardError
from lm_envs.tasks import Completion, Feedback
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


@pytest.mark.parametrize("seed", [[1, 2], [1, 2, 3, 4]])
def test_wrong_number_of_seeds(tiny_gpt2: str, seed: list[int]) -> None:
    with pytest.raises(ValueError, match=r"one entry per slot \(3\)"):
        TextGenVectorEnv(3, Dialogue(), tiny_gpt2).reset(seed=seed)


# Errors


BAD_REWARDS = {
    "nan": lambda texts: [float("nan") if "bad" in text else 1.0 for text in texts],
    "inf": lambda texts: [float("inf") if "bad" in text else 1.0 for text in texts],
    "none": lambda texts: [None if "bad" in text else 1.0 for text in texts],
    "text": lambda texts: ["1" if "bad" in text else 1.0 for text in texts],
    "raises": lambda texts: [1 / (0 if "bad" in text else 1) for text in texts],
}


@pytest.mark.parametrize("name", BAD_REWARDS)
def test_a_bad_reward_names_the_slot_and_changes_nothing(tiny_gpt2: str, name: str) -> None:
    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[Any]:
        return BAD_REWARDS[name](completions)

    env = TextGenVectorEnv(
        3, model=tiny_gpt2, prompts=["The key", "fox"], reward=reward, autoreset_mode=AutoresetMode.SAME_STEP
    )
    env.reset(seed=0)
    encode, eos = env.language_model.encode, env.language_model.eos_token_id
    texts = ["bxd", "xxx", "bad"]
    for at in range(3):
        env.step([encode(text[at])[0] for text in texts])
    before = env.get_state()
    with pytest.raises(RewardError, match=r"slot 2 .*'bad'") as caught:
        env.step([eos, 7, eos])
    assert (caught.value.slot, caught.value.text) == (2, "bad")
    after = env.get_state()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    # The others are intact: slot 0 ends and is rewarded, slot 1 goes on.
    _, rewards, terminated, _, infos = env.step([eos, 7, 7])
    assert rewards.tolist() == [1.0, 0.0, 0.0]
    assert terminated.tolist() == [True, False, False]
    assert infos["final_info"]["completion"][0] == "bxd"


class Faulty(Dialogue):
    """Answers with whatever it is told to."""

    def __init__(self, answers: Any) -> None:
        self.answers = answers

    def start(self, rng: np.random.Generator, options: Any) -> Any:
        return Dialogue().start(rng, options)

    def respond(self, states: Any, completions: list[Completion], rngs: Any) -> Any:
        return self.answers


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        ([], TypeError, "must return 1 Feedback, got 0 answers"),
        (None, TypeError, "must return 1 Feedback, got NoneType"),
        ([3.0], TypeError, "must return Feedback, got float for slot 0"),
        ([Feedback(reward=float("nan"))], RewardError, "reward of slot 0 must be a finite number, got nan"),
        ([Feedback(reward=True)], RewardError, "must be a finite number, got True"),
        ([Feedback(done=None)], TypeError, "done must be a bool, got None for slot 0"),  # type: ignore[arg-type]
        ([Feedback(context="x")], TypeError, "must be Append, Replace or None"),  # type: ignore[arg-type]
        ([Feedback(info={"prompt": "x"})], ValueError, r"without the keys \['prompt'\], for slot 0"),
    ],
)
def test_bad_feedback_is_refused(tiny_gpt2: str, answers: Any, error: type[Exception], message: str) -> None:
    env = TextGenEnv(Faulty(answers), tiny_gpt2)
    env.reset(seed=0)
    with pytest.raises(error, match=message):
        env.step(env.language_model.eos_token_id)
    assert env.step(5)[1:4] == (0.0, False, False)


@pytest.mark.parametrize(
    "actions", [np.array([3, 3, -1]), [3, 3, None], np.array([3.0, 3.0, 3.0]), [True, 3, 3], 3, [3, 3], None]
)
def test_bad_vector_actions_change_nothing(tiny_gpt2: str, actions: Any) -> None:
    env = TextGenVectorEnv(3, Dialogue(), tiny_gpt2)
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(InvalidAction, match=r"action of slot \d must be an integer|actions must be 3"):
        env.step(actions)
    after = env.get_state()
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_actions_of_slots_that_are_reset_are_not_read(tiny_gpt2: str) -> None:
    env = TextGenVectorEnv(2, Dialogue(1), tiny_gpt2)
    env.reset(seed=0)
    env.step([env.language_model.eos_token_id, 3])
    env.step(np.array([-1, 3]))


def test_vector_steps_need_running_episodes(tiny_gpt2: str) -> None:
    env = TextGenVectorEnv(2, Dialogue(1), tiny_gpt2, autoreset_mode="Disabled")
    with pytest.raises(ResetNeeded, match=r"slot\(s\) \[0, 1\]"):
        env.step([3, 3])
    with pytest.raises(ValueError, match="must select every slot in the first reset"):
        env.reset(options={"reset_mask": np.array([True, False])})
    env.reset(seed=0)
    env.step([3, env.language_model.eos_token_id])
    with pytest.raises(ResetNeeded, match=r"slot\(s\) \[1\]"):
        env.step([3, 3])


@pytest.mark.parametrize("mode", [{"observation": "embedding"}, {"actions": "top_k", "top_k": 3}])
def test_nan_weights_raise_and_change_nothing(tmp_path: Any, mode: dict[str, Any]) -> None:
    from models import save_tiny

    env = TextGenEnv(Dialogue(), save_tiny(tmp_path), **mode)  # an own folder: weights are shared per process
    env.reset(seed=0)
    before = env.get_state()
    weights = next(env.language_model.model.parameters())
    kept = weights.data.clone()
    weights.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        env.step(1)
    weights.data.copy_(kept)
    assert all(np.array_equal(before[key], value) for key, value in env.get_state().items())


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


def test_clone_of_another_shape_is_refused(tiny_gpt2: str) -> None:
    env, other = TextGenEnv(Dialogue(), tiny_gpt2), TextGenEnv(Dialogue(), tiny_gpt2, context_length=63)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"another environment: .*\(1, 64\).*here \(1, 63\)"):
        other.restore_state(env.clone_state())


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


def test_state_before_the_first_reset(tiny_gpt2: str) -> None:
    env, resumed = TextGenEnv(Dialogue(), tiny_gpt2), TextGenEnv(Dialogue(), tiny_gpt2)
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
