"""From text to tokens: makes a `Task`, which speaks text, the `TokenTask` that the dynamics speak to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_envs.episodes import FINISH_REASONS, STOP, Answers, Opening, Pay, Turns, Write
from lm_envs.errors import RewardError
from lm_envs.randomness import generators
from lm_envs.rewards.checking import finite_float
from lm_envs.tasks.base import Append, Completion, Feedback, Replace, Task
from lm_envs.tasks.prompts import check_text

if TYPE_CHECKING:
    from lm_envs.language_model import LanguageModel

# Keys of the info that a turn's end writes.
INFO_KEYS = ("prompt", "completion", "finish_reason", "prompt_tokens", "completion_tokens", "turns")
# What a task must not write: it may set "finish_reason" alone of what the environment writes.
TAKEN_KEYS = {*INFO_KEYS, "candidates", "action_mask", "final_obs", "final_info"} - {"finish_reason"}


class TokenizedTask:
    """A text task over token arrays.

    Args:
        task: the task.
        language_model: whose tokenizer encodes prompts and replies and decodes completions.
        stop: strings that end a turn.
        max_new_tokens: tokens a turn may have; a first prompt has to leave room for them.
        context_length: L.
        truncate_prompts: first prompts and replacements that are too long lose tokens at the front (a leading
            BOS stays) instead of being refused.

    Raises:
        ValueError: one of `task.prompts`, if the task has them, does not fit; names its index.
    """

    state_dtype = object
    is_infallible = False
    is_random = True
    pay: Pay | None = None
    written: Write | None = None

    def __init__(
        self,
        task: Task,
        language_model: LanguageModel,
        *,
        stop: Sequence[str],
        max_new_tokens: int,
        context_length: int,
        truncate_prompts: bool,
    ) -> None:
        self.task = task
        self.stop = tuple(stop)
        self._language_model = language_model
        self._max_prompt_tokens = context_length - max_new_tokens
        self._max_new_tokens = max_new_tokens
        self._truncate_prompts = truncate_prompts
        self._special_ids = frozenset(language_model.tokenizer.all_special_ids)
        for index, prompt in enumerate(getattr(task, "prompts", None) or ()):
            self._encode_first(prompt, f"prompts[{index}]")

    def turn(self, text: str) -> list[int]:
        """The token ids of a text as one whole turn, for `Episodes.write_turns`.

        They end where the turn would if they were written one by one: with the token that completes a stop
        string, and after `max_new_tokens`. A text that ends before that gets an EOS, if the model has one.

        Raises:
            ValueError: the tokenizer cannot encode the text.
        """
        ids = self._language_model.encode(text)[: self._max_new_tokens]
        if self.stop and self._holds_stop(ids):
            for end in range(1, len(ids) + 1):
                if self._ends_in_stop(ids[:end]):
                    return ids[:end]
        eos = self._language_model.eos_token_id
        return ids if eos is None or len(ids) == self._max_new_tokens else [*ids, eos]

    def choices(self, mode: str) -> list[list[int]]:
        """The turns that the actions of one of the task's action modes write.

        Raises:
            ValueError: a choice that no turn can hold; names it.
        """
        turns = []
        for i, text in enumerate(self.task.choices[mode]):  # type: ignore[attr-defined]
            name = f"choices[{mode!r}][{i}] = {text!r}"
            try:
                ids, turn = self._language_model.encode(text), self.turn(text)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            stops = bool(self.stop) and self._holds_stop(turn)
            if len(turn) < len(ids) and stops:
                raise ValueError(f"{name} goes on behind one of the stop strings {self.stop}")
            if len(ids) + (not stops) > self._max_new_tokens:
                raise ValueError(
                    f"{name} needs max_new_tokens >= {len(ids) + (not stops)}, its end included, "
                    f"got {self._max_new_tokens}"
                )
            if (read := self._language_model.decode(ids)).strip() != text.strip():
                raise ValueError(f"{name} is {read!r} in the tokens of {self._language_model.name!r}")
            turns.append(turn)
        return turns

    def start(self, dice: np.ndarray, options: np.ndarray | None, slots: np.ndarray) -> Opening:
        """Begins n episodes; see `TokenTask`."""
        states = np.empty(len(slots), dtype=object)
        contexts = []
        for i, rng in enumerate(generators(dice)):
            states[i] = state = self.task.start(rng, {} if options is None else dict(options[i]))
            index = getattr(state, "index", None)
            name = f"prompt of slot {slots[i]}" + ("" if index is None else f" (task_index {index})")
            contexts.append(self._encode_first(state.prompt, name))
        return Opening(*_padded(contexts), states)

    def stopped(self, tokens: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Whether each running turn holds a stop string; see `TokenTask`."""
        rows = zip(tokens, starts, ends, strict=True)
        return np.array([self._ends_in_stop(row[start:end].tolist()) for row, start, end in rows], dtype=bool)

    def respond(self, states: np.ndarray, turns: Turns, dice: np.ndarray, slots: np.ndarray) -> Answers:
        """Answers n finished turns; see `TokenTask`."""
        completions = self._completions(turns, slots)
        answers = self.task.respond(list(states), completions, generators(dice))
        if not isinstance(answers, Sequence) or len(answers) != len(completions):
            got = f"{len(answers)} answers" if isinstance(answers, Sequence) else type(answers).__name__
            raise TypeError(f"task.respond() must return {len(completions)} Feedback, got {got}")
        next_states, infos, contexts = states.copy(), [], []
        for i, (feedback, completion) in enumerate(zip(answers, completions, strict=True)):
            check_feedback(feedback, completion)
            if feedback.state is not None:
                next_states[i] = feedback.state
            infos.append({**self._info(states[i], turns, i, completion), **feedback.info})
            contexts.append(self._encode_next(feedback, f"next context of slot {slots[i]}"))
        tokens, lengths = _padded(contexts)
        # An episode goes on only in a context that leaves room for a token.
        lengths[[bool(feedback.truncated) for feedback in answers]] = (
            self._max_prompt_tokens + self._max_new_tokens
        )
        return Answers(
            np.array([finite_float(feedback.reward) for feedback in answers]),
            np.array([feedback.done for feedback in answers]),
            next_states,
            tokens,
            lengths,
            np.array([isinstance(feedback.context, Replace) for feedback in answers]),
            infos,
        )

    def describe(self, states: np.ndarray, turns: Turns) -> list[dict[str, Any]]:
        """Infos of n turns without an answer; see `TokenTask`."""
        completions = self._completions(turns, np.zeros(len(states), np.int64))
        return [self._info(states[i], turns, i, completion) for i, completion in enumerate(completions)]

    def _completions(self, turns: Turns, slots: np.ndarray) -> list[Completion]:
        completions = []
        bounds = zip(turns.starts, turns.ends, strict=True)
        for row, (start, end), reason, slot in zip(turns.tokens, bounds, turns.reasons, slots, strict=True):
            ids = row[start:end].tolist()
            context = tuple(row[:start].tolist())
            text = self._language_model.decode_after(context, ids)
            if reason == STOP:
                found = [at for at in map(text.find, self.stop) if at >= 0]
                text = text[: min(found, default=len(text))]  # a whole turn may stop without a stop string
            completions.append(Completion(text, tuple(ids), context, FINISH_REASONS[reason], int(slot)))
        return completions

    def _info(self, state: Any, turns: Turns, i: int, completion: Completion) -> dict[str, Any]:
        values = (
            state.prompt,
            completion.text,
            completion.finish_reason,
            len(completion.context_ids),
            len(completion.token_ids),
            int(turns.numbers[i]),
        )
        return dict(zip(INFO_KEYS, values, strict=True))

    def _ends_in_stop(self, turn: list[int]) -> bool:
        """Whether a turn's text holds a stop string, none having been there one token ago.

        A token that is not special stands for at least one byte, so the string lies in the last few such
        tokens. Only if it does is the whole turn decoded, to be sure: some tokenizers decode a tail
        differently.
        """
        longest = max(len(stop.encode()) for stop in self.stop)
        tail = [token for token in turn if token not in self._special_ids][-longest - 4 :]
        return self._holds_stop(tail) and self._holds_stop(turn)

    def _holds_stop(self, token_ids: list[int]) -> bool:
        text = self._language_model.decode(token_ids)
        return any(stop in text for stop in self.stop)

    def _encode_first(self, prompt: Any, name: str) -> list[int]:
        """Token ids of a first prompt; ValueError naming it if they leave no room for `max_new_tokens`."""
        check_text(prompt, name)
        try:
            ids = self._language_model.encode_prompt(prompt)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        room = self._max_prompt_tokens
        if len(ids) > room and not self._truncate_prompts:
            raise ValueError(
                f"{name} has {len(ids)} tokens, at most {room} fit: context_length "
                f"{room + self._max_new_tokens} minus max_new_tokens {self._max_new_tokens}. Shorten it, "
                f"lower max_new_tokens, or pass truncate_prompts=True. It begins {prompt[:40]!r}"
            )
        return self._truncated(ids)

    def _encode_next(self, feedback: Feedback, name: str) -> list[int]:
        """Token ids that the context goes on with, or is replaced by; none if it stays."""
        if feedback.done or feedback.context is None:
            return []
        check_text(feedback.context.text, name)
        if isinstance(feedback.context, Append):
            return self._language_model.encode(feedback.context.text)
        ids = self._language_model.encode_prompt(feedback.context.text)
        return self._truncated(ids) if self._truncate_prompts else ids

    def _truncated(self, ids: list[int]) -> list[int]:
        room = self._max_prompt_tokens
        if len(ids) <= room:
            return ids
        head = ids[:1] if ids[0] == self._language_model.bos_token_id else []
        return head + ids[len(ids) - room + len(head) :]


