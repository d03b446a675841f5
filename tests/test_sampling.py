"""The sampler against exact distributions and against the logits processors of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lm_envs import sampling
from lm_envs.sampling import filter_logits, sample

LOGITS = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -1.5, -3.0, 1.2]])
MASK = torch.tensor([False, True, True, False, True, False, False, True])


def exact(logits: np.ndarray, keep: list[int], temperature: float) -> np.ndarray:
    """softmax(logits / temperature) over the tokens to keep."""
    weights = np.zeros(len(logits))
    weights[keep] = np.exp(logits[keep] / temperature)
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("arguments", "keep", "temperature"),
    [
        ({}, list(range(8)), 1.0),
        ({"temperature": 2.0}, list(range(8)), 2.0),
        ({"top_k": 3}, [0, 1, 7], 1.0),
        # Probabilities in falling order: .43 .19 .16 .10 ...: three reach 0.7, two do not.
        ({"top_p": 0.7}, [0, 7, 1], 1.0),
        ({"action_mask": MASK}, [1, 2, 4, 7], 1.0),
        ({"action_mask": MASK.expand(20_000, 8), "top_k": 2}, [1, 7], 1.0),
    ],
)
def test_frequencies_and_log_probs(arguments: dict, keep: list[int], temperature: float) -> None:
    draws = 20_000
    generator = torch.Generator().manual_seed(0)
    tokens, log_probs = sample(LOGITS.expand(draws, 8), generator=generator, **arguments)
    probabilities = exact(LOGITS[0].double().numpy(), keep, temperature)
    counts = np.bincount(tokens.numpy(), minlength=8)
    assert set(counts.nonzero()[0]) <= set(keep)
    assert chisquare(counts[keep], draws * probabilities[keep]).pvalue > 1e-3
    np.testing.assert_allclose(log_probs.numpy(), np.log(probabilities[tokens.numpy()]), atol=1e-6)
    assert tokens.dtype == torch.int64
    assert log_probs.dtype == torch.float32


logit = st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0, 2.5]) | st.floats(-8, 8)  # ties are frequent


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    rows=st.lists(st.lists(logit, min_size=7, max_size=7), min_size=1, max_size=3),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.none() | st.integers(1, 9),
    top_p=st.none() | st.sampled_from([0.05, 0.3, 0.9, 0.999, 1.0]),
)
def test_keeps_what_transformers_keeps(
    rows: list[list[float]], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    logits = torch.tensor(rows)
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p is not None and top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    filtered = filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    torch.testing.assert_close(filtered, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (1 - 2**-53, 2)])
def test_extreme_uniform_numbers_stay_in_the_support(
    uniform: float, token: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = torch.tensor([False, True, True, False])
    # 0.1 and its like do not add up to 1 in binary: uniform * total rounds up to the total.
    logits = torch.tensor([[5.0, 0.1, 0.7, 5.0]]).repeat(3, 1)
    monkeypatch.setattr(
        sampling.torch, "rand", lambda size, **kwargs: torch.full(size, uniform, dtype=torch.float64)
    )
    tokens, log_probs = sample(logits, action_mask=mask)
    assert tokens.tolist() == [token] * 3
    assert log_probs.isfinite().all()


def test_a_token_outside_the_support_is_never_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a cumsum that is not monotone to the last bit could make of the search.
    monkeypatch.setattr(sampling.torch, "searchsorted", lambda sums, values, right: values.long() * 0)
    tokens, _ = sample(LOGITS, action_mask=torch.tensor([False] + [True] * 7))
    assert tokens.tolist() == [7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_improbable_tokens_add_up(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    # 50,000 tokens of 4e-8 each: in float32, 1 + 4e-8 is 1.
    logits = torch.full((200, 50_001), -17.0, dtype=dtype)
    logits[:, 0] = 0.0
    weights = np.exp(logits[0].double().numpy())
    total = weights.sum()
    # Uniform numbers that fall into the middle of a token each.
    expected = np.linspace(1, 50_000, 200).astype(int)
    uniform = torch.from_numpy((weights.cumsum()[expected] - weights[expected] / 2) / total)[:, None]
    monkeypatch.setattr(sampling.torch, "rand", lambda size, **kwargs: uniform)
    tokens, log_probs = sample(logits)
    np.testing.assert_allclose(tokens.numpy(), expected, atol=3)
    accuracy = 2e-6 if dtype == torch.float32 else 1e-10
    np.testing.assert_allclose(log_probs.numpy(), -17 - np.log(total), rtol=0, atol=accuracy)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 1000])
def test_the_draw_inverts_the_cumulative_distribution(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against numpy's search in the whole cumulative sum, over blocks of probability 0 as well."""
    rng = np.random.default_rng(size)
    logits = torch.from_numpy(rng.normal(0, 3, (300, size)))
    excluded = torch.from_numpy(rng.random((300, size)) < 0.3)
    excluded[:100, : size // 2] = True
    excluded[:, rng.integers(size)] = False
    uniform = torch.from_numpy(rng.random((300, 1)))
    monkeypatch.setattr(sampling.torch, "rand", lambda size, **kwargs: uniform)
    tokens, _ = sample(logits, action_mask=~excluded)
    for row in range(300):
        weights = np.where(excluded[row].numpy(), 0.0, np.exp(logits[row].numpy()))
        expected = np.searchsorted(weights.cumsum(), uniform[row].item() * weights.sum(), side="right")
        assert tokens[row] == expected


def test_generator_decides() -> None:
    logits = LOGITS.expand(50, 8)
    first, second, third = (
        sample(logits, generator=torch.Generator().manual_seed(seed))[0] for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_deterministic_takes_the_most_probable() -> None:
    mask = torch.tensor([False] + [True] * 7)
    tokens, log_probs = sample(LOGITS, action_mask=mask, deterministic=True, temperature=0.5)
    assert tokens.tolist() == [7]
    expected = np.log(exact(LOGITS[0].double().numpy(), list(range(1, 8)), 0.5)[7])
    assert log_probs.item() == pytest.approx(expected, abs=1e-6)


def test_dtypes() -> None:
    assert filter_logits(LOGITS.bfloat16()).dtype == torch.float32
    assert filter_logits(LOGITS.double()).dtype == torch.float64
    assert sample(LOGITS.double())[1].dtype == torch.float64


def test_the_input_is_left_alone() -> None:
    logits = LOGITS.clone()
    filter_logits(logits, temperature=0.5, top_k=2, top_p=0.5, action_mask=torch.ones(8, dtype=torch.bool))
    assert torch.equal(logits, LOGITS)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_broken_logits(broken: float) -> None:
    logits = LOGITS.repeat(3, 1)
    logits[1, 2] = broken
    with pytest.raises(FloatingPointError, match=r"rows \[1\]"):
        sample(logits)


@pytest.mark.parametrize("deterministic", [False, True])
def test_without_waiting_bad_rows_draw_minus_one(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "CHECKED_DEVICES", ())
    logits = LOGITS.repeat(4, 1)
    logits[1, 2], logits[2, 0] = torch.nan, torch.inf
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[3] = False
    tokens, _ = sample(logits, action_mask=mask, deterministic=deterministic)
    assert tokens[0] in range(8)
    assert tokens[1:].tolist() == [-1, -1, -1]


def test_a_temperature_that_is_too_low_for_float32() -> None:
    with pytest.raises(FloatingPointError, match="divided by the temperature"):
        sample(torch.tensor([[300.0, 2.0]]), temperature=1e-37)
    assert sample(torch.tensor([[3.0, 2.0]]), temperature=1e-37)[0].tolist() == [0]


def test_no_token_left() -> None:
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[2] = False
    with pytest.raises(ValueError, match=r"rows \[2\]"):
        sample(LOGITS.repeat(3, 1), action_mask=mask)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a finite number > 0, got 0.0"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": "hot"}, "temperature must be a finite number > 0, got 'hot'"),
        ({"top_k": 0}, "top_k must be None or an integer >= 1, got 0"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_p": 0.0}, r"top_p must be None or in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
    ],
)
def test_arguments_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(LOGITS, **arguments)
