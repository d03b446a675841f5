"""Actions that write whole turns, masks, and observations of tasks; the oracle is play token by token."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import InvalidAction
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode
from models import save_tiny
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from tasks import Walk, WalkState

from lm_envs.sb3 import make_vec_env
from lm_envs.text_env import TextGenEnv
from lm_envs.vector_env import TextGenVectorEnv

NUM_ENVS = 3


@pytest.fixture(scope="module")
def no_eos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("no-eos"), "gpt2", bos=False, eos=False)


def make(model: str, **kwargs: Any) -> TextGenEnv:
    return TextGenEnv(Walk(), model, **{"actions": "move", "max_new_tokens": 12, **kwargs})


def random_actions(env: TextGenVectorEnv, rng: np.random.Generator) -> np.ndarray:
    return np.array([rng.choice(np.flatnonzero(mask)) for mask in env.action_masks()])


def same_arrays(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def without_mask(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "action_mask"}


@pytest.mark.parametrize("observation", ["tokens", "text", "map"])
@pytest.mark.parametrize("stop", [(), "t", ["ep", "ft"]])
def test_a_choice_is_its_tokens_written_one_by_one(
    tiny_gpt2: str, observation: str, stop: str | Sequence[str]
) -> None:
    kwargs: dict[str, Any] = {"observation": observation, "stop": stop, "context_length": 50}
    env, oracle = make(tiny_gpt2, **kwargs), make(tiny_gpt2, actions="token", **kwargs)
    rng = np.random.default_rng(0)
    endings, reasons = set(), set()
    for episode in range(30):
        observed, info = env.reset(seed=episode)
        expected = oracle.reset(seed=episode)[0]
        over = False
        while not over:
            if observation == "tokens":
                assert np.array_equal(observed.pop("action_mask"), info["action_mask"])
            assert data_equivalence(observed, expected)
            action = int(rng.choice(np.flatnonzero(info["action_mask"])))
            observed, reward, terminated, truncated, info = env.step(action)
            tokens = [*env.language_model.encode(Walk.MOVES[action]), env.language_model.eos_token_id]
            expected_info: dict[str, Any] = {}
            while "finish_reason" not in expected_info:
                expected, *expected_step, expected_info = oracle.step(tokens.pop(0))
            assert [reward, terminated, truncated] == expected_step
            assert without_mask(info) == expected_info
            over = terminated or truncated
            reasons.add(info["finish_reason"])
        assert np.array_equal(env.get_state()["steps"], oracle.get_state()["steps"])
        endings.add((terminated, truncated))
    # The last two stop strings cut " sleep" short, which then ends nothing.
    assert endings == ({(False, True)} if len(stop) == 2 else {(True, False), (False, True)})
    assert reasons >= ({"task", "eos"} if stop == () else {"stop"})


def test_a_turn_without_eos_just_stops(no_eos: str) -> None:
    env = make(no_eos, actions="free")
    env.reset(seed=0, options={"task_index": 2})
    observation, *_, info = env.step(1)
    assert (info["completion"], info["finish_reason"]) == (" right", "stop")
    assert info["completion_tokens"] == len(env.language_model.encode(" right"))
    written = observation["input_ids"][: observation["attention_mask"].sum()]
    assert env.language_model.decode(written).startswith(info["prompt"] + " right at 3 of ")


def test_the_mask_is_shown_wherever_it_is_promised(tiny_gpt2: str) -> None:
    env = make(tiny_gpt2)
    seen = set()
    for seed in range(20):
        observation, info = env.reset(seed=seed)
        place, apples = info_place(env)
        expected = [place > 0, place < 4, not apples[place]]
        assert env.observation_space.contains(observation)
        assert info["action_mask"].dtype == observation["action_mask"].dtype == np.int8
        assert info["action_mask"].tolist() == observation["action_mask"].tolist() == expected
        assert env.action_masks().dtype == bool
        assert env.action_masks().tolist() == expected
        assert expected[env.action_space.sample(mask=info["action_mask"])]
        seen.add(tuple(expected))
    assert len(seen) > 3


def info_place(env: TextGenEnv) -> tuple[int, tuple[int, ...]]:
    """What the context says last."""
    (context,) = env._core.view.texts(np.array([0]))
    said = context[context.rindex("at ") :]
    return int(said[3]), tuple(map(int, said[8:13]))


def test_views_show_the_state_up_to_the_last_one(tiny_gpt2: str) -> None:
    env = make(tiny_gpt2, actions="free", observation="map")
    observation, _ = env.reset(seed=1)
    terminated = False
    while not terminated:
        place, apples = info_place(env)
        assert observation[:, 0].tolist() == list(apples)
        assert observation[:, 1].tolist() == np.eye(5)[place].tolist()
        observation, _, terminated, _, _ = env.step(0)
    assert observation[:, 1].tolist() == np.eye(5)[max(place - 1, 0)].tolist()


def test_a_masked_action_changes_nothing(tiny_gpt2: str) -> None:
    env = make(tiny_gpt2)
    env.reset(seed=0, options={"task_index": 0})
    before = env.get_state()
    with pytest.raises(InvalidAction, match=r"action 0 \(' left'\) .*masked"):
        env.step(0)
    assert same_arrays(before, env.get_state())
    vector = TextGenVectorEnv(2, Walk(), tiny_gpt2, actions="move", max_new_tokens=12)
    vector.reset(seed=0, options={"task_index": 4})
    before = vector.get_state()
    with pytest.raises(InvalidAction, match=r"action 1 \(' right'\) of slot 1 is masked"):
        vector.step([0, 1])
    assert same_arrays(before, vector.get_state())


def test_no_mask_no_method(tiny_gpt2: str) -> None:
    for env in (make(tiny_gpt2, actions="token"), TextGenVectorEnv(2, Walk(), tiny_gpt2)):
        env.reset(seed=0)
        assert not hasattr(env, "action_masks")


# Vector environments


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("observation", ["tokens", "text", "map", "place"])
def test_vector_environment_equals_single_ones(tiny_gpt2: str, mode: AutoresetMode, observation: str) -> None:
    kwargs: dict[str, Any] = {
        "task": Walk(),
        "model": tiny_gpt2,
        "actions": "move",
        "observation": observation,
        "max_new_tokens": 10,
        "context_length": 50,
        "max_episode_steps": 3,
    }
    ours = gymnasium.make_vec("TextGen-v0", NUM_ENVS, autoreset_mode=mode, **kwargs)
    theirs = gymnasium.make_vec(
        "TextGen-v0", NUM_ENVS, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **kwargs
    )
    assert data_equivalence(ours.reset(seed=2), theirs.reset(seed=2))
    rng, endings = np.random.default_rng(0), np.zeros(2, int)
    for _ in range(25):
        masks = ours.action_masks()
        assert np.array_equal(masks, [env.get_wrapper_attr("action_masks")() for env in theirs.envs])
        actions = random_actions(ours, rng)
        our_step, their_step = ours.step(actions), theirs.step(actions)
        assert ours.observation_space.contains(our_step[0])
        for our_part, their_part in zip(our_step, their_step, strict=True):
            assert data_equivalence(our_part, their_part)
        endings += [our_step[2].sum(), our_step[3].sum()]
        over = our_step[2] | our_step[3]
        if mode == AutoresetMode.DISABLED and over.any():
            answers = [env.reset(options={"reset_mask": over.copy()}) for env in (ours, theirs)]
            assert data_equivalence(*answers)
    assert (endings > 3).all()


# Clones and resumable state


@pytest.mark.parametrize("include_rng", [True, False])
def test_a_clone_brings_the_mask_back(tiny_gpt2: str, include_rng: bool) -> None:
    env = TextGenVectorEnv(3, Walk(), tiny_gpt2, actions="move", observation="map", max_new_tokens=12)
    env.reset(seed=0)
    state, mask = env.clone_state(include_rng), env.action_masks()
    logs = []
    for _ in range(2):
        rng = np.random.default_rng(1)
        logs.append([env.step(random_actions(env, rng)) for _ in range(8)])
        env.restore_state(state)
        assert np.array_equal(env.action_masks(), mask)
    assert data_equivalence(*logs) == include_rng


def test_a_clone_goes_into_an_environment_that_was_never_reset(tiny_gpt2: str) -> None:
    env, other = make(tiny_gpt2), make(tiny_gpt2)
    env.reset(seed=0)
    other.restore_state(env.clone_state())
    assert np.array_equal(env.action_masks(), other.action_masks())
    with pytest.raises(ValueError, match="another environment"):
        make(tiny_gpt2, actions="free").restore_state(make(tiny_gpt2, actions="token").clone_state())


@pytest.mark.parametrize("model", ["tiny_gpt2", "no_eos"])
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7])
def test_resumes(request: pytest.FixtureRequest, model: str, mode: AutoresetMode, steps: int) -> None:
    folder = request.getfixturevalue(model)

    def go(env: TextGenVectorEnv, count: int, seed: int) -> list[Any]:
        rng, log = np.random.default_rng(seed), []
        for _ in range(count):
            over = ~env._core.episodes.arrays.running
            if mode == AutoresetMode.DISABLED and over.any():
                log.append(env.reset(options={"reset_mask": over}))
            log.append(env.step(random_actions(env, rng)))
        return log

    env, resumed = (
        TextGenVectorEnv(
            3, Walk(), folder, actions="move", observation="map", max_new_tokens=12, autoreset_mode=mode
        )
        for _ in range(2)
    )
    env.reset(seed=1)
    go(env, steps, 0)
    resumed.set_state(env.get_state())
    running = np.flatnonzero(env._core.episodes.arrays.running)
    for ours, theirs in zip(env._core.offers.values(), resumed._core.offers.values(), strict=True):
        assert np.array_equal(ours[running], theirs[running])
    if model == "tiny_gpt2":  # where turns end in EOS, finished episodes are in their last state again
        everything = np.arange(3)
        assert data_equivalence(env._core.view.look(everything), resumed._core.view.look(everything))
    assert data_equivalence(go(env, 1, 5)[-1][0][running], go(resumed, 1, 5)[-1][0][running])
    assert data_equivalence(go(env, 20, 6), go(resumed, 20, 6))


# Errors


class Other(Walk):
    """With any of its promises broken."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def other(**attributes: Any) -> Other:
    return Other(**attributes)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"actions": "jump"}, ValueError, r"actions must be one of \('token', 'top_k', 'move', 'free'\)"),
        ({"observation": "x"}, ValueError, r"\('tokens', 'embedding', 'text', 'map', 'place', 'vector'\)"),
        ({"max_new_tokens": 3}, ValueError, r"choices\['move'\]\[\d\] = '.*' needs max_new_tokens >= \d"),
        ({"stop": "ig"}, ValueError, r"choices\['move'\]\[1\] = ' right' goes on behind one of the stop str"),
        (
            {"task": other(views={"map": spaces.Text(4)}), "observation": "map"},
            TypeError,
            r"task.views\['map'\] must be a space with a shape",
        ),
    ],
)
def test_bad_arguments(tiny_gpt2: str, kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"task": Walk(), "actions": "move", "max_new_tokens": 12, **kwargs}
    with pytest.raises(error, match=message):
        TextGenEnv(model=tiny_gpt2, **arguments)


