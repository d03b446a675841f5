"""`python -m benchmarks throughput | toy | regret | episode | tasks | model | docs`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import tyro

from lm_envs.errors import ModelError


def main() -> None:
    """Parses the command line and runs one benchmark."""
    from benchmarks.docs import Docs
    from benchmarks.episode import EpisodePicture
    from benchmarks.model import Model
    from benchmarks.regret import Regret
    from benchmarks.tasks import Tasks
    from benchmarks.throughput import Throughput
    from benchmarks.toy import Toy

    commands: dict[str, Callable[..., Any]] = {
        "throughput": Throughput,
        "toy": Toy,
        "regret": Regret,
        "episode": EpisodePicture,
        "tasks": Tasks,
        "model": Model,
        "docs": Docs,
    }
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="python -m benchmarks")()
    except (ValueError, ModelError, gymnasium.error.Error) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
