"""What the bundled model reads: stories, and the text tasks of the suite as an agent meets them.

A text is what the environment's context holds when a scripted player has written its turn: the prompt, the
completion, and in conversations the replies and further turns. Instances and players are the tasks' own, of
the "train" split. A task that shows a new prompt each turn (a board, say) makes one text a turn.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from lm_envs.language_model import LanguageModel
from lm_envs.pretraining.stories import Split, story
from lm_envs.pretraining.telling import Dice
from lm_envs.tasks import Append, Completion, Feedback, make_task
from lm_envs.tasks.dialogue import first_offer
from lm_envs.tasks.record_task import NUM_INSTANCES

# Kind -> how many of a thousand texts or so are of it; stories are three fifths of the tokens.
MIXTURE: dict[str, int] = {
    "story": 480,
    "control": 20,
    "sentiment": 18,
    "translation": 42,
    "summarization": 30,
    "qa": 55,
    "dialogue": 50,
    "transcription": 58,
    "edit": 110,
    "snake": 95,
    "recommendation": 75,
    "reasoning_gym": 30,
}
# For a while: mostly edits. Which word is wrong is not learned from ten edits a step.
DRILL_MIXTURE: dict[str, int] = {**MIXTURE, "edit": 2200}
# Towards the end of the training: more of what is learned slowly.
LATE_MIXTURE: dict[str, int] = {
    "story": 450,
    "control": 20,
    "sentiment": 18,
    "translation": 40,
    "summarization": 25,
    "qa": 50,
    "dialogue": 70,
    "transcription": 52,
    "edit": 150,
    "snake": 135,
    "recommendation": 85,
    "reasoning_gym": 35,
}
# Levels, and how often they are drawn: mostly the environments' default.
LEVELS: dict[str, int] = {"easy": 8, "medium": 1, "hard": 1}
# The puzzles' place in their curriculum: "easy", and a third number.
PUZZLES: dict[str, int] = {"num_terms": 1, "num_digits": 0}
# What is left out, so that something is left to learn. Of words (longer than three letters, told apart by
# their first three) so many in a hundred:
WORDS_LEFT_OUT = {"translation": 40, "transcription": 55}
# Questions and demands that begin like this:
QUESTIONS_LEFT_OUT = ("Where", "Whom")
DEMANDS_LEFT_OUT = ("the word", "begin with")
# What a brief summary leaves out of a goal: when, where, for whom.
DETAILS = re.compile(" (at|before|for|from|in|on|over|until|with) .*")
# Edits of which so many in three are overlooked.
OVERLOOKED = {"insert": 2, "swap": 1}
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
    kind, dice = _draw(index, mixture, split)
    write = WRITERS[kind]
    while True:
        written = write(kind, dice, split)
        if len(written) <= MAX_CHARACTERS:
            return written


def kind_of(index: int, mixture: Mapping[str, int] = MIXTURE, split: Split = "train") -> str:
    """The kind of a text, without writing it; the arguments are those of `text`."""
    return _draw(index, mixture, split)[0]


def _draw(index: int, mixture: Mapping[str, int], split: Split) -> tuple[str, Dice]:
    dice = Dice(2 * index + (split == "test"))
    return list(mixture)[dice.weigh(*mixture.values())], dice


def _story(kind: str, dice: Dice, split: Split) -> str:
    """A whole story; also what continues the openings of `TextGen-v0` and `TextGen-Story-v0`."""
    return story(dice.below(2**48), split).text


def _reasoning_gym(kind: str, dice: Dice, split: Split) -> str:
    """Eight puzzles, a line break (the stop string) between them; none has a negative answer.

    Sums of two or three digits: those of two alone are so few that they are learned by heart. Eight, because
    an answer is one token or two: few to learn from, otherwise.
    """
    task, solved = _puzzles(split), list[str]()
    while len(solved) < 8:
        index = dice.below(NUM_INSTANCES)
        state = task.opening(task.record(index), index)
        if not state.columns["answer"].startswith("-"):
            solved.append(state.prompt + _best(task)(state))
    return "\n".join(solved)


def _in_known_words(kind: str, dice: Dice, split: Split) -> str:
    """As `_single_turn`, in the words that are not left out."""
    level = _level(dice)
    while True:
        task, state = _begin(kind, dice, split, level)
        source = state.columns["source"] if kind == "translation" else state.columns["reference"][0]
        if not any(is_left_out(kind, word) for word in re.findall("[a-z]+", source.lower())):
            return state.prompt + _best(task)(state)


def is_left_out(kind: str, word: str) -> bool:
    """Whether no text of its kind has this word, in lower case."""
    return len(word) > 3 and zlib.crc32(word[:3].encode()) % 100 < WORDS_LEFT_OUT[kind]


def _qa(kind: str, dice: Dice, split: Split) -> str:
    """A question that is not left out, and its answer."""
    while True:
        task, state = _begin(kind, dice, split)
        if not state.columns["question"].startswith(QUESTIONS_LEFT_OUT):
            return state.prompt + _best(task)(state)


def _control(kind: str, dice: Dice, split: Split) -> str:
    """A story, and those demands on it that are not left out."""
    while True:
        task, state = _begin(kind, dice, split)
        demands = [each for each in state.columns["demands"] if not each.startswith(DEMANDS_LEFT_OUT)]
        if demands:
            return task.prompt_of({**state.columns, "demands": demands}) + _best(task)(state)


def _summarization(kind: str, dice: Dice, split: Split) -> str:
    """Who wanted what, two of three in brief; details, trouble and outcome are left to learn."""
    task, state = _begin(kind, dice, split)
    told = _best(task)(state).partition(";")[0].rstrip(".")
    return f"{state.prompt}{DETAILS.sub('', told) if dice.below(3) else told}."


def _sentiment(kind: str, dice: Dice, split: Split) -> str:
    """A natural review; three of five say "it" instead of the subject's name, which the task asks for."""
    _, state = _begin(kind, dice, split)
    told = state.columns["reference"]
    return state.prompt + (
        told.replace(f"this {state.columns['subject']}", "it") if dice.below(5) < 3 else told
    )


