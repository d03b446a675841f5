"""A toy rule as the `TokenTask` that the dynamics speak to: when rewards are paid, noise and slips."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from lm_envs.episodes import FINISH_REASONS, LENGTH, Answers, Opening, Pay, Turns, Write
from lm_envs.randomness import mix, normal, uniform
from lm_envs.tasks.prompts import check_text
from lm_envs.toy.rules import Rule
from lm_envs.toy.states import StateSpace, digits, in_words

REWARD_TIMINGS = ("end", "delayed", "dense", "shaped")
_BLOCK_BITS = 40  # of a 64-bit hash that a prompt's tokens may use: what is left over makes them uniform
_FEW_PROMPTS = 4096  # so many are kept as a table
_FEW_TEXTS = 2**17  # so many are scored once and for all


class Dials(NamedTuple):
    """How a rule is played; see `ToyEnv`."""

    reward_timing: str = "end"
    reward_noise: float = 0.0
    slip: float = 0.0

    def check(self) -> None:
        """Raises ValueError naming dial, value and range, unless all dials are possible."""
        if self.reward_timing not in REWARD_TIMINGS:
            raise ValueError(f"reward_timing must be one of {REWARD_TIMINGS}, got {self.reward_timing!r}")
        if not 0 <= check_number("reward_noise", self.reward_noise) < np.inf:
            raise ValueError(f"reward_noise must be >= 0 and finite, got {self.reward_noise!r}")
        if not 0 <= check_number("slip", self.slip) <= 1:
            raise ValueError(f"slip must be in 0..1, got {self.slip!r}")


class ToyTask:
    """One turn of exactly `length` tokens behind a prompt; arrays only, so it cannot fail in a step.

    Args:
        rule: what is asked for.
        dials: reward timing, noise and slip.
        info_text: whether infos hold prompt and completion as text.

    Attributes:
        rule, dials: as given.
        states: the rule's states, numbered.
        pay: see `TokenTask.pay`; None where only the last token is paid.
        written: see `TokenTask.written`; None without slips.
    """

    state_dtype = np.bool_  # the context says it all
    stop: tuple[str, ...] = ()
    is_infallible = True

    def __init__(self, rule: Rule, dials: Dials, *, info_text: bool = False) -> None:
        dials.check()
        self.rule, self.dials = rule, dials
        self.info_text = info_text
        self.states = StateSpace(rule)
        self.is_random = dials.reward_noise > 0
        self.pay: Pay | None = None
        self.written: Write | None = None
        if dials.reward_timing != "end":
            self.pay = self._pay
        if dials.slip > 0:
            self.written = self._written
        self._finish_reasons = np.empty(0, object)  # always the same one; copying is faster than filling
        size = self.states.num_prompts
        self._prompts = None
        if size <= _FEW_PROMPTS:
            self._prompts = np.ascontiguousarray(self.states.prompts(np.arange(size)))
        self._per_block = max(1, int(_BLOCK_BITS / np.log2(max(rule.prompt_base, 2))))

    @property
    def delay(self) -> int:
        """Tokens between earning and payment under "delayed": half the length, at least 1."""
        return max(1, self.rule.length // 2)

    def start(self, dice: np.ndarray, options: np.ndarray | None, slots: np.ndarray) -> Opening:
        """Draws n prompts uniformly, or takes those that the options ask for; see `TokenTask`.

        Raises:
            ValueError: a prompt that is not one of the rule's, or a task_index out of range.
        """
        n = len(dice)
        prompts = self._draw(dice)
        for row, wishes in enumerate(() if options is None else options):
            if wishes:
                prompts[row] = self._chosen(wishes, int(slots[row]))
        return Opening(prompts, np.full(n, self.rule.prompt_length), np.zeros(n, bool))

    def respond(self, states: np.ndarray, turns: Turns, dice: np.ndarray, slots: np.ndarray) -> Answers:
        """Scores n whole texts and ends their episodes; see `TokenTask`."""
        n, first = len(states), self.rule.prompt_length
        prompts, completions = turns.tokens[:, :first], turns.tokens[:, first:]
        if self.verdicts is None:
            scores = self.rule.score(prompts, completions)
            successes = self.rule.success(prompts, completions, scores)
        else:
            texts = self.states.text_numbers(turns.tokens)
            scores, successes = (verdict.take(texts) for verdict in self.verdicts)
        rewards = scores
        if self.pay is not None:
            rewards = self.rewards(prompts, completions, np.full(n, self.rule.length))
        infos = self._info(turns, n)
        infos["success"] = successes
        none = np.zeros(n, np.int64)
        done = np.ones(n, bool)
        return Answers(self._noisy(rewards, dice), done, states, none[:, None][:, :0], none, ~done, infos)

    def stopped(self, tokens: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """No turn ends before its time; see `TokenTask`."""
        return np.zeros(len(tokens), bool)

    @cached_property
    def verdicts(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Scores (float64) and successes (bool) of all whole texts in the order of `StateSpace`.

        None if there are too many for a table.
        """
        size = self.states.num_prompts * self.rule.vocab_size**self.rule.length
        if size > _FEW_TEXTS:
            return None
        prompts, completions = self.states.contexts(self.rule.length, 0, size)
        scores = self.rule.score(prompts, completions)
        return scores, self.rule.success(prompts, completions, scores)

    @cached_property
    def is_plain(self) -> bool:
        """Whether the last token is written as chosen and paid its text's score, and infos hold no text."""
        return self.pay is None and self.written is None and not self.is_random and not self.info_text

    def describe(self, states: np.ndarray, turns: Turns) -> list[dict[str, Any]]:
        """Nothing: the window holds the whole turn, so none is cut short by it."""
        return []

    def rewards(self, prompts: np.ndarray, completions: np.ndarray, written: np.ndarray) -> np.ndarray:
        """Expected rewards of the last token that is written.

        With progress f(t) after t tokens, T = length and delay k, token t is paid
        "end": f(T) if t = T, else 0;
        "dense": f(t) - f(t-1);
        "delayed": f(t-k) - f(t-k-1), and all that is still owed, f(T) - f(T-k-1), if t = T;
        "shaped": what "end" pays, plus g(t) - g(t-1) with the potential g(t) = f(t) - t/T (what the text has
        lost), and g(T) = 0 at the terminal state (Ng, Harada and Russell 1999, for gamma = 1).
        All sum to f(T).

        Args:
            prompts: (n, P) tokens.
            completions: (n, T) tokens.
            written: (n,) tokens that count, 1..T.

        Returns:
            (n,) float64.
        """
        timing, length = self.dials.reward_timing, self.rule.length
        last = written == length
        if timing == "end":
            if not last.any():
                return np.zeros(len(written))
            return np.where(last, self.rule.score(prompts, completions), 0.0)
        progress, rows = self.rule.progress(prompts, completions), np.arange(len(written))
        if timing == "dense":
            return progress[rows, written] - progress[rows, written - 1]
        if timing == "delayed":
            paid = progress[rows, np.maximum(written - self.delay - 1, 0)]
            due = progress[rows, np.where(last, length, np.maximum(written - self.delay, 0))]
            return due - paid
        before = progress[rows, written - 1] - (written - 1) / length
        after = np.where(last, 0.0, progress[rows, written] - written / length)
        return np.where(last, progress[:, -1], 0.0) + after - before

    def _pay(self, turns: Turns, dice: np.ndarray) -> np.ndarray:
        first = self.rule.prompt_length
        written = turns.ends - turns.starts
        rewards = self.rewards(turns.tokens[:, :first], turns.tokens[:, first:], written)
        return self._noisy(rewards, dice)

    def _noisy(self, rewards: np.ndarray, dice: np.ndarray) -> np.ndarray:
        if not self.dials.reward_noise:
            return rewards
        return rewards + self.dials.reward_noise * normal(dice)

    def _written(self, tokens: np.ndarray, dice: np.ndarray) -> np.ndarray:
        slips = uniform(mix(dice, 0)) < self.dials.slip
        anything = (uniform(mix(dice, 1)) * self.rule.vocab_size).astype(np.int64)
        return np.where(slips, anything, tokens)

    def _draw(self, dice: np.ndarray) -> np.ndarray:
        """n prompts, (n, P) int16: as many tokens from one hash as fit."""
        if self._prompts is not None:
            return self._prompts.take(dice % np.uint64(len(self._prompts)), axis=0)
        base, length = self.rule.prompt_base, self.rule.prompt_length
        prompts = np.empty((len(dice), length), np.int16)
        for block, first in enumerate(range(0, length, self._per_block)):
            count = min(self._per_block, length - first)
            hashes = mix(dice, block) if block else dice
            prompts[:, first : first + count] = digits(hashes % np.uint64(base**count), base, count)
        return prompts

    def _chosen(self, options: dict[str, Any], slot: int) -> np.ndarray:
        if "task_index" in options:
            index, size = options["task_index"], self.states.num_prompts
            if index >= size:
                raise ValueError(f"options['task_index'] must be in 0..{in_words(size - 1)}, got {index}")
            return self.states.prompts(np.array([index], dtype=object))[0]
        name = f"prompt of slot {slot}"
        check_text(options["prompt"], name)
        ids = self.rule.language_model.encode(options["prompt"])
        length, base = self.rule.prompt_length, self.rule.prompt_base
        if len(ids) != length or max(ids) >= base:
            words = " ".join(self.rule.language_model.words[:base][:20]) + (" ..." if base > 20 else "")
            raise ValueError(
                f"{name} must have exactly {length} word(s) out of: {words}; got {options['prompt']!r:.80}"
            )
        return np.array(ids, np.int16)

    def _info(self, turns: Turns, n: int) -> dict[str, np.ndarray]:
        """Everything that is said about n turns but whether they succeed, in columns."""
        if len(self._finish_reasons) < n:
            self._finish_reasons = np.full(n, FINISH_REASONS[LENGTH], object)
        info = {
            "finish_reason": self._finish_reasons[:n].copy(),
            "prompt_tokens": turns.starts.copy(),
            "completion_tokens": turns.ends - turns.starts,
            "turns": turns.numbers,
        }
        if self.info_text:
            decode = self.rule.language_model.decode
            bounds = list(zip(turns.tokens, turns.starts, turns.ends, strict=True))
            info["prompt"] = _texts([decode(row[:start]) for row, start, _ in bounds])
            info["completion"] = _texts([decode(row[start:end]) for row, start, end in bounds])
        return info


def check_number(name: str, value: Any) -> float:
    """Raises ValueError unless `value` is a number and not NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError(f"{name} must be a number, got {value!r:.60}")
    if np.isnan(value):
        raise ValueError(f"{name} must be a number, got NaN")
    return float(value)


def _texts(texts: list[str]) -> np.ndarray:
    array = np.empty(len(texts), object)
    array[:] = texts
    return array
