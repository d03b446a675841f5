"""`TextGenEnv`: observations, actions, and how turns and episodes end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded

from lm_envs.spaces import UnicodeText
from lm_envs.tasks import Append, Feedback
from lm_envs.text_env import TextGenEnv


def length_reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def make(model: str, prompts: Any = ("The key",), **kwargs: Any) -> TextGenEnv:
    """TextGen-v0's task on a tiny model; the reward is the number of characters."""
    defaults = {"reward": length_reward, "max_new_tokens": 6}
    return TextGenEnv(model=model, prompts=prompts, **{**defaults, **kwargs})


def write(env: TextGenEnv, text: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
    for token in env.language_model.encode(text):
        result = env.step(token)
    return result


# Observations and actions


def test_token_observation_is_prompt_and_actions(tiny_gpt2: str) -> None:
    env = make(tiny_gpt2)
    prompt = env.language_model.encode("The key")
    observation, info = env.reset(seed=0)
    assert info == {}
    observation = env.step(7)[0]
    observation = env.step(np.int32(9))[0]
    observation = env.step(np.array(11))[0]
    used, length = len(prompt) + 3, env.context_length
    pad = [env.language_model.pad_token_id] * (length - used)
    assert observation["input_ids"].tolist() == [*prompt, 7, 9, 11, *pad]
    assert observation["attention_mask"].tolist() == [1] * used + [0] * len(pad)
    assert observation["completion_mask"].tolist() == [0] * len(prompt) + [1] * 3 + [0] * len(pad)
    assert env.action_space == spaces.Discrete(env.language_model.vocab_size)


def test_tokens_need_no_weights(tiny_gpt2: str) -> None:
    env = make(tiny_gpt2)
    env.reset(seed=0)
    assert write(env, "abcdef")[2]
    assert "model" not in vars(env.language_model)


def forward(env: TextGenEnv, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Last hidden state (H,) and next-token logits (V,) of a plain forward pass."""
    model = env.language_model.model
    with torch.no_grad():
        hidden = model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
        logits = model.lm_head(hidden)[: env.language_model.vocab_size]
    return hidden.numpy(), logits.numpy()


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
def test_embedding_and_candidates_are_the_models(tiny_models: dict[str, str], architecture: str) -> None:
    env = make(tiny_models[architecture], observation="embedding", actions="top_k", top_k=5)
    ids = env.language_model.encode_prompt("The key")
    observation, info = env.reset(seed=0)
    assert env.action_space == spaces.Discrete(5)
    for step, action in enumerate([4, 0, 2, 1]):
        hidden, logits = forward(env, ids)
        np.testing.assert_allclose(observation[:-1], hidden, atol=1e-5)
        assert observation[-1] == np.float32((6 - step) / 6)
        assert info["candidates"].tolist() == np.argsort(-logits)[:5].tolist()
        ids.append(int(info["candidates"][action]))
        observation, _, terminated, _, info = env.step(action)
        if terminated:
            break


def test_changing_the_candidates_does_not_change_the_actions(tiny_gpt2: str) -> None:
    env = make(tiny_gpt2, actions="top_k", top_k=3)
    observation, info = env.reset(seed=0)
    meant = info["candidates"][1]
    info["candidates"][:] = 0
    end = observation["attention_mask"].sum()
    assert env.step(1)[0]["input_ids"][end] == meant


def test_text_observation_is_the_decoded_context(tiny_gpt2: str) -> None:
    env = make(tiny_gpt2, observation="text")
    assert env.reset(seed=0)[0] == "The key"
    assert write(env, " is")[0] == "The key is"
    eos = env.language_model.eos_token_id
    assert env.step(eos)[0] == "The key is"
    assert env.observation_space.contains("The key is")


def test_unicode_text_space() -> None:
    space = UnicodeText(100, seed=1)
    samples = [space.sample() for _ in range(50)]
    assert all(sample in space for sample in samples)
    assert any(not sample.isascii() for sample in samples)
    assert max(map(len, samples)) > 40
    again = UnicodeText(100, seed=1)
    assert samples == [again.sample() for _ in range(50)]
    assert "Grüße, 東京 🙂\n" in space
    assert "x" * 101 not in space
    assert 3 not in space
    assert space == UnicodeText(100) != UnicodeText(99)
    assert repr(space) == "UnicodeText(100)"
    assert space.from_jsonable(json.loads(json.dumps(space.to_jsonable(samples)))) == samples
    with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
        UnicodeText(0)


BAD_INTEGERS = [-1, 10**6, 2**70, True, np.True_]
BAD_ACTIONS = [*BAD_INTEGERS, 1.0, float("nan"), np.float32(2), None, "3", [3], np.array([3])]


@pytest.mark.parametrize("action", BAD_ACTIONS, ids=repr)
def test_bad_actions_change_nothing(tiny_gpt2: str, action: Any) -> None:
    env = make(tiny_gpt2)
    env.reset(seed=0)
    env.step(5)
    before = env.get_state()
    last = env.language_model.vocab_size - 1
    with pytest.raises(InvalidAction, match=rf"action must be an integer in 0\.\.{last}, got "):
        env.step(action)
    assert_equal_states(env.get_state(), before)
    prompt = env.language_model.encode("The key")
    assert env.step(6)[0]["input_ids"][: len(prompt) + 2].tolist() == [*prompt, 5, 6]


def assert_equal_states(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert value.dtype == b[key].dtype
        np.testing.assert_array_equal(value, b[key])


def test_step_needs_a_running_episode(tiny_gpt2: str) -> None:
    env = make(tiny_gpt2)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(0)
    env.reset(seed=0)
    env.step(env.language_model.eos_token_id)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(0)


# Turns and episodes


def test_eos_ends_the_turn(tiny_gpt2: str) -> None:
    env = make(tiny_gpt2)
    env.reset(seed=0)
    write(env, "ab")
    _, reward, terminated, truncated, info = env.step(env.language_model.eos_token_id)
    assert (reward, terminated, truncated) == (2.0, True, False)
    assert info == {
        "prompt": "The key",
        "completion": "ab",
        "finish_reason": "eos",
        "prompt_tokens": len(env.language_model.encode("The key")),
        "completion_tokens": 3,
        "turns": 1,
        "reward_parts": {"length_reward": 2.0},
    }


def test_max_new_tokens_ends_the_turn(tiny_gpt2: str) -> None:
    env = make(tiny_gpt2)
    env.reset(seed=0)
    for _ in range(5):
        assert env.step(env.language_model.encode("W")[0])[1:] == (0.0, False, False, {})
    _, reward, terminated, _, info = env.step(env.language_model.encode("W")[0])
    assert (reward, terminated, info["finish_reason"], info["completion"]) == (6.0, True, "length", "WWWWWW")


@pytest.mark.parametrize(
    ("stop", "text", "completion"),
    [
        ("ny", "many", "ma"),
        (["q", "xyx"], "xxyx", "x"),
        ("東", "a東", "a"),
        ("\n", "W\n", "W"),
        (["ny", "any"], "many", "m"),
    ],
)
def test_a_stop_string_ends_the_turn(tiny_gpt2: str, stop: Any, text: str, completion: str) -> None:
    env = make(tiny_gpt2, stop=stop, max_new_tokens=10)
    env.reset(seed=0)
    for character in text[:-1]:
        for token in env.language_model.encode(character):
            assert not env.step(token)[2]
    _, reward, terminated, _, info = write(env, text[-1])
    assert terminated
    assert (info["finish_reason"], info["completion"], reward) == ("stop", completion, float(len(completion)))


def test_special_tokens_do_not_hide_a_stop_string(tiny_gpt2: str) -> None:
    env = make(tiny_gpt2, stop="abc", max_new_tokens=30)
    env.reset(seed=0)
    write(env, "ab")
    for _ in range(20):
        assert not env.step(env.language_model.bos_token_id)[2]
    assert write(env, "c")[4]["finish_reason"] == "stop"


@dataclass(frozen=True)
class EndlessState:
    prompt: str = "The key"


class Endless:
    """Answers every turn with the same words and never ends."""

    def start(self, rng: np.random.Generator, options: Any) -> EndlessState:
        return EndlessState()

    def respond(self, states: Any, completions: Any, rngs: Any) -> list[Feedback]:
        return [Feedback(0.5, False, context=Append(" fox by"))] * len(states)


def make_endless(model: str, max_new_tokens: int, room: int, **kwargs: Any) -> tuple[TextGenEnv, int]:
    """An environment with room for so many tokens behind prompt and first reply; the size of both."""
    env = TextGenEnv(Endless(), model)
    size = sum(len(env.language_model.encode(text)) for text in ("The key", " fox by"))
    length = size + 1 + room  # a first turn of EOS alone
    env = TextGenEnv(Endless(), model, max_new_tokens=max_new_tokens, context_length=length, **kwargs)
    return env, size


def test_full_context_window_truncates_without_reward(tiny_gpt2: str) -> None:
    env, size = make_endless(tiny_gpt2, max_new_tokens=6, room=3)
    env.reset(seed=0)
    env.step(env.language_model.eos_token_id)
    for written in (1, 2, 3):
        observation, reward, terminated, truncated, info = write(env, "e")
        assert (reward, terminated, truncated) == (0.0, False, written == 3)
        assert observation["attention_mask"].sum() == size + 1 + written
    assert info == {
        "prompt": "The key",
        "completion": "eee",
        "finish_reason": "length",
        "prompt_tokens": size + 1,
        "completion_tokens": 3,
        "turns": 2,
    }
    with pytest.raises(ResetNeeded):
        env.step(0)


def test_budget_left_ends_with_the_context_window(tiny_gpt2: str) -> None:
    env, _ = make_endless(tiny_gpt2, max_new_tokens=6, room=3, observation="embedding")
    assert env.reset(seed=0)[0][-1] == 1
    observation = env.step(env.language_model.eos_token_id)[0]
    for left in (3, 2, 1):
        assert observation[-1] == np.float32(left / 6)
        observation = write(env, "e")[0]
    assert observation[-1] == 0


def test_a_turn_that_ends_on_the_last_position_is_answered(tiny_gpt2: str) -> None:
    env, _ = make_endless(tiny_gpt2, max_new_tokens=6, room=3)
    env.reset(seed=0)
    env.step(env.language_model.eos_token_id)
    write(env, "ee")
    _, reward, terminated, truncated, info = env.step(env.language_model.eos_token_id)
    # Rewarded; the next reply does not fit.
    assert (reward, terminated, truncated, info["finish_reason"]) == (0.5, False, True, "eos")


def test_reply_without_room_truncates_with_the_turns_reward(tiny_gpt2: str) -> None:
    env, size = make_endless(tiny_gpt2, max_new_tokens=3, room=0)
    observation, _ = env.reset(seed=0)
    prompt_tokens = observation["attention_mask"].sum()
    observation, reward, terminated, truncated, info = env.step(env.language_model.eos_token_id)
    assert (reward, terminated, truncated, info["finish_reason"]) == (0.5, False, True, "eos")
    assert observation["attention_mask"].sum() == prompt_tokens + 1  # without the reply
    one_more, _ = make_endless(tiny_gpt2, max_new_tokens=3, room=1)
    one_more.reset(seed=0)
    observation, _, _, truncated, _ = one_more.step(env.language_model.eos_token_id)
    assert not truncated
    assert observation["attention_mask"].sum() == size + 1
