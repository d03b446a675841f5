"""Toy environments: rewards, slips and noise, observations, transition tables, infos and refused dials."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from test_toy_rules import GAMES, slow_progress

from lm_envs.registration import ENVIRONMENTS
from lm_envs.sb3 import make_vec_env

IDS = [env_id for env_id in ENVIRONMENTS if "Toy" in env_id]
TIMINGS = ("end", "delayed", "dense", "shaped")


def make(env_id: str = "TextGen-ToyBrackets-v0", **dials: Any) -> Any:
    return gymnasium.make(env_id, **dials).unwrapped


def test_all_six_are_registered() -> None:
    assert sorted(IDS) == sorted(f"TextGen-{name}-v0" for name in GAMES)


# Rewards


def expected_rewards(progress: list[float], timing: str) -> list[float]:
    """What the tokens of a text are paid, from its progress after 0 to T tokens."""
    length = len(progress) - 1
    earned = [after - before for before, after in pairwise(progress)]
    if timing == "end":
        return [0.0] * (length - 1) + [progress[-1]]
    if timing == "dense":
        return earned
    if timing == "delayed":
        paid = ([0.0] * max(1, length // 2) + earned)[:length]
        paid[-1] += sum(earned) - sum(paid)
        return paid
    potential = [value - t / length for t, value in enumerate(progress[:-1])] + [0.0]
    rewards = [after - before for before, after in pairwise(potential)]
    rewards[-1] += progress[-1]
    return rewards


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("env_id", IDS)
def test_rewards_are_those_of_the_progress(env_id: str, timing: str) -> None:
    env, rng = make(env_id, reward_timing=timing), np.random.default_rng(0)
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        rule = env.task.rule
        prompt = observation["input_ids"][: rule.prompt_length].tolist()
        text = rng.integers(rule.vocab_size, size=rule.length).tolist()
        progress = [slow_progress(rule, prompt, text[:end]) for end in range(rule.length + 1)]
        rewards = []
        for at, token in enumerate(text):
            observation, reward, terminated, truncated, _ = env.step(token)
            rewards.append(reward)
            assert terminated == (at == rule.length - 1)
            assert not truncated
        assert observation["input_ids"].tolist() == prompt + text
        assert rewards == pytest.approx(expected_rewards(progress, timing), abs=1e-12)
        assert sum(rewards) == pytest.approx(progress[-1], abs=1e-12)


# More texts than a table of scores holds.
LARGE = {"Copy": (5, 6), "Reverse": (5, 6), "Translate": (5, 6), "Brackets": (6, 9), "Bigram": (9, 7)}
LARGE["KeyDoor"] = (7, 8)


@pytest.mark.parametrize("name", LARGE)
def test_scores_of_large_spaces_are_those_of_the_progress(name: str) -> None:
    vocab_size, length = LARGE[name]
    env = vector(f"TextGen-Toy{name}-v0", 200, vocab_size=vocab_size, length=length)
    rule, space = env.task.rule, env.task.states
    assert env.task.verdicts is None
    actions = np.random.default_rng(0).integers(vocab_size, size=(200, length))
    prompts = env.reset(seed=0)[0]["input_ids"][:, : rule.prompt_length]
    if hasattr(rule, "target"):
        actions[:100] = rule.target(prompts[:100])
    texts, rewards = rollout(env, actions)
    for row, score in zip(texts.tolist(), rewards[:, -1].tolist(), strict=True):
        prompt, text = row[: space.prompt_length], row[space.prompt_length :]
        assert score == pytest.approx(slow_progress(rule, prompt, text), abs=1e-12)


def rollout(env: Any, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One episode of every slot: whole texts and rewards (B, T)."""
    observation, _ = env.reset(seed=0)
    rewards = []
    for column in actions.T:
        observation, reward, _, _, _ = env.step(column)
        rewards.append(reward)
    return observation["input_ids"], np.array(rewards).T


def vector(env_id: str, num_envs: int, **dials: Any) -> Any:
    return gymnasium.make_vec(env_id, num_envs, autoreset_mode=AutoresetMode.NEXT_STEP, **dials)


