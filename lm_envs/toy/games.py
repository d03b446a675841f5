"""The six toys and their default sizes, and the core that the single and the vector environment share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lm_envs.core import EnvCore
from lm_envs.episodes import Episodes
from lm_envs.rewards.base import whole_number
from lm_envs.toy.rules import Bigram, Brackets, Copy, KeyDoor, Reverse, Rule, Translate
from lm_envs.toy.task import Dials, ToyTask
from lm_envs.toy.view import ToyView

MAX_VOCAB_SIZE = MAX_LENGTH = 1024


class Game(NamedTuple):
    """A rule and the sizes that it is played with by default."""

    rule: type[Rule]
    vocab_size: int
    length: int


COPY = Game(Copy, 3, 5)
REVERSE = Game(Reverse, 3, 5)
TRANSLATE = Game(Translate, 3, 5)
BRACKETS = Game(Brackets, 4, 7)
BIGRAM = Game(Bigram, 5, 6)
KEY_DOOR = Game(KeyDoor, 4, 7)


def make_core(
    num_slots: int,
    game: Game,
    *,
    vocab_size: int | None = None,
    length: int | None = None,
    reward_timing: str = "end",
    reward_noise: float = 0.0,
    slip: float = 0.0,
    observation: str = "tokens",
    last_k: int = 2,
    info_text: bool = False,
) -> EnvCore:
    """A toy over B slots; `ToyEnv` documents the arguments.

    Raises:
        ValueError: impossible dials; names argument, value and range.
    """
    vocab_size = whole_number(
        "vocab_size", game.vocab_size if vocab_size is None else vocab_size, 2, MAX_VOCAB_SIZE
    )
    length = whole_number("length", game.length if length is None else length, 1, MAX_LENGTH)
    rule = game.rule(vocab_size, length)
    task = ToyTask(rule, Dials(reward_timing, reward_noise, slip), info_text=info_text)
    return core_of(task, num_slots, observation, last_k)


def core_of(task: ToyTask, num_slots: int, observation: str, last_k: int) -> EnvCore:
    """B slots of a toy, and the view of them."""
    language_model = task.rule.language_model
    episodes = Episodes(
        task,
        num_slots,
        max_new_tokens=task.rule.length,
        context_length=task.states.context_length,
        eos_token_id=None,
        pad_token_id=language_model.pad_token_id,
        token_dtype=np.int16,
    )
    view = ToyView(task.states, episodes, observation=observation, last_k=last_k)
    return EnvCore(language_model, task, episodes, view)