def test_the_shortest_budget_is_what_the_longest_choice_needs(tiny_gpt2: str) -> None:
    encode = make(tiny_gpt2).language_model.encode
    longest = max(len(encode(move)) for move in Walk.MOVES)
    env = make(tiny_gpt2, max_new_tokens=longest + 1)
    env.reset(seed=0, options={"task_index": 2})
    assert env.step(0)[-1]["finish_reason"] == "eos"
    with pytest.raises(ValueError, match=f"needs max_new_tokens >= {longest + 1}, .* got {longest}$"):
        make(tiny_gpt2, max_new_tokens=longest)


def test_a_choice_that_the_tokenizer_does_not_know(tmp_path: Any) -> None:
    folder = save_tiny(tmp_path, word_level=True, sentences=("at 0 1 2 3 4 of left right",))
    with pytest.raises(ValueError, match=r"choices\['move'\]\[2\] = ' sleep' is .* in the tokens of"):
        make(folder)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (other(allowed=lambda states, mode: np.ones((len(states), 3))), r"bool array \(1, 3\), got float64"),
        (
            other(allowed=lambda states, mode: np.ones(3, bool)),
            r"must be a bool array \(1, 3\), got bool \(3,",
        ),
        (
            other(allowed=lambda states, mode: np.zeros((len(states), 3), bool)),
            r"no action in slot\(s\) \[0\]",
        ),
        (
            other(view=lambda states, mode: np.zeros((len(states), 5, 2))),
            r"\(1, 5, 2\) of int8, got .* float64",
        ),
        (other(view=lambda states, mode: np.zeros((5, 2), np.int8)), r"\(1, 5, 2\) of int8, got \(5, 2\)"),
    ],
)
def test_bad_masks_and_views(tiny_gpt2: str, task: Other, message: str) -> None:
    env = TextGenEnv(task, tiny_gpt2, actions="move", observation="map", max_new_tokens=12)
    with pytest.raises(ValueError, match=message):
        env.reset(seed=0)


