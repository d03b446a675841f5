"""`FromGymnasium`: foreign environments, played token by token, against the same ones played directly."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env, data_equivalence
from tasks import Board

from lm_envs.adapters import FromGymnasium
from lm_envs.spaces import UnicodeText
from lm_envs.testing import check_task
from lm_envs.text_env import TextGenEnv
from lm_envs.turn_level import TurnLevel
from lm_envs.vector_env import TextGenVectorEnv

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 ,.:?"


class Guess(gymnasium.Env):
    """Guess a number of 0..9: hints, minus a tenth of the distance, 1 for the number; nine guesses."""

    observation_space = spaces.Text(40, charset=CHARACTERS)
    action_space = spaces.Text(1, charset="0123456789")
    made = 0

    def __init__(self, guesses: int = 9) -> None:
        type(self).made += 1
        self.guesses = guesses

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[str, dict]:
        super().reset(seed=seed)
        self.number, self.left = int(self.np_random.integers(10)), self.guesses
        return "which number?", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        difference, self.left = int(action) - self.number, self.left - 1
        hint = "right" if not difference else "too large" if difference > 0 else "too small"
        reward = 1.0 if not difference else -abs(difference) / 10
        return f"{action} is {hint}.", reward, not difference, self.left == 0, {"left": self.left}


class Words(spaces.Space):
    """A space of text that is nobody's subclass."""

    def __init__(self) -> None:
        super().__init__(dtype=str)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        return "word"

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)


class Story(gymnasium.Env):
    """Repeats what it was told so far, with a random number behind it. "fail" breaks it."""

    observation_space, action_space = UnicodeText(400), Words()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[str, dict]:
        super().reset(seed=seed)
        self.told: list[str] = []
        return f"begin {self.np_random.integers(100)}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        if action == "fail":
            self.told = ["broken"]
            raise KeyError("it broke")
        self.told.append(action)
        end = len(self.told) == 4
        return f"{','.join(self.told)} {self.np_random.integers(100)}", float(len(action)), end, False, {}


if "tests/Guess-v0" not in gymnasium.registry:
    gymnasium.register("tests/Guess-v0", Guess)


def write(env: TextGenEnv, text: str) -> tuple[Any, ...]:
    """Writes a turn, EOS behind it; returns the last step."""
    for token in [*env.language_model.encode(text), env.language_model.eos_token_id]:
        step = env.step(token)
    return step


@pytest.mark.parametrize("append", [False, True])
def test_guessing_by_tokens_is_guessing(tiny_gpt2: str, append: bool) -> None:
    task = FromGymnasium("tests/Guess-v0", guesses=3, append=append)
    env = TextGenEnv(task, tiny_gpt2, observation="text", max_new_tokens=6, context_length=80)
    foreign = Guess(3)
    rng, endings = np.random.default_rng(0), set()
    for seed in range(30):
        text, _ = env.reset(options={"task_index": seed})
        assert text == foreign.reset(seed=seed)[0]
        over = False
        while not over:
            guess = str(rng.integers(10))
            before = text
            text, *ours, info = write(env, f" {guess} ")
            observation, reward, terminated, truncated, env_info = foreign.step(guess)
            over = terminated or truncated
            assert ours == [reward, terminated, truncated and not terminated]
            assert info["env_info"] == env_info
            shown = f"{before} {guess} {observation}" if append else observation
            assert text == (f"{before} {guess} " if over else shown)
            endings.add((terminated, truncated))
    assert endings >= {(True, False), (False, True)}


def test_seeds_are_drawn(tiny_gpt2: str) -> None:
    def numbers(seed: int) -> list[int]:
        task = FromGymnasium(Guess)
        env = TextGenEnv(task, tiny_gpt2)
        env.reset(seed=seed)
        found = []
        for _ in range(20):
            (state,) = env._core.episodes.arrays.states
            foreign = Guess()
            foreign.reset(seed=state.seed)
            found.append(foreign.number)
            env.reset()
        return found

    assert numbers(1) == numbers(1)
    assert numbers(1) != numbers(2)
    assert len(set(numbers(1))) > 4


