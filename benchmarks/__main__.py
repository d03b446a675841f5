"""`python -m benchmarks throughput | toy | regret | episode | tasks | model | docs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tyro

from agents.options import mistakes_as_messages


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
    with mistakes_as_messages():
        tyro.extras.subcommand_cli_from_dict(commands, prog="python -m benchmarks")()


if __name__ == "__main__":
    main()
