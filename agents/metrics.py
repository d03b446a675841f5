"""What is measured about generated text besides its reward: the numbers that give a collapsed policy away."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

import numpy as np
from nltk.lm import WittenBellInterpolated
from nltk.lm.preprocessing import pad_both_ends, padded_everygram_pipeline
from nltk.tokenize import RegexpTokenizer
from scipy.stats import bootstrap

words = RegexpTokenizer(r"\w+|[^\w\s]").tokenize

# Those of `text_metrics` that say nothing about texts of a word or two.
N_GRAM_METRICS = ("common_4gram", "distinct_2", "distinct_2_together", "repetition_3")


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap 95% confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean and 95% percentile-bootstrap interval (`scipy.stats.bootstrap`) of one number per episode.

    Raises:
        ValueError: `values` is empty.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ValueError("values is empty; the mean of at least 1 number was asked for")
    mean = float(sample.mean())
    if sample.size == 1 or np.all(sample == sample[0]):
        return Interval(mean, mean, mean)
    found = bootstrap((sample,), np.mean, method="percentile", rng=np.random.default_rng(seed))
    return Interval(mean, float(found.confidence_interval.low), float(found.confidence_interval.high))


def nested_interval(groups: Sequence[Sequence[float]], seed: int = 0, resamples: int = 2000) -> Interval:
    """Mean and 95% percentile-bootstrap interval of numbers in groups (one group a training seed, say).

    The groups are resampled, and within each of them its numbers: the two-stage bootstrap of Davison and
    Hinkley, "Bootstrap methods and their application" (1997), section 3.8. A plain bootstrap over all numbers
    would take runs for certain that differ from seed to seed.

    Raises:
        ValueError: no groups, or an empty one.
    """
    samples = [np.asarray(group, dtype=np.float64) for group in groups]
    if not samples or any(sample.size == 0 for sample in samples):
        raise ValueError("groups must hold at least 1 group, and each at least 1 number")
    rng = np.random.default_rng(seed)
    # means[i, j]: resample j of group i
    means = np.stack([rng.choice(sample, (resamples, sample.size)).mean(axis=1) for sample in samples])
    drawn = rng.integers(len(samples), size=(len(samples), resamples))
    low, high = np.quantile(means[drawn, np.arange(resamples)].mean(axis=0), (0.025, 0.975))
    return Interval(float(np.mean([sample.mean() for sample in samples])), float(low), float(high))


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of `n` tokens."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def common_ngram(texts: Sequence[str], n: int = 4) -> tuple[str, float]:
    """The n-gram that most texts hold, and the share of the texts that hold it (0 to 1).

    A policy that ends every text with the same happy sentence keeps its KL and its in-text repetition low;
    this share is what rises.
    """
    counts = Counter(gram for text in texts for gram in set(ngrams(words(text.lower()), n)))
    if not counts:
        return "", 0.0
    gram, count = counts.most_common(1)[0]
    return " ".join(gram), count / len(texts)


def distinct(texts: Sequence[str], n: int = 2) -> float:
    """Distinct-n over all texts together: different n-grams / n-grams (Li et al., 2016, arXiv:1510.03055)."""
    grams = [gram for text in texts for gram in ngrams(words(text.lower()), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(texts: Sequence[str], n: int = 3) -> float:
    """Mean share of a text's n-grams that stood in it before (0: none), 1 - distinct-n within each text."""
    return fmean(1.0 - distinct([text], n) if ngrams(words(text), n) else 0.0 for text in texts)


class Auditor:
    """A word trigram model (Witten-Bell smoothing, `nltk.lm`), independent of policy and reference.

    Args:
        corpus: texts of the language that the policy should keep to.
    """

    ORDER = 3

    def __init__(self, corpus: Sequence[str]) -> None:
        self._model = WittenBellInterpolated(self.ORDER)
        # one unknown word in the corpus leaves every unseen word a finite, small probability
        sentences = [*(words(text) for text in corpus), [self._model.vocab.unk_label]]
        self._model.fit(*padded_everygram_pipeline(self.ORDER, sentences))

    def perplexity(self, prompts: Sequence[str], completions: Sequence[str]) -> float:
        """exp(-mean log-probability per word) of all completions together, each after its prompt."""
        total, count = 0.0, 0
        for prompt, completion in zip(prompts, completions, strict=True):
            text = [*pad_both_ends(words(prompt + completion), self.ORDER)]
            # both_ends adds ORDER - 1 symbols on either side: the completion is judged up to its last word
            for i in range(self.ORDER - 1 + len(words(prompt)), len(text) - self.ORDER + 1):
                total += self._model.logscore(text[i], text[i - self.ORDER + 1 : i]) * math.log(2)
                count += 1
        return math.exp(-total / count) if count else math.inf


@cache
def story_auditor(stories: int = 4000) -> Auditor:
    """The auditor trained on the first `stories` training texts of the bundled model's own story world."""
    from lm_envs.pretraining.stories import story

    return Auditor([story(index).text for index in range(stories)])


def text_metrics(completions: Sequence[str]) -> dict[str, float]:
    """What gives a collapse away, of a set of completions.

    Returns:
        `common_4gram`: share of the texts that hold the most common 4-gram; `distinct_2`: mean distinct-2
        within a text; `distinct_2_together`: distinct-2 of all texts as one, which falls with their number,
        and where a policy keeps to one half of what it could write; `repetition_3`: mean share of repeated
        trigrams within a text; `words`: mean length.
    """
    return {
        "common_4gram": common_ngram(completions)[1],
        "distinct_2": fmean(distinct([text]) for text in completions),
        "distinct_2_together": distinct(completions),
        "repetition_3": repetition(completions),
        "words": fmean(len(words(text)) for text in completions),
    }