def test_a_view_cannot_be_changed_from_outside(tiny_gpt2: str) -> None:
    shown = np.zeros((1, 5, 2), np.int8)
    env = TextGenEnv(other(view=lambda states, mode: shown), tiny_gpt2, observation="map")
    env.reset(seed=0)[0][:] = 1
    assert not shown.any()


# Learners of stable-baselines3


def test_dqn_and_ppo_learn_on_a_view(tiny_gpt2: str) -> None:
    kwargs: dict[str, Any] = {"task": Walk(), "model": tiny_gpt2, "actions": "free", "max_new_tokens": 12}
    env = gymnasium.make("TextGen-v0", observation="vector", **kwargs)
    DQN("MlpPolicy", env, learning_starts=10, buffer_size=100).learn(30)
    vec_env = make_vec_env("TextGen-v0", 2, observation="map", **kwargs)
    PPO("MlpPolicy", vec_env, n_steps=8, batch_size=8, device="cpu").learn(16)


@pytest.mark.parametrize("kind", ["batched", "dummy"])
@pytest.mark.parametrize(("observation", "policy"), [("map", "MlpPolicy"), ("tokens", "MultiInputPolicy")])
def test_maskable_ppo(tiny_gpt2: str, kind: str, observation: str, policy: str) -> None:
    kwargs: dict[str, Any] = {
        "task": Walk(),
        "model": tiny_gpt2,
        "actions": "move",
        "observation": observation,
        "max_new_tokens": 12,
    }
    env: Any = make_vec_env("TextGen-v0", 2, **kwargs)
    if kind == "dummy":
        env = DummyVecEnv([lambda: gymnasium.make("TextGen-v0", **kwargs)] * 2)
    assert is_masking_supported(env)
    env.seed(0)
    env.reset()
    expected = [[bool(allowed) for allowed in info["action_mask"]] for info in env.reset_infos]
    assert get_action_masks(env).tolist() == expected
    MaskablePPO(policy, env, n_steps=16, batch_size=16, device="cpu").learn(64)  # a masked action would raise


