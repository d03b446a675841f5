"""The toys' rules against slow ones in plain Python, and the numbers of their states."""

from __future__ import annotations

import math
import re
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_envs.toy import NGram, envs, games
from lm_envs.toy.rules import Bigram, Brackets, Copy, KeyDoor, Reverse, Rule, Translate
from lm_envs.toy.states import StateSpace

GAMES = {
    "ToyCopy": games.COPY,
    "ToyReverse": games.REVERSE,
    "ToyBrackets": games.BRACKETS,
    "ToyBigram": games.BIGRAM,
    "ToyTranslate": games.TRANSLATE,
    "ToyKeyDoor": games.KEY_DOOR,
}


def translation(prompt: list[int], vocab_size: int) -> list[int]:
    words, at = [], 0
    while at < len(prompt):
        pair = prompt[at : at + 2]
        if len(pair) == 2 and pair[0] < vocab_size // 2 <= pair[1]:
            words += [pair[1], pair[0]]
            at += 2
        else:
            words.append(prompt[at])
            at += 1
    return [(word + 1) % vocab_size for word in words]


def nested(pairs: int, kinds: int) -> set[tuple[int, ...]]:
    """All well-nested strings of so many pairs of brackets, by the grammar S -> empty | ( S ) S."""
    if pairs == 0:
        return {()}
    return {
        (kind, *inside, kind + kinds, *behind)
        for first in range(pairs)
        for inside in nested(first, kinds)
        for behind in nested(pairs - 1 - first, kinds)
        for kind in range(kinds)
    }


