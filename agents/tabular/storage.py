"""Tabular agents in files: .npz without pickles, written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.vector import VectorEnv

from agents.tabular import behaviour, schedules

if TYPE_CHECKING:
    from agents.tabular.agent import TabularAgent

FORMAT = 1
_PARTS = {
    part.__name__: part
    for part in (
        schedules.Linear,
        schedules.Exponential,
        behaviour.EpsilonGreedy,
        behaviour.Softmax,
        behaviour.Random,
        behaviour.Proposal,
    )
}


def save(agent: TabularAgent, path: Path) -> None:
    """See `TabularAgent.save`."""
    header = {
        "format": FORMAT,
        "agent": type(agent).__name__,
        **describe(agent.env),
        "dense": agent.table.contexts.dense,
        "num_timesteps": agent.num_timesteps,
        "progress_remaining": agent.progress_remaining,
        "settings": {name: _plain(getattr(agent, name)) for name in agent.settings},
    }
    arrays: dict[str, Any] = {"header": np.array(json.dumps(header)), **agent.table.pack()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            np.savez_compressed(file, **arrays)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load(kind: type[Any], path: Path, env: VectorEnv, settings: dict[str, Any]) -> Any:
    """See `TabularAgent.load`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        header = json.loads(arrays.pop("header").item())
    except (KeyError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is not the file of a tabular agent: {error}") from error
    if header["format"] != FORMAT or header["agent"] != kind.__name__:
        raise ValueError(
            f"{path} holds a {header['agent']} in format {header['format']}, "
            f"not a {kind.__name__} in format {FORMAT}"
        )
    for name, here in describe(env).items():
        if header[name] != here:
            raise ValueError(
                f"{path} does not fit the environment: its table is for {name} {header[name]}, "
                f"the environment has {here}"
            )
    stored = {name: _built(value) for name, value in header["settings"].items()}
    agent = kind(env, dense=header["dense"], **(stored | settings))
    agent.table.unpack(arrays)
    agent.num_timesteps = header["num_timesteps"]
    agent.progress_remaining = header["progress_remaining"]
    return agent


def describe(env: VectorEnv) -> dict[str, str]:
    """The spaces in words, which tell whether two tables' contexts and actions mean the same."""
    return {"observations": str(env.single_observation_space), "actions": str(env.single_action_space)}


def _plain(value: Any) -> Any:
    """A setting as JSON: a dataclass becomes its name and its fields."""
    if not dataclasses.is_dataclass(value):
        return value
    if type(value).__name__ not in _PARTS:
        raise TypeError(f"only the behaviours and schedules of this package can be saved, got {value!r:.80}")
    fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return {"part": type(value).__name__, **fields}


def _built(value: Any) -> Any:
    """The inverse of `_plain`."""
    if not isinstance(value, dict):
        return value
    fields = {name: _built(field) for name, field in value.items() if name != "part"}
    return _PARTS[value["part"]](**fields)
