"""The batched dynamics against a slow reference: one slot, plain lists, its own splitmix64."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks import Board, Dialogue

from lm_envs.episodes import Episodes
from lm_envs.randomness import mix, splitmix64
from lm_envs.replay import pack, replay
from lm_envs.tasks import Append, Completion, Replace
from lm_envs.tasks.tokenized import TokenizedTask

ALPHABET = " .!:0123456789ThcounteriverfxkybasZ"
CHARACTERS = sorted(set(ALPHABET))
EOS, PAD = len(CHARACTERS), len(CHARACTERS) + 1
NUM_SLOTS, MAX_NEW_TOKENS, STOP = 3, 4, ("Z", "er")
MASK = 2**64 - 1


class Characters:
    """A language model's tokenizer half: one id a character; EOS and padding decode to nothing."""

    tokenizer = SimpleNamespace(all_special_ids=[EOS, PAD])
    bos_token_id = None

    def encode(self, text: str) -> list[int]:
        return [CHARACTERS.index(character) for character in text]

    encode_prompt = encode

    def decode(self, ids: list[int]) -> str:
        return "".join(CHARACTERS[i] for i in ids if i < EOS)

    def decode_after(self, context: tuple[int, ...], ids: list[int]) -> str:
        return self.decode(ids)


def slow_splitmix64(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def slow_mix(key: int, *counters: int) -> int:
    for counter in counters:
        key = slow_splitmix64(key ^ slow_splitmix64(counter))
    return key


class Reference:
    """One slot, as the environment's documentation describes it."""

    def __init__(self, task: Any, context_length: int, key: int) -> None:
        self.task, self.context_length, self.key, self.episode = task, context_length, key, -1
        self.running = False
        self.context: list[int] = []
        self.own: list[int] = []

    def rng(self, step: int, purpose: int) -> np.random.Generator:
        die = slow_mix(slow_mix(self.key, self.episode), step, purpose)
        return np.random.Generator(np.random.Philox(key=die))

    def begin(self, options: dict[str, Any]) -> None:
        self.episode += 1
        self.state = self.task.start(self.rng(0, 0), options)
        self.running, self.steps, self.turns = True, 0, 1
        self.read(self.state.prompt)

    def read(self, text: str) -> None:
        self.context = Characters().encode(text)
        self.own = [0] * len(self.context)
        self.turn: list[int] = []

    def step(self, token: int) -> tuple[float, bool, bool, dict[str, Any]]:
        before = self.context[: len(self.context) - len(self.turn)]
        self.context.append(token)
        self.own.append(1)
        self.turn.append(token)
        self.steps += 1
        text = Characters().decode(self.turn)
        stops = [text.index(stop) for stop in STOP if stop in text]
        reason = "eos" if token == EOS else "stop" if stops else "length"
        text = text[: min(stops)] if reason == "stop" else text
        info = {
            "prompt": self.state.prompt,
            "completion": text,
            "finish_reason": reason,
            "prompt_tokens": len(before),
            "completion_tokens": len(self.turn),
            "turns": self.turns,
        }
        if reason == "length" and len(self.turn) < MAX_NEW_TOKENS:
            self.running = len(self.context) < self.context_length
            return 0.0, False, not self.running, {} if self.running else info
        completion = Completion(text, tuple(self.turn), tuple(before), reason)
        feedback = self.task.respond([self.state], [completion], [self.rng(self.steps, 1)])[0]
        info.update(feedback.info)
        truncated = False
        if not feedback.done:
            following = Characters().encode(feedback.context.text)
            replaces = isinstance(feedback.context, Replace)
            truncated = len(following) + (0 if replaces else len(self.context)) >= self.context_length
            if not truncated:
                self.state, self.turns = feedback.state, self.turns + 1
                if replaces:
                    self.read(feedback.context.text)
                else:
                    assert isinstance(feedback.context, Append)
                    self.context += following
                    self.own += [0] * len(following)
                    self.turn = []
        self.running = not (feedback.done or truncated)
        return float(feedback.reward), feedback.done, truncated, info


def make_episodes(task: Any, context_length: int) -> Episodes:
    tokenized = TokenizedTask(
        task,
        Characters(),
        stop=STOP,
        max_new_tokens=MAX_NEW_TOKENS,
        context_length=context_length,
        truncate_prompts=False,
    )
    return Episodes(
        tokenized,
        NUM_SLOTS,
        max_new_tokens=MAX_NEW_TOKENS,
        context_length=context_length,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )


def assert_same_arrays(episodes: Episodes, other: Episodes) -> None:
    for field in fields(episodes.arrays):
        ours, theirs = getattr(episodes.arrays, field.name), getattr(other.arrays, field.name)
        assert ours.dtype == theirs.dtype
        assert ours.tolist() == theirs.tolist(), field.name


TASKS = {"append": Dialogue(), "replace": Board()}
OPTIONS: tuple[dict[str, Any], ...] = ({}, {}, {"task_index": 2}, {"prompt": "The key:"})
ENDINGS = (EOS, CHARACTERS.index("Z"), CHARACTERS.index("e"), CHARACTERS.index("r"))


@settings(max_examples=80, deadline=None)
@given(name=st.sampled_from(sorted(TASKS)), context_length=st.integers(20, 34), seed=st.integers(0, 2**32))
def test_any_interleaving_equals_the_reference(name: str, context_length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    episodes = make_episodes(TASKS[name], context_length)
    keys = rng.integers(0, MASK, NUM_SLOTS, np.uint64)
    references = [Reference(TASKS[name], context_length, int(key)) for key in keys]
    episodes.seed(np.arange(NUM_SLOTS), keys)
    for _ in range(60):
        for slot, reference in enumerate(references):
            if rng.random() < (0.02 if reference.running else 0.5):
                options = OPTIONS[rng.integers(len(OPTIONS))]
                episodes.begin(np.array([slot]), options)
                reference.begin(options)
        slots = [s for s, reference in enumerate(references) if reference.running and rng.random() < 0.8]
        ends = rng.random(len(slots)) < 0.2
        tokens = np.where(ends, rng.choice(ENDINGS), rng.integers(EOS, size=len(slots)))
        step = episodes.step(tokens, np.array(slots, np.int64))
        for row, slot in enumerate(slots):
            reward, terminated, truncated, info = references[slot].step(int(tokens[row]))
            assert step.rewards[row] == reward
            assert step.terminated[row] == terminated
            assert step.truncated[row] == truncated
            assert step.infos.get(slot, {}) == info
        for slot, reference in enumerate(references):
            padding = [PAD] * (context_length - len(reference.context))
            assert episodes.arrays.tokens[slot].tolist() == reference.context + padding
            assert episodes.arrays.own[slot].tolist() == reference.own + [0] * len(padding)
            assert episodes.arrays.running[slot] == reference.running

    resumed = make_episodes(TASKS[name], context_length)
    replay(resumed, pack(episodes.arrays))
    assert_same_arrays(episodes, resumed)


def test_splitmix64_known_values() -> None:
    # The reference implementation's first outputs for seed 1234567; its state grows by the golden gamma.
    states = np.array([1234567 + i * 0x9E3779B97F4A7C15 & MASK for i in range(3)], np.uint64)
    assert splitmix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_mix_takes_scalars_and_arrays() -> None:
    keys = np.array([3, MASK, 0], np.uint64)
    assert mix(keys, np.array([1, 2, 3]), 5).tolist() == [
        slow_mix(key, step, 5) for key, step in zip(keys.tolist(), [1, 2, 3], strict=True)
    ]


def test_draws_of_different_counters_differ() -> None:
    keys, episodes, steps = (grid.ravel() for grid in np.meshgrid(*[np.arange(20)] * 3))
    assert len(np.unique(mix(keys.astype(np.uint64), episodes, steps, 1))) == 20**3


def test_step_names_the_slots_without_episode() -> None:
    episodes = make_episodes(Dialogue(), 40)
    episodes.begin(np.array([0, 2]))
    with pytest.raises(ResetNeeded, match=r"slot\(s\) \[1\]"):
        episodes.step(np.zeros(NUM_SLOTS, np.int64))


def test_atomic_undoes_steps_and_resets() -> None:
    episodes, untouched = make_episodes(Dialogue(), 40), make_episodes(Dialogue(), 40)
    for each in (episodes, untouched):
        each.begin(each.all_slots)
        each.step(np.full(NUM_SLOTS, 3))
    with pytest.raises(KeyboardInterrupt), episodes.atomic():  # noqa: PT012
        episodes.step(np.full(NUM_SLOTS, EOS))
        episodes.begin(np.array([1]), {"prompt": "key"})
        raise KeyboardInterrupt
    assert_same_arrays(episodes, untouched)


def test_replay_refuses_another_number_of_slots() -> None:
    episodes = make_episodes(Dialogue(), 40)
    state = {**pack(episodes.arrays), "keys": np.zeros(5, np.uint64)}
    with pytest.raises(ValueError, match="5 slots, this environment has 3"):
        replay(episodes, state)
