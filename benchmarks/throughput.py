"""`python -m benchmarks throughput`: how fast text is written and learned from, beside peers and limit.

Contenders run in turn, and every figure is a ratio within one run. The results go to a JSON file, one entry
a case, with a picture of the same name: a run of some parts adds to it, and a run that was stopped goes on
with the cases that are missing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from agents import report as shared
from agents.options import check_counts
from benchmarks.speed import growth, limit, report, rollout, update
from benchmarks.speed.measuring import Case
from benchmarks.speed.shapes import BUNDLED_NAME, model_argument
from benchmarks.speed.workloads import Workload
from benchmarks.toy import Toy
from lm_envs.language_model import check_device

Part = Literal["rollout", "update", "growth", "limit", "toy"]
Measurement = tuple[Part, str, Callable[[], list[Case]]]

# Model -> slots and new tokens, on a CPU and on a GPU.
SIZES = {
    "cpu": {"bundled": (64, 48), "gpt2": (16, 48), "qwen2": (8, 16)},
    "cuda": {"bundled": (256, 48), "gpt2": (256, 48), "qwen2": (64, 48)},
}
QUICK_SIZES = (8, 8)


@dataclass(frozen=True)
class Throughput:
    """Rollouts, updates, their growth, and the machine's limit, in ratios to peers measured beside them."""

    parts: tuple[Part, ...] = ("rollout", "update", "growth", "limit", "toy")
    models: tuple[str, ...] = ("bundled", "gpt2", "qwen2")
    """"bundled"; "gpt2" (GPT-2 small's shape) and "qwen2" (Qwen2-0.5B's), with random weights; or folders."""
    device: str = "cpu"
    quick: bool = False
    """A trial of all parts in two minutes, with the bundled model, few slots and short texts."""
    repetitions: int = 5
    """Interleaved repetitions; medians of ratios are reported. --quick: 1."""
    slots: int | None = None
    """None: 64 for the bundled model, 16 for GPT-2's shape, 8 for Qwen2's; more on a GPU."""
    new_tokens: int | None = None
    """None: 48; 16 for Qwen2's shape on a CPU."""
    out: Path | None = None
    """None: benchmarks/results/throughput.json; runs/throughput.json with --quick."""

    def __call__(self) -> None:
        """Measures what is missing, writing each case when it is done, then prints and draws all."""
        check_counts(repetitions=self.repetitions, slots=self.slots, new_tokens=self.new_tokens)
        for name in self.models:
            if name not in SIZES["cpu"] and not Path(name).is_dir():
                raise SystemExit(f"--models: {name!r} is no folder and none of {', '.join(SIZES['cpu'])}")
        if torch.device(check_device(self.device)).type == "cuda" and not torch.cuda.is_available():
            raise SystemExit(f"--device: {self.device!r} is not available")
        out = self.out or Path("runs" if self.quick else "benchmarks/results") / "throughput.json"
        results = report.Results(out, report.setting(self.device, self.quick))
        repetitions = 1 if self.quick else self.repetitions
        options = {"repetitions": repetitions, "slots": self.slots, "new_tokens": self.new_tokens}
        with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
            todo = [
                measurement
                for measurement in self.measurements(Path(folder), repetitions)
                if measurement[0] in self.parts and not results.is_done(*measurement[:2], options)
            ]
            for part, name, measure in (bar := tqdm(todo, unit="case")):
                bar.set_postfix_str(f"{part}: {name}")
                for case in measure():
                    results.add(case, options)
        picture = out.with_suffix(".png")
        shown = report.tables(results, self.device)
        report.draw(results.cases, picture, shown[0])
        shared.console().print(*shown, f"{out}, {picture}", sep="\n")

    def measurements(self, folder: Path, repetitions: int) -> Iterator[Measurement]:
        """Part, name of the first case, and a function that measures, for all there is."""
        models = (BUNDLED_NAME,) if self.quick else self.models
        for name in models:
            yield from self.of_model(name, folder, repetitions)
        yield from self.growing(folder, repetitions)
        yield "toy", "steps", lambda: [Toy(**self.toy_sizes()).case(repetitions)]

    def of_model(self, name: str, folder: Path, repetitions: int) -> Iterator[Measurement]:
        """What is measured with each model."""

        def work(*, ragged: bool = False) -> Workload:
            return self.workload(name, model_argument(name, folder), ragged=ragged)

        equal, ragged = (self.workload(name, None, ragged=either).label for either in (False, True))
        yield "rollout", equal, lambda: [rollout.writing(work(), repetitions)]
        yield "rollout", ragged, lambda: [rollout.writing(work(ragged=True), repetitions)]
        yield (
            *("rollout", f"{equal}, environment share"),
            lambda: [rollout.environment_share(work(), repetitions)],
        )
        if torch.device(self.device).type == "cuda":
            yield (
                *("rollout", f"{equal}, host synchronisations"),
                lambda: [rollout.host_synchronisations(work())],
            )
        if name == BUNDLED_NAME:  # a forward per transition of a larger model takes many minutes
            yield "update", f"{equal}, epoch", lambda: [update.epochs(work(), repetitions)]
        if name != "qwen2":
            yield "update", f"{equal}, iteration", lambda: [update.iterations(work(), repetitions)]
        yield "limit", name, lambda: [limit.reached(work(), repetitions, short=self.quick)]

    def growing(self, folder: Path, repetitions: int) -> Iterator[Measurement]:
        """The curves, all with the bundled model's sizes."""
        quick = self.quick
        base = Workload("bundled", None, *QUICK_SIZES, device=self.device)
        marks = (32, 64, 128) if quick else (64, 128, 256, 512, 1024)
        counts = (1, 4, 16) if quick else (1, 4, 16, 64, 256, 1024)
        vocabularies = (2048, 8192) if quick else (2048, 8192, 50257)

        def generated() -> list[Case]:
            slots = 4 if quick else 16
            work = Workload("long", model_argument("long", folder), slots, 1, device=self.device)
            return [growth.generated(work, marks, repetitions)]

        def memory() -> list[Case]:
            work = Workload("long", None, *(QUICK_SIZES if quick else (16, 48)), device=self.device)
            slots = (4, 8) if quick else (4, 8, 16, 32)
            lengths = (8, 16) if quick else (16, 32, 64, 128)
            return growth.update_memory(work, folder, slots=slots, lengths=lengths, vocabularies=vocabularies)

        yield "growth", growth.GENERATED, generated
        yield "growth", growth.SLOTS, lambda: [growth.slots(base, counts, repetitions)]
        yield (
            *("growth", growth.VOCABULARY),
            lambda: [growth.vocabulary(vocabularies, 8 if quick else 64, repetitions, self.device)],
        )
        yield "growth", growth.MEMORY + "episodes", memory
        yield (
            *("growth", growth.BUFFER),
            lambda: growth.buffer_bytes(base, (8, 16) if quick else (16, 32, 64, 128)),
        )

    def workload(self, name: str, model: str | None, *, ragged: bool) -> Workload:
        """A model's slots and lengths."""
        kind = torch.device(self.device).type
        slots, new_tokens = QUICK_SIZES if self.quick else SIZES[kind].get(name, (16, 48))
        return Workload(
            name,
            model,
            self.slots or slots,
            self.new_tokens or new_tokens,
            ragged=ragged,
            device=self.device,
        )

    def toy_sizes(self) -> dict[str, int]:
        """Of the toy environments' run."""
        return {"slots": 256, "single_steps": 2000, "vector_steps": 10} if self.quick else {}
