"""Checks for a user's own reward functions and tasks: `check_reward` and `check_task`.

Both return None, or raise an exception that says what is wrong: TypeError for a wrong signature or type,
RewardError for a reward that is not a finite number, ValueError for the rest. What works here but not in
subprocesses warns.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import math
import numbers
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import Space

from lm_envs.errors import RewardError
from lm_envs.rewards import RewardFunction, checked
from lm_envs.rewards.base import check_texts, column_rows
from lm_envs.rewards.checking import finite_float
from lm_envs.tasks.base import Append, Completion, Feedback, Replace, Task
from lm_envs.tasks.prompts import check_text
from lm_envs.tasks.tokenized import check_feedback
from lm_envs.view import ACTIONS, OBSERVATIONS

if TYPE_CHECKING:
    from lm_envs.language_model import LanguageModel

_PROMPTS = ("Once upon a time", "Question: what is 2 + 2?\nAnswer:", "The old lighthouse was dark. Then")
_COMPLETIONS = (
    "",
    " She smiled, and they all went home happy.",
    " no no no no no no no no",
    "4",
    "?!...",
    " \n\t",
    " Grüße aus Zürich, 東京 and 🙂.",
    " and then" + " the rain fell on the roof" * 8,
)


def check_reward(
    reward: RewardFunction,
    prompts: Sequence[str] | None = None,
    completions: Sequence[str] | None = None,
    *,
    tolerance: float = 1e-4,
    **columns: Any,
) -> None:
    """Checks a reward function: signature, outputs, determinism, independence of its neighbours, empty text.

    Args:
        reward: the function, called as `reward(prompts=..., completions=..., **columns)`.
        prompts: texts to try it on, as many as completions; built-in ones by default.
        completions: texts to try it on; built-in ones by default (an empty one, repetition, Unicode, ...), as
            many as the columns have entries.
        tolerance: accepted difference, relative and absolute, between a completion's reward in a batch and
            alone. Models in bfloat16 need about 0.05.
        columns: the columns that the reward needs, each a list with one entry per completion.

    Raises:
        TypeError: it is not callable, or does not take prompts, completions and further columns by keyword.
        RewardError: it raises, or returns something else than one finite number per completion.
        ValueError: its rewards differ between equal calls or depend on the other completions of the batch; it
            changes what it is given; or the texts and columns given here do not fit together.
    """
    _check_signature(reward, columns)
    if completions is None:
        sizes = [len(column) for column in columns.values() if isinstance(column, Sequence)]
        size = max(sizes, default=len(_COMPLETIONS))
        completions = [_COMPLETIONS[row % len(_COMPLETIONS)] for row in range(size)]
    if prompts is None:
        prompts = [_PROMPTS[row % len(_PROMPTS)] for row in range(len(completions))]
    check_texts(prompts, completions)
    if not completions:
        raise ValueError("completions must hold at least one text to try the reward on, got none")
    for name, column in columns.items():
        column_rows(name, column, len(completions))

    given = copy.deepcopy(columns)
    rewards = checked(reward, prompts, completions, **columns)
    again = checked(reward, prompts, completions, **columns)
    if not _same(given, columns):
        raise ValueError("the reward function changes the columns that it is given")
    for row, (prompt, text) in enumerate(zip(prompts, completions, strict=True)):
        if not _same(rewards[row], again[row], tolerance):
            raise ValueError(
                f"two equal calls gave {rewards[row]} and {again[row]} for the completion {text!r}"
            )
        own = {name: column[row : row + 1] for name, column in columns.items()}
        (alone,) = checked(reward, [prompt], [text], **own)
        if not _same(rewards[row], alone, tolerance):
            raise ValueError(
                f"a reward must not depend on the rest of the batch: {text!r} gets {alone} alone, "
                f"and {rewards[row]} among {len(completions)} completions"
            )
        checked(reward, [prompt], [""], **own)  # saying nothing must have a value, too
    _warn_unless_picklable("reward function", reward)


def check_task(
    task: Task, language_model: LanguageModel | None = None, *, max_turns: int = 64, tolerance: float = 1e-4
) -> None:
    """Checks a task: plays a few episodes of it with made-up completions, an empty one among them.

    If the task offers choices, episodes of these are played too; masks and views are asked for every state.

    Args:
        task: the task, built.
        language_model: the model it is for: then token ids are real, and a full context ends an episode.
            None: the task's own `language_model` if it has one, or else a stand-in whose tokens are bytes.
        max_turns: an episode of more turns is taken for one that never ends. Those of choices may go on.
        tolerance: accepted difference of numbers, as in `check_reward`.

    Raises:
        TypeError: a method is missing, or something has the wrong type.
        RewardError: a reward, or a part in `info["reward_parts"]`, is not a finite number.
        ValueError: an empty or unencodable prompt; a state that was changed; a start or feedback that differs
            for equal input and generators, or depends on other slots; a wrong count of feedbacks; no end; a
            choice twice; a mask or view of the wrong form or outside its space, or one that differs for equal
            states or depends on other slots; no choice allowed.
    """
    for method in ("start", "respond"):
        if not callable(getattr(task, method, None)):
            raise TypeError(f"a task needs a method {method!r}, {type(task).__name__} has none")
    if language_model is None:
        language_model = getattr(task, "language_model", None)
    model = _Bytes() if language_model is None else language_model
    for index, prompt in enumerate(getattr(task, "prompts", None) or ()):
        _check_prompt(f"prompts[{index}]", prompt, model)
    _check_modes(task, model)
    unfinished = _play(task, model, max_turns, tolerance, None)
    if unfinished:
        raise ValueError(f"the episode of slot {unfinished[0].slot} is not done after {max_turns} turns")
    for mode in _choices(task):
        _play(task, model, max_turns, tolerance, mode)
    _warn_unless_picklable("task", task)


def _play(task: Task, model: Any, max_turns: int, tolerance: float, mode: str | None) -> list[_Episode]:
    """Plays episodes of made-up completions, or of a mode's choices; returns those that are not over."""
    episodes = []
    for slot in range(len(_COMPLETIONS)):
        state = _check_start(task, slot, model)
        context = model.encode_prompt(state.prompt)
        if len(context) >= model.context_length:
            raise ValueError(
                f"start: a prompt of {len(context)} tokens leaves no room in a context of "
                f"{model.context_length}: {state.prompt!r:.60}"
            )
        episodes.append(_Episode(slot, state, context))
    _check_looks(task, episodes, tolerance)
    for turn in range(max_turns):
        texts = [_text(task, mode, episode, turn) for episode in episodes]
        finished = {
            episode.slot: _completion(episode, text, model)
            for episode, text in zip(episodes, texts, strict=True)
        }
        # A full context cuts an episode short, whatever the task says.
        episodes = [
            episode for episode in episodes if _length(finished[episode.slot]) <= model.context_length
        ]
        completions = [finished[episode.slot] for episode in episodes]
        feedbacks = _check_respond(task, episodes, completions, turn, tolerance) if episodes else []
        for episode, completion, feedback in zip(episodes, completions, feedbacks, strict=True):
            _check_feedback(completion, feedback, model)
            episode.go_on(completion, feedback, model)
        _check_looks(task, episodes, tolerance)
        episodes = [episode for episode in episodes if not episode.done]
        if not episodes:
            break
    return episodes


