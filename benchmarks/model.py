"""`python -m benchmarks model`: how good a model's stories are, and what it can do in every environment.

Everything is printed beside the same figures of the generator's own held-out text, which show how far a
figure can be trusted, and what a perfect model would get. The results go to `model.json`, one section a part;
sections of another model's weights are dropped:

- "model" and "weights": the folder that was measured, and the beginning of its SHA-256;
- "quality": for "model" and for "generator" the fields of `StoryQuality`, of `EndingQuality` (in "endings"),
  distinct-n and perplexity; "samples": the first story of each of the seeds 0, 1 and 2;
- "competence": for each id the mean return of "random", "greedy", "sampled", "best" and "trick", and how far
  on the way from "floor" to "best" some of them are ("greedy_share").
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table
from tqdm import tqdm

from agents import report
from agents.metrics import common_ngram, distinct, repetition
from agents.options import check_counts
from agents.play import Sampling, play_script
from benchmarks.players import TEXT_IDS, play_model, play_randomly, scripts
from lm_envs.language_model import LanguageModel
from lm_envs.pretraining.batches import POOL
from lm_envs.pretraining.checks import four_grams, genders, share
from lm_envs.pretraining.corpus import kind_of, text
from lm_envs.pretraining.measures import (
    EndingQuality,
    StoryQuality,
    complete,
    generator_perplexity,
    held_out_perplexity,
    sample_stories,
)
from lm_envs.pretraining.recipe import Recipe
from lm_envs.pretraining.seen import Seen
from lm_envs.pretraining.stories import story

HELD_OUT = 1_000_000  # seed of the first held-out story that is measured
NEW = 2**40  # row of the corpus that no training reaches
FIRST_INSTANCE = 20_000  # seed of the first held-out instance that is played

# Figure -> its label, and the bar: at most so much.
STORY_ROWS: dict[str, tuple[str, float | None]] = {
    "unknown_names": ("stories: a name that was never introduced", 0.10),
    "people": ("stories: a pronoun or role contradiction", 0.10),
    "pronouns": ("  a pronoun with nobody to refer to, a person of two genders", None),
    "roles": ("  a second helper out of nowhere", None),
    "turned": ("  a pronoun of another person than in all training stories", None),
    "broken_sentences": ("sentences: ungrammatical or unfinished", 0.03),
    "slips": ("  wrong by a certain rule", None),
    "strange": ("  three words in a row that no training story has", None),
    "unfinished_sentences": ("  unfinished", None),
    "broken_stories": ("stories: with such a sentence, or an open quotation", None),
    "unfinished": ("stories: unfinished", None),
    "copies": ("stories: a copy of a training story", 0.01),
    "masked_copies": ("stories: a copy but for people and things", 0.01),
    "new_masked_copies": ("  ... of new stories of the training split", None),
    "words": ("words a story", None),
    "distinct_2": ("distinct-2, all stories together", None),
    "distinct_2_within": ("distinct-2 within a story", None),
    "four_grams": ("distinct runs of four words", None),
    "common_4gram": ("stories that share one run of four words", None),
}
ENDING_ROWS = {
    "sensible": "endings: sensible (all of the next three)",
    "keeps_cast": "  keep the cast: names, pronouns, roles",
    "on_topic": "  mention the helper or the thing",
    "finished": "  finished",
    "good": "endings: a good tone (VADER)",
    "bad": "endings: a bad tone",
}
Part = Literal["quality", "competence"]


@dataclass(frozen=True)
class Model:
    """Measure a model: its stories beside the generator's, and its scores in every text environment."""

    model: str | None = None
    """Folder of the model; None: the bundled one."""
    parts: tuple[Part, ...] = ("quality", "competence")
    stories: int = 500
    """Stories to sample, and held-out openings to continue."""
    training_rows: int | None = None
    """Rows of the recipe's training text whose stories it could have copied; None: all."""
    ids: tuple[str, ...] = TEXT_IDS
    episodes: int = 200
    """Held-out instances an id, the same for all players."""
    seed: int = 0
    out: Path = Path("benchmarks/results/model.json")

    def __call__(self) -> None:
        """Measures the parts, writes each when it is done, and prints all."""
        check_counts(stories=self.stories, training_rows=self.training_rows, episodes=self.episodes)
        for env_id in self.ids:
            if env_id not in TEXT_IDS:
                raise SystemExit(f"--ids: {env_id!r} is none of {', '.join(TEXT_IDS)}")
        language_model = LanguageModel.load(self.model)
        results = self.read(checksum(language_model))
        if "quality" in self.parts:
            results["quality"] = self.quality(language_model)
            self.write(results)
        if "competence" in self.parts:
            with tqdm(self.ids, unit="id") as bar:
                for env_id in bar:
                    bar.set_postfix_str(env_id)
                    results.setdefault("competence", {})[env_id] = self.competence(env_id)
                    self.write(results)
        show(results)

    def read(self, weights: str) -> dict[str, Any]:
        """The results so far of the model with this checksum."""
        results = json.loads(self.out.read_text(encoding="utf-8")) if self.out.exists() else {}
        same = results.get("weights") == weights
        return results if same else {"model": self.model or "bundled", "weights": weights}

    def write(self, results: Mapping[str, Any]) -> None:
        """Replaces the file of results."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        report.write_json(self.out, results)

    def quality(self, language_model: LanguageModel) -> dict[str, Any]:
        """Figures of sampled stories and of continued openings, the generator's beside them."""
        model, tokenizer = language_model.model, language_model.tokenizer
        sampled = sample_stories(
            model, tokenizer, count=self.stories, seed=self.seed, progress="texts from nothing"
        )
        if not sampled:
            raise SystemExit(f"{language_model.name} writes no story")
        held_out = [story(HELD_OUT + number, "test") for number in range(self.stories)]
        openings = [told.opening for told in held_out]
        endings = complete(model, tokenizer, openings, seed=self.seed, progress="endings")
        seen = self.seen()

        def figures(texts: list[str], written: list[str]) -> dict[str, Any]:
            return {
                **dataclasses.asdict(StoryQuality.of(texts, seen, genders())),
                "distinct_2": distinct(texts, 2),
                "distinct_2_within": 1.0 - repetition(texts, 2),
                "four_grams": len(set().union(*map(four_grams, texts))),
                "common_4gram": common_ngram(texts, 4)[1],
                "endings": dataclasses.asdict(EndingQuality.of(held_out, written, genders())),
            }

        # what a perfect model of the training split would copy by chance
        new = [text(NEW + number, {"story": 1}) for number in range(self.stories)]
        by_chance = {"new_masked_copies": share(map(seen.is_masked_copy, new))}
        return {
            "seed": self.seed,
            "training_stories": seen.stories,
            "model": figures(sampled, endings)
            | {"perplexity": held_out_perplexity(model, tokenizer, self.stories)},
            "generator": figures([told.text for told in held_out], [told.ending for told in held_out])
            | {"perplexity": generator_perplexity(tokenizer, self.stories)}
            | by_chance,
            "samples": ["".join(sample_stories(model, tokenizer, count=1, seed=seed)) for seed in range(3)],
        }

    def seen(self) -> Seen:
        """The stories among the training rows."""
        things = {story(seed).thing for seed in range(20_000)}
        seen, recipe = Seen(genders(), things), Recipe()
        rows = self.training_rows or recipe.steps * recipe.rows
        for row in tqdm(range(rows), desc="training rows", unit="row"):
            mixture = recipe.mixture(row // (POOL * recipe.rows) * POOL)
            if kind_of(row, mixture) == "story":
                seen.add(text(row, mixture))
        return seen

    def competence(self, env_id: str) -> dict[str, Any]:
        """Mean returns of all players on one id, and how far the model is from the floor to the best."""

        def sampled(greedy: bool) -> tuple[list[float], list[int]]:
            return play_model(
                env_id, self.episodes, FIRST_INSTANCE, Sampling(greedy=greedy), model=self.model
            )

        def scripted(player: Callable[[Any], str]) -> float:
            arguments = {"split": "test", "model": self.model}
            played = play_script(player, env_id, self.episodes, seed=FIRST_INSTANCE, env_kwargs=arguments)
            return float(np.mean([each.reward for each in played]))

        means = {
            "random": play_randomly(env_id, self.episodes, FIRST_INSTANCE, self.model)[0],
            "sampled": sampled(greedy=False)[0],
            "greedy": sampled(greedy=True)[0],
        }
        row: dict[str, Any] = {name: float(np.mean(returns)) for name, returns in means.items()}
        players = {name: scripted(player) for name, player in scripts(env_id, self.model).items()}
        best = players.pop("best", None)
        trick = max(players, key=lambda name: players[name])
        row |= {"best": best, "trick": players[trick], "trick_name": trick, "episodes": self.episodes}
        # random choices can do harm (in an edit, say), so to do nothing may be the better beginning
        row["floor"] = max(row["random"], players["empty"])
        for name in ("sampled", "greedy", "trick"):
            row[f"{name}_share"] = share_of_the_way(row[name], row["floor"], best)
        return row


def share_of_the_way(score: float, floor: float, best: float | None) -> float | None:
    """How far a score is on the way from the floor to the best one; None if there is no way."""
    return None if best is None or best <= floor else (score - floor) / (best - floor)


def checksum(language_model: LanguageModel) -> str:
    """Names the weights: the SHA-256 of a folder's safetensors, the name of a model that is no folder."""
    digest = hashlib.sha256()
    files = sorted(Path(language_model.path).glob("*.safetensors"))
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12] if files else language_model.name


