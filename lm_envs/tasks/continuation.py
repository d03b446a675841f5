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
        fluency_slack: nats per token that a text may be more surprising than the frozen model's own samples.

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
        fluency_weight: float = 2.0,
        fluency_slack: float = 0.1,
    ) -> None:
        self.language_model = language_model
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        if prompts is not None and split != "train":
            raise ValueError(f"split={split!r} chooses generated stories and cannot be used with prompts")
        if reward is not None and not callable(reward):
            raise TypeError(f"reward must be callable, got {reward!r:.60}")
        self.split = split
        self._rows = None if prompts is None else load_prompts(prompts)
        self.reward = reward or default_reward(language_model, fluency_weight, fluency_slack)

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
    """`typicality + slack`, cut to -1..0: punishes word salad, gives nothing for predictable text.

    In nats per token. An empty completion gets -1.

    Args:
        language_model: the judge; its own samples have typicality 0 on average.
        slack: nats per token below that which are still fluent enough, >= 0.
    """

    __name__ = "fluency"

    def __init__(self, language_model: LanguageModel, slack: float) -> None:
        if not slack >= 0:
            raise ValueError(f"fluency_slack must be >= 0 nats per token, got {slack!r}")
        self._typicality = Fluency(language_model, output="typicality")
        self.slack = slack

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """B texts in, B floats out."""
        values = self._typicality(prompts, completions, **columns)
        return [min(0.0, max(-1.0, value + self.slack)) for value in values]


def default_reward(language_model: LanguageModel, weight: float, slack: float) -> WeightedSum:
    """`sentiment + weight * clip(typicality + slack, -1, 0)`; VADER's sentiment lies in -1..1.

    Args:
        language_model: judges fluency; its weights are loaded for the first reward.
        weight: reward lost per nat per token beyond the slack.
        slack: nats per token.
    """
    fluency = EnoughFluency(language_model, slack)
    return WeightedSum({"sentiment": (1.0, Sentiment()), "fluency": (weight, fluency)})
