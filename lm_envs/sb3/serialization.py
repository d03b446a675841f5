"""A training run's arguments as JSON, and its state as arrays and JSON: what checkpoints are made of."""

from __future__ import annotations

import inspect
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import Tensor

from lm_envs.sb3.vec_env import GymVecEnv

# Held in a form of their own, decided anew by whoever loads, or ruled out by Discrete actions.
_NOT_ARGUMENTS = {
    "self", "policy", "env", "device", "policy_kwargs", "rollout_buffer_class", "use_sde", "sde_sample_freq",
    "use_rms_prop", "rms_prop_eps", "_init_setup_model",
}  # fmt: skip


def algorithm_arguments(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """The arguments that the algorithm was constructed with, schedules as numbers or dicts."""
    names = set(inspect.signature(type(model).__init__).parameters) - _NOT_ARGUMENTS
    private = {"stats_window_size": "_stats_window_size"}
    values = {name: getattr(model, private.get(name, name)) for name in sorted(names)}
    arguments = {name: _to_json(name, _encode_schedule(name, value)) for name, value in values.items()}
    if isinstance(model, A2C):
        arguments["use_rms_prop"] = False  # if it was True, A2C has put RMSprop into the policy's arguments
    return arguments


def policy_arguments(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """The `policy_kwargs`, the optimizer class by its name."""
    arguments = dict(model.policy_kwargs)
    optimizer = arguments.get("optimizer_class")
    if isinstance(optimizer, type):
        name = optimizer.__name__
        if optimizer is not getattr(torch.optim, name, None):
            raise TypeError(f"optimizer_class must come from torch.optim to be saved, got {optimizer!r}")
        arguments["optimizer_class"] = name
    return {name: _to_json(f"policy_kwargs[{name!r}]", value) for name, value in arguments.items()}


def environment_arguments(env: GymVecEnv) -> dict[str, Any]:
    """What make_vec_env is to be called with, and the names of arguments that JSON cannot hold."""
    if env.arguments is None:
        return {"arguments": {}, "not_saved": ["arguments"]}
    held, not_saved = {}, []
    for name, value in env.arguments.items():
        try:
            held[name] = _to_json(name, value)
        except TypeError:
            not_saved.append(name)
    return {"arguments": held, "not_saved": not_saved}


def _to_json(name: str, value: Any) -> Any:
    """The value if JSON gives it back as it was, but for tuples (lists) and paths (strings)."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_to_json(name, item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _to_json(name, item) for key, item in value.items()}
    raise TypeError(f"{name} must be plain JSON to be saved in a checkpoint, got {value!r}")


def _encode_schedule(name: str, value: Any) -> Any:
    if isinstance(value, FloatSchedule):
        return _encode_schedule(name, value.value_schedule)
    if isinstance(value, ConstantSchedule):
        return value.val
    if isinstance(value, LinearSchedule):
        return {"start": value.start, "end": value.end, "end_fraction": value.end_fraction}
    if callable(value):
        raise TypeError(f"{name} must be a number, Linear- or ConstantSchedule to be saved, got {value!r}")
    return value


def decode_schedule(value: Any) -> Any:
    """An argument as `algorithm_arguments` encoded it, decoded."""
    if isinstance(value, dict) and set(value) == {"start", "end", "end_fraction"}:
        return LinearSchedule(**value)
    return value


def run_state(model: OnPolicyAlgorithm, env: GymVecEnv) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Environment, last observations and random states: tensors, and as JSON what is no tensor."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, internal, next_gauss = random.getstate()
    texts: dict[str, Any] = {
        "random.numpy": [name, position, has_gauss, gauss],
        "random.python": [version, next_gauss],
    }
    tensors = {"random.torch": torch.get_rng_state()}
    if model.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(model.device)
    # The algorithm's own last observation is one step behind where a callback has cut a rollout short.
    observations: Any = env.last_observations
    arrays = {
        "random.numpy": np.asarray(keys),
        "random.python": np.array(internal, np.uint32),
        "episode_starts": env.last_dones,
        **{f"observation.{key}": value for key, value in observations.items()},
        **{f"environment.{key}": value for key, value in env.get_state().items()},
    }
    for key, array in arrays.items():
        if array.dtype.kind == "U":
            texts[key] = array.tolist()
        else:
            tensors[key] = torch.from_numpy(array.copy())
    return tensors, texts


def restore_run_state(
    model: OnPolicyAlgorithm, env: GymVecEnv, tensors: Mapping[str, Tensor], texts: Mapping[str, Any]
) -> None:
    """Undo `run_state`."""
    arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
    arrays |= {key: np.array(text) for key, text in texts.items() if not key.startswith("random.")}

    def below(prefix: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}

    env.set_state(below("environment."))
    env.last_observations = model._last_obs = below("observation.")
    env.last_dones = model._last_episode_starts = arrays["episode_starts"].astype(bool)
    name, position, has_gauss, gauss = texts["random.numpy"]
    np.random.set_state((name, arrays["random.numpy"], position, has_gauss, gauss))  # noqa: NPY002
    version, next_gauss = texts["random.python"]
    random.setstate((version, tuple(arrays["random.python"].tolist()), next_gauss))
    torch.set_rng_state(tensors["random.torch"])
    if "random.cuda" in tensors and model.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], model.device)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Tensors named "parameter number.name", and the parameter groups with all other values."""
    packed = optimizer.state_dict()
    tensors = {}
    for number, values in packed["state"].items():
        for name, value in values.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"only tensors can be saved; the optimizer keeps {name} = {value!r}")
            tensors[f"{number}.{name}"] = value.contiguous()
    return tensors, [_to_json("optimizer_kwargs", group) for group in packed["param_groups"]]


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Undo `pack_optimizer`."""
    for group in groups:
        group |= {name: tuple(value) for name, value in group.items() if name == "betas"}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", maxsplit=1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
