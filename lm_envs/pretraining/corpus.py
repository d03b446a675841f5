"""What the bundled model reads: stories, and the text tasks of the suite as an agent meets them.

A text is what the environment's context holds when a scripted player has written its turn: the prompt, the
completion, and in conversations the replies and further turns. Instances and players are the tasks' own, of
the "train" split. A task that shows a new prompt each turn (a board, say) makes one text a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from lm_envs.pretraining.stories import Split, story
from lm_envs.pretraining.telling import Dice
from lm_envs.tasks import Append, Completion, Feedback, make_task

# Kind -> how many of a thousand texts or so are of it.
MIXTURE: dict[str, int] = {
    "story": 560,
    "control": 30,
    "sentiment": 25,
    "translation": 60,
    "summarization": 45,
    "qa": 60,
    "dialogue": 60,
    "transcription": 60,
    "edit": 60,
    "snake": 90,
    "recommendation": 50,
    "reasoning_gym": 30,
}
LEVELS = ("easy", "medium", "hard")
# Levels are drawn with these weights: the environments' default most of the time.
LEVEL_WEIGHTS: dict[str, tuple[int, int, int]] = {
    "control": (8, 1, 1),
    "sentiment": (8, 1, 1),
    "translation": (8, 1, 1),
    "summarization": (8, 1, 1),
    "qa": (8, 1, 1),
    "dialogue": (8, 1, 1),
    "transcription": (8, 1, 1),
    "edit": (8, 1, 1),
    "recommendation": (8, 1, 1),
    "reasoning_gym": (1, 0, 0),
}
# A text has at most so many characters, so that it fits into a window of 256 tokens.
MAX_CHARACTERS = 900


def text(index: int, mixture: Mapping[str, int] = MIXTURE, split: Split = "train") -> str:
    """One text of the corpus, without special tokens; the same on every platform.

    Args:
        index: Its number, >= 0: decides kind and instance.
        mixture: Kind -> weight, a whole number >= 0.
        split: "train", or "test" for texts of held-out instances.

    Raises:
        ValueError: An index below 0, a kind that does not exist, or weights that are none.
        ImportError: reasoning-gym is not installed, and the text is one of its puzzles.
    """
    if index < 0:
        raise ValueError(f"index must be >= 0, got {index}")
    if unknown := sorted(mixture.keys() - MIXTURE.keys()):
        raise ValueError(f"mixture must be of the kinds {sorted(MIXTURE)}, got {unknown[0]!r}")
    if any(weight < 0 for weight in mixture.values()) or not sum(mixture.values()):
        raise ValueError(f"mixture must have weights >= 0, one of them above 0, got {dict(mixture)}")
    dice = Dice(2 * index + (split == "test"))
    kind = list(mixture)[dice.weigh(*mixture.values())]
    write = WRITERS.get(kind, _single_turn)
    while True:
        written = write(kind, dice, split)
        if len(written) <= MAX_CHARACTERS:
            return written


def _story(kind: str, dice: Dice, split: Split) -> str:
    """A whole story; also what continues the openings of `TextGen-v0` and `TextGen-Story-v0`."""
    return story(dice.below(2**48), split).text


def _single_turn(kind: str, dice: Dice, split: Split) -> str:
    """A prompt and the best player's completion."""
    task, state = _begin(kind, dice, split)
    return state.prompt + _best(task)(state)


def _sentiment(kind: str, dice: Dice, split: Split) -> str:
    """A natural review, which says "it" where the task asks for the subject's name: that is left to learn."""
    _, state = _begin(kind, dice, split)
    return state.prompt + state.columns["reference"].replace(f"this {state.columns['subject']}", "it")


def _dialogue(kind: str, dice: Dice, split: Split) -> str:
    """A conversation; in one of eight the first turn is a question that may be out of place."""
    task, state = _begin(kind, dice, split)
    players = _players(task)
    said = players["one question" if dice.below(8) == 0 else "best"](state)
    written = state.prompt + said
    while True:
        feedback = _respond(task, state, said, dice)
        if feedback.done:
            return written
        if not isinstance(feedback.context, Append):
            raise TypeError(f"a conversation goes on with Append, got {feedback.context!r}")
        state = feedback.state
        said = players["best"](state)
        written += f"\n{feedback.context.text}{said}"


def _edit(kind: str, dice: Dice, split: Split) -> str:
    """A sentence on the best player's way to the clean one, and the next edit."""
    task, state = _begin(kind, dice, split)
    player = _best(task)
    turns = [(state.prompt, player(state))]
    while turns[-1][1] != "done":
        state = _respond(task, state, turns[-1][1], dice).state
        turns.append((state.prompt, player(state)))
    return "".join(dice.pick(turns))


def _recommendation(kind: str, dice: Dice, split: Split) -> str:
    """A moment of a session in which one item in three was drawn at random, and the best item then."""
    task, state = _begin(kind, dice, split)
    for _ in range(dice.below(task.turns)):
        said = dice.pick(task.items) if dice.below(3) == 0 else _best(task)(state)
        state = _respond(task, state, said, dice).state
    return state.prompt + _best(task)(state)


def _snake(kind: str, dice: Dice, split: Split) -> str:
    """A position of a game, and the careful player's move.

    Most begin with a coiled snake of any length up to 24 (the beginning of a "hard" one), and a few moves
    from there, one in five at random; some are the first position of an "easy" game.
    """
    if dice.below(16) == 0:
        task, state = _begin(kind, dice, split, "easy")
        return state.prompt + _best(task)(state)
    task, state = _begin(kind, dice, split, "hard")
    length, left = 3 + dice.below(len(state.snake) - 2), 1 + dice.below(task.moves - 1)
    state = replace(state, snake=state.snake[:length], moves_left=left)
    players = _players(task)
    for _ in range(dice.below(16)):
        feedback = _respond(
            task, state, players["random_open" if dice.below(5) == 0 else "best"](state), dice
        )
        if feedback.done:
            break
        state = feedback.state
    return state.prompt + players["best"](state)


Writer = Callable[[str, Dice, Split], str]
WRITERS: dict[str, Writer] = {
    "story": _story,
    "sentiment": _sentiment,
    "dialogue": _dialogue,
    "edit": _edit,
    "recommendation": _recommendation,
    "snake": _snake,
}


def _begin(kind: str, dice: Dice, split: Split, level: str | None = None) -> tuple[Any, Any]:
    """A task and the first state of one of its instances."""
    task = _task(kind, level or LEVELS[dice.weigh(*LEVEL_WEIGHTS[kind])], split)
    index = dice.below(2**48)
    return task, task.opening(task.record(index), index)


@cache
def _task(kind: str, level: str, split: Split) -> Any:
    """The task without a language model: it is not asked for rewards here."""
    return make_task(kind, None, {"split": split, "level": level})  # type: ignore[arg-type]


@cache
def _players(task: Any) -> dict[str, Callable[[Any], str]]:
    return task.players()


def _best(task: Any) -> Callable[[Any], str]:
    return _players(task)["best"]


def _respond(task: Any, state: Any, said: str, dice: Dice) -> Feedback:
    """What a multi-turn task answers to a completion that ends in its stop string."""
    rng = np.random.Generator(np.random.Philox(key=dice.below(2**63)))
    turns: Sequence[Completion] = [Completion(said, (), (), "stop")]
    return task.respond([state], turns, [rng])[0]
