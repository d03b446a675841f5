"""`TurnLevel` against token-by-token play in the environment that it wraps."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from models import save_tiny
from tasks import Board, Dialogue, Walk

from lm_envs.actions import Turn
from lm_envs.errors import RewardError
from lm_envs.tasks import Task
from lm_envs.turn_level import TurnLevel

TASKS: dict[str, Task] = {"append": Dialogue(), "replace": Board(), "choices": Walk()}
TEXTS = (
    "",
    " right",
    " left and then some",
    "zebra",
    " Grüße, 東京!",
    " the end\nand more",
    "x" * 40,
    " sleep",
)


def make(model: str, **kwargs: Any) -> gymnasium.Env:
    return gymnasium.make(
        "TextGen-v0", **{"task": Dialogue(), "model": model, "max_new_tokens": 20, **kwargs}
    )


def play_tokens(env: gymnasium.Env, text: str) -> tuple[Any, ...]:
    """A turn written token by token, EOS behind it unless it is over before; returns what `step` would."""
    language_model, total = env.unwrapped.language_model, 0.0
    for token in [*language_model.encode(text), language_model.eos_token_id]:
        observation, reward, terminated, truncated, info = env.step(token)
        total += reward
        if "finish_reason" in info:
            return observation, total, terminated, truncated, info
    raise AssertionError("the turn is not over")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("stop", [(), ["\n", "en"]])
def test_a_turn_is_its_tokens(tiny_gpt2: str, task: str, stop: list[str]) -> None:
    kwargs: dict[str, Any] = {"task": TASKS[task], "stop": stop, "context_length": 60}
    env = TurnLevel(make(tiny_gpt2, **kwargs))
    oracle = make(tiny_gpt2, observation="text", **kwargs)
    rng, reasons = np.random.default_rng(0), set()
    for seed in range(25):
        assert data_equivalence(env.reset(seed=seed), oracle.reset(seed=seed))
        over = False
        while not over:
            text = TEXTS[rng.integers(len(TEXTS))]
            ours, theirs = env.step(text), play_tokens(oracle, text)
            assert data_equivalence(ours, theirs)
            assert env.observation_space.contains(ours[0])
            over = ours[2] or ours[3]
            reasons.add((ours[-1]["finish_reason"], ours[3]))
    assert {("eos", False), ("length", False)} <= reasons
    assert (("stop", False) in reasons) == bool(stop)
    if task != "replace":  # some contexts fill up
        assert any(truncated for _, truncated in reasons)


@pytest.mark.parametrize("mode", [{"observation": "map", "actions": "move"}, {"actions": "top_k"}])
def test_the_modes_of_the_environment_do_not_matter(tiny_gpt2: str, mode: dict[str, str]) -> None:
    env, plain = (TurnLevel(make(tiny_gpt2, task=Walk(), **kwargs)) for kwargs in (mode, {}))
    env.reset(seed=1)
    plain.reset(seed=1)
    assert env.step(" stay")[:4] == plain.step(" stay")[:4]
    assert env.step(" sleep")[:4] == plain.step(" sleep")[:4]
    assert env.action_space == plain.action_space


def test_long_texts_are_cut(tiny_gpt2: str) -> None:
    env = TurnLevel(make(tiny_gpt2, max_new_tokens=4))
    env.reset(seed=0)
    *_, info = env.step("qqqqqqqq")
    assert (info["completion"], info["finish_reason"], info["completion_tokens"]) == ("qqqq", "length", 4)


def test_without_eos_a_turn_just_stops(tmp_path: Any) -> None:
    env = TurnLevel(make(save_tiny(tmp_path, "gpt2", eos=False)))
    env.reset(seed=0)
    *_, info = env.step(" hello")
    assert (info["completion"], info["finish_reason"]) == (" hello", "stop")
    assert info["completion_tokens"] == len(env.unwrapped.language_model.encode(" hello"))


def test_a_time_limit_counts_turns(tiny_gpt2: str) -> None:
    env = TurnLevel(make(tiny_gpt2, task=Board(), max_episode_steps=2))
    limited = 0
    for seed in range(20):
        env.reset(seed=seed)
        steps, over = 0, False
        while not over:
            *_, terminated, truncated, _ = env.step(" a b c")
            steps, over = steps + 1, terminated or truncated
        assert steps <= 2
        limited += truncated
    assert limited > 3


def test_wrappers_outside_see_turns(tiny_gpt2: str) -> None:
    env = gymnasium.wrappers.RecordEpisodeStatistics(TurnLevel(make(tiny_gpt2, task=Dialogue(1))))
    env.reset(seed=0)
    *_, info = env.step("eee")
    assert info["episode"]["l"] == 1
    assert info["episode"]["r"] == pytest.approx(0.3)


@pytest.mark.parametrize("action", [3, None, b"text", ["a"], np.array("a"), "\ud800"])
def test_bad_actions_change_nothing(tiny_gpt2: str, action: Any) -> None:
    env = TurnLevel(make(tiny_gpt2))
    env.reset(seed=0)
    before = env.unwrapped.get_state()
    with pytest.raises(InvalidAction, match="action"):
        env.step(action)
    after = env.unwrapped.get_state()
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_a_turn_begun_by_tokens_is_not_a_texts(tiny_gpt2: str) -> None:
    env = make(tiny_gpt2).unwrapped
    env.reset(seed=0)
    env.step(5)
    before = env.get_state()
    with pytest.raises(InvalidAction, match="whole turn, and 1 tokens of this one are written"):
        env.step(Turn("and then"))
    after = env.get_state()
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_other_errors_are_those_of_the_environment(tiny_gpt2: str) -> None:
    bad: Any = lambda prompts, completions, **columns: [float("nan")]  # noqa: E731
    env = TurnLevel(gymnasium.make("TextGen-v0", model=tiny_gpt2, prompts=["The fox"], reward=bad))
    with pytest.raises(ResetNeeded):
        env.step("early")
    env.reset(seed=0)
    with pytest.raises(RewardError, match="'late'"):
        env.step("late")
    with pytest.raises(ValueError, match="unknown reset options"):
        env.reset(options={"colour": 1})


def test_what_writes_no_turns_is_refused(tiny_gpt2: str) -> None:
    for env in (gymnasium.make("TextGen-ToyCopy-v0"), gymnasium.make("CartPole-v1")):
        with pytest.raises(TypeError, match="needs a single text environment"):
            TurnLevel(env)


def test_gymnasium_check_env(tiny_gpt2: str) -> None:
    check_env(TurnLevel(make(tiny_gpt2)), skip_render_check=True)


def test_the_spec_makes_it_again(tiny_gpt2: str) -> None:
    env = TurnLevel(make(tiny_gpt2))
    again = gymnasium.make(env.spec)
    assert isinstance(again, TurnLevel)
    assert again.reset(seed=3)[0] == env.reset(seed=3)[0]


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, lm_envs.turn_level; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
