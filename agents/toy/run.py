"""`python -m agents train --env TextGen-Toy...`: a learner on a toy, its exact regret, and a figure.

Runs lie side by side, `out/q_learning`, `out/dqn` and `out/ppo`, each with the policy, `curve.csv`
(timesteps, expected_return, regret) and `result.json`. `out/regret.png` shows all of them,
and is drawn anew by each run.
"""

from __future__ import annotations

import csv
import inspect
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from agents.options import check_folder, option
from agents.report import console, save_figure, write_json
from agents.tabular import TabularAgent, make_env
from agents.toy import learners
from agents.toy.judge import Judge, Point, learn

LABELS = {"q_learning": "tabular Q-learning", "dqn": "DQN, one-hot MLP", "ppo": "PPO, small transformer"}
FLOOR = 1e-4  # regrets below it, 0 among them, are drawn there: the axis is logarithmic


def train_toy(
    env_id: str,
    algo: str,
    *,
    env_kwargs: dict[str, Any],
    changes: Mapping[str, Any],
    total_timesteps: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    overwrite: bool = False,
    points: int = 30,
) -> list[Point]:
    """Trains one learner, prints return and regret, writes `out/algo`, and draws `out/regret.png` anew.

    Args:
        env_id: registered id of a toy.
        algo: one of `learners.FAMILIES`.
        env_kwargs: the toy's dials.
        changes: hyperparameters that are not to be the shipped ones, by name.
        total_timesteps: None: the algorithm's own.
        seed: of everything random.
        out: folder of this toy's runs; None: `runs/` and the id.
        overwrite: replace an existing `out/algo`, once the new run is complete.
        points: points of the learning curve.

    Returns:
        The learning curve.

    Raises:
        ValueError: options that do not fit the learner or the toy, or a folder that holds something else.
    """
    if algo not in learners.FAMILIES:
        raise ValueError(f"--algo {algo} does not learn on {env_id}: choose {', '.join(learners.FAMILIES)}")
    build = learners.FAMILIES[algo]
    accepted = [
        name
        for name, p in inspect.signature(build).parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for name in changes:
        if name not in accepted:
            options = ", ".join(map(option, accepted))
            raise ValueError(f"{option(name)} is no option of {algo} on {env_id}, which takes {options}")
    out = Path("runs", env_id) if out is None else out
    folder = out / algo
    check_folder(folder, overwrite, "result.json")
    check_neighbours(out, env_id, env_kwargs)
    try:
        learner = build(env_id, env_kwargs, seed, **changes)
        judge = Judge(learner, own_env(learner, env_id, env_kwargs))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{env_id} with {env_kwargs} and {dict(changes)}: {error}") from error
    steps = learners.TIMESTEPS[algo] if total_timesteps is None else total_timesteps
    with one_thread():
        curve, seconds = learn(judge, steps, points, learners.callbacks(learner))
    settings = {"env": env_id, "algo": algo, "env_kwargs": env_kwargs, "seed": seed, "total_timesteps": steps}
    finish(folder, judge, curve, seconds, {**settings, **changes})
    figure = draw(read_curves(out), env_id)
    save_figure(figure, out / "regret.png")
    print(f"all runs here    {out / 'regret.png'}")
    return curve


def own_env(learner: Any, env_id: str, env_kwargs: dict[str, Any]) -> Any:
    """Environments like the learner's, for its judge."""
    env: Any = learner.env if isinstance(learner, TabularAgent) else learner.env.env
    return make_env(env_id, env.num_envs, **({"observation": env.unwrapped.view.observation} | env_kwargs))


@contextmanager
def one_thread() -> Iterator[None]:
    """Networks of 32 to 128 columns gain nothing from more than one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_neighbours(out: Path, env_id: str, env_kwargs: dict[str, Any]) -> None:
    """ValueError if `out` holds runs of another environment: they cannot share a figure."""
    if (out / "settings.json").exists():
        raise ValueError(f"{out} holds a run on texts: choose another folder with --out")
    for path in sorted(out.glob("*/result.json")):
        other = json.loads(path.read_text(encoding="utf-8"))["settings"]
        if (other["env"], other["env_kwargs"]) != (env_id, env_kwargs):
            raise ValueError(
                f"{path.parent} is a run of {other['env']} with {other['env_kwargs']}, not of {env_id} with "
                f"{env_kwargs}: choose another folder with --out"
            )


def finish(
    folder: Path, judge: Judge, curve: list[Point], seconds: float, settings: dict[str, Any]
) -> dict[str, Any]:
    """Prints what a run reached, and writes its folder, whole or not at all.

    Args:
        folder: replaced if it exists.
        judge: who measured.
        curve: the learning curve.
        seconds: of learning.
        settings: for `result.json`.

    Returns:
        What was reached, by name; None where it is not known.
    """
    learner, last = judge.learner, curve[-1]
    values = {"return": last.expected_return, "optimal return": judge.optimal_return, "regret": last.regret}
    if judge.is_stochastic:
        values["regret of its most probable tokens"] = judge.greedy_regret()
    values |= {"steps": learner.num_timesteps, "seconds": seconds}
    if isinstance(learner, TabularAgent):
        values["contexts"] = len(learner.table.contexts)
    kind = "stochastic" if judge.is_stochastic else "greedy"
    title = f"{settings['algo']} on {settings['env']}: its {kind} policy"
    table = Table(title=title, show_header=False, min_width=60)
    for name, value in values.items():
        shown = f"{value:.3%}" if "regret" in name else f"{value:,.4f}".removesuffix(".0000")
        table.add_row(name, "unknown" if np.isnan(value) else shown)
    console().print(table)
    result = {name: None if np.isnan(value) else value for name, value in values.items()}
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    policy = learners.save(learner, new).name
    with (new / "curve.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Point._fields)
        writer.writerows(curve)
    write_json(new / "result.json", {"settings": settings, "policy": kind, "result": result})
    if folder.exists():
        shutil.rmtree(folder)
    new.rename(folder)
    print(f"policy           {folder / policy}\nlearning curve   {folder / 'curve.csv'}")
    return result


def read_curves(out: Path) -> dict[str, list[Point]]:
    """The learning curves of the runs in `out`, by algorithm: the three families first."""
    curves = {}
    for path in out.glob("*/result.json"):
        algo = json.loads(path.read_text(encoding="utf-8"))["settings"]["algo"]
        with (path.parent / "curve.csv").open(newline="", encoding="utf-8") as file:
            rows = [{name: float(row[name]) for name in Point._fields} for row in csv.DictReader(file)]
        curves[algo] = [Point(int(row["timesteps"]), row["expected_return"], row["regret"]) for row in rows]
    order = list(LABELS)
    return dict(sorted(curves.items(), key=lambda c: (order.index(c[0]) if c[0] in order else 99, c[0])))


def draw(curves: Mapping[str, list[Point]], title: str) -> Any:
    """A figure of regret against environment steps, both logarithmic; regrets below `FLOOR` lie on it.

    Args:
        curves: by algorithm; the untrained policy (0 steps) is left out.
        title: of the figure.

    Returns:
        A matplotlib figure with a line per algorithm.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    colors = {"q_learning": "tab:blue", "dqn": "tab:orange", "ppo": "tab:green"}
    for algo, curve in curves.items():
        points = [(p.timesteps, max(p.regret, FLOOR)) for p in curve if p.timesteps > 0]
        style: dict[str, Any] = {"color": colors.get(algo), "label": LABELS.get(algo, algo)}
        axes.plot(*zip(*points, strict=True), "o-", ms=6, lw=1.8, markevery=[-1], **style)
    axes.axhline(1, color="0.6", lw=1, ls="--", label="_uniform", zorder=0)
    axes.annotate(
        "uniformly random tokens",
        (1, 1),
        (-4, 4),
        xycoords=("axes fraction", "data"),
        color="0.5",
        textcoords="offset points",
        ha="right",
        fontsize=9,
    )
    axes.set(xscale="log", yscale="log", xlabel="environment steps (tokens)", ylabel="regret", title=title)
    axes.set_ylim(bottom=0.8 * FLOOR)
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{100 * value:g}%" + (" or less" if value <= FLOOR else ""))
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure
