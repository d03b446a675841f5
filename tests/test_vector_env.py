"""The vector environment against its oracle: `SyncVectorEnv` over single environments, slot by slot."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode
from tasks import Board, Dialogue

NUM_ENVS = 3


def same(a: Any, b: Any, tolerance: float) -> bool:
    """Whether two observations or infos have one structure, dtypes and values, floats up to `tolerance`."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k], tolerance) for k in a)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b, [tolerance] * len(a)))
    if isinstance(a, np.ndarray) and a.dtype == object:
        same_form = isinstance(b, np.ndarray) and b.dtype == object and a.shape == b.shape
        return same_form and all(map(same, a, b, [tolerance] * len(a)))
    if isinstance(a, np.ndarray) and a.dtype.kind == "f":
        return a.dtype == b.dtype and a.shape == b.shape and np.allclose(a, b, rtol=0, atol=tolerance)
    return data_equivalence(a, b)


class Pair:
    """A vector environment and its oracle, driven by the same calls; every answer is compared."""

    def __init__(self, mode: AutoresetMode, max_episode_steps: int | None = None, **kwargs: Any) -> None:
        limit = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
        self.vector = gymnasium.make_vec("TextGen-v0", NUM_ENVS, autoreset_mode=mode, **limit, **kwargs)
        self.oracle = gymnasium.make_vec(
            "TextGen-v0",
            NUM_ENVS,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": mode},
            **limit,
            **kwargs,
        )
        self.tolerance = 1e-5 if kwargs.get("dtype", "auto") == "auto" else 1e-10

    def reset(self, options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        # SyncVectorEnv takes the reset mask out of the dict that it is given.
        theirs = self.oracle.reset(options=None if options is None else dict(options), **kwargs)
        ours = self.vector.reset(options=options, **kwargs)
        assert same(theirs, ours, self.tolerance), (theirs, ours)
        assert self.vector.observation_space.contains(ours[0])

    def step(self, actions: np.ndarray) -> np.ndarray:
        """Returns which episodes have ended."""
        theirs, ours = self.oracle.step(actions), self.vector.step(actions)
        names = ("observations", "rewards", "terminations", "truncations", "infos")
        for name, a, b in zip(names, theirs, ours, strict=True):
            assert same(a, b, self.tolerance), (name, a, b)
        assert ours[1].dtype == np.float64
        return ours[2] | ours[3]


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("observation", ["tokens", "embedding", "text"])
@pytest.mark.parametrize("actions", ["token", "top_k"])
@pytest.mark.parametrize("task", [Dialogue(), Board()], ids=["append", "replace"])
def test_equals_single_environments(
    tiny_gpt2: str, mode: AutoresetMode, observation: str, actions: str, task: Any
) -> None:
    pair = Pair(
        mode,
        task=task,
        model=tiny_gpt2,
        max_new_tokens=4,
        context_length=26,  # some dialogues do not fit
        stop=["e", "o"],
        observation=observation,
        actions=actions,
        top_k=5,
        max_episode_steps=11,
    )
    rng = np.random.default_rng(0)
    pair.reset(seed=7)
    endings = 0
    for _ in range(50):
        actions_ = rng.integers(pair.vector.single_action_space.n, size=NUM_ENVS)
        ended = pair.step(actions_)
        endings += ended.sum()
        if mode == AutoresetMode.DISABLED and ended.any():
            pair.reset(options={"reset_mask": ended})
    assert endings >= 5
    pair.reset(seed=[3, None, 5], options={"task_index": 1})
    pair.reset()
    pair.step(rng.integers(pair.vector.single_action_space.n, size=NUM_ENVS))


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_partial_reset_in_the_middle_of_episodes(tiny_gpt2: str, mode: AutoresetMode) -> None:
    pair = Pair(
        mode, task=Dialogue(), model=tiny_gpt2, max_new_tokens=3, observation="embedding", actions="top_k"
    )
    rng = np.random.default_rng(1)
    pair.reset(seed=0)
    for _ in range(25):
        pair.step(rng.integers(50, size=NUM_ENVS))
        mask = rng.random(NUM_ENVS) < 0.3
        if mask.any():
            pair.reset(options={"reset_mask": mask}, seed=[None, int(rng.integers(100)), None])


def test_float64_embeddings_agree_closely(tiny_llama: str) -> None:
    pair = Pair(
        AutoresetMode.NEXT_STEP,
        task=Dialogue(),
        model=tiny_llama,
        max_new_tokens=3,
        observation="embedding",
        dtype="float64",
    )
    # The observation is float32 in any case; 1e-10 therefore asks for bit equality of nearly all numbers.
    pair.tolerance = 1e-6
    rng = np.random.default_rng(2)
    pair.reset(seed=0)
    for _ in range(20):
        pair.step(rng.integers(pair.vector.single_action_space.n, size=NUM_ENVS))