def test_masking_is_not_supported_where_there_is_no_mask(tiny_gpt2: str) -> None:
    assert not is_masking_supported(make_vec_env("TextGen-v0", 2, model=tiny_gpt2, task=Walk()))


def test_states_of_finished_episodes_reach_the_task(tiny_gpt2: str) -> None:
    """A learner that bootstraps sees the last state, not the one before."""
    env = make(tiny_gpt2, actions="free", observation="place")
    env.reset(seed=0, options={"task_index": 2})
    env.step(2)
    (state,) = env._core.episodes.arrays.states
    assert isinstance(state, WalkState)
    assert (state.place, state.moves) == (2, 0)


def test_samples_keep_to_the_mask(tiny_gpt2: str) -> None:
    """Random agents and checkers know no masks: whole episodes of plain samples are legal."""
    env = make(tiny_gpt2)
    env.action_space.seed(0)
    _, info = env.reset(seed=0)
    for _ in range(60):
        mask = info["action_mask"]
        assert mask.any()
        seen = {int(env.action_space.sample()) for _ in range(60)}
        assert seen == set(np.flatnonzero(mask).tolist())
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        if terminated or truncated:
            _, info = env.reset()
    space = pickle.loads(pickle.dumps(env.action_space))
    assert space == env.action_space == gymnasium.spaces.Discrete(len(mask))
    space.mask = np.eye(len(mask), dtype=np.int8)[0]
    assert {int(space.sample()) for _ in range(20)} == {0}
    assert all(map(space.contains, range(len(mask)))), "what a space contains does not depend on its mask"


def test_batched_samples_keep_to_the_masks(tiny_gpt2: str) -> None:
    envs = TextGenVectorEnv(4, Walk(), tiny_gpt2, actions="move", max_new_tokens=12)
    envs.action_space.seed(0)
    envs.reset(seed=0)
    for _ in range(30):
        envs.step(envs.action_space.sample())