class _Bytes:
    """Stands in for a language model where none is given: token ids are bytes."""

    name = "bytes"
    bos_token_id = 0
    eos_token_id = None
    context_length = math.inf

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    encode_prompt = encode


@dataclasses.dataclass
class _Episode:
    """One slot of `check_task`."""

    slot: int
    state: Any
    context: list[int]
    done: bool = False

    def go_on(self, completion: Completion, feedback: Feedback, model: Any) -> None:
        """What an environment does with a task's feedback."""
        self.done = bool(feedback.done or feedback.truncated)
        self.state = self.state if feedback.state is None else feedback.state
        if isinstance(feedback.context, Replace):
            self.context = model.encode_prompt(feedback.context.text)
        else:
            reply = "" if feedback.context is None else feedback.context.text
            self.context = [*self.context, *completion.token_ids, *model.encode(reply)]


def _check_signature(reward: Any, columns: Mapping[str, Any]) -> None:
    if not callable(reward):
        raise TypeError(f"a reward function must be callable, got {type(reward).__name__}")
    try:
        signature = inspect.signature(reward)
    except ValueError:  # built-in functions may have none
        return
    try:
        signature.bind(prompts=[], completions=[], a_column_it_does_not_read=[], **columns)
    except TypeError as error:
        raise TypeError(
            "a reward function is called as reward(prompts=..., completions=..., **columns) and must accept "
            f"columns that it does not read; with the signature {signature}: {error}"
        ) from error


