"""`python -m agents train | tabular | evaluate | generate | list`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import tyro
from rich.table import Table

from agents.options import mistakes_as_messages


def list_ids() -> None:
    """List the registered environments."""
    from agents.report import console
    from lm_envs.registration import ENVIRONMENTS

    table = Table("id", "observation", "actions", "what it is")
    for env_id in ENVIRONMENTS:
        try:
            env: Any = gymnasium.make(env_id).unwrapped
        except ImportError as error:  # an extra that is not installed
            table.add_row(env_id, "", "", str(error))
            continue
        described = env.task if "task" in gymnasium.spec(env_id).kwargs else env
        description = (described.__doc__ or "").strip().splitlines()[0]
        space = env.observation_space
        keys = ", ".join(space) if isinstance(space, gymnasium.spaces.Dict) else str(space)
        table.add_row(env_id, keys, str(env.action_space), description)
    console().print(table)


def main() -> None:
    """Parses the command line and runs one command; mistakes in it end with a message and exit code 2."""
    from agents.evaluate import Evaluate
    from agents.generate import Generate
    from agents.tabular.run import Tabular
    from agents.train import Train

    commands: dict[str, Callable[..., Any]] = {
        "train": Train,
        "tabular": Tabular,
        "evaluate": Evaluate,
        "generate": Generate,
        "list": list_ids,
    }
    with mistakes_as_messages():
        command: Callable[[], None] | None = tyro.extras.subcommand_cli_from_dict(
            commands, prog="python -m agents", description=__doc__
        )
        if command is not None:
            command()


if __name__ == "__main__":
    main()