def show(results: Mapping[str, Any]) -> None:
    """Prints the tables and the three stories."""
    console = report.console()
    if quality := results.get("quality"):
        console.print(quality_table(quality))
        for seed, sample in enumerate(quality["samples"]):
            console.print(f"\nStory of seed {seed}: {sample}", markup=False, highlight=False)
    if competence := results.get("competence"):
        console.print(competence_table(competence))


def quality_table(quality: Mapping[str, Any]) -> Table:
    """One row a figure: the model's, the generator's, the bar, and whether it holds."""
    model, generator = quality["model"], quality["generator"]
    table = Table(
        *("figure", "model", "generator", "bar", ""),
        title=f"{model['stories']} stories at temperature 1; "
        f"{quality['training_stories']:,} training stories",
    )
    for name, (label, bar) in STORY_ROWS.items():
        verdict = "" if bar is None else "holds" if model[name] <= bar else "missed"
        limit = "" if bar is None else f"<= {bar:.0%}"
        both = (number(name, side[name]) if name in side else "-" for side in (model, generator))
        table.add_row(label, *both, limit, verdict)
    for name, label in ENDING_ROWS.items():
        table.add_row(label, *(number(name, side["endings"][name]) for side in (model, generator)))
    perplexity = (f"{side['perplexity']:.3f}" for side in (model, generator))
    table.add_row("held-out perplexity a token; the generator's own entropy", *perplexity)
    return table


def number(name: str, value: float) -> str:
    """A figure as text: shares in percent."""
    if name in ("words", "four_grams"):
        return f"{value:,.0f}"
    return f"{value:.3f}" if name.startswith("distinct") else f"{value:.1%}"


def competence_table(competence: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row an id; the bar is 30% to 80% of the way from the floor to the best, greedily."""
    table = Table(
        title="Held-out scores; the last columns: how far on the way to the best, from random play or "
        "from an empty text, whatever is better",
    )
    table.add_column("id", no_wrap=True)
    for column in ("random", "best trick", "sampled", "greedy", "best", "trick", "sampled", "greedy", "bar"):
        table.add_column(column)
    for env_id, row in competence.items():
        shares = [row[f"{name}_share"] for name in ("trick", "sampled", "greedy")]
        greedy = shares[-1]
        table.add_row(
            env_id.removeprefix("TextGen-"),
            report.cell(row["random"]),
            f"{row['trick']:.3f} ({row['trick_name']})",
            *(report.cell(row[name]) for name in ("sampled", "greedy", "best")),
            *("-" if each is None else f"{each:.0%}" for each in shares),
            "" if greedy is None else "holds" if 0.3 <= greedy <= 0.8 else "missed",
        )
    return table