def check_feedback(feedback: Any, completion: Completion) -> None:
    """Raises TypeError, ValueError or RewardError, naming the slot, unless this is a usable answer."""
    slot, text = completion.slot, completion.text
    if not isinstance(feedback, Feedback):
        raise TypeError(f"task.respond() must return Feedback, got {type(feedback).__name__} for slot {slot}")
    if finite_float(feedback.reward) is None:
        message = f"the reward of slot {slot} must be a finite number, got {feedback.reward!r} for {text!r}"
        raise RewardError(message, slot=slot, text=text, value=feedback.reward)
    for name in ("done", "truncated"):
        if not isinstance(value := getattr(feedback, name), bool | np.bool_):
            raise TypeError(f"Feedback.{name} must be a bool, got {value!r} for slot {slot}")
    if not isinstance(feedback.context, Append | Replace | None):
        got = f"{feedback.context!r:.60} for slot {slot}"
        raise TypeError(f"Feedback.context must be Append, Replace or None, got {got}")
    if not isinstance(feedback.info, Mapping) or not all(isinstance(key, str) for key in feedback.info):
        got = f"{feedback.info!r:.60} for slot {slot}"
        raise TypeError(f"Feedback.info must be a dict with str keys, got {got}")
    if taken := TAKEN_KEYS & feedback.info.keys():
        raise ValueError(f"Feedback.info must not have the keys {sorted(taken)}, it does for slot {slot}")


def _padded(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of token ids as (n, W) int64, padded with 0, and their lengths (n,) int64."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    tokens = np.zeros((len(rows), lengths.max(initial=0)), dtype=np.int64)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return tokens, lengths