def _check_start(task: Task, slot: int, model: Any) -> Any:
    """The slot's first state, started twice from equal generators."""
    state, again = (task.start(np.random.default_rng(slot), {}) for _ in range(2))
    _check_state("start", state, model)
    if not _same(state, again):
        raise ValueError(f"start gave {state!r}, then {again!r}, from equal generators: draw from `rng` only")
    for options in ({"prompt": state.prompt}, {"task_index": 0}):
        with contextlib.suppress(ValueError):  # a task may refuse options
            _check_state(f"start with {options}", task.start(np.random.default_rng(slot), options), model)
    return state


def _check_respond(
    task: Task, episodes: list[_Episode], completions: list[Completion], turn: int, tolerance: float
) -> list[Feedback]:
    """The feedbacks of one turn, after asking for them together, again, and alone."""

    def respond(rows: Sequence[int]) -> list[Feedback]:
        generators = [np.random.default_rng([episodes[row].slot, turn]) for row in rows]
        feedbacks = task.respond(
            [episodes[row].state for row in rows], [completions[row] for row in rows], generators
        )
        size = len(feedbacks) if isinstance(feedbacks, Sequence) else type(feedbacks).__name__
        if size != len(rows):
            raise ValueError(
                f"respond must return a list of {len(rows)} Feedback, one a completion, got {size}"
            )
        return feedbacks

    before = [copy.deepcopy(episode.state) for episode in episodes]
    together = respond(range(len(episodes)))
    for state, episode in zip(before, episodes, strict=True):
        if not _same(state, episode.state):
            raise ValueError(f"respond changed a state: {state!r} became {episode.state!r}")
    for row, (first, again) in enumerate(zip(together, respond(range(len(episodes))), strict=True)):
        if not _same(first, again, tolerance):
            raise ValueError(
                f"respond gave {first!r}, then {again!r}, for equal input: draw from `rngs` only"
            )
        (alone,) = respond([row])
        if not _same(first, alone, tolerance):
            raise ValueError(
                f"feedback must not depend on other slots: {first!r} in a batch, {alone!r} alone"
            )
    return together


def _check_feedback(completion: Completion, feedback: Any, model: Any) -> None:
    """What the environment checks, and what only this package's users would miss."""
    slot = completion.slot
    where = f"respond, slot {slot} (completion {completion.text!r})"
    check_feedback(feedback, completion)
    parts = feedback.info.get("reward_parts", {})
    if not isinstance(parts, Mapping):
        raise TypeError(f"{where}: info['reward_parts'] must be a dict name -> float, got {parts!r}")
    for name, value in parts.items():
        if finite_float(value) is None:
            message = f"{where}: {name} must be a finite number, got {value!r}"
            raise RewardError(message, slot=slot, text=completion.text, value=value)
    if feedback.state is not None:
        _check_state(where, feedback.state, model)
    if isinstance(feedback.context, Replace):
        _check_prompt(f"{where}: text of Replace", feedback.context.text, model)
    elif isinstance(feedback.context, Append):
        check_text(feedback.context.text, f"{where}: text of Append")


def _check_state(where: str, state: Any, model: Any) -> None:
    frozen = getattr(getattr(state, "__dataclass_params__", None), "frozen", False)
    if isinstance(state, type) or not frozen:
        raise TypeError(f"{where}: a state must be a frozen dataclass, got {state!r}")
    if not hasattr(state, "prompt"):
        raise TypeError(f"{where}: a state must have a field 'prompt', {type(state).__name__} has none")
    _check_prompt(f"{where}: prompt of the state", state.prompt, model)


def _check_prompt(where: str, prompt: Any, model: Any) -> None:
    check_text(prompt, where)
    if not prompt and model.bos_token_id is None:
        raise ValueError(f"{where} is empty, and the model {model.name!r} has no BOS token to begin with")


def _choices(task: Any) -> Mapping[str, Sequence[str]]:
    return getattr(task, "choices", None) or {}


def _views(task: Any) -> Mapping[str, Any]:
    return getattr(task, "views", None) or {}