def slow_progress(rule: Rule, prompt: list[int], text: list[int]) -> float:
    """Progress after the tokens of a text that may be unfinished."""
    length, vocab_size = rule.length, rule.vocab_size
    if isinstance(rule, Bigram):
        table = rule.language_model.table
        score = 1.0 if vocab_size - 1 in text else 0.0
        for before, token in zip([*prompt, *text], text, strict=False):
            score += 0.5 * math.log(table[before, token]) / length
        return score
    if isinstance(rule, KeyDoor):
        (door,) = prompt
        has_key = bool(text) and text[0] == (door + 1) % vocab_size
        apples = 0.2 * text[1 : length - 1].count(0) / (length - 2)
        if len(text) == length:
            return apples + (0.8 if has_key and text[-1] == door else 0.0)
        return apples + (0.4 if has_key else 0.0)
    if isinstance(rule, Brackets):
        well_nested = nested((length + 1) // 2, rule.kinds)
        good = 0
        for end in range(1, len(text) + 1):
            begin = (*prompt, *text[:end])
            good += any(string[: end + 1] == begin for string in well_nested)
        return good / length
    target = {Copy: prompt, Reverse: prompt[::-1], Translate: translation(prompt, vocab_size)}[type(rule)]
    return sum(a == b for a, b in zip(text, target, strict=False)) / length


SMALL = [
    (Copy, 4, 5),
    (Reverse, 3, 4),
    (Translate, 5, 6),
    (Translate, 2, 3),
    (Brackets, 4, 5),
    (Brackets, 2, 7),
    (Bigram, 4, 5),
    (KeyDoor, 3, 4),
]


@pytest.mark.parametrize(("kind", "vocab_size", "length"), SMALL)
def test_progress_and_score_equal_the_slow_rule(kind: type[Rule], vocab_size: int, length: int) -> None:
    rule, rng = kind(vocab_size, length), np.random.default_rng(0)
    prompts = rng.integers(rule.prompt_base, size=(150, rule.prompt_length)).astype(np.int16)
    texts = rng.integers(vocab_size, size=(150, length)).astype(np.int16)
    if hasattr(rule, "target"):
        texts[:50] = rule.target(prompts[:50])
    progress = rule.progress(prompts, texts)
    assert progress.shape == (150, length + 1)
    for row in range(150):
        prompt, text = prompts[row].tolist(), texts[row].tolist()
        slow = [slow_progress(rule, prompt, text[:end]) for end in range(length + 1)]
        assert progress[row].tolist() == pytest.approx(slow, abs=1e-12)
    assert rule.score(prompts, texts) == pytest.approx(progress[:, -1], abs=1e-12)


def test_success_is_the_wanted_text() -> None:
    ok = {
        Copy(3, 3): ([0, 1, 2], [0, 1, 2]),
        Reverse(3, 3): ([0, 1, 2], [2, 1, 0]),
        Translate(4, 4): ([0, 3, 1, 0], [0, 1, 2, 1]),  # as 3 0 1 0, then each word the next
        Brackets(4, 5): ([1], [0, 2, 3, 0, 2]),  # [ ( ) ] ( )
        KeyDoor(4, 4): ([3], [0, 2, 2, 3]),
    }
    for rule, (prompt, text) in ok.items():
        assert succeeds(rule, prompt, text)
        for at in (0, len(text) - 1):
            wrong = [*text[:at], (text[at] + 1) % rule.vocab_size, *text[at + 1 :]]
            assert not succeeds(rule, prompt, wrong)


def test_success_of_bigram_needs_the_word_and_fluency() -> None:
    rule = Bigram(4, 5)
    table = rule.language_model.table
    for text in product(range(4), repeat=5):
        pairs = zip((1, *text), text, strict=False)
        mean = sum(math.log(table[a, b]) for a, b in pairs) / 5
        assert succeeds(rule, [1], list(text)) == (3 in text and mean > -math.log(4))


def succeeds(rule: Rule, prompt: list[int], text: list[int]) -> bool:
    prompts, texts = np.array([prompt], np.int16), np.array([text], np.int16)
    return bool(rule.success(prompts, texts, rule.score(prompts, texts))[0])


def setting(name: str, kind: str) -> tuple[Rule, str, str]:
    """A documented setting as a rule, and what the docstring says: the number of states and the odds."""
    doc = " ".join(getattr(envs, f"{name}Env").__doc__.split())
    pattern = r": vocab_size=(\d+), length=(\d+); (.+?) states, random play succeeds 1 time in (.+?)\. "
    vocab_size, length, states, odds = re.search(kind + pattern, doc).groups()  # type: ignore[union-attr]
    return GAMES[name].rule(int(vocab_size), int(length)), states, odds


@pytest.mark.parametrize("name", GAMES)
def test_default_sizes_are_the_documented_ones(name: str) -> None:
    rule, states, odds = setting(name, "Default")
    assert (rule.vocab_size, rule.length) == GAMES[name][1:]
    space = StateSpace(rule)
    assert space.num_states == int(states) >= 10_000
    total = space.num_prompts * rule.vocab_size**rule.length
    prompts, texts = space.contexts(rule.length, 0, total)
    share = rule.success(prompts, texts, rule.score(prompts, texts)).mean()
    assert round(1 / share) == int(odds)
    doc = getattr(envs, f"{name}Env").__doc__
    assert f"By default L = {space.context_length} and" in doc
    assert f"`Discrete({space.num_states})`" in doc


@pytest.mark.parametrize("name", GAMES)
def test_random_play_fails_in_the_hard_setting(name: str) -> None:
    rule, states, odds = setting(name, "Hard")
    assert f"about {StateSpace(rule).num_states:.0e}".replace("e+", "e") == states
    rng = np.random.default_rng(0)
    prompts = rng.integers(rule.prompt_base, size=(200_000, rule.prompt_length)).astype(np.int16)
    texts = rng.integers(rule.vocab_size, size=(200_000, rule.length)).astype(np.int16)
    successes = rule.success(prompts, texts, rule.score(prompts, texts)).sum()
    # At 1 in 1,000 there would be 200 successes, with a standard deviation of 14.
    assert successes < 200 - 4 * 14
    claimed = 200_000 / (float(odds.replace(",", "").split()[0]) * (1e6 if "million" in odds else 1))
    assert abs(successes - claimed) <= 4 * math.sqrt(claimed) + 1


def test_catalan_numbers_of_brackets() -> None:
    """Hard Brackets: C(8) = 1430 nestings times 4^7 kinds behind the given one, of 8^15 texts."""
    odds = 8**15 / (1430 * 4**7)
    assert odds == pytest.approx(1.5e6, rel=0.01)
    rule = Brackets(4, 7)
    space = StateSpace(rule)
    prompts, texts = space.contexts(7, 0, 2 * 4**7)
    assert (rule.score(prompts, texts) == 1).sum() == 14 * 2**4


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(GAMES)), size=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_states_and_contexts_are_inverse(name: str, size: int, seed: int) -> None:
    rule = GAMES[name].rule(2 * size, 2 * size + 1)
    space, rng = StateSpace(rule), np.random.default_rng(seed)
    states = rng.integers(space.end, size=50)
    tokens, lengths = space.tokens(states)
    assert space.numbers(tokens, lengths).tolist() == states.tolist()
    written = lengths - space.prompt_length
    assert ((written >= 0) & (written < rule.length)).all()
    assert (tokens[:, : space.prompt_length] < rule.prompt_base).all()
    # Writing a token leads to the state that the numbering promises.
    token = rng.integers(rule.vocab_size, size=50)
    tokens[np.arange(50), lengths] = token
    following = space.numbers(tokens, lengths + 1)
    for i, state in enumerate(states.tolist()):
        layer = int(written[i])
        expected = space.end
        if layer + 1 < rule.length:
            local = state - space.offsets[layer]
            expected = space.offsets[layer + 1] + local * rule.vocab_size + int(token[i])
        assert following[i] == expected