def test_an_action_outside_the_space_ends_the_episode(tiny_gpt2: str) -> None:
    env = TextGenEnv(FromGymnasium(Guess, invalid_reward=-2.0), tiny_gpt2)
    env.reset(seed=0)
    *_, reward, terminated, truncated, info = write(env, " seven")
    assert (reward, terminated, truncated, info["finish_reason"]) == (-2.0, True, False, "task")


def test_tasks_pass_their_check() -> None:
    check_task(FromGymnasium("tests/Guess-v0"))
    check_task(FromGymnasium(Story))
    check_task(FromGymnasium(Story, max_live=1))


def test_check_env(tiny_gpt2: str) -> None:
    env = gymnasium.make("TextGen-v0", task=FromGymnasium("tests/Guess-v0"), model=tiny_gpt2)
    check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("max_live", [1, 256])
def test_vector_environment_equals_single_ones(tiny_gpt2: str, max_live: int) -> None:
    task = FromGymnasium(Story, max_live=max_live)
    vector = TextGenVectorEnv(3, task, tiny_gpt2, max_new_tokens=2, autoreset_mode="SameStep")
    singles = [TextGenEnv(FromGymnasium(Story), tiny_gpt2, max_new_tokens=2) for _ in range(3)]
    observation, _ = vector.reset(seed=5)
    for slot, env in enumerate(singles):
        assert data_equivalence(row(observation, slot), env.reset(seed=5 + slot)[0])
    rng, endings = np.random.default_rng(0), 0
    for _ in range(60):
        actions = rng.integers(3, 60, size=3)
        observation, rewards, terminated, *_ = vector.step(actions)
        for slot, env in enumerate(singles):
            expected, reward, over, *_ = env.step(int(actions[slot]))
            endings += over
            assert (rewards[slot], terminated[slot]) == (reward, over)
            assert data_equivalence(row(observation, slot), env.reset()[0] if over else expected)
    assert endings > 10


def row(observation: dict[str, np.ndarray], slot: int) -> dict[str, np.ndarray]:
    return {key: value[slot] for key, value in observation.items()}


def test_clones_go_different_ways(tiny_gpt2: str) -> None:
    """Each branch is the foreign environment played along it."""
    env = TextGenEnv(FromGymnasium(Story), tiny_gpt2, observation="text", max_new_tokens=6)
    env.reset(options={"task_index": 7})
    write(env, "a")
    states = {"a": env.clone_state(include_rng=True)}
    for branch in ("ab", "ac", "abd", "abe", "acf", "abdg"):
        env.restore_state(states[branch[:-1]])
        text, *_, terminated, _, _ = write(env, branch[-1])
        states[branch] = env.clone_state(include_rng=True)
        foreign = Story()
        foreign.reset(seed=7)
        expected = [foreign.step(action) for action in branch][-1]
        assert terminated == expected[2]
        if not terminated:
            assert text == expected[0]


def test_resumes(tiny_gpt2: str) -> None:
    env, resumed = (TextGenEnv(FromGymnasium(Story), tiny_gpt2, max_new_tokens=6) for _ in range(2))
    env.reset(seed=3)
    write(env, "one")
    env.step(30)
    resumed.set_state(env.get_state())
    assert data_equivalence(write(env, "wo"), write(resumed, "wo"))


def test_an_error_of_the_environment_names_the_slot_and_changes_nothing(tiny_gpt2: str) -> None:
    env = TextGenVectorEnv(2, FromGymnasium(Story), tiny_gpt2, max_new_tokens=20, observation="text")
    env.reset(seed=0)
    encode, eos = env.language_model.encode, env.language_model.eos_token_id
    for letters in zip("good", "fail", strict=True):
        env.step([encode(letter)[0] for letter in letters])
    before = env.get_state()
    with pytest.raises(RuntimeError, match=r"of slot 1 failed at action 'fail', after 0 others .*KeyError"):
        env.step([eos, eos])
    after = env.get_state()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    text, rewards, *_ = env.step([eos, encode("s")[0]])
    assert rewards.tolist() == [4.0, 0.0]
    assert text[0].startswith("good ")


