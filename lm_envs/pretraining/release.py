"""Writes a trained model as the folder that ships: Hugging Face files, checksums and the model card."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from lm_envs.pretraining.checks import all_sentences, four_grams
from lm_envs.pretraining.corpus import kind_of, text
from lm_envs.pretraining.measures import generator_perplexity, held_out_perplexity, sample_stories
from lm_envs.pretraining.recipe import TEXTS_PER_SEED, Recipe
from lm_envs.pretraining.training import Trained

CHECKSUMS = "SHA256SUMS"
MODEL_CARD = "MODEL_CARD.md"

# The logits of the model that ships are multiplied by this. A trained model leaves a little probability to
# words that fit nowhere, and one of them breaks a sentence: the model card says what this brings and costs.
SHARPNESS = 1.05

# Figures of benchmarks/results/model.json -> their lines in the card, and the bar.
STORY_FIGURES = {
    "unknown_names": ("stories with a name that was never introduced", "<= 10%"),
    "people": ("stories with a pronoun or role contradiction", "<= 10%"),
    "broken_sentences": ("sentences that are ungrammatical or unfinished", "<= 3%"),
    "copies": ("stories that are a training story, word for word", "<= 1%"),
    "masked_copies": ("stories that are one but for people and things", "<= 1%"),
}
ENDING_FIGURES = {
    "sensible": "unseen openings continued sensibly: cast kept, on the matter, finished",
    "good": "endings of a good tone (VADER)",
    "bad": "endings of a bad tone",
}


def write_release(
    folder: Path,
    trained: Trained,
    tokenizer: PreTrainedTokenizerBase,
    *,
    results: Path = Path("benchmarks/results/model.json"),
    held_out: int = 1000,
    counted: int = 100_000,
) -> float:
    """Sharpens the model, measures it, and writes its folder with a model card.

    Args:
        folder: Where; made if missing. Other files in it are left alone.
        trained: The result, of the corpus.
        tokenizer: Its tokenizer.
        results: What `python -m benchmarks model` wrote of these weights; the card leaves out what is not
            there.
        held_out: Test stories for the perplexity.
        counted: Training texts to count the variety of.

    Returns:
        Held-out perplexity.
    """
    model = sharpened(trained.model)
    perplexity = held_out_perplexity(model, tokenizer, held_out)
    write_model(folder, model, tokenizer)
    recipe, parameters = trained.recipe, model.num_parameters()
    card = resources.files(__package__).joinpath("model_card.md.template").read_text(encoding="utf-8")
    card = card.format(
        recipe=recipe,
        trained=trained,
        sharpness=SHARPNESS,
        options=_options(recipe),
        parameters=parameters,
        megabytes=parameters * 4 / 1e6,
        vocab_size=len(tokenizer),
        texts=trained.steps * recipe.rows,
        machine=f"{trained.seconds / 60:.0f} minutes, "
        + (f"CPU processes of one thread: {trained.processes}" if trained.processes else "one process"),
        perplexity=perplexity,
        held_out=held_out,
        floor=generator_perplexity(tokenizer, held_out),
        counts=_counts_table(recipe, tokenizer, counted),
        counted=counted,
        kinds=_kinds_table(recipe, tokenizer, counted // 10),
        samples="\n\n".join(
            f"> {story.strip()}"
            for seed in range(3)
            for story in sample_stories(model, tokenizer, count=1, seed=seed)
        ),
        **_results(results, folder),
    )
    _replace(folder, MODEL_CARD, card)
    return perplexity


@torch.no_grad()
def sharpened(model: LlamaForCausalLM, factor: float = SHARPNESS) -> LlamaForCausalLM:
    """A copy whose logits are those of the model, times a factor: its last norm's weights are scaled."""
    model = copy.deepcopy(model)
    model.model.norm.weight.mul_(factor)
    return model