def test_states_are_numbered_without_gaps() -> None:
    space = StateSpace(Copy(2, 3))
    contexts = [
        (prompt, text)
        for written in range(3)
        for prompt in product(range(2), repeat=3)
        for text in product(range(2), repeat=written)
    ]
    tokens, lengths = space.tokens(np.arange(space.end))
    assert [tuple(row[:end].tolist()) for row, end in zip(tokens, lengths, strict=True)] == [
        (*prompt, *text) for prompt, text in contexts
    ]
    with pytest.raises(ValueError, match=r"0\.\.55, got 56 to 56"):
        space.tokens(np.array([56]))


# The n-gram model


def test_ngram_probabilities_are_the_table() -> None:
    for order in (1, 2, 3):
        model = NGram.random("abcd", order=order)
        assert model.table.shape == (4,) * order
        contexts = np.random.default_rng(0).integers(4, size=(30, 5))
        lengths = np.arange(30) % 5 + 1
        for row, end, got in zip(contexts, lengths, model.probabilities(contexts, lengths), strict=True):
            before = [0] * order + row[:end].tolist()
            assert got.tolist() == model.table[tuple(before[len(before) - order + 1 :])].tolist()
        assert model.table.min() > 0
        assert np.allclose(model.table.sum(-1), 1, atol=1e-15)


def test_ngram_log_probs_sum_over_all_texts_to_one() -> None:
    model = NGram.random("abc", order=2, rare=0.02)
    assert (model.table[:, -1] == 0.02).all()
    texts = [list(text) for text in product(range(3), repeat=4)]
    for temperature in (1.0, 0.5):
        log_probs = model.log_probs([[1]] * len(texts), texts, temperature)
        assert sum(np.exp(row.sum()) for row in log_probs) == pytest.approx(1, abs=1e-12)
    expected = [math.log(model.table[a, b]) for a, b in zip([1, 2, 0], [2, 0, 0], strict=True)]
    assert model.log_probs([[1]], [[2, 0, 0]])[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_ngram_is_the_same_everywhere() -> None:
    # Weights (1 + rank)^-2 over their sum 1 + 1/4 + 1/9, in a fixed order.
    weights = (np.array([1, 1 / 4, 1 / 9]) / (1 + 1 / 4 + 1 / 9)).tolist()
    for row in NGram.random("abc").table.tolist():
        assert sorted(row, reverse=True) == pytest.approx(weights, abs=1e-15)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.full((2, 3), 1 / 3), r"shape \(V, ..., V\) for 2 words, got \(2, 3\)"),
        (np.array([[1.0, 0.0], [0.5, 0.5]]), "positive probabilities that sum to 1"),
        (np.array([[0.5, 0.5], [0.5, 0.6]]), "positive probabilities that sum to 1"),
        (np.array([[0.5, 0.5], [0.5, np.nan]]), "positive probabilities that sum to 1"),
    ],
)
def test_bad_ngram_tables(table: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NGram(table, "ab")


def test_texts_of_large_vocabularies_come_back() -> None:
    for rule in (Copy(700, 3), Brackets(20, 3)):
        model: Any = rule.language_model
        ids = np.random.default_rng(0).integers(rule.vocab_size, size=200).tolist()
        assert len(set(model.words)) == rule.vocab_size
        assert model.encode(model.decode(ids)) == ids
    with pytest.raises(ValueError, match="text holds 'z', which is not in the vocabulary: a b c"):
        NGram.random("abc").encode("abz")
