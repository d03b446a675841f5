"""The task of `TextGen-ReasoningGym-v0`: puzzles of reasoning-gym, judged by its own verifiers."""

from __future__ import annotations

import difflib
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np

from lm_envs.pretraining.telling import Dice
from lm_envs.rewards import RewardFunction
from lm_envs.rewards.base import check_texts, column_rows
from lm_envs.tasks.record_task import NUM_INSTANCES, Player, SingleTurn
from lm_envs.tasks.records import Check, a_text

# Datasets whose verifiers run the agent's text as Python: by eval(), or by sympy.parse_expr(), which does.
RUNS_ANSWERS = frozenset(
    {
        *("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"),
        *(
            "countdown",
            "intermediate_integration",
            "polynomial_multiplication",
            "puzzle24",
            "simple_integration",
        ),
    }
)
LEVELS = {"easy": 0, "medium": 1, "hard": 2}
# Items of a dataset that does not say its size.
SIZE = 10_000


def an_answer(name: str, value: Any) -> str | None:
    """A column of right answers; None where only the verifier knows."""
    return None if value is None else a_text(name, value)


def metadata(name: str, value: Any) -> dict[str, Any]:
    """A column of objects: what a verifier needs to know. A text is read as JSON."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be an object, got {value!r:.60}")
    return dict(value)


class ReasoningGym(SingleTurn):
    """Answer a generated puzzle of [reasoning-gym](https://github.com/open-thought/reasoning-gym).

    > State the final answer to the following arithmetic problem: 4 - 7 =
    > Answer:

    > *-3*

    Needs the package: `pip install 'lm-envs[reasoning-gym]'`. `dataset` is any of its more than a hundred
    tasks; their names are the keys of `reasoning_gym.factory.DATASETS`.

    ```python
    gymnasium.make("TextGen-ReasoningGym-v0", dataset="gcd", config={"min_value": 2, "max_value": 50})
    gymnasium.make("TextGen-ReasoningGym-v0", dataset="leg_counting", level="medium")
    gymnasium.make("TextGen-ReasoningGym-v0", curriculum_level={"num_terms": 3, "num_digits": 0})
    ```

    The default is "chain_sum". Many other datasets ask long questions: with the bundled model's window of
    256 tokens such a prompt is refused by `reset`. Answers of several lines need `stop=()`.

    ## Reward
    What the dataset's `score_answer` gives for the answer, 0 to 1. The answer is the completion without
    blanks around it, or what stands in its last `<answer>...</answer>`. An answer on which the verifier
    fails gets 0. An empty completion gets 0 from most verifiers, 0.01 or 0.05 from some.

    Nine verifiers run the answer as Python code (`RUNS_ANSWERS` in this module): a text that deletes files
    would delete them. They are refused unless you say `allow_eval=True`; do so in a sandbox only. And some
    verifiers run code that stands in the metadata: do not use `data` of strangers.

    ## Levels
    "easy", "medium" and "hard" set all attributes of the dataset's curriculum to level 0, 1 and 2:
    chain_sum adds and subtracts 2 numbers of one digit, up to 3 of two, up to 4 of three.
    `curriculum_level` sets other levels, for all attributes or for some (the others stay at the
    curriculum's start). `config` replaces single arguments, those of the level included. A dataset without
    curriculum has its own defaults, and only "easy".

    An instance is an item of the dataset, drawn by its index; `config={"size": n}` says how many it has
    (10000 by default), `config={"seed": n}` which (0). A question belongs to one split by its checksum.
    The same version of reasoning-gym gives the same items, but isomorphic_strings, knight_swap,
    polynomial_multiplication, ransom_note and word_ladder only under the same `PYTHONHASHSEED` (0.1.25).

    ## Data
    `question` (text), `answer` (text or None) and `metadata` (object, or a text of JSON), as the items of
    `dataset`, whose verifier judges.

    ## Players
    "best" gives the item's answer (nothing where there is none). Tricks: the most frequent answer of 50
    instances, the first and the last number of the question, the question, and all digits.

    ## How it could be hacked
    chain_sum's verifier gives a part of the reward to a text that contains the answer: its share of the
    characters. So "10" gets half of the reward where the answer is 1, and "-26" two thirds where it is
    26. `tests/test_task_reasoning_gym.py` shows that no number gets 0.25 as the answer to everything. Of
    the other datasets: yes-or-no questions are half won by guessing, and "game_of_life_halting" takes any
    text for right (0.1.25). Look before you train.

    ## References
    Stojanovski et al. 2025, "Reasoning Gym: Reasoning Environments for Reinforcement Learning with Verifiable
    Rewards".

    Args:
        language_model: the frozen model of the environment.
        dataset: the name of one of its datasets.
        config: arguments of the dataset.
        curriculum_level: of all attributes of its curriculum, or attribute -> level; not with `level`.
        allow_eval: whether a verifier may run the agent's text as Python.
        kwargs: `data`, `split`, `level` and `reward`, see `SingleTurn`.

    Raises:
        ImportError: reasoning-gym is not installed.
        ValueError: a dataset, argument or level that does not exist, or a verifier that runs code.
    """

    columns: ClassVar[Mapping[str, Check]] = {"question": a_text, "answer": an_answer, "metadata": metadata}

    def __init__(
        self,
        language_model: Any,
        *,
        dataset: str = "chain_sum",
        config: Mapping[str, Any] | None = None,
        curriculum_level: int | Mapping[str, int] | None = None,
        allow_eval: bool = False,
        **kwargs: Any,
    ) -> None:
        level = kwargs.get("level", "easy")
        if curriculum_level is not None and level != "easy":
            raise ValueError(f"level={level!r} and curriculum_level={curriculum_level!r} exclude each other")
        wanted = curriculum_level if curriculum_level is not None else LEVELS.get(level, 0)
        self.dataset = create_dataset(dataset, config or {}, wanted)
        # A composite dataset has others.
        running = RUNS_ANSWERS & {dataset, *getattr(self.dataset, "datasets", ())}
        if running and not allow_eval:
            raise ValueError(
                f"the verifier of dataset={min(running)!r} runs the agent's text as Python code; "
                "allow_eval=True allows it: in a sandbox only"
            )
        super().__init__(language_model, **kwargs)

    def default_reward(self) -> RewardFunction:
        """The dataset's verifier."""
        return Verifier(self.dataset)

    def generate(self, dice: Dice) -> dict[str, Any]:
        """An item of the dataset."""
        index = dice.below(len(self.dataset))
        with own_global_randomness(index):
            item = self.dataset[index]
        return {name: item[name] for name in self.columns}

    def prompt_of(self, record: Mapping[str, Any]) -> str:
        """The question, and where the answer begins."""
        return f"{record['question']}\nAnswer:"

    def players(self) -> dict[str, Player]:
        """See the class."""
        size = NUM_INSTANCES if self._records is None else len(self._records)
        answers = Counter(self.record(index)["answer"] or "" for index in range(min(size, 50)))
        frequent = answers.most_common(1)[0][0]

        def numbers(state: Any) -> list[str]:
            return re.findall(r"-?\d+", state.columns["question"]) or [""]

        return {
            "best": lambda state: f" {state.columns['answer'] or ''}",
            "most frequent answer": lambda state: f" {frequent}",
            "first number": lambda state: f" {numbers(state)[0]}",
            "last number": lambda state: f" {numbers(state)[-1]}",
            "copy": lambda state: f" {state.columns['question']}",
            "digits": lambda state: " -1234567890",
        }


class Verifier:
    """The score that a dataset's own verifier gives to the answer; reads `question`, `answer` and `metadata`.

    Range 0 to 1. An empty completion gets what the verifier gives it, mostly 0.

    Args:
        dataset: a dataset of reasoning-gym.
    """

    __name__ = "verifier"

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """B texts in, B floats out. Raises ValueError without the columns."""
        check_texts(prompts, completions)
        if missing := sorted(ReasoningGym.columns.keys() - columns.keys()):
            raise ValueError(f"this reward needs the column {missing[0]!r}; there are {sorted(columns)}")
        rows = [column_rows(name, columns[name], len(completions)) for name in ReasoningGym.columns]
        entries = [dict(zip(ReasoningGym.columns, row, strict=True)) for row in zip(*rows, strict=True)]
        return [self.score(text, entry) for text, entry in zip(completions, entries, strict=True)]

    def score(self, completion: str, entry: dict[str, Any]) -> float:
        """The score of one completion."""
        try:
            with own_global_randomness(0):
                return float(self.dataset.score_answer(answer_of(completion), entry))
        except Exception:
            # Verifiers parse answers with int(), split() and the like, and some let these fail.
            return 0.0


def answer_of(completion: str) -> str:
    """What stands in the last `<answer>...</answer>`, or else the whole text; without blanks around it."""
    marked = re.findall("<answer>(.*?)</answer>", completion, re.DOTALL)
    return (marked[-1] if marked else completion).strip()


@contextmanager
def own_global_randomness(seed: int) -> Iterator[None]:
    """Seeds the global generators of Python and NumPy, and puts them back as they were.

    A few datasets draw from them: their items would not be the same again; and one seeds NumPy's.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def create_dataset(name: str, config: Mapping[str, Any], level: int | Mapping[str, int]) -> Any:
    """A dataset of reasoning-gym.

    Args:
        name: its name.
        config: arguments that replace those of the level.
        level: the curriculum's.

    Raises:
        ImportError, ValueError: see `ReasoningGym`.
    """
    try:
        from reasoning_gym.factory import DATASETS
        from reasoning_gym.factory import create_dataset as create
    except ImportError as error:
        raise ImportError(
            "TextGen-ReasoningGym-v0 needs the package reasoning-gym: pip install 'lm-envs[reasoning-gym]'"
        ) from error
    if name not in DATASETS:
        close = difflib.get_close_matches(str(name), DATASETS, n=5, cutoff=0.4) or sorted(DATASETS)[:5]
        raise ValueError(
            f"dataset must be one of the {len(DATASETS)} of reasoning_gym.factory.DATASETS, such as "
            f"{', '.join(close)}; got {name!r}"
        )
    arguments = {"seed": 0, "size": SIZE, **_curriculum(name, level), **config}
    try:
        return create(name, **arguments)
    except (AssertionError, TypeError, ValueError) as error:
        known = sorted(field.name for field in fields(DATASETS[name][1]))
        raise ValueError(
            f"config={dict(config)!r} does not fit dataset={name!r}: {error}. Its arguments are {known}; "
            f"with those of the curriculum's level {level!r} they were {arguments}"
        ) from error


def _curriculum(name: str, level: int | Mapping[str, int]) -> dict[str, Any]:
    """The arguments that a dataset's curriculum has at a level."""
    from reasoning_gym.factory import create_curriculum, has_curriculum

    if not has_curriculum(name):
        if level != 0:
            raise ValueError(f"dataset={name!r} has no curriculum: it has level='easy' only, got {level!r}")
        return {}
    curriculum = create_curriculum(name)
    for attribute, value in _levels(curriculum, level).items():
        known = curriculum.attributes
        if attribute not in known:
            raise ValueError(
                f"curriculum_level names {attribute!r}; the attributes of dataset={name!r} "
                f"are {sorted(known)}"
            )
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"curriculum_level must be an integer >= 0, got {value!r} for {attribute!r}")
        curriculum.set_attr_level(attribute, min(value, len(known[attribute].levels) - 1))
    made = vars(curriculum.generate_configuration({"seed": 0, "size": SIZE}))
    return {key: value for key, value in made.items() if key not in ("seed", "size")}


def _levels(curriculum: Any, level: int | Mapping[str, int]) -> Mapping[str, int]:
    return level if isinstance(level, Mapping) else dict.fromkeys(curriculum.attributes, level)
