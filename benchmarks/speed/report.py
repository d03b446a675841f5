"""The results: kept in JSON, shown as tables beside the bars, drawn as a picture."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3
import torch
import transformers
from rich.table import Table

import lm_envs
from agents import report
from benchmarks.speed import growth, limit, rollout, update
from benchmarks.speed.measuring import Case
from benchmarks.tasks import bundled_checksum

Cases = Mapping[tuple[str, str], Case]


@dataclass(frozen=True)
class Bar:
    """What is asked of a case.

    Attributes:
        text: what it is about.
        part: of the case.
        case: its name.
        value: the figure of that case; None where it was not measured.
        bound: what the figure must reach, or stay below.
        at_least: which of the two.
        device: the kind of device that it is asked of.
        sizes: the slots and new tokens that it is asked for; None: any.
    """

    text: str
    part: str
    case: str
    value: Callable[[Case], float | None]
    bound: float
    at_least: bool = True
    device: str = "cpu"
    sizes: tuple[int, int] | None = None

    def verdict(self, cases: Cases) -> tuple[float | None, str]:
        """The figure, and "holds", "missed", "not measured", or the sizes that it should be measured with."""
        case = cases.get((self.part, self.case))
        value = None if case is None else self.value(case)
        if case is None or value is None:
            return None, "not measured"
        if self.sizes is not None:
            slots, new_tokens = self.sizes
            lengths = str(case.settings["new tokens"]).split()[-1]  # of "uniform 1 to 48" the most
            if (case.settings["slots"], lengths) != (slots, str(new_tokens)):
                return value, f"measure with {slots} slots, {new_tokens} new tokens"
        holds = value >= self.bound if self.at_least else value <= self.bound
        return value, "holds" if holds else "missed"


def _share(case: Case, name: str) -> float | None:
    return case.median(name) if name in case.values else None


BARS = (
    Bar(
        "full PPO rollout vs generate, bundled model",
        *("rollout", "bundled, equal", lambda case: case.ratio(rollout.ROLLOUT), 2.0),
        sizes=(64, 48),
    ),
    Bar(
        "full PPO rollout vs generate, GPT-2 small's shape",
        *("rollout", "gpt2, equal", lambda case: case.ratio(rollout.ROLLOUT), 1.0),
        sizes=(16, 48),
    ),
    Bar(
        "ragged lengths, full PPO rollout vs generate",
        *("rollout", "bundled, ragged", lambda case: case.ratio(rollout.ROLLOUT), 3.0),
        sizes=(64, 48),
    ),
    Bar(
        "environment share of rollout time",
        *("rollout", "bundled, equal, environment share", lambda case: _share(case, rollout.SHARE), 0.10),
        at_least=False,
        sizes=(64, 48),
    ),
    Bar(
        "update epoch vs per-transition",
        *("update", "bundled, equal, epoch", lambda case: case.ratio(update.EPISODES), 40.0),
        sizes=(64, 48),
    ),
    Bar(
        "rollout + reference + one update epoch vs TRL GRPOTrainer",
        *("update", "bundled, equal, iteration", lambda case: case.ratio(update.OURS), 2.0),
        sizes=(64, 48),
    ),
    Bar(
        "step cost at 1024 generated tokens vs at 64",
        *("growth", growth.GENERATED, lambda case: case.ratio("1024", "64"), 1.5),
        at_least=False,
    ),
    Bar(
        "peak activation memory of an update, V = 50257 vs 2048",
        *("growth", growth.MEMORY + "vocabulary", lambda case: case.ratio("50257", "2048"), 2.0),
        at_least=False,
    ),
    Bar(
        "Decoder.step, fraction of the counted limit, GPT-2 small's shape",
        *("limit", "gpt2", lambda case: _share(case, limit.STEP), 0.5),
        sizes=(16, 48),
    ),
    Bar(
        "Decoder alone vs generate, GPT-2 small's shape, 256 slots",
        *("rollout", "gpt2, equal", lambda case: case.ratio(rollout.DECODER), 10.0),
        device="cuda",
        sizes=(256, 48),
    ),
    Bar(
        "Decoder.step, fraction of the bandwidth limit, GPT-2 small's shape",
        *("limit", "gpt2", lambda case: case.facts.get(f"{limit.STEP}, by bytes alone"), 0.3),
        device="cuda",
        sizes=(256, 48),
    ),
    Bar(
        "host synchronisations a step",
        *("rollout", "gpt2, equal, host synchronisations"),
        lambda case: _share(case, "Decoder.step, sampling"),
        2.0,
        at_least=False,
        device="cuda",
    ),
)


def setting(device: str, quick: bool) -> dict[str, Any]:
    """Machine, versions and weights: what results must share to stand in one table."""
    cuda = torch.device(device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else processor(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "dtype": "bfloat16" if cuda else "float32",
        "quick": quick,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "gymnasium": gymnasium.__version__,
        "stable-baselines3": stable_baselines3.__version__,
        "numpy": np.__version__,
        "bundled weights": bundled_checksum(),
    }


def processor() -> str:
    """The CPU's name and instruction set."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'CPU'} ({platform.machine()})"