def _check_modes(task: Any, model: Any) -> None:
    """Names, choices and spaces of the action and observation modes that a task offers."""
    for mode, choices in _choices(task).items():
        where = f"choices[{mode!r}]"
        if mode in ACTIONS:
            raise ValueError(f"{where}: {ACTIONS} are the environment's own names")
        is_list = isinstance(choices, Sequence) and not isinstance(choices, str) and len(choices) > 0
        if not is_list or not all(isinstance(choice, str) for choice in choices):
            raise TypeError(f"{where} must be a non-empty sequence of str, got {choices!r:.60}")
        for index, choice in enumerate(choices):
            check_text(choice, f"{where}[{index}]")
            model.encode(choice)
            if choice in choices[:index]:
                raise ValueError(f"{where}[{index}]: {choice!r} is there twice")
    for mode, space in _views(task).items():
        if mode in OBSERVATIONS:
            raise ValueError(f"views[{mode!r}]: {OBSERVATIONS} are the environment's own names")
        if not isinstance(space, Space) or space.shape is None:
            raise TypeError(f"views[{mode!r}] must be a space with a shape, got {space!r}")


def _check_looks(task: Any, episodes: list[_Episode], tolerance: float) -> None:
    """Masks and views of the episodes' states, asked together, again, and alone."""
    if not episodes:
        return
    states = [episode.state for episode in episodes]
    for mode, choices in _choices(task).items() if hasattr(task, "allowed") else ():
        where = f"allowed(states, {mode!r})"
        mask = _looked(where, task.allowed, states, mode, 0.0)
        _check_array(where, mask, np.dtype(bool), (len(states), len(choices)))
        for episode, row in zip(episodes, mask, strict=True):
            if not episode.done and not row.any():
                raise ValueError(f"{where} allows no choice in {episode.state!r}")
    for mode, space in _views(task).items():
        where = f"view(states, {mode!r})"
        view = _looked(where, task.view, states, mode, tolerance)
        _check_array(where, view, space.dtype, (len(states), *space.shape))
        for state, row in zip(states, view, strict=True):
            if not space.contains(row):
                raise ValueError(f"{where} gives {row!r} for {state!r}: not in {space}")


def _looked(where: str, look: Callable[..., Any], states: list[Any], mode: str, tolerance: float) -> Any:
    before = copy.deepcopy(states)
    together, again = look(states, mode), look(states, mode)
    alone = [look([state], mode)[0] for state in states]
    if not _same(before, states):
        raise ValueError(f"{where} changed a state")
    if not _same(together, again, tolerance) or not _same(list(together), alone, tolerance):
        raise ValueError(f"{where} must depend on each state alone, but differs from call to call")
    return together


def _check_array(where: str, array: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        got = f"{array.shape} of {array.dtype}" if isinstance(array, np.ndarray) else f"{array!r:.60}"
        raise TypeError(f"{where} must be an array {shape} of {dtype}, got {got}")


def _text(task: Any, mode: str | None, episode: _Episode, turn: int) -> str:
    """What slot and turn decide: a made-up text, or one of the choices that are allowed."""
    number = episode.slot + turn
    if mode is None:
        return _COMPLETIONS[number % len(_COMPLETIONS)]
    choices = _choices(task)[mode]
    if not hasattr(task, "allowed"):
        return choices[number % len(choices)]
    allowed = np.flatnonzero(task.allowed([episode.state], mode)[0])
    return choices[allowed[number % len(allowed)]]


def _completion(episode: _Episode, text: str, model: Any) -> Completion:
    eos = [] if model.eos_token_id is None else [model.eos_token_id]
    token_ids = (*model.encode(text), *eos)
    return Completion(text, token_ids, tuple(episode.context), "eos" if eos else "length", episode.slot)


def _length(completion: Completion) -> int:
    return len(completion.context_ids) + len(completion.token_ids)


def _same(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Equality of plain data by content, numbers within a tolerance."""
    if a is b:
        return True
    if isinstance(a, numbers.Real) and isinstance(b, numbers.Real):
        near = math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
        return near or (math.isnan(a) and math.isnan(b))
    if type(a) is not type(b):
        return False
    if hasattr(a, "tolist"):  # arrays and tensors
        return _same(a.tolist(), b.tolist(), tolerance)
    if dataclasses.is_dataclass(a):
        names = [field.name for field in dataclasses.fields(a)]
        return all(_same(getattr(a, name), getattr(b, name), tolerance) for name in names)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if type(a).__eq__ is object.__eq__:
        return _same(getattr(a, "__dict__", None), getattr(b, "__dict__", None), tolerance)
    return bool(a == b)


def _warn_unless_picklable(what: str, thing: Any) -> None:
    try:
        pickle.loads(pickle.dumps(thing))
    except Exception as error:
        message = f"this {what} cannot be pickled, so environments in subprocesses cannot take it: {error}"
        warnings.warn(message, stacklevel=3)