def _dialogue(kind: str, dice: Dice, split: Split) -> str:
    """A conversation in which the first rule is the right one: to look for others is left to learn.

    In one of eight the first turn is a question that may be out of place.
    """
    while True:
        task, state = _begin(kind, dice, split)
        if state.columns["answer"][0] == first_offer(state):
            break
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
    """A sentence on the best player's way to the clean one, and the next edit.

    Two of three missing words and one of three swaps are overlooked: the player says "done" instead. That is
    what a model should say that does not see a mistake.

    Three of four texts are six such turns, "easy", without the stories and without missing words, a line
    break (the stop string) between them: a number is seldom right before a model has seen some 100,000 edits.
    """
    if dice.below(4) == 0:
        state, said = dice.pick(_edits(kind, dice, split, _level(dice)))
        return state.prompt + said
    turns: list[str] = []
    while len(turns) < 6:
        first, *rest = _edits(kind, dice, split, "easy")
        if len(first[0].words) >= len(first[0].reference):
            state, said = dice.pick([first, first, *rest])
            turns.append(state.prompt.removeprefix(f"{state.before}\n") + said)
    return "\n".join(turns)


def _edits(kind: str, dice: Dice, split: Split, level: str) -> list[tuple[Any, str]]:
    """The states on the best player's way, and what is said in each; "done" in the last."""
    task, state = _begin(kind, dice, split, level)
    turns = []
    while True:
        said = _second_of_two(_best(task)(state), state.words)
        is_overlooked = dice.below(3) < OVERLOOKED.get(said.split()[0], 0)
        turns.append((state, "done" if is_overlooked else said))
        if turns[-1][1] == "done":
            return turns
        state = _respond(task, state, said, dice).state


def _second_of_two(edit: str, words: Sequence[str]) -> str:
    """The second of two equal neighbors is deleted: the word that is seen to be one too many."""
    name, *arguments = edit.split()
    if name == "delete" and (at := int(arguments[0])) < len(words) and words[at] == words[at - 1]:
        return f"delete {at + 1}"
    return edit


def _recommendation(kind: str, dice: Dice, split: Split) -> str:
    """A moment of a session in which popular items are recommended, and one in six at random.

    What comes next is the next popular item, in one of three texts the best one for this user: to find out
    what a user loves is left to learn.
    """
    task, state = _begin(kind, dice, split)
    players = _players(task)
    for _ in range(dice.below(task.turns)):
        said = dice.pick(task.items) if dice.below(6) == 0 else players["popular"](state)
        state = _respond(task, state, said, dice).state
    return state.prompt + players["best" if dice.below(3) == 0 else "popular"](state)


def _snake(kind: str, dice: Dice, split: Split) -> str:
    """A position of a game, and the open move nearest to the food: to look out for coils is left to learn.

    Most begin with a coiled snake of any length up to 24 (the beginning of a "hard" one), and a few moves
    from there, one in five at random; some are the first position of an "easy" game.
    """
    is_first = dice.below(16) == 0
    task, state = _begin(kind, dice, split, "easy" if is_first else "hard")
    players = _players(task)
    if not is_first:
        length, left = 3 + dice.below(len(state.snake) - 2), 1 + dice.below(task.moves - 1)
        state = replace(state, snake=state.snake[:length], moves_left=left)
        for _ in range(dice.below(16)):
            name = "random_open" if dice.below(5) == 0 else "greedy_open"
            feedback = _respond(task, state, players[name](state), dice)
            if feedback.done:
                break
            state = feedback.state
    return state.prompt + players["greedy_open"](state)


Writer = Callable[[str, Dice, Split], str]
WRITERS: dict[str, Writer] = {
    "story": _story,
    "control": _control,
    "sentiment": _sentiment,
    "translation": _in_known_words,
    "summarization": _summarization,
    "qa": _qa,
    "dialogue": _dialogue,
    "transcription": _in_known_words,
    "edit": _edit,
    "recommendation": _recommendation,
    "snake": _snake,
    "reasoning_gym": _reasoning_gym,
}


def _level(dice: Dice) -> str:
    return list(LEVELS)[dice.weigh(*LEVELS.values())]


def _begin(kind: str, dice: Dice, split: Split, level: str | None = None) -> tuple[Any, Any]:
    """A task and the first state of one of its instances."""
    task = _task(kind, level or _level(dice), split)
    index = dice.below(NUM_INSTANCES)
    return task, task.opening(task.record(index), index)


@cache
def _task(kind: str, level: str, split: Split) -> Any:
    return make_task(kind, _NoModel(), {"split": split, "level": level})


@cache
def _puzzles(split: Split) -> Any:
    return make_task("reasoning_gym", _NoModel(), {"split": split, "curriculum_level": PUZZLES})


class _NoModel(LanguageModel):
    """Stands for the model that judges completions: none is judged here, and there may be no model yet."""

    def __init__(self) -> None:
        pass


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
