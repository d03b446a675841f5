"""Policies of all kinds as probabilities in every state of a toy environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lm_envs.toy.view import ToyView

# (n, V) probabilities; a function from batched observations to (m, V) probabilities; or an SB3 model or
# policy.
Policy = np.ndarray | Callable[[Any], np.ndarray] | Any

_CHUNK = 4096  # states that are shown to a model at once


def policy_array(policy: Policy, view: ToyView) -> np.ndarray:
    """The probabilities of every token in every state.

    Args:
        policy: an (n, V) array, which is checked; a function that takes m observations, batched as the vector
            environment batches them, and returns (m, V) probabilities; or an SB3 model or policy for this
            environment. Models without a distribution (DQN) count as greedy.
        view: how the environment shows its states.

    Returns:
        (n, V) float64 in the order of the index observation; rows sum to 1, the end state's is uniform.

    Raises:
        ValueError: wrong shape, negative or NaN probabilities, or rows that do not sum to 1 (within 1e-5).
        TypeError: no policy.
    """
    states = view.states
    shape = (states.num_states, states.vocab_size)
    if isinstance(policy, np.ndarray):
        return _checked(policy, shape)
    act = probabilities(policy, states.vocab_size)
    array = np.full(shape, 1 / states.vocab_size)
    for start in range(0, states.end, _CHUNK):
        chunk = np.arange(start, min(start + _CHUNK, states.end))
        array[chunk] = act(view.observe_states(chunk))
    return array


def probabilities(policy: Any, vocab_size: int) -> Callable[[Any], np.ndarray]:
    """The policy as a function from batched observations to (m, V) probabilities.

    Raises:
        TypeError: no policy.
        ValueError: raised by the function, as `policy_array` raises it.
    """
    act = _function(policy, vocab_size)

    def checked(observations: Any) -> np.ndarray:
        rows = np.asarray(act(observations))
        batch = next(iter(observations.values())) if isinstance(observations, dict) else observations
        shape = (len(batch), vocab_size)
        if rows.shape != shape:
            raise ValueError(f"policy must return {shape} probabilities, got {rows.shape}")
        return _checked(rows, shape)

    return checked


def _function(policy: Any, vocab_size: int) -> Callable[[Any], np.ndarray]:
    network = getattr(policy, "policy", policy)
    if hasattr(network, "get_distribution") and hasattr(network, "obs_to_tensor"):
        return lambda observations: _distribution(network, observations)
    if hasattr(policy, "predict"):
        return lambda observations: np.eye(vocab_size)[policy.predict(observations, deterministic=True)[0]]
    if callable(policy):
        return policy
    raise TypeError(f"policy must be an array, a function or an SB3 model, got {policy!r:.80}")


def _distribution(network: Any, observations: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        tensors, _ = network.obs_to_tensor(observations)
        return network.get_distribution(tensors).distribution.probs.double().cpu().numpy()


def _checked(policy: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if policy.shape != shape:
        raise ValueError(f"policy must have the shape {shape} (states, vocab_size), got {policy.shape}")
    totals = policy.sum(axis=1, keepdims=True, dtype=np.float64)
    wrong = ~((policy >= 0).all(axis=1) & (abs(totals[:, 0] - 1) < 1e-5))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"policy must hold probabilities that sum to 1, got {policy[row]} in row {row}")
    return policy / totals