def code_checksum() -> str:
    """Of the source that is timed and that times it: results of other code are measured anew."""
    digest = hashlib.sha256()
    for folder in (lm_envs.__file__, __file__):
        for file in sorted(Path(folder).parent.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


class Results:
    """The file of results: for every setting its cases, each written when it is done.

    A case that was measured with the same code and settings is not measured again; cases of a setting that
    differs (another machine, other versions, other weights) are kept apart.
    """

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        self.path, self.setting = path, setting
        self._key = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:12]
        self._runs: dict[str, Any] = {}
        if path.exists():
            self._runs = json.loads(path.read_text(encoding="utf-8"))
        self._run = self._runs.setdefault(self._key, {"setting": setting, "cases": []})
        self._code = code_checksum()

    @property
    def cases(self) -> dict[tuple[str, str], Case]:
        """This setting's cases by part and name."""
        return {(c["case"]["part"], c["case"]["name"]): Case(**c["case"]) for c in self._run["cases"]}

    def is_done(self, part: str, name: str, options: Mapping[str, Any]) -> bool:
        """Whether there is such a case of this code and these options, with no peer missing."""
        return any(
            (entry["case"]["part"], entry["case"]["name"]) == (part, name)
            and (entry["code"], entry["options"]) == (self._code, dict(options))
            and not entry["case"]["missing"]
            for entry in self._run["cases"]
        )

    def add(self, case: Case, options: Mapping[str, Any]) -> None:
        """Put a case in its place, and write the file.

        Args:
            case: what was measured.
            options: of the command line, plain JSON values.
        """
        others = [e for e in self._run["cases"] if (e["case"]["part"], e["case"]["name"]) != _key(case)]
        entry = {
            "case": case.as_json(),
            "options": dict(options),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
            "code": self._code,
        }
        self._run["cases"] = [*others, entry]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        report.write_json(self.path, self._runs)

    def other_code(self) -> list[str]:
        """The cases that older or newer code was measured in."""
        return [
            f"{e['case']['part']}: {e['case']['name']}" for e in self._run["cases"] if e["code"] != self._code
        ]


def _key(case: Case) -> tuple[str, str]:
    return case.part, case.name


def tables(results: Results, device: str) -> list[Any]:
    """Everything a person reads: one table a case, then the bars."""
    cases = results.cases
    title = ", ".join(f"{key} {value}" for key, value in results.setting.items() if key != "quick")
    parts: list[Any] = [title, *(case_table(case) for case in cases.values())]
    old = results.other_code()
    if old:
        parts.append("Measured with other code than this: " + "; ".join(old))
    parts.append(bar_table(cases, torch.device(device).type))
    return parts


