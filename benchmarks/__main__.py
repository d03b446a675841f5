"""`python -m benchmarks throughput | toy | episode`."""

from __future__ import annotations

import tyro


def main() -> None:
    """Parses the command line and runs one benchmark."""
    from benchmarks.episode import EpisodePicture
    from benchmarks.throughput import Throughput
    from benchmarks.toy import Toy

    tyro.extras.subcommand_cli_from_dict(
        {"throughput": Throughput, "toy": Toy, "episode": EpisodePicture}, prog="python -m benchmarks"
    )()


if __name__ == "__main__":
    main()
