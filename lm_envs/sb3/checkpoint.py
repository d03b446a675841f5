"""Checkpoints of a run: JSON and safetensors, never pickle; replaced in one step; resumed bit for bit.

To go on: `model = load_checkpoint(folder)`, then `model.learn(total - model.num_timesteps, callback,
reset_num_timesteps=False)`, where `total` is the whole run's number of timesteps: SB3 adds `num_timesteps` to
it, so that learning-rate and clip schedules see the same progress as in a run that was never stopped.

Resuming is exact from a checkpoint taken between two rollouts: after `learn()` has returned by itself, or in
a callback's `_on_rollout_start`. From one taken in the middle of a rollout (a callback has stopped `learn()`,
say) training goes on with a new rollout where the environment stands; what the cut one had collected is
dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

import lm_envs
from lm_envs.errors import ModelError
from lm_envs.sb3.buffer import EpisodeRolloutBuffer
from lm_envs.sb3.policy import TransformerPolicy
from lm_envs.sb3.serialization import (
    algorithm_arguments,
    decode_schedule,
    environment_arguments,
    pack_optimizer,
    policy_arguments,
    restore_run_state,
    run_state,
    unpack_optimizer,
)
from lm_envs.sb3.vec_env import GymVecEnv, make_vec_env

CONFIG = "checkpoint.json"
FORMAT = 1
KEYS = {
    "algorithm", "arguments", "policy_arguments", "environment", "num_timesteps", "num_updates", "kl_coef",
    "recent_episodes", "optimizer_groups", "texts", "files",
}  # fmt: skip
ALGORITHMS: dict[str, type[OnPolicyAlgorithm]] = {"PPO": PPO, "A2C": A2C}


def save_checkpoint(model: OnPolicyAlgorithm, folder: str | Path) -> None:
    """Write everything that the run goes on from.

    The files get new names each time, and `checkpoint.json`, which names them with their SHA-256, is replaced
    last and in one step: whenever the process dies, the folder holds the old checkpoint or the new one. Files
    of older checkpoints are then removed.

    Args:
        model: `PPO` or `A2C` with a `TransformerPolicy`, an `EpisodeRolloutBuffer` and an environment from
            `make_vec_env`.
        folder: made if it does not exist.

    Raises:
        TypeError: the algorithm has another policy, buffer or environment, or an argument that JSON cannot
            hold (learning_rate and clip_range may be numbers, `LinearSchedule` or `ConstantSchedule`).
        ValueError: `learn()` has not begun.
    """
    env = _check_supported(model)
    state, texts = run_state(model, env)
    optimizer, optimizer_groups = pack_optimizer(model.policy.optimizer)
    buffer: Any = model.rollout_buffer
    files: dict[str, dict[str, str]] = {}
    config = {
        "format": FORMAT,
        "lm_envs": lm_envs.__version__,
        "algorithm": type(model).__name__,
        "arguments": algorithm_arguments(model),
        "policy_arguments": policy_arguments(model),
        "environment": environment_arguments(env),
        "num_timesteps": model.num_timesteps,
        "num_updates": model._n_updates,
        "kl_coef": buffer.kl_coef,
        "recent_episodes": list(model.ep_info_buffer or []),
        "optimizer_groups": optimizer_groups,
        "texts": texts,
        "files": files,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    suffix = uuid.uuid4().hex[:8]
    for part, tensors in (("policy", _trained(model.policy)), ("optimizer", optimizer), ("state", state)):
        file = folder / f"{part}-{suffix}.safetensors"
        safetensors.torch.save_file(tensors, file)
        _flush(file)
        files[part] = {"name": file.name, "sha256": _sha256(file)}
    new = folder / f"{CONFIG}.{suffix}"
    new.write_text(json.dumps(config, indent=1), encoding="utf-8")
    _flush(new)
    os.replace(new, folder / CONFIG)
    _remove_other_files(folder, {entry["name"] for entry in files.values()})


def load_checkpoint(
    folder: str | Path, env: GymVecEnv | None = None, *, device: torch.device | str = "auto", **changes: Any
) -> OnPolicyAlgorithm:
    """Make the algorithm, policy, environment and random states of a checkpoint again.

    Args:
        folder: what `save_checkpoint` wrote.
        env: an environment made like the run's; needed only where the checkpoint could not describe it (a
            reward function of your own, say). None: made from the checkpoint.
        device: of the policy.
        changes: constructor arguments to change, such as `tensorboard_log` or `verbose`.

    Returns:
        The algorithm, ready for `learn(..., reset_num_timesteps=False)`. Python's, numpy's and torch's global
        random states are set to the run's.

    Raises:
        ModelError: a file is missing or damaged; names it.
        ValueError: the checkpoint does not describe its environment and `env` is None, or `env` has another
            shape.
    """
    folder = Path(folder)
    config = _read_config(folder)
    files = {part: _check_file(folder, part, config) for part in ("policy", "optimizer", "state")}
    if env is None:
        env = _make_environment(config, folder)
    algorithm = ALGORITHMS[config["algorithm"]]
    arguments = {name: decode_schedule(value) for name, value in config["arguments"].items()}
    model = algorithm(
        TransformerPolicy,
        env,
        policy_kwargs=config["policy_arguments"],
        rollout_buffer_class=EpisodeRolloutBuffer,
        device=device,
        **{**arguments, **changes},
    )
    weights = safetensors.torch.load_file(files["policy"])
    if _shapes(weights) != _shapes(_trained(model.policy)):
        raise ModelError(f"{files['policy']}: its weights are not those that the policy trains")
    model.policy.load_state_dict(weights, strict=False)
    unpack_optimizer(
        model.policy.optimizer, safetensors.torch.load_file(files["optimizer"]), config["optimizer_groups"]
    )
    model.num_timesteps = config["num_timesteps"]
    model._n_updates = config["num_updates"]
    model.ep_info_buffer = deque(config["recent_episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    model.rollout_buffer.kl_coef = config["kl_coef"]  # type: ignore[attr-defined]
    restore_run_state(model, env, safetensors.torch.load_file(files["state"]), config["texts"])
    return model


def _trained(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that training changes; the others come with the base model."""
    return {name: p.detach().contiguous() for name, p in policy.named_parameters() if p.requires_grad}


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _check_supported(model: OnPolicyAlgorithm) -> GymVecEnv:
    if ALGORITHMS.get(type(model).__name__) is not type(model):
        raise TypeError(f"checkpoints are of {' or '.join(ALGORITHMS)}, got {type(model).__name__}")
    if type(model.policy) is not TransformerPolicy or type(model.rollout_buffer) is not EpisodeRolloutBuffer:
        raise TypeError(
            "checkpoints need a TransformerPolicy and an EpisodeRolloutBuffer, got "
            f"{type(model.policy).__name__} and {type(model.rollout_buffer).__name__}"
        )
    env = model.get_env()
    if not isinstance(env, GymVecEnv):
        raise TypeError(f"checkpoints need an environment from make_vec_env, got {type(env).__name__}")
    if env.last_observations is None:
        raise ValueError("nothing to save yet: learn() has not begun")
    return env


