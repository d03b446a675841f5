"""The task of `TextGen-v0`: continue a story opening so that the text turns out well and stays fluent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from lm_envs.rewards import Fluency, RewardFunction, Sentiment, WeightedSum
from lm_envs.rewards.base import finite_number
from lm_envs.tasks.prompts import load_prompts
from lm_envs.tasks.record_task import RecordState, SingleTurn, Split
from lm_envs.tasks.records import Check, a_text

if TYPE_CHECKING:
    from lm_envs.language_model import LanguageModel


class Continuation(SingleTurn):
    """Continue a text; the episode is over after one completion, and the reward judges it.

    Args:
        language_model: the frozen model of the environment; the default reward asks it how fluent a text is.
        prompts: a list of texts, the path of a `.txt` file (one prompt a line), or records with a column
            "prompt", see `load_records`; their other columns are passed to the reward. None: openings of
            generated stories, those of the bundled model's corpus.
        split: "train" or "test", the split of generated stories; not with `prompts`.
        reward: any callable `reward(prompts, completions, **columns)`, see `lm_envs.rewards`. None: sentiment
            plus `fluency_weight` times fluency, see `default_reward`.
        fluency_weight: weight of the default reward's fluency term, >= 0.
        fluency_slack: nats per token that a text may be more surprising than the frozen model's own samples.

    Raises:
        ValueError: bad prompts (names the index, or file and line) or a bad split.
    """

    columns: ClassVar[Mapping[str, Check]] = {"prompt": a_text}

    def __init__(
        self,
        language_model: LanguageModel,
        prompts: Any = None,
        *,
        split: Split = "train",
        reward: RewardFunction | None = None,
        fluency_weight: float = 2.0,
        fluency_slack: float = 0.1,
    ) -> None:
        if prompts is not None and split != "train":
            raise ValueError(f"split={split!r} chooses generated stories and cannot be used with prompts")
        if finite_number("fluency_weight", fluency_weight) < 0:
            raise ValueError(f"fluency_weight must be >= 0, got {fluency_weight!r}")
        self._default = fluency_weight, fluency_slack
        data = None if prompts is None else load_prompts(prompts)
        super().__init__(language_model, data=data, split=split, reward=reward)

    def default_reward(self) -> RewardFunction:
        """Sentiment, less what is too surprising."""
        return default_reward(self.language_model, *self._default)

    def record(self, index: int) -> Mapping[str, Any]:
        """A given prompt, or the opening of a generated story."""
        if self._records is not None:
            return self._records[index]
        from lm_envs.pretraining.stories import story

        return {"prompt": story(index, self.split).opening}

    def prompt_of(self, record: Mapping[str, Any]) -> str:
        """The opening itself."""
        return record["prompt"]

    def ask(self, prompt: str) -> RecordState:
        """Any text can be continued."""
        return RecordState(prompt)


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
