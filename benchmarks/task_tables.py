"""The tables of `python -m benchmarks tasks`, from the results of its cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from rich.table import Table

from agents import report
from agents.metrics import Interval, nested_interval
from benchmarks.players import TEXT_IDS, action_mode, observation_mode

LEARNERS = ("random", "sampled", "greedy", "ppo")
COLUMNS = ("random policy", "bundled model, sampled", "bundled model, greedy", "PPO", "PPO - sampled, paired")
MIN_SEEDS = 3  # a score of fewer is marked
GAIN = "gain"
SCRIPT = "script: "  # before the name of a scripted player
Cell = tuple[str, str, int]  # id, player, seed


@dataclass(frozen=True)
class Score(Interval):
    """A player's mean return with its interval, over so many seeds."""

    seeds: int

    def __str__(self) -> str:
        return report.cell(Interval(self.mean, self.low, self.high)) + "*" * (self.seeds < MIN_SEEDS)


def collect(results: Mapping[Cell, Mapping[str, Any]]) -> dict[str, dict[str, Score]]:
    """id -> player -> score over all seeds that there are; ids in the order of their registration.

    `GAIN` stands for a further player: what PPO earns more than the bundled model, instance by instance.
    """
    returns: dict[tuple[str, str], list[list[float]]] = {}
    for (env_id, player, seed), row in sorted(results.items(), key=lambda item: item[0][2]):
        returns.setdefault((env_id, player), []).append(row["returns"])
        other = results.get((env_id, "sampled", seed))
        if player == "ppo" and other:
            difference = np.subtract(row["returns"], other["returns"]).tolist()
            returns.setdefault((env_id, GAIN), []).append(difference)
    scores: dict[str, dict[str, Score]] = {env_id: {} for env_id in TEXT_IDS}
    for (env_id, player), groups in returns.items():
        scores[env_id][player] = Score(**vars(nested_interval(groups)), seeds=len(groups))
    return {env_id: row for env_id, row in scores.items() if row}


def tricks(scores: Mapping[str, Score]) -> dict[str, Score]:
    """The scripted players other than the best possible."""
    return {
        name.removeprefix(SCRIPT): score
        for name, score in scores.items()
        if name.startswith(SCRIPT) and name != SCRIPT + "best"
    }


def score_table(
    scores: Mapping[str, Mapping[str, Score]], results: Mapping[Cell, Mapping[str, Any]]
) -> Table:
    """One row an id."""
    columns = ("id", "observation", "actions", "longest episode", *COLUMNS, "best trick", "best possible")
    table = Table(*columns, title="Scores", show_lines=True)
    for env_id, row in scores.items():
        env = gymnasium.make(env_id)
        mode = action_mode(env_id)
        # where an action is a choice, what writes tokens counts otherwise
        played = [(key[1], each["longest"]) for key, each in results.items() if key[0] == env_id]
        longest = [length for player, length in played if mode == "token" or player == "random"]
        best_trick = max(tricks(row).items(), key=lambda item: item[1].mean, default=None)
        table.add_row(
            env_id,
            "tokens" if mode == "token" else observation_mode(env_id),
            f"{mode}, {env.action_space.n}",  # type: ignore[attr-defined]
            f"{max(longest, default='-')} {'tokens' if mode == 'token' else 'choices'}",
            *(str(row.get(player, "-")) for player in (*LEARNERS, GAIN)),
            "-" if best_trick is None else f"{best_trick[1]} ({best_trick[0]})",
            str(row.get(SCRIPT + "best", "-")),
        )
    return table


def trick_table(scores: Mapping[str, Mapping[str, Score]]) -> Table:
    """All scripted players; their share of what the best one earns more than an empty completion."""
    table = Table("id", "player", "score", "share of the best", title="Scripted players", show_lines=True)
    for env_id, row in scores.items():
        best, empty = row.get(SCRIPT + "best"), row.get(SCRIPT + "empty")
        for name, score in {**({"best": best} if best else {}), **tricks(row)}.items():
            share = "-"
            if best and empty and best.mean > empty.mean:
                share = f"{(score.mean - empty.mean) / (best.mean - empty.mean):.0%}"
            table.add_row(env_id, name, str(score), share)
    return table


def markdown(table: Table) -> str:
    """A rich table as a markdown table."""
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    header, *rows = ["| " + " | ".join(cells) + " |" for cells in zip(*columns, strict=True)]
    return "\n".join([header, "|" + "---|" * len(columns), *rows])