def write_model(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes the files that `LanguageModel.load` reads, and their checksums; replaces each as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("is_local", "local_files_only"):  # where a tokenizer was read from is no property of it
        tokenizer.init_kwargs.pop(name, None)
    with tempfile.TemporaryDirectory(dir=folder) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        files = sorted(Path(new).iterdir())
        sums = "".join(f"{_sha256(file)}  {file.name}\n" for file in files)
        for file in files:
            file.chmod(0o644)
            os.replace(file, folder / file.name)
    _replace(folder, CHECKSUMS, sums)


@dataclass(frozen=True)
class TextCounts:
    """How much there is in some texts, and how much of it only once.

    Attributes:
        texts: How many.
        distinct_texts: Different ones.
        tokens: In all texts, the closing end-of-text token included.
        distinct_tokens: In the different texts.
        sentences: Different sentences.
        four_grams: Different runs of four words.
    """

    texts: int
    distinct_texts: int
    tokens: int
    distinct_tokens: int
    sentences: int
    four_grams: int

    @classmethod
    def of(cls, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> TextCounts:
        """Counts."""
        lengths: Counter[str] = Counter()
        distinct: dict[str, int] = {}
        said: set[str] = set()
        grams: set[Any] = set()
        for each in texts:
            lengths[each] += 1
            if each not in distinct:
                distinct[each] = len(tokenizer(each, split_special_tokens=True, verbose=False)["input_ids"])
                said.update(all_sentences(each))
                grams.update(four_grams(each))
        return cls(
            texts=lengths.total(),
            distinct_texts=len(distinct),
            tokens=sum(distinct[each] * times for each, times in lengths.items()),
            distinct_tokens=sum(distinct.values()),
            sentences=len(said),
            four_grams=len(grams),
        )


def _counts_table(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, counted: int) -> str:
    """A table with a line for all kinds of text and one for stories alone."""
    lines = [
        "| | texts | distinct | tokens in distinct texts | distinct sentences | distinct runs of 4 words |",
        "|---|---|---|---|---|---|",
    ]
    first = recipe.seed * TEXTS_PER_SEED
    for name, mixture in (("all kinds", recipe.mixture(0)), ("stories alone", {"story": 1})):
        numbers = tqdm(range(first, first + counted), desc=f"counting: {name}", unit="text")
        counts = TextCounts.of((text(number, mixture) for number in numbers), tokenizer)
        cells = (
            *(counts.texts, counts.distinct_texts, counts.distinct_tokens),
            *(counts.sentences, counts.four_grams),
        )
        lines.append(f"| {name} | " + " | ".join(f"{cell:,}" for cell in cells) + " |")
    return "\n".join(lines)


def _kinds_table(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, counted: int) -> str:
    """A table of the kinds of text: share of the texts and of the tokens, in each phase of the curriculum."""
    phases: list[dict[str, str]] = []
    for _, mixture in recipe.mixtures:
        texts: Counter[str] = Counter()
        tokens: Counter[str] = Counter()
        for number in range(counted):
            kind = kind_of(number, mixture)
            texts[kind] += 1
            tokens[kind] += len(tokenizer(text(number, mixture), verbose=False)["input_ids"])
        phases.append(
            {kind: f"{texts[kind] / counted:.1%} / {tokens[kind] / tokens.total():.1%}" for kind in texts}
        )
    starts = (f"from {start:.0%} of the steps" for start, _ in recipe.mixtures)
    lines = ["| kind | " + " | ".join(starts) + " |", "|---" * (len(phases) + 1) + "|"]
    for kind in sorted(set().union(*phases)):
        lines.append(f"| {kind} | " + " | ".join(phase.get(kind, "-") for phase in phases) + " |")
    return "\n".join(lines)


def _results(path: Path, folder: Path) -> dict[str, str]:
    """The card's tables of what `python -m benchmarks model` found; empty where it did not measure this."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    weights = _sha256(folder / "model.safetensors")
    if not weights.startswith(found.get("weights") or "-"):
        found = {}
    quality, competence = found.get("quality"), found.get("competence")
    return {
        "quality": _quality_table(quality) if quality else "",
        "competence": _competence_section(competence) if competence else "",
    }


def _quality_table(quality: Mapping[str, Any]) -> str:
    """The model's figures beside those of the generator's held-out text, and the bars."""
    model, generator = quality["model"], quality["generator"]
    lines = [
        f"Of {model['stories']} stories sampled at temperature 1, and of as many held-out ones:",
        "",
        "| | model | generator | bar |",
        "|---|---|---|---|",
    ]
    for name, (label, bar) in STORY_FIGURES.items():
        lines.append(f"| {label} | {model[name]:.1%} | {generator[name]:.1%} | {bar} |")
    for name, label in ENDING_FIGURES.items():
        shares = (side["endings"][name] for side in (model, generator))
        lines.append(f"| {label} | " + " | ".join(f"{share:.1%}" for share in shares) + " | |")
    return "\n".join([*lines, "", ""])


def _competence_section(competence: Mapping[str, Mapping[str, Any]]) -> str:
    """What the model scores on each id, beside random play, the best cheap trick and the best player."""
    instances = max(row["episodes"] for row in competence.values())
    lines = [
        "## What it can do",
        "",
        f"Mean return on {instances} held-out instances. The last column: how far greedy decoding is on the",
        "way from random play, or from an empty text, whichever is better, to the best player.",
        "",
        "| id | random | best trick | sampled | greedy | best | greedy, of the way |",
        "|---|---|---|---|---|---|---|",
    ]
    for env_id, row in competence.items():
        cells = (_number(row[name]) for name in ("random", "trick", "sampled", "greedy", "best"))
        share = row["greedy_share"]
        way = "-" if share is None else f"{share:.0%}"
        lines.append(f"| {env_id} | " + " | ".join(cells) + f" | {way} |")
    return "\n".join([*lines, "", ""])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _options(recipe: Recipe) -> str:
    """The command line's options that make this recipe."""
    default = Recipe()
    return "".join(
        f" --{name} {getattr(recipe, name)}"
        for name in ("steps", "seed")
        if getattr(recipe, name) != getattr(default, name)
    )


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _replace(folder: Path, name: str, content: str) -> None:
    new = folder / f".{name}.new"
    new.write_text(content, encoding="utf-8")
    os.replace(new, folder / name)
