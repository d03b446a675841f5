"""What tests of single-turn tasks share: first states, scores of texts, and how far the players get."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np

from lm_envs.tasks.base import Completion
from lm_envs.tasks.record_task import RecordState, SingleTurn

LEVELS = ("easy", "medium", "hard")


def first_states(task: SingleTurn, count: int) -> list[RecordState]:
    """The first states of the first instances."""
    return [task.start(np.random.default_rng(0), {"task_index": index}) for index in range(count)]


def judge(
    task: SingleTurn, states: list[RecordState], texts: list[str]
) -> list[tuple[float, dict[str, float]]]:
    """Reward and parts of one text a state, each ended by EOS."""
    model = task.language_model
    completions = [
        Completion(
            text, (*model.encode(text), model.eos_token_id), tuple(model.encode_prompt(state.prompt)), "eos"
        )
        for state, text in zip(states, texts, strict=True)
    ]
    answers = task.respond(states, completions, [np.random.default_rng(0)] * len(states))
    assert all(answer.done for answer in answers)
    return [(answer.reward, dict(answer.info["reward_parts"])) for answer in answers]


def progress(task: SingleTurn, count: int) -> tuple[float, dict[str, float]]:
    """The best player's mean reward, and how far the tricks get: 0 is an empty text, 1 the best player."""
    states = first_states(task, count)

    def mean(player: Any) -> float:
        return float(
            np.mean([reward for reward, _ in judge(task, states, [player(state) for state in states])])
        )

    empty = mean(lambda state: "")
    means = {name: mean(player) for name, player in task.players().items()}
    best = means.pop("best")
    return best, {name: (value - empty) / (best - empty) for name, value in means.items()}


def checksum(task: SingleTurn, count: int = 20) -> int:
    """crc32 of the first records."""
    records = [dict(task.record(index)) for index in range(count)]
    return zlib.crc32(json.dumps(records, sort_keys=True).encode())


def longest(task: SingleTurn, count: int) -> tuple[int, int]:
    """Tokens of the longest prompt, and of the best player's longest text with its end."""
    best, model = task.players()["best"], task.language_model
    states = first_states(task, count)
    prompts = model.tokenizer([state.prompt for state in states])["input_ids"]
    texts = model.tokenizer([best(state) for state in states], add_special_tokens=False)["input_ids"]
    return max(map(len, prompts)), 1 + max(map(len, texts))
