"""The task of `TextGen-v0`: continue a story opening so that the text turns out well and stays fluent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_envs.rewards import Fluency, RewardFunction, Sentiment, WeightedSum, scored
from lm_envs.tasks.base import Completion, Feedback
from lm_envs.tasks.prompts import load_prompts

if TYPE_CHECKING:
    from lm_envs.language_model import LanguageModel
    from lm_envs.pretraining.stories import Split

# How many openings each split of the story generator is taken to have: drawn indices lie below it.
NUM_STORIES = 1_000_000


@dataclass(frozen=True)
class ContinuationState:
    """An episode's opening.

    Attributes:
        prompt: the text to continue.
        index: its number in the list, the file or the split; None if it was given as a reset option.
        columns: what else its row of the prompt file holds.
    """

    prompt: str
    index: int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


class Continuation:
    """Continue a text; the episode is over after one completion, and the reward judges it.

    Args:
        language_model: the frozen model of the environment; the default reward asks it how fluent a text is.
        prompts: a list of texts, or the path of a `.txt` (one prompt a line) or `.jsonl` file (key "prompt";
            the other keys are passed to the reward as columns). None: openings of generated stories, those of
            the bundled model's corpus.
        split: "train" or "test", the split of generated stories; not with `prompts`.
        reward: any callable `reward(prompts, completions, **columns)`, see `lm_envs.rewards`. None: sentiment
            plus `fluency_weight` times fluency, see `default_reward`.
        fluency_weight: weight of the default reward's fluency term, >= 0.
        fluency_threshold: nats per token; mean log-probs above it are fluent enough.

    Raises:
        ValueError: bad prompts (names the index, or file and line) or a bad split.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        prompts: Sequence[str] | str | Path | None = None,
        *,
        split: Split = "train",
        reward: RewardFunction | None = None,
        fluency_weight: float = 0.5,
        fluency_threshold: float = -1.5,
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        if prompts is not None and split != "train":
            raise ValueError(f"split={split!r} chooses generated stories and cannot be used with prompts")
        if reward is not None and not callable(reward):
            raise TypeError(f"reward must be callable, got {reward!r:.60}")
        self.split = split
        self._rows = None if prompts is None else load_prompts(prompts)
        self.reward = reward or default_reward(language_model, fluency_weight, fluency_threshold)

    @property
    def prompts(self) -> list[str] | None:
        """The prompts that were given; None for generated stories."""
        return None if self._rows is None else [row["prompt"] for row in self._rows]

    def start(self, rng: np.random.Generator, options: Mapping[str, Any]) -> ContinuationState:
        """Draws an opening, or takes the one that the options ask for; see `Task.start`."""
        if "prompt" in options:
            return ContinuationState(options["prompt"])
        size = NUM_STORIES if self._rows is None else len(self._rows)
        index = options.get("task_index")
        if index is None:
            index = int(rng.integers(size))
        elif index >= size:
            raise ValueError(f"options['task_index'] must be in 0..{size - 1}, got {index}")
        if self._rows is None:
            from lm_envs.pretraining.stories import story

            return ContinuationState(story(index, self.split).opening, index)
        columns = dict(self._rows[index])
        return ContinuationState(columns.pop("prompt"), index, columns)

    def respond(
        self,
        states: Sequence[ContinuationState],
        completions: Sequence[Completion],
        rngs: Sequence[np.random.Generator],
    ) -> list[Feedback]:
        """Scores the completions; see `Task.respond`."""
        names = sorted({name for state in states for name in state.columns})
        columns: dict[str, Any] = {name: [state.columns.get(name) for state in states] for name in names}
        columns["prompt_ids"] = [list(completion.context_ids) for completion in completions]
        columns["completion_ids"] = [list(completion.token_ids) for completion in completions]
        values, parts = scored(
            self.reward,
            [state.prompt for state in states],
            [completion.text for completion in completions],
            slots=[completion.slot for completion in completions],
            **columns,
        )
        parts = parts or {getattr(self.reward, "__name__", type(self.reward).__name__): values}
        return [
            Feedback(value, info={"reward_parts": {name: part[i] for name, part in parts.items()}})
            for i, value in enumerate(values)
        ]


class EnoughFluency:
    """`min(0, mean log-prob - threshold)`: punishes word salad, gives nothing for predictable text.

    Range: at most 0, nats per token. An empty completion counts as a uniform guess (see `Fluency`).

    Args:
        language_model: the judge.
        threshold: mean log-prob of ordinary text, nats per token.
    """

    __name__ = "fluency"

    def __init__(self, language_model: LanguageModel, threshold: float) -> None:
        self._log_prob = Fluency(language_model)
        self.threshold = threshold

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """B texts in, B floats out."""
        return [min(0.0, value - self.threshold) for value in self._log_prob(prompts, completions, **columns)]


def default_reward(language_model: LanguageModel, weight: float, threshold: float) -> WeightedSum:
    """`sentiment + weight * min(0, mean log-prob - threshold)`; VADER's sentiment lies in -1..1.

    Args:
        language_model: judges fluency; its weights are loaded for the first reward.
        weight: reward per nat per token below the threshold.
        threshold: nats per token.
    """
    fluency = EnoughFluency(language_model, threshold)
    return WeightedSum({"sentiment": (1.0, Sentiment()), "fluency": (weight, fluency)})
