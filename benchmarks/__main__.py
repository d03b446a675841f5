"""`python -m benchmarks throughput`."""

from __future__ import annotations

import tyro


def main() -> None:
    """Parses the command line and runs one benchmark."""
    from benchmarks.throughput import Throughput

    tyro.extras.subcommand_cli_from_dict({"throughput": Throughput}, prog="python -m benchmarks")()


if __name__ == "__main__":
    main()
