"""What the commands share: environment arguments given as JSON, ranges of options, and folders of runs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium

from lm_envs.rewards.base import whole_number


@contextmanager
def mistakes_as_messages() -> Iterator[None]:
    """A user's mistake ends a command with a message and exit code 2, not with a traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError, gymnasium.error.Error) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("interrupted")


def option(name: str) -> str:
    """A setting's name on the command line."""
    return "--" + name.replace("_", "-")


def parse_env_kwargs(text: str, name: str = "--env-kwargs") -> dict[str, Any]:
    """A JSON object as environment arguments; ValueError naming the option if it is not one."""
    try:
        kwargs = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{name} must be a JSON object such as '{{\"max_new_tokens\": 32}}', got {text!r}: {error}"
        ) from error
    if not isinstance(kwargs, dict):
        raise ValueError(f"{name} must be a JSON object, got {text!r}")
    return kwargs


def check_counts(minimum: int = 1, /, **counts: int | None) -> None:
    """ValueError naming the option unless each number is at least `minimum`, or None."""
    for name, count in counts.items():
        if count is not None:
            whole_number(option(name), count, minimum)


def check_positive(**numbers: float | None) -> None:
    """ValueError naming the option unless each number is finite and above 0, or None."""
    for name, number in numbers.items():
        if number is not None and not 0 < number < math.inf:
            raise ValueError(f"{option(name)} must be a finite number > 0, got {number!r}")


def check_share(**numbers: float | None) -> None:
    """ValueError naming the option unless each number lies in 0..1, or is None."""
    for name, number in numbers.items():
        if number is not None and not 0 <= number <= 1:
            raise ValueError(f"{option(name)} must be in 0..1, got {number!r}")


def check_file(path: Path) -> None:
    """Makes the folder of a file that is to be written; OSError or ValueError where it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")


def check_folder(
    folder: Path, overwrite: bool, marker: str, instead: str = "choose another folder with --out"
) -> None:
    """ValueError unless a run may be written to `folder`.

    Args:
        folder: may exist or not.
        overwrite: whether a run in it may be replaced.
        marker: a file that every run has; a folder with other things in it is never replaced.
        instead: what else a person can do who does not want to replace it.
    """
    if file := next((parent for parent in folder.parents if parent.is_file()), None):
        raise ValueError(f"{folder} cannot be made: {file} is a file")
    if not folder.exists():
        return
    if not overwrite:
        raise ValueError(f"{folder} exists: replace it with --overwrite, or {instead}")
    if not (folder / marker).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds no {marker}, so it is no such run: --overwrite does not replace it")
