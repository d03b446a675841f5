"""`python -m agents evaluate`: a model's held-out reward, with interval, beside the untrained model's."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents import report
from agents.metrics import N_GRAM_METRICS, story_auditor
from agents.options import check_counts, check_file, parse_env_kwargs
from agents.play import Episode, Sampling, play
from agents.toy.learners import TOYS
from lm_envs.language_model import LanguageModel


@dataclass(frozen=True)
class Evaluate:
    """Play held-out prompts with a model and report its reward, its parts, KL and text metrics."""

    model: str | None = None
    """Folder (a run's `model` folder, say) or hub id; None: the bundled model."""
    reference: str | None = None
    """The model that `model` was trained from: the environment's own, and what KL and paired difference are
    measured against; None: the bundled one."""
    env: str = "TextGen-v0"
    """Registered id of the environment."""
    env_kwargs: str = '{"split": "test"}'
    """Arguments of the environment, as JSON."""
    episodes: int = 128
    seed: int = 10_000
    sampling: Sampling = field(default_factory=Sampling)
    samples: int = 5
    """Episodes to print."""
    out: Path | None = None
    """A JSON file for summaries and episodes."""

    def __call__(self) -> None:
        """Evaluates the model and the reference on the same prompts and prints both."""
        self._check()
        before = self.play(self.reference)
        after = before if self.model == self.reference else self.play(self.model)
        auditor = story_auditor() if self.env == "TextGen-v0" else None
        columns = {"reference": report.summarize(before, auditor), "model": report.summarize(after, auditor)}
        if not report.has_prose([*before, *after]):
            for summary in columns.values():
                for name in N_GRAM_METRICS:
                    del summary[name]
        differences = report.paired_differences(before, after)
        console = report.console()
        shown = columns if after is not before else {"model": columns["model"]}
        console.print(report.summary_table(f"{self.env}, {self.episodes} prompts", shown))
        if after is not before:
            title = "model - reference, same prompts"
            console.print(report.summary_table(title, {"difference": differences}))
        console.print(report.sample_table(before, after, self.samples))
        if self.out is not None:
            episodes = {"reference": before, "model": after}
            rows = {name: [dataclasses.asdict(e) for e in played] for name, played in episodes.items()}
            report.write_json(self.out, columns | {"paired_differences": differences, "episodes": rows})

    def _check(self) -> None:
        """ValueError or OSError unless the options fit each other and the file can be written."""
        check_counts(episodes=self.episodes)
        check_counts(0, seed=self.seed, samples=self.samples)
        if self.env.removeprefix("lm_envs:") in TOYS:
            raise ValueError(f"--env {self.env} is a toy, which has no language model: train judges its runs")
        name = self._env_kwargs()["model"]
        vocabulary = LanguageModel.load(name, lazy=True).tokenizer.get_vocab()
        for player in (self.model, self.reference):
            if LanguageModel.load(player, lazy=True).tokenizer.get_vocab() != vocabulary:
                raise ValueError(
                    "--model and --reference have different tokenizers: "
                    "give as --reference the model that it was trained from"
                )
        if self.out is not None:
            check_file(self.out)

    def _env_kwargs(self) -> dict[str, Any]:
        return {"model": self.reference, **parse_env_kwargs(self.env_kwargs)}

    def play(self, name: str | None) -> list[Episode]:
        """One episode per slot of the model called `name`."""
        return play(
            LanguageModel.load(name).decoder(self.episodes),
            LanguageModel.load(self.reference).decoder(self.episodes),
            self.env,
            sampling=self.sampling,
            seed=self.seed,
            env_kwargs=self._env_kwargs(),
            progress=f"playing {name or 'the bundled model'}",
        )
