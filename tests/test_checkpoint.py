"""Checkpoints: resumed runs equal uninterrupted ones bit for bit, and no accident loses or corrupts one."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import PROMPTS, letters, make_algorithm, make_env
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from tasks import Board, Dialogue

from lm_envs.sb3 import KLCallback, load_checkpoint, make_vec_env, save_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:a minibatch holds"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set"),
]
PLAIN = {"prompts": list(PROMPTS), "max_new_tokens": 6}  # JSON holds it: the reward is the task's own


class SaveAt(BaseCallback):
    """Saves at the boundary of two rollouts, in the middle of `learn()`."""

    def __init__(self, folder: Path, timesteps: int) -> None:
        super().__init__()
        self.folder, self.timesteps = folder, timesteps

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps == self.timesteps:
            save_checkpoint(self.model, self.folder)

    def _on_step(self) -> bool:
        return True


def scramble() -> None:
    """A resumed process begins with random states of its own."""
    torch.manual_seed(1234)
    np.random.seed(4321)  # noqa: NPY002
    random.seed(99)


def assert_same_weights(ours: Any, theirs: Any) -> None:
    for (name, mine), (_, other) in zip(
        ours.policy.named_parameters(), theirs.policy.named_parameters(), strict=True
    ):
        assert torch.equal(mine, other), name


@pytest.mark.parametrize(
    ("kind", "task", "settings"),
    [
        (PPO, Dialogue(), {"learning_rate": LinearSchedule(1e-2, 1e-3, 1.0), "clip_range": 0.3}),
        (PPO, Board(), {"policy": {"lora": {"r": 2}, "freeze_layers": 1}, "n_epochs": 2, "batch_size": 14}),
        (PPO, Dialogue(), {"policy": {"optimizer_class": torch.optim.AdamW, "dtype": "float64"}}),
        (A2C, Board(), {"policy": {"temperature": 0.7}}),
        (A2C, Dialogue(), {"use_rms_prop": False}),
    ],
    ids=["ppo-schedule", "ppo-lora", "ppo-adamw", "a2c-rmsprop", "a2c-adam"],
)
def test_resumed_run_is_bit_equal(
    tiny_gpt2: str, tmp_path: Path, kind: Any, task: Any, settings: dict[str, Any]
) -> None:
    """Episodes are under way at the boundary, the KL coefficient adapts, the schedule has moved."""

    def env() -> Any:
        return make_env(tiny_gpt2, 4, task=task, seed=3)

    def kl() -> KLCallback:
        return KLCallback(0.1, target=2.0)

    whole = make_algorithm(env(), tiny_gpt2, algorithm=kind, n_steps=7, **settings)
    total = 4 * 7 * 4
    whole.learn(total, callback=[kl(), SaveAt(tmp_path, total // 2)])
    scramble()
    resumed = load_checkpoint(tmp_path, env(), device="cpu")
    assert type(resumed) is kind
    assert resumed.num_timesteps == total // 2
    assert (resumed.get_env().get_state()["lengths"] > 0).any()
    resumed.learn(total - resumed.num_timesteps, callback=kl(), reset_num_timesteps=False)
    assert resumed.num_timesteps == whole.num_timesteps
    assert resumed._n_updates == whole._n_updates
    assert resumed.rollout_buffer.kl_coef == whole.rollout_buffer.kl_coef != 0.1
    assert_same_weights(resumed, whole)
    optimizer, expected = resumed.policy.optimizer.state_dict(), whole.policy.optimizer.state_dict()
    assert optimizer["param_groups"] == expected["param_groups"]
    for number, values in expected["state"].items():
        assert all(torch.equal(values[name], optimizer["state"][number][name]) for name in values)
    for name, value in whole.get_env().get_state().items():
        np.testing.assert_array_equal(resumed.get_env().get_state()[name], value)
    mine, other = ([e["r"] for e in run.ep_info_buffer] for run in (resumed, whole))
    assert mine == other


RESUME = """
import sys
from lm_envs.sb3 import KLCallback, load_checkpoint, save_checkpoint
model = load_checkpoint(sys.argv[1], device="cpu")
model.learn(64 - model.num_timesteps, KLCallback(0.1), reset_num_timesteps=False)
save_checkpoint(model, sys.argv[2])
"""


def test_resumes_in_another_process_without_the_callers_help(tiny_gpt2: str, tmp_path: Path) -> None:
    env = make_vec_env("TextGen-v0", 4, seed=1, model=tiny_gpt2, **PLAIN)
    whole = make_algorithm(env, tiny_gpt2)
    whole.learn(64, callback=[KLCallback(0.1), SaveAt(tmp_path / "half", 32)])
    subprocess.run(
        [sys.executable, "-c", RESUME, tmp_path / "half", tmp_path / "end"], check=True, capture_output=True
    )
    assert_same_weights(load_checkpoint(tmp_path / "end", device="cpu"), whole)


@pytest.fixture
def run(tiny_gpt2: str, tmp_path: Path) -> tuple[Any, Path]:
    """A short run, and the folder of its checkpoint."""
    model = make_algorithm(make_vec_env("TextGen-v0", 4, seed=1, model=tiny_gpt2, **PLAIN), tiny_gpt2)
    model.learn(32)
    save_checkpoint(model, tmp_path / "run")
    return model, tmp_path / "run"


def test_nothing_is_pickled(run: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = run
    assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors"}

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("unpickling")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    load_checkpoint(folder, device="cpu")


@pytest.mark.parametrize("moment", ["first file", "last file", "configuration", "replacing it"])
def test_an_interrupted_save_leaves_the_old_checkpoint(
    run: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    model, folder = run
    before = {name: weight.clone() for name, weight in model.policy.state_dict().items()}
    model.learn(32, reset_num_timesteps=False)

    class Killed(BaseException):
        pass

    def die(*args: Any, **kwargs: Any) -> None:
        raise Killed

    from safetensors import torch as safetensors_torch

    original = safetensors_torch.save_file
    calls = []

    def die_at_the_third(tensors: Any, file: Any) -> None:
        calls.append(file)
        if len(calls) == 3:
            Path(file).write_bytes(b"half a fi")
            die()
        original(tensors, file)

    with monkeypatch.context() as patch:
        if moment == "first file":
            patch.setattr(safetensors_torch, "save_file", die)
        elif moment == "last file":
            patch.setattr(safetensors_torch, "save_file", die_at_the_third)
        elif moment == "configuration":
            patch.setattr(json, "dumps", die)
        else:
            patch.setattr(os, "replace", die)
        with pytest.raises(Killed):
            save_checkpoint(model, folder)
    old = load_checkpoint(folder, device="cpu")
    assert old.num_timesteps == 32
    for name, weight in old.policy.state_dict().items():
        assert torch.equal(weight, before[name])
    save_checkpoint(model, folder)
    assert_same_weights(load_checkpoint(folder, device="cpu"), model)
    assert len(list(folder.iterdir())) == 4  # leftovers are gone


def test_other_files_in_the_folder_stay(run: tuple[Any, Path]) -> None:
    model, folder = run
    model.policy.save_pretrained(folder / "model")
    (folder / "notes.txt").write_text("mine")
    save_checkpoint(model, folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("part", ["policy", "optimizer", "state", "checkpoint"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_damaged_files_are_named(run: tuple[Any, Path], part: str, damage: str) -> None:
    _, folder = run
    (file,) = folder.glob(f"{part}*")
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif part == "checkpoint":
        file.write_text('{"format": 1}')
    else:
        content[-1] ^= 1
        file.write_bytes(content)
    with pytest.raises(OSError, match=file.name):
        load_checkpoint(folder, device="cpu")


def test_weights_of_another_shape_are_refused(run: tuple[Any, Path]) -> None:
    _, folder = run
    config = json.loads((folder / "checkpoint.json").read_text())
    config["policy_arguments"]["lora"] = {"r": 2}
    (folder / "checkpoint.json").write_text(json.dumps(config))
    with pytest.raises(OSError, match="policy-"):
        load_checkpoint(folder, device="cpu")


def test_an_environment_that_json_cannot_hold_has_to_be_passed(tiny_gpt2: str, tmp_path: Path) -> None:
    model = make_algorithm(make_env(tiny_gpt2), tiny_gpt2)
    model.learn(32)
    save_checkpoint(model, tmp_path)
    with pytest.raises(ValueError, match="reward"):
        load_checkpoint(tmp_path)
    resumed = load_checkpoint(tmp_path, make_env(tiny_gpt2, reward=letters), device="cpu", verbose=0)
    assert resumed.num_timesteps == 32
    with pytest.raises(ValueError, match="4 slots"):
        load_checkpoint(tmp_path, make_env(tiny_gpt2, 3), device="cpu")


def test_what_cannot_be_saved_is_named(tiny_gpt2: str, tmp_path: Path) -> None:
    env = make_env(tiny_gpt2)
    with pytest.raises(ValueError, match="has not begun"):
        save_checkpoint(make_algorithm(env, tiny_gpt2), tmp_path)

    class SGD(torch.optim.SGD):
        pass

    for settings, named in (
        ({"learning_rate": lambda progress: 1e-3 * progress}, "learning_rate"),
        ({"clip_range": lambda progress: 0.1}, "clip_range"),
        ({"policy": {"optimizer_class": SGD}}, "optimizer_class"),
        ({"rollout_buffer_class": None}, "EpisodeRolloutBuffer"),
    ):
        model = make_algorithm(env, tiny_gpt2, **settings)
        model.learn(1)
        with pytest.raises(TypeError, match=named):
            save_checkpoint(model, tmp_path)
    embedding = make_env(tiny_gpt2, observation="embedding")
    plain = PPO("MlpPolicy", embedding, n_steps=4, batch_size=16, device="cpu")
    plain.learn(1)
    with pytest.raises(TypeError, match="TransformerPolicy"):
        save_checkpoint(plain, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("steps", [1, 5, 9])
def test_a_run_that_was_stopped_in_a_rollout_goes_on_where_the_environment_stands(
    tiny_gpt2: str, tmp_path: Path, steps: int
) -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls < steps

    stopped = make_algorithm(make_env(tiny_gpt2, task=Dialogue()), tiny_gpt2)
    stopped.learn(64, callback=Stop())
    save_checkpoint(stopped, tmp_path)
    resumed = load_checkpoint(tmp_path, make_env(tiny_gpt2, task=Dialogue()), device="cpu")
    assert resumed.num_timesteps == 4 * steps
    contexts = [
        row[mask == 1].tolist()
        for row, mask in zip(resumed._last_obs["input_ids"], resumed._last_obs["attention_mask"], strict=True)
    ]
    actions = np.full(4, 7)
    ours, theirs = resumed.get_env().step(actions), stopped.get_env().step(actions)
    for key, value in theirs[0].items():
        np.testing.assert_array_equal(ours[0][key], value)
    for slot in np.flatnonzero(~ours[2]):  # the next context is the last one and the action
        following = ours[0]["input_ids"][slot]
        assert following[: len(contexts[slot]) + 1].tolist() == [*contexts[slot], 7]
    resumed = load_checkpoint(tmp_path, make_env(tiny_gpt2, task=Dialogue()), device="cpu")
    resumed.learn(32, reset_num_timesteps=False)