def _make_environment(config: Mapping[str, Any], folder: Path) -> GymVecEnv:
    environment = config["environment"]
    if environment["not_saved"]:
        raise ValueError(
            f"{folder / CONFIG} could not hold the environment's {', '.join(environment['not_saved'])}: pass "
            f"env=make_vec_env(...) as the run did; its other arguments were {environment['arguments']}"
        )
    return make_vec_env(**environment["arguments"])


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{file}: no such file; {folder} holds no checkpoint") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: damaged: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ModelError(f"{file}: not a checkpoint of format {FORMAT}")
    missing = KEYS - config.keys()
    if missing:
        raise ModelError(f"{file}: damaged: {', '.join(sorted(missing))} missing")
    return config


def _check_file(folder: Path, part: str, config: Mapping[str, Any]) -> Path:
    entry = config["files"][part]
    file = folder / entry["name"]
    if not file.is_file():
        raise ModelError(f"{file}: no such file, but {folder / CONFIG} names it")
    if _sha256(file) != entry["sha256"]:
        raise ModelError(f"{file}: damaged: its SHA-256 is not the one in {folder / CONFIG}")
    return file


def _remove_other_files(folder: Path, keep: set[str]) -> None:
    """Remove what older and interrupted saves left."""
    patterns = ("policy-*.safetensors", "optimizer-*.safetensors", "state-*.safetensors", f"{CONFIG}.*")
    for pattern in patterns:
        for file in folder.glob(pattern):
            if file.name not in keep:
                file.unlink(missing_ok=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(file: Path) -> None:
    """Make sure the file's bytes are on disk before a later step relies on them."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
