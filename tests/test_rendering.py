"""Pictures and text of episodes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.wrappers import RenderCollection
from tasks import Dialogue

import lm_envs  # noqa: F401
from lm_envs.rendering import HEIGHT, WIDTH
from lm_envs.text_env import TextGenEnv


def make(model: str, mode: str | None, **kwargs: Any) -> TextGenEnv:
    return TextGenEnv(Dialogue(1), model, render_mode=mode, max_new_tokens=6, **kwargs)


def write(env: TextGenEnv, text: str) -> None:
    for token in env.language_model.encode(text):
        env.step(token)


def test_ansi_shows_prompt_completion_and_reward(tiny_gpt2: str) -> None:
    env = make(tiny_gpt2, "ansi")
    env.reset(seed=0, options={"prompt": "The key"})
    assert "The key" in env.render()
    assert "reward" not in env.render()
    write(env, "eee")
    env.step(env.language_model.eos_token_id)
    text = env.render()
    plain = text.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert plain == "The keyeee\ntoken 4 of 6 · reward +0.300 · episode over\n"
    assert text.startswith("The key\x1b[1me")  # the agent's tokens are bold


def test_characters_of_several_tokens_come_out_whole(tiny_gpt2: str) -> None:
    env = make(tiny_gpt2, "ansi")
    env.reset(seed=0, options={"prompt": "a"})
    assert len(env.language_model.encode("é")) == 2
    write(env, "éb")
    assert "\x1b[1mé\x1b[0m" in env.render()
    assert "\ufffd" not in env.render()


def test_human_prints_text_as_it_grows(tiny_gpt2: str, capsys: pytest.CaptureFixture[str]) -> None:
    env = make(tiny_gpt2, "human")
    env.reset(seed=0, options={"prompt": "The key"})
    write(env, "ab")
    assert env.render() is None
    env.step(env.language_model.eos_token_id)
    env.reset(options={"prompt": "fox"})
    assert capsys.readouterr().out == "\nThe keyab\ntoken 3 of 6 · reward +0.000 · episode over\n\nfox"


def test_frames_have_one_size_and_change_with_the_text(tiny_gpt2: str) -> None:
    env = make(tiny_gpt2, "rgb_array")
    env.reset(seed=0)
    frames = [env.render()]
    for token in env.language_model.encode("abcde"):
        env.step(token)
        frames.append(env.render())
    for frame in frames:
        assert frame.shape == (HEIGHT, WIDTH, 3)
        assert frame.dtype == np.uint8
    for before, after in pairwise(frames):
        assert (before != after).any()


def test_no_text_leaves_the_frame(tiny_gpt2: str) -> None:
    """Long words are broken, long texts scroll: the margins stay white."""
    env = make(tiny_gpt2, "rgb_array")
    for prompt in ("w" * 50, "one two\n" * 5, "a" * 40 + " "):
        env.reset(seed=0, options={"prompt": prompt[:50]})
        write(env, "WWWWW")
        frame = env.render()
        assert (frame[:, -19:] == 255).all()
        assert (frame[:, :19] == 255).all()
        assert (frame[:15] == 255).all()


def test_shading_shows_the_models_probabilities(tiny_gpt2: str) -> None:
    """Oracle: the shade of a token's background is linear in its probability under a plain forward pass."""
    import torch

    env = make(tiny_gpt2, "rgb_array")
    env.reset(seed=0, options={"prompt": "The key"})
    write(env, "W")
    unshaded = env.render()
    model = env.language_model.model
    shaded = env.render()
    assert (unshaded != shaded).any()
    prompt, (token,) = env.language_model.encode("The key"), env.language_model.encode("W")
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1, : env.language_model.vocab_size]
    probability = logits.softmax(-1)[token].item()
    expected = np.array([255, 170, 150]) + np.array([-90, 55, 15]) * probability
    colours = shaded.reshape(-1, 3)
    assert (np.abs(colours - expected) <= 1).all(axis=1).any()


def test_render_without_mode_warns(tiny_gpt2: str) -> None:
    env = make(tiny_gpt2, None)
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


def test_there_is_nothing_to_render_before_a_reset(tiny_gpt2: str) -> None:
    vector = gymnasium.make_vec("TextGen-v0", 2, model=tiny_gpt2, render_mode="ansi")
    for env in (make(tiny_gpt2, "rgb_array").unwrapped, vector):
        with pytest.raises(ResetNeeded):
            env.render()


def test_unknown_render_mode_is_refused(tiny_gpt2: str) -> None:
    with pytest.raises(ValueError, match=r"render_mode must be None or one of .*rgb_array.*got 'rgb'"):
        make(tiny_gpt2, "rgb")


def test_vector_environment_renders_every_slot(tiny_gpt2: str) -> None:
    env = gymnasium.make_vec("TextGen-v0", 2, task=Dialogue(1), model=tiny_gpt2, render_mode="rgb_array")
    env.reset(seed=0)
    frames = env.render()
    assert [frame.shape for frame in frames] == [(HEIGHT, WIDTH, 3)] * 2


def test_wrappers_collect_frames(tiny_gpt2: str) -> None:
    """What RecordVideo does, short of writing the file."""
    env: Any = gymnasium.make("TextGen-v0", task=Dialogue(1), model=tiny_gpt2, render_mode="rgb_array")
    env = RenderCollection(env)
    env.reset(seed=0)
    for _ in range(3):
        env.step(3)
    assert [frame.shape for frame in env.render()] == [(HEIGHT, WIDTH, 3)] * 4


class Painted(Dialogue):
    """Draws one pixel, as bright as there are turns left; a picture of the wrong kind if asked to."""

    def __init__(self, dtype: Any = np.uint8) -> None:
        super().__init__(3)
        self.dtype = dtype

    def frame(self, state: Any) -> np.ndarray:
        return np.full((1, 1, 3), state.turns_left, self.dtype)


def test_a_task_draws_its_own_frames(tiny_gpt2: str) -> None:
    env = TextGenEnv(Painted(), tiny_gpt2, render_mode="rgb_array", max_new_tokens=1)
    env.reset(seed=0)
    shown = [int(env.render()[0, 0, 0])]
    over = False
    while not over:
        _, _, over, _, _ = env.step(3)
        shown.append(int(env.render()[0, 0, 0]))
    assert shown == [*range(shown[0], 0, -1), 1]
    vector = gymnasium.make_vec("TextGen-v0", 2, task=Painted(), model=tiny_gpt2, render_mode="rgb_array")
    vector.reset(seed=0)
    assert [frame.shape for frame in vector.render()] == [(1, 1, 3)] * 2


def test_a_bad_frame_is_refused(tiny_gpt2: str) -> None:
    env = TextGenEnv(Painted(np.float32), tiny_gpt2, render_mode="rgb_array")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"task.frame\(\) must be .* uint8, got \(1, 1, 3\) of float32"):
        env.render()
