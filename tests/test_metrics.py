"""The text metrics against values worked out by hand."""

import math

import numpy as np
import pytest

from agents.metrics import (
    Auditor,
    common_ngram,
    distinct,
    mean_interval,
    nested_interval,
    repetition,
    text_metrics,
)


def test_common_ngram_counts_texts_not_occurrences():
    texts = ["a b c d a b c d a b c d", "x a b c d", "p q r s", "t"]
    assert common_ngram(texts) == ("a b c d", 0.5)
    assert common_ngram(["", "one two"]) == ("", 0.0)


def test_distinct_and_repetition_by_hand():
    assert distinct(["a b a b"], n=2) == pytest.approx(2 / 3)  # ab, ba, ab
    assert distinct(["a b", "a b"], n=2) == 0.5
    assert distinct([""], n=2) == 0.0
    assert repetition(["happy happy happy happy", "one two three four"], n=1) == pytest.approx(
        (0.75 + 0.0) / 2
    )
    assert text_metrics(["Joy, joy!"])["words"] == 4  # two words, two marks


def test_mean_interval_covers_the_mean_and_shrinks():
    rng = np.random.default_rng(0)
    small, large = mean_interval(rng.normal(size=20)), mean_interval(rng.normal(size=2000))
    assert small.low < small.mean < small.high
    # a normal mean's 95% interval is 2 x 1.96 / sqrt(n) wide
    assert large.high - large.low == pytest.approx(2 * 1.96 / math.sqrt(2000), rel=0.1)
    assert mean_interval([0.5, 0.5]).low == 0.5
    with pytest.raises(ValueError, match="empty"):
        mean_interval([])


def test_nested_interval_counts_both_sources_of_chance():
    """The mean of g groups of n has variance (between / g + within / (g n)); normal quantiles of it."""
    rng = np.random.default_rng(1)
    between, within, groups, size = 0.5, 1.0, 200, 50
    values = rng.normal(rng.normal(0, between, groups)[:, None], within, (groups, size))
    found = nested_interval(values.tolist())
    wide = 2 * 1.96 * math.sqrt(between**2 / groups + 2 * within**2 / (groups * size))  # 2: sampled twice
    assert found.high - found.low == pytest.approx(wide, rel=0.1)
    assert found.mean == pytest.approx(values.mean())
    plain = mean_interval(values.ravel().tolist())
    assert found.high - found.low > 3 * (plain.high - plain.low)  # which takes all for independent
    equal = nested_interval([[1.0, 1.0], [3.0, 3.0]])
    assert (equal.mean, equal.low, equal.high) == (2.0, 1.0, 3.0)
    for wrong in ([], [[1.0], []]):
        with pytest.raises(ValueError, match="at least 1"):
            nested_interval(wrong)


def test_auditor_equals_witten_bell_by_hand():
    # corpus "a b": trigram "<s> <s> a" and so on; after (<s>, a): b was seen once, nothing else
    auditor = Auditor(["a b"])
    symbols = ["s", "s", "a", "b", "e", "e", "s", "s", "U", "e", "e"]  # start, end and unknown marks too
    p1 = symbols.count("b") / len(symbols)
    p2 = 0.5 * 1 + 0.5 * p1  # one type and one token after "a": lambda = 1 / (1 + 1)
    p3 = 0.5 * 1 + 0.5 * p2
    assert auditor.perplexity(["a"], [" b"]) == pytest.approx(1 / p3)


def test_auditor_rises_on_word_salad():
    corpus = [
        f"The {who} found the {what} and went home."
        for who in ("fox", "baker", "girl")
        for what in ("key", "boat")
    ]
    auditor = Auditor(corpus)
    good = auditor.perplexity(["The fox found"], [" the boat and went home."])
    assert good < 5 < auditor.perplexity(["The fox found"], [" luck luck prize best party."])
    assert math.isfinite(auditor.perplexity(["The fox"], [" zzz"]))