@pytest.mark.parametrize("timing", TIMINGS)
def test_reward_noise_is_normal_and_independent(timing: str) -> None:
    dials: dict[str, Any] = {"reward_timing": timing, "length": 3}
    actions = np.random.default_rng(0).integers(3, size=(20_000, 3))
    texts, clean = rollout(vector("TextGen-ToyCopy-v0", 20_000, **dials), actions)
    noisy_texts, noisy = rollout(vector("TextGen-ToyCopy-v0", 20_000, reward_noise=0.5, **dials), actions)
    assert np.array_equal(texts, noisy_texts)
    noise = (noisy - clean) / 0.5
    if timing == "end":
        assert not noise[:, :-1].any()
        noise = noise[:, -1:]
    # Standard errors: 1 / sqrt(20000) = 0.007 of means and correlations, 0.005 of standard deviations.
    assert abs(noise.mean(axis=0)).max() < 0.03
    assert abs(noise.std(axis=0) - 1).max() < 0.02
    assert abs((noise**4).mean(axis=0) - 3).max() < 0.3  # the fourth moment of a normal distribution
    correlations = np.corrcoef(np.concatenate([noise[:-1], noise[1:]], axis=1).T)
    assert abs(correlations - np.eye(len(correlations))).max() < 0.03


def test_slips_write_uniform_tokens() -> None:
    actions = np.zeros((20_000, 7), int)
    texts, _ = rollout(vector("TextGen-ToyBrackets-v0", 20_000, slip=0.4), actions)
    for column in texts[:, 1:].T:
        # 0.6 + 0.4 / 4 of the tokens are what was asked for; standard error 0.003.
        shares = np.bincount(column, minlength=4) / 20_000
        assert shares.tolist() == pytest.approx([0.7, 0.1, 0.1, 0.1], abs=0.015)
    slipped = texts[:, 1:] > 0
    assert abs(np.corrcoef(slipped.T) - np.eye(7)).max() < 0.03


@pytest.mark.parametrize("slip", [0, 1])
def test_slip_is_never_or_always(slip: float) -> None:
    texts, _ = rollout(vector("TextGen-ToyCopy-v0", 3000, slip=slip), np.ones((3000, 5), int))
    assert (texts[:, 5:] == 1).mean() == pytest.approx(1 / 3 if slip else 1, abs=0.02 * slip)


# Transition tables


@pytest.mark.parametrize("env_id", IDS)
def test_transitions_are_what_happens(env_id: str) -> None:
    for timing in TIMINGS:
        env, rng = make(env_id, observation="index", reward_timing=timing), np.random.default_rng(0)
        table = env.P
        for seed in range(5):
            state, _ = env.reset(seed=seed)
            terminated = False
            while not terminated:
                action = int(rng.integers(env.action_space.n))
                ((probability, following, reward, is_last),) = table[state][action]
                state, actual, terminated, _, _ = env.step(action)
                assert (probability, following, is_last) == (1.0, state, terminated)
                assert reward == pytest.approx(actual, abs=1e-12)
        assert state == env.observation_space.n - 1
        assert table[state] == {action: [(1.0, state, 0.0, True)] for action in range(env.action_space.n)}


def test_transitions_slip() -> None:
    slippery, firm = make(slip=0.2).P, make().P
    assert len(firm) == 10923
    for state in (0, 1, 77, 5000, len(firm) - 2):
        for action in range(4):
            outcomes = slippery[state][action]
            assert sum(outcome[0] for outcome in outcomes) == pytest.approx(1, abs=1e-15)
            for token, (probability, *outcome) in enumerate(outcomes):
                assert probability == pytest.approx(0.05 + 0.8 * (token == action), abs=1e-15)
                assert outcome == list(firm[state][token][0][1:])


@pytest.mark.parametrize("state", [-1, 10923, 1.0, True, "0"])
def test_unknown_states(state: Any) -> None:
    with pytest.raises(KeyError, match=r"state must be an integer in 0\.\.10922"):
        make().P[state]


# Observations