class Dice(Story):
    """Does not care about its seed."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[str, dict]:
        return super().reset(seed=None)


def test_an_environment_that_ignores_its_seed_is_found_out(tiny_gpt2: str) -> None:
    env = TextGenEnv(FromGymnasium(Dice), tiny_gpt2)
    env.reset(seed=0)
    state = env.clone_state()
    write(env, "a")

    def replay() -> None:
        for _ in range(20):  # 20 draws of 100 numbers
            env.restore_state(state)
            write(env, "a")

    with pytest.raises(RuntimeError, match="not deterministic"):
        replay()


class Numbers(Guess):
    observation_space = spaces.Discrete(3)


class NotText(Story):
    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        return super().reset(seed=seed)[0].encode(), {}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: FromGymnasium("CartPole-v1"),
            TypeError,
            "observation_space of .*CartPole.* must be one of te",
        ),
        (lambda: FromGymnasium(Numbers), TypeError, r"must be one of text, got Discrete\(3\)"),
        (lambda: FromGymnasium("none/Such-v0"), gymnasium.error.Error, "none"),
        (lambda: FromGymnasium(Guess, guesses=3), TypeError, r"arguments \['guesses'\] are for an id"),
        (lambda: FromGymnasium(Guess, max_live=0), ValueError, "max_live must be >= 1, got 0"),
        (lambda: check_task(FromGymnasium(NotText)), TypeError, "must be str, got b'begin"),
    ],
)
def test_bad_arguments(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_prompt_cannot_be_given(tiny_gpt2: str) -> None:
    env = TextGenEnv(FromGymnasium(Guess), tiny_gpt2)
    with pytest.raises(ValueError, match=r"options\['prompt'\]"):
        env.reset(options={"prompt": "what?"})


def test_pickles_without_its_environments(tiny_gpt2: str) -> None:
    task = FromGymnasium(Story)
    state = task.start(np.random.default_rng(0), {})
    again = pickle.loads(pickle.dumps(task))
    assert again.start(np.random.default_rng(0), {}) == state


def test_environments_are_used_again(tiny_gpt2: str) -> None:
    task = FromGymnasium(Guess)
    made = Guess.made
    env = TextGenEnv(task, tiny_gpt2, max_new_tokens=6)
    env.reset(seed=0)
    for _ in range(30):
        write(env, " 3") if env._core.episodes.arrays.running[0] else env.reset()
    assert Guess.made == made
    task.close()
    env.reset()
    assert Guess.made == made + 1


@pytest.mark.parametrize("vector", [False, True])
def test_closing_closes_them(tiny_gpt2: str, vector: bool) -> None:
    closed = []

    class Closing(Guess):
        def close(self) -> None:
            closed.append(self)

    settings = {"task": FromGymnasium(Closing), "model": tiny_gpt2}
    env: Any = TextGenVectorEnv(2, **settings) if vector else TextGenEnv(**settings)
    env.reset(seed=0)
    env.close()
    assert len(closed) == (2 if vector else 1)


def test_there_and_back(tiny_gpt2: str) -> None:
    """An environment of this package, turn by turn, is a foreign environment, too."""

    def board() -> gymnasium.Env:
        return TurnLevel(gymnasium.make("TextGen-v0", task=Board(), model=tiny_gpt2))

    env = TextGenEnv(FromGymnasium(board), tiny_gpt2, observation="text")
    text, _ = env.reset(options={"task_index": 5})
    foreign = board()
    assert text == foreign.reset(seed=5)[0]
    text, reward, terminated, *_ = write(env, "move")
    expected = foreign.step("move")
    assert (reward, terminated) == (expected[1], expected[2])
    assert terminated or text == expected[0]