def case_table(case: Case) -> Table:
    """A row a contender: median, spread, median ratio to the peer and its spread; peers that are missing."""
    about = ", ".join(f"{name} {value}" for name, value in case.settings.items())
    table = Table("", title=f"{case.part}: {case.name} ({about})")
    for column in (f"median, {case.unit}", "spread", "ratio", "spread"):
        table.add_column(column, justify="right")
    for name in case.values:
        spread = f"{number(min(case.values[name]))} - {number(max(case.values[name]))}"
        row = [name, number(case.median(name)), spread]
        if case.peer:
            ratios = case.ratios(name)
            row += [f"{case.ratio(name):.2f}x", f"{min(ratios):.2f} - {max(ratios):.2f}"]
        table.add_row(*row)
    for name, reason in case.missing.items():
        table.add_row(name, "missing", reason)
    for name, value in case.facts.items():
        table.add_row(name, number(value))
    return table


def bar_table(cases: Cases, device: str) -> Table:
    """What was asked of this kind of device, what was measured, and whether it holds."""
    table = Table("", "measured", "bar", "", title="Bars (medians)")
    for bar in BARS:
        if bar.device == device:
            value, verdict = bar.verdict(cases)
            bound = f"{'>=' if bar.at_least else '<='} {bar.bound:g}"
            table.add_row(bar.text, "-" if value is None else number(value), bound, verdict)
    return table


def number(value: float) -> str:
    """At least three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def draw(cases: Cases, target: Path, title: str) -> None:
    """One panel a case: horizontal bars of ratios, or a curve with its slope."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [case for case in cases.values() if case.part != "toy" and len(case.values) > 1]
    shown.sort(key=lambda case: (case.part == "growth", case.part))
    columns = 3
    rows = max(1, -(-len(shown) // columns))
    figure, axes = plt.subplots(
        rows, columns, figsize=(6 * columns, 2.9 * rows), constrained_layout=True, squeeze=False
    )
    for axis, case in zip(axes.flat, shown, strict=False):
        _draw_curve(axis, case) if case.part == "growth" else _draw_bars(axis, case)
        axis.set_title(f"{case.part}: {case.name}", fontsize=9)
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    figure.suptitle(title, fontsize=8)
    temporary = target.with_name("." + target.name)
    figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    os.replace(temporary, target)


def _draw_bars(axis: Any, case: Case) -> None:
    names: Sequence[str] = list(case.values)[::-1]
    series = [case.ratios(name) if case.peer else case.values[name] for name in names]
    medians = [float(np.median(values)) for values in series]
    errors = [
        [middle - min(values) for middle, values in zip(medians, series, strict=True)],
        [max(values) - middle for middle, values in zip(medians, series, strict=True)],
    ]
    # Lengths of bars mean nothing on a logarithmic axis: points, then.
    axis.errorbar(medians, names, xerr=errors, fmt="o", markersize=4, color="tab:blue", elinewidth=0.8)
    for name, value in zip(names, medians, strict=True):
        offset: Any = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "fontsize": 7}
        axis.annotate(number(value), (value, name), **offset)
    axis.margins(0.15, 0.25)
    axis.set_xlabel(f"x {case.peer}" if case.peer else case.unit, fontsize=7)
    if case.peer:
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.xaxis.get_major_locator().set_params(subs=(1, 2, 5))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    else:
        axis.set_xlim(left=0)


def _draw_curve(axis: Any, case: Case) -> None:
    x = np.array([float(name) for name in case.values])
    y = np.array([case.median(name) for name in case.values])
    slope = case.facts[growth.SLOPE]
    axis.loglog(x, y, "o-", color="tab:blue", label="measured")
    fitted = np.exp(np.log(y).mean()) * (x / np.exp(np.log(x).mean())) ** slope
    axis.loglog(x, fitted, "--", color="tab:orange", label=f"slope {slope:.2f}")
    axis.set_xticks(x, list(case.values))
    axis.set_xticks([], minor=True)
    for formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        formatter("{x:,.4g}")
    axis.tick_params(which="minor", labelsize=7)
    axis.set_ylabel(case.unit, fontsize=7)
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3, which="both")