@pytest.mark.parametrize("env_id", IDS)
def test_observations_show_the_same_episode(env_id: str) -> None:
    envs = {mode: make(env_id, observation=mode) for mode in ("tokens", "index", "onehot", "last_k")}
    envs["last_4"] = make(env_id, observation="last_k", last_k=4)
    rng, space = np.random.default_rng(0), envs["tokens"].task.states
    seen = {mode: env.reset(seed=3)[0] for mode, env in envs.items()}
    vocab_size = space.vocab_size
    for step in range(space.length + 1):
        for mode, env in envs.items():
            assert env.observation_space.contains(seen[mode])
        length = space.prompt_length + step
        ids = seen["tokens"]["input_ids"]
        mask = [1] * length + [0] * (space.length - step)
        assert seen["tokens"]["attention_mask"].tolist() == mask
        mask[: space.prompt_length] = [0] * space.prompt_length
        assert seen["tokens"]["completion_mask"].tolist() == mask
        assert not ids[length:].any()
        onehot = seen["onehot"].reshape(-1, vocab_size)
        assert onehot.sum(axis=1).tolist() == [1] * length + [0] * (space.length - step)
        assert onehot[:length].argmax(axis=1).tolist() == ids[:length].tolist()
        for mode, k in (("last_k", 2), ("last_4", 4)):
            assert seen[mode].tolist() == ([vocab_size] * k + ids[:length].tolist())[-k:]
        batched = {mode: np.array([seen[mode]]) for mode in ("index", "onehot")}
        batched["tokens"] = {key: values[None] for key, values in seen["tokens"].items()}
        for mode, observations in batched.items():
            assert envs[mode].view.state_numbers(observations).tolist() == [seen["index"]]
        if step == space.length:
            assert seen["index"] == space.end
            break
        tokens, lengths = space.tokens(np.array([seen["index"]]))
        assert (tokens[0].tolist(), lengths[0]) == (ids.tolist(), length)
        action = int(rng.integers(vocab_size))
        seen = {mode: env.step(action)[0] for mode, env in envs.items()}


def test_prompts_are_uniform() -> None:
    for name, dials in (("KeyDoor", {}), ("Copy", {"vocab_size": 26, "length": 30})):
        env = vector(f"TextGen-Toy{name}-v0", 20_000, **dials)
        observation, _ = env.reset(seed=1)
        prompts = observation["input_ids"][:, : env.task.rule.prompt_length]
        base = env.task.rule.prompt_base
        for column in prompts.T:
            shares = np.bincount(column, minlength=base) / 20_000
            assert abs(shares * base - 1).max() < 5 * np.sqrt(base / 20_000)


# Infos


def test_text_is_decoded_when_asked_for() -> None:
    for info_text in (False, True):
        env = make(info_text=info_text)
        env.reset(options={"prompt": "["})
        for token in (0, 2, 0, 0, 2, 2):
            assert env.step(token)[4] == {}
        info = env.step(3)[4]
        text = {"prompt": "[", "completion": "()(())]"} if info_text else {}
        assert info == {
            "finish_reason": "length",
            "prompt_tokens": 1,
            "completion_tokens": 7,
            "turns": 1,
            "success": True,
            **text,
        }
        assert type(info["success"]) is bool
        assert env.language_model.decode([1, 3]) == "[]"


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("observation", ["tokens", "index", "onehot", "last_k"])
@pytest.mark.parametrize("dials", [{}, {"slip": 0.2, "info_text": True}])
def test_infos_and_final_observations_are_those_of_single_environments(
    mode: AutoresetMode, observation: str, dials: dict[str, Any]
) -> None:
    dials: dict[str, Any] = {"observation": observation, **dials}
    batch = gymnasium.make_vec("TextGen-ToyCopy-v0", 3, autoreset_mode=mode, **dials)
    single = SyncVectorEnv([lambda: make("TextGen-ToyCopy-v0", **dials)] * 3, autoreset_mode=mode)
    assert data_equivalence(batch.reset(seed=5), single.reset(seed=5))
    rng, over = np.random.default_rng(0), np.zeros(3, bool)
    for step in range(23):
        if mode == AutoresetMode.DISABLED and (over.any() or step == 3):
            over[0] = True
            options = {"reset_mask": over}
            assert data_equivalence(batch.reset(options=dict(options)), single.reset(options=dict(options)))
        actions = rng.integers(3, size=3)
        *ours, our_infos = batch.step(actions)
        *theirs, their_infos = single.step(actions)
        assert data_equivalence(ours, theirs)
        over = ours[2].copy()
        assert our_infos.keys() == their_infos.keys()
        if "final_obs" in our_infos:
            final = our_infos.pop("final_obs")
            assert len(final) == 3
            assert data_equivalence(list(np.asarray(final)), list(their_infos.pop("final_obs")))
            assert data_equivalence(list(final[over]), [final[slot] for slot in np.flatnonzero(over)])
        assert data_equivalence(our_infos, their_infos)


