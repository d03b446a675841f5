"""`python -m agents train | evaluate | generate | list`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import tyro
from rich.console import Console
from rich.table import Table


def list_ids() -> None:
    """List the registered environments."""
    from lm_envs.registration import ENVIRONMENTS

    table = Table("id", "observation", "actions", "what it is")
    for env_id in ENVIRONMENTS:
        env = gymnasium.make(env_id).unwrapped
        description = (env.__doc__ or "").strip().splitlines()[0]
        table.add_row(env_id, str(env.observation_space), str(env.action_space), description)
    Console().print(table)


def main() -> None:
    """Parses the command line and runs one command."""
    from agents.evaluate import Evaluate
    from agents.generate import Generate
    from agents.train import Train

    commands: dict[str, Callable[..., Any]] = {
        "train": Train,
        "evaluate": Evaluate,
        "generate": Generate,
        "list": list_ids,
    }
    command: Callable[[], None] | None = tyro.extras.subcommand_cli_from_dict(
        commands, prog="python -m agents", description=__doc__
    )
    if command is not None:
        command()


if __name__ == "__main__":
    main()
