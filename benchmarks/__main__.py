"""`python -m benchmarks throughput | toy | regret | episode | tasks | docs`."""

from __future__ import annotations

import tyro


def main() -> None:
    """Parses the command line and runs one benchmark."""
    from benchmarks.episode import EpisodePicture
    from benchmarks.regret import Regret
    from benchmarks.tasks import Tasks
    from benchmarks.throughput import Throughput
    from benchmarks.toy import Toy

    commands = {
        "throughput": Throughput,
        "toy": Toy,
        "regret": Regret,
        "episode": EpisodePicture,
        "tasks": Tasks,
    }
    tyro.extras.subcommand_cli_from_dict(commands, prog="python -m benchmarks")()


if __name__ == "__main__":
    main()