def test_time_limit_truncates() -> None:
    env = gymnasium.make_vec(
        "TextGen-ToyCopy-v0", 2, autoreset_mode=AutoresetMode.SAME_STEP, max_episode_steps=3
    )
    env.reset(seed=0)
    for _ in range(2):
        for step in range(3):
            observation, rewards, terminated, truncated, infos = env.step(np.zeros(2, int))
            assert not rewards.any()
            assert not terminated.any()
            assert truncated.all() == truncated.any() == (step == 2)
        assert infos["final_obs"][1]["attention_mask"].sum() == 8
        assert infos["final_info"] == {}
        assert observation["attention_mask"].sum(axis=1).tolist() == [5, 5]


def test_sb3_adapter() -> None:
    env = make_vec_env("TextGen-ToyKeyDoor-v0", 2, seed=0, observation="index")
    first = env.reset()
    for _ in range(7):
        observation, _, dones, infos = env.step(np.zeros(2, int))
    assert dones.all()
    assert [info["terminal_observation"] for info in infos] == [21844, 21844]
    assert [info["finish_reason"] for info in infos] == ["length", "length"]
    assert observation.shape == first.shape  # type: ignore[union-attr]


# State


@pytest.mark.parametrize("single", [True, False])
def test_states_go_on_alike(single: bool) -> None:
    dials: dict[str, Any] = {"slip": 0.3, "reward_noise": 1.0, "reward_timing": "dense"}

    def new() -> Any:
        return make(**dials) if single else vector("TextGen-ToyBrackets-v0", 3, **dials)

    def play(env: Any, steps: int) -> list[Any]:
        log = []
        for step in range(steps):
            log.append(env.step(step % 4 if single else np.full(3, step % 4)))
            if single and log[-1][2]:
                log.append(env.reset())
        return log

    env, resumed = new(), new()
    env.reset(seed=0, options={"prompt": "["})
    play(env, 10)
    clone, state = env.clone_state(include_rng=True), env.get_state()
    log = play(env, 30)
    env.restore_state(clone)
    assert data_equivalence(play(env, 30), log)
    resumed.set_state(state)
    assert data_equivalence(play(resumed, 30), log)


# Bad input


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        ({"length": 0}, r"length must be an integer in 1\.\.1024, got 0"),
        ({"length": 2.0}, r"length must be an integer in 1\.\.1024, got 2\.0"),
        ({"length": True}, r"length must be an integer in 1\.\.1024, got True"),
        ({"length": 1025}, r"length must be an integer in 1\.\.1024, got 1025"),
        ({"length": 6}, "length must be odd .*, got 6"),
        ({"vocab_size": 1}, r"vocab_size must be an integer in 2\.\.1024, got 1"),
        ({"vocab_size": 5}, "vocab_size must be even .*, got 5"),
        ({"vocab_size": "4"}, r"vocab_size must be an integer in 2\.\.1024, got '4'"),
        ({"slip": -0.1}, r"slip must be in 0\.\.1, got -0\.1"),
        ({"slip": 1.1}, r"slip must be in 0\.\.1, got 1\.1"),
        ({"slip": float("nan")}, "slip must be a number, got NaN"),
        ({"slip": None}, "slip must be a number, got None"),
        ({"reward_noise": -1}, "reward_noise must be >= 0 and finite, got -1"),
        ({"reward_noise": float("inf")}, "reward_noise must be >= 0 and finite, got inf"),
        ({"reward_timing": "late"}, r"reward_timing must be one of \('end', .*, got 'late'"),
        ({"observation": "text"}, r"observation must be one of \('tokens', .*, got 'text'"),
        ({"last_k": 0}, r"last_k must be an integer in 1\.\.8, got 0"),
        ({"last_k": 9}, r"last_k must be an integer in 1\.\.8, got 9"),
        (
            {"observation": "index", "length": 61},
            r'observation="index" counts up to \d+ states, got about 10\^\d+',
        ),
        ({"render_mode": "svg"}, "render_mode must be None or one of"),
    ],
)
def test_impossible_dials(dials: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**dials)
    with pytest.raises(ValueError, match=message):
        vector("TextGen-ToyBrackets-v0", 2, **dials)


