"""What tasks over records share: instances that a generator makes without end, or the user's own data."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np

from lm_envs.pretraining.telling import Dice
from lm_envs.rewards import RewardFunction, scored
from lm_envs.tasks.base import Completion, Feedback
from lm_envs.tasks.records import Check, load_records

if TYPE_CHECKING:
    from lm_envs.language_model import LanguageModel

Split = Literal["train", "test"]
Level = Literal["easy", "medium", "hard"]
# A scripted player: reads a state (private facts too, if it is to be the best), writes a completion.
Player = Callable[[Any], str]

# How many instances a generator is taken to have: drawn indices lie below it.
NUM_INSTANCES = 1_000_000
# One generated prompt in ten belongs to the test split.
TEST_SHARE = 10
# After so many instances of the other split in a row, one of this split is not to be expected.
TRIES = 1000


@dataclass(frozen=True)
class RecordState:
    """An episode over one record.

    Attributes:
        prompt: the text that the agent reads first.
        index: the record's number in the data, or the instance's in its split; None if the prompt was given
            as a reset option.
        columns: the record.
    """

    prompt: str
    index: int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


class RecordTask:
    """A task whose episodes begin with a record: a dict of columns, among them what the answer is judged by.

    A subclass says which `columns` a record has, which others it may have (`optional`), how the agent is
    asked (`prompt_of`), how records are made (`generate`) and, if `RecordState` is not enough, what an
    episode knows (`opening`).

    Args:
        language_model: the frozen model of the environment.
        data: records of the user's, see `load_records`; None: generated ones.
        split: "train" or "test", of generated instances: no prompt is in both.
        level: how hard generated instances are.

    Raises:
        ValueError: bad data (names index or file and line), or a split or level that does not exist.
    """

    columns: ClassVar[Mapping[str, Check]] = {}
    optional: ClassVar[Mapping[str, Check]] = {}

    def __init__(
        self,
        language_model: LanguageModel,
        *,
        data: Any = None,
        split: Split = "train",
        level: Level = "easy",
    ) -> None:
        self.language_model = language_model
        if split not in get_args(Split):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        if level not in get_args(Level):
            raise ValueError(f"level must be 'easy', 'medium' or 'hard', got {level!r}")
        if data is not None and (split, level) != ("train", "easy"):
            raise ValueError(
                f"split={split!r} and level={level!r} choose generated instances and cannot be used with data"
            )
        self.split, self.level = split, level
        self._records = None if data is None else load_records(data, self.columns, optional=self.optional)

    def generate(self, dice: Dice) -> dict[str, Any]:
        """A record of `self.level`, made of nothing but these dice: the same on every platform."""
        raise NotImplementedError

    def prompt_of(self, record: Mapping[str, Any]) -> str:
        """How the agent is asked."""
        raise NotImplementedError

    def opening(self, record: Mapping[str, Any], index: int) -> Any:
        """The first state of an episode over this record."""
        return RecordState(self.prompt_of(record), index, record)

    def players(self) -> dict[str, Player]:
        """Scripted players to compare with: "best" first, where one is known, and the cheap tricks."""
        return {}

    def has_column(self, name: str) -> bool:
        """Whether records have this column: the user's own may lack one that generated ones have."""
        return self._records is None or name in self._records[0]

    @property
    def prompts(self) -> list[str] | None:
        """The prompts of the user's data; None for generated instances."""
        return None if self._records is None else [self.prompt_of(record) for record in self._records]

    def record(self, index: int) -> Mapping[str, Any]:
        """The record of this index: of the data, or generated, the same for the same split and level.

        Raises:
            ValueError: the generator has no prompt of this split.
        """
        if self._records is not None:
            return self._records[index]
        dice = Dice(2 * index + (self.split == "test"))
        for _ in range(TRIES):
            record = self.generate(dice)
            in_test = zlib.crc32(self.prompt_of(record).encode()) % TEST_SHARE == 0
            if in_test == (self.split == "test"):
                return record
        raise ValueError(
            f"split={self.split!r} has no prompt among {TRIES} generated ones: too few of them are different"
        )

    def start(self, rng: np.random.Generator, options: Mapping[str, Any]) -> Any:
        """Draws a record, or takes the one that the options ask for; see `Task.start`."""
        if "prompt" in options:
            return self.ask(options["prompt"])
        size = NUM_INSTANCES if self._records is None else len(self._records)
        index = options.get("task_index")
        if index is None:
            index = int(rng.integers(size))
        elif index >= size:
            raise ValueError(f"options['task_index'] must be in 0..{size - 1}, got {index}")
        return self.opening(self.record(index), index)

    def ask(self, prompt: str) -> Any:
        """The first state of an episode over a prompt that comes without a record.

        Raises:
            ValueError: this task cannot judge an answer without its columns.
        """
        raise ValueError(
            f"options['prompt'] has no {' and '.join(sorted(self.columns))} to judge by: make the "
            "environment with data=[{...}] and choose by options['task_index']"
        )


class SingleTurn(RecordTask):
    """A task of one completion, judged by a reward that reads the record's columns.

    Args:
        language_model, data, split, level: see `RecordTask`.
        reward: any callable `reward(prompts, completions, **columns)`; None: `default_reward()`.
    """

    def __init__(
        self, language_model: LanguageModel, *, reward: RewardFunction | None = None, **kwargs: Any
    ) -> None:
        super().__init__(language_model, **kwargs)
        if reward is not None and not callable(reward):
            raise TypeError(f"reward must be callable, got {reward!r:.60}")
        self.reward = reward or self.default_reward()

    def default_reward(self) -> RewardFunction:
        """What completions are judged by unless the user says otherwise."""
        raise NotImplementedError

    def respond(
        self,
        states: Sequence[RecordState],
        completions: Sequence[Completion],
        rngs: Sequence[np.random.Generator],
    ) -> list[Feedback]:
        """Scores the completions; see `Task.respond`."""
        names = sorted({name for state in states for name in state.columns} - {"prompt"})
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
