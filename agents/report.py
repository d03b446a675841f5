"""What a run shows a person: before and after in numbers, samples side by side, the learning curve."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.metrics import Auditor, Interval, mean_interval, text_metrics, words
from agents.play import Episode


def summarize(episodes: Sequence[Episode], auditor: Auditor | None = None) -> dict[str, Any]:
    """Means with 95% intervals of reward, its parts and KL, and the text metrics, as plain JSON values.

    Args:
        episodes: of one model.
        auditor: judges the language; None: no perplexity.
    """
    names = sorted({name for episode in episodes for name in episode.reward_parts})
    columns = {"reward": [e.reward for e in episodes]}
    columns |= {name: [e.reward_parts.get(name, 0.0) for e in episodes] for name in names}
    columns |= {"kl": [e.kl for e in episodes], "tokens": [float(e.tokens) for e in episodes]}
    summary: dict[str, Any] = {name: vars(mean_interval(values)) for name, values in columns.items()}
    completions = [e.completion for e in episodes]
    summary |= text_metrics(completions)
    if auditor is not None:
        summary["auditor_perplexity"] = auditor.perplexity([e.prompt for e in episodes], completions)
    return summary


def paired_differences(before: Sequence[Episode], after: Sequence[Episode]) -> dict[str, dict[str, float]]:
    """Mean and 95% interval of after - before on the same prompts, of the reward and each of its parts."""
    pairs = list(zip(before, after, strict=True))
    names = sorted(set.intersection(*(set(e.reward_parts) for pair in pairs for e in pair)))
    differences = {"reward": [b.reward - a.reward for a, b in pairs]}
    differences |= {name: [b.reward_parts[name] - a.reward_parts[name] for a, b in pairs] for name in names}
    return {name: vars(mean_interval(values)) for name, values in differences.items()}


def summary_table(title: str, columns: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row per measure, one column per summary; intervals are printed as `mean [low, high]`."""
    table = Table(title=title)
    table.add_column("measure", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    for measure in next(iter(columns.values())):
        table.add_row(measure, *(cell(summary.get(measure)) for summary in columns.values()))
    return table


def cell(value: Any) -> str:
    """A number, or an interval as `mean [low, high]`; "-" for None."""
    if isinstance(value, Interval):
        value = vars(value)
    if isinstance(value, Mapping):
        return f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
    return "-" if value is None else f"{value:.3f}"


def sample_table(before: Sequence[Episode], after: Sequence[Episode], count: int = 5) -> Table:
    """The first `count` prompts with both completions, or conversations, side by side; equal ones once."""
    played = {"before": before, "after": after} if after is not before else {"completion": before}
    title = "The same held-out prompts, before and after" if len(played) > 1 else "Held-out prompts"
    table = Table(title=title, show_lines=True)
    for name in ("prompt", *played):
        table.add_column(name, ratio=1, overflow="fold")
    for row in list(zip(*played.values(), strict=True))[:count]:
        table.add_row(Text(row[0].prompt), *map(transcript, row))
    return table


def transcript(episode: Episode, max_turns: int = 8) -> Text:
    """What came after the prompt, the agent's words bold; of a long episode its first and last turns."""
    text = Text()
    half = max_turns // 2
    for number, (read, written) in enumerate(episode.turns):
        if len(episode.turns) > max_turns and half <= number < len(episode.turns) - half:
            if number == half:
                text.append(f"[... {len(episode.turns) - 2 * half} turns ...]\n", "italic")
            continue
        if number:
            text.append(read.strip() + " ")
        text.append(written.strip() + "\n", "bold")
    return text.append(f"reward {episode.reward:+.2f}")


def has_prose(episodes: Sequence[Episode]) -> bool:
    """Whether half of the turns have at least 4 words: only then do n-gram metrics say anything."""
    lengths = [len(words(written)) for episode in episodes for _, written in episode.turns]
    return bool(lengths) and median(lengths) >= 4


def write_json(path: Path, value: Any) -> None:
    """Writes JSON to a temporary name, then renames it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 to a temporary name, then renames it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def console(file: IO[str] | None = None) -> Console:
    """Prints tables: as wide as the terminal, 110 columns where there is none."""
    file = file or sys.stdout
    return Console(file=file, width=None if file.isatty() else 110)


def print_and_save(path: Path, *parts: Any) -> None:
    """Prints rich renderables, and writes the same as plain text to `path`."""
    console().print(*parts, sep="\n")
    plain = io.StringIO()
    console(plain).print(*parts, sep="\n")
    write_text(path, plain.getvalue())


def save_figure(figure: Any, path: Path) -> None:
    """Writes a matplotlib figure as PNG to a temporary name, then renames it."""
    temporary = path.with_name("." + path.name)
    figure.savefig(temporary, dpi=120, format="png")
    os.replace(temporary, path)


def plot_learning_curve(
    logs: Sequence[Path], target: Path, evaluations: Mapping[int, Mapping[str, Any]]
) -> None:
    """Draws reward, KL and the most common 4-gram's share against environment steps.

    Args:
        logs: SB3's `progress.csv` files, one a session of the run.
        target: the PNG to write.
        evaluations: held-out reward summaries (`mean`, `low`, `high`) by number of steps.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for log in logs for row in csv.DictReader(log.read_text(encoding="utf-8").splitlines())]
    rows.sort(key=lambda row: float(row["time/total_timesteps"] or 0))
    panels = {
        "reward per episode": "rollout/ep_rew_mean",
        "KL to the base model (nats / episode)": "kl/per_episode",
        "texts sharing one 4-gram": "text/common_4gram",
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4), constrained_layout=True)
    for axis, (label, column) in zip(axes, panels.items(), strict=True):
        points = np.array(
            [(float(r["time/total_timesteps"]), float(r[column])) for r in rows if r.get(column)], dtype=float
        )
        if len(points):
            axis.plot(*points.T, color="tab:blue", linewidth=1.2, label="training rollouts")
        axis.set(xlabel="environment steps (tokens)", title=label)
        axis.grid(alpha=0.3)
        axis.locator_params(axis="x", nbins=5)
    for steps, reward in evaluations.items():
        error = [[reward["mean"] - reward["low"]], [reward["high"] - reward["mean"]]]
        axes[0].errorbar([steps], [reward["mean"]], yerr=error, fmt="o", color="tab:orange", capsize=4)
    axes[0].errorbar([], [], fmt="o", color="tab:orange", label="held-out prompts, 95% interval")
    axes[0].legend(fontsize=8)
    axes[2].set_ylim(0, 1)
    axes[2].axhline(0.3, color="tab:red", linestyle="--", linewidth=0.8, label="alarm above")
    axes[2].legend(fontsize=8)
    save_figure(figure, target)
    plt.close(figure)