def test_key_door_needs_a_way() -> None:
    with pytest.raises(ValueError, match=r"length must be at least 3 .*, got 2"):
        make("TextGen-ToyKeyDoor-v0", length=2)


def test_unknown_dials_are_refused() -> None:
    with pytest.raises(TypeError, match="max_new_tokens"):
        make(max_new_tokens=3)
    with pytest.raises(TypeError, match="max_new_tokens"):
        vector("TextGen-ToyCopy-v0", 2, max_new_tokens=3)


def test_options_choose_the_prompt() -> None:
    env = make("TextGen-ToyCopy-v0")
    assert env.reset(options={"prompt": "abc ca"})[0]["input_ids"].tolist() == [0, 1, 2, 2, 0] + [0] * 5
    assert env.reset(options={"task_index": 0})[0]["input_ids"].tolist() == [0] * 10
    assert env.reset(options={"task_index": 242})[0]["input_ids"].tolist() == [2] * 5 + [0] * 5
    huge = make("TextGen-ToyCopy-v0", vocab_size=26, length=30)
    last = huge.reset(options={"task_index": 26**30 - 2})[0]["input_ids"]
    assert last.tolist() == [25] * 29 + [24] + [0] * 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, r"prompt of slot \d must have exactly 1 word\(s\) out of: \( \[; got ''"),
        ({"prompt": "(("}, r"prompt of slot \d must have exactly 1 word"),
        ({"prompt": ")"}, r"prompt of slot \d must have exactly 1 word"),
        ({"prompt": "x"}, "text holds 'x', which is not in the vocabulary"),
        ({"prompt": 3}, "must be a str"),
        ({"task_index": 2}, r"options\['task_index'\] must be in 0\.\.1, got 2"),
        ({"task_index": -1}, "must be an integer >= 0"),
        ({"seed": 1}, "unknown reset options"),
    ],
)
def test_bad_options_change_nothing(options: dict[str, Any], message: str) -> None:
    for env in (make(), vector("TextGen-ToyBrackets-v0", 2)):
        env.reset(seed=0)
        before = env.get_state()
        with pytest.raises(ValueError, match=message):
            env.reset(options=options)
        after = env.get_state()
        assert all(np.array_equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("action", [-1, 4, 1.0, True, None, "a", np.array([1])])
def test_bad_actions_change_nothing(action: Any) -> None:
    for dials in ({}, {"reward_timing": "dense", "slip": 0.5}):
        env = make(**dials)
        with pytest.raises(ResetNeeded):
            env.step(0)
        env.reset(seed=0)
        before = env.get_state()
        with pytest.raises(InvalidAction, match=r"action must be an integer in 0\.\.3"):
            env.step(action)
        assert all(np.array_equal(before[key], value) for key, value in env.get_state().items())
        batch = vector("TextGen-ToyBrackets-v0", 2, **dials)
        batch.reset(seed=0)
        with pytest.raises(InvalidAction, match=r"action of slot 1 must be an integer in 0\.\.3"):
            batch.step([0, action])


def test_steps_after_the_end_are_refused() -> None:
    env = make()
    env.reset(seed=0)
    for _ in range(7):
        env.step(0)
    with pytest.raises(ResetNeeded):
        env.step(0)


def test_toys_need_no_torch() -> None:
    code = (
        "import sys, gymnasium, lm_envs; from lm_envs.toy import solve;"
        "env = gymnasium.make('TextGen-ToyCopy-v0'); env.reset(seed=0); env.step(1); solve(env);"
        "gymnasium.make_vec('TextGen-ToyCopy-v0', 2).reset();"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
