"""Errors of rewards, tasks, actions and weights: they say what is wrong and leave all slots as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.vector import AutoresetMode
from models import save_tiny
from tasks import Dialogue

from lm_envs.errors import RewardError
from lm_envs.tasks import Completion, Feedback
from lm_envs.text_env import TextGenEnv
from lm_envs.vector_env import TextGenVectorEnv

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


@pytest.mark.parametrize("reward", [2, np.float32(2), np.array(2.0), torch.tensor(2.0)])
def test_rewards_are_numbers_of_any_kind(tiny_gpt2: str, reward: Any) -> None:
    env = TextGenEnv(Faulty([Feedback(reward)]), tiny_gpt2)
    env.reset(seed=0)
    assert env.step(env.language_model.eos_token_id)[1:4] == (2.0, True, False)


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        ([], TypeError, "must return 1 Feedback, got 0 answers"),
        (None, TypeError, "must return 1 Feedback, got NoneType"),
        ([3.0], TypeError, "must return Feedback, got float for slot 0"),
        ([Feedback(reward=float("nan"))], RewardError, "reward of slot 0 must be a finite number, got nan"),
        ([Feedback(reward=True)], RewardError, "must be a finite number, got True"),
        ([Feedback(done=None)], TypeError, "done must be a bool, got None for slot 0"),  # type: ignore[arg-type]
        ([Feedback(truncated=1)], TypeError, "truncated must be a bool, got 1 for slot 0"),  # type: ignore[arg-type]
        ([Feedback(context="x")], TypeError, "must be Append, Replace or None"),  # type: ignore[arg-type]
        ([Feedback(info=None)], TypeError, "info must be a dict with str keys, got None for slot 0"),  # type: ignore[arg-type]
        ([Feedback(info={"prompt": "x"})], ValueError, r"not have the keys \['prompt'\], .* slot 0"),
        ([Feedback(info={"candidates": 1})], ValueError, r"not have the keys \['candidates'\]"),
        ([Feedback(info={1: 2})], TypeError, "info must be a dict with str keys"),  # type: ignore[dict-item]
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
