"""Rewards that compare the completion with references, the column `reference` or `references`."""

from __future__ import annotations

import re
import string
from functools import cache
from typing import Any

from lm_envs.rewards.base import ReferenceReward, whole_number, words

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExactMatch(ReferenceReward):
    """1 if the completion equals one of its references, else 0.

    An empty completion gets 0, unless a reference is empty.

    Args:
        normalize: compare as SQuAD does: lower case, without ASCII punctuation, English articles and surplus
            blanks (Rajpurkar et al. 2016). A text that this would empty ("A", "?") is compared in lower case.
            False: compare the texts as they are.
    """

    __name__ = "exact_match"

    def __init__(self, *, normalize: bool = True) -> None:
        self.normalize = normalize

    def score(self, completion: str, references: list[str]) -> float:
        """1.0 or 0.0 for one completion."""
        if not self.normalize:
            return float(completion in references)
        return float(
            normalized_answer(completion) in [normalized_answer(reference) for reference in references]
        )


def normalized_answer(text: str) -> str:
    """A text as SQuAD compares answers, see `ExactMatch`."""
    lower = text.lower()
    normalized = " ".join(_ARTICLES.sub(" ", lower.translate(_NO_PUNCTUATION)).split())
    # Otherwise every completion without content would match the reference "A".
    return normalized or lower.strip()


class Bleu(ReferenceReward):
    """Sentence BLEU against all references (sacreBLEU's score / 100). Range 0 to 1.

    4-grams, exponential smoothing, effective order: sacreBLEU's defaults for sentences. An empty completion
    gets 0.

    Source: Papineni et al. 2002; Post 2018, "A Call for Clarity in Reporting BLEU Scores".

    Args:
        tokenize: one of sacreBLEU's tokenizers, such as "13a", "intl", "zh", "char", "none".
        lowercase: whether to ignore case.
    """

    __name__ = "bleu"

    def __init__(self, *, tokenize: str = "13a", lowercase: bool = False) -> None:
        from sacrebleu.metrics import BLEU

        if tokenize not in BLEU.TOKENIZERS:
            raise ValueError(f"tokenize must be one of {sorted(BLEU.TOKENIZERS)}, got {tokenize!r}")
        self.tokenize = tokenize
        self.lowercase = lowercase

    def score(self, completion: str, references: list[str]) -> float:
        """BLEU of one completion."""
        return _bleu(self.tokenize, self.lowercase).sentence_score(completion, references).score / 100


class Chrf(ReferenceReward):
    """Sentence chrF, the F-score of character n-grams, for the best reference (sacreBLEU's score / 100).

    Range 0 to 1. An empty completion gets 0. `word_order=2` is chrF++.

    Source: Popovic 2015, "chrF: character n-gram F-score for automatic MT evaluation"; 2017 for chrF++.

    Args:
        word_order: longest word n-gram that counts as well, at least 0.
    """

    __name__ = "chrf"

    def __init__(self, *, word_order: int = 0) -> None:
        self.word_order = whole_number("word_order", word_order, 0)

    def score(self, completion: str, references: list[str]) -> float:
        """chrF of one completion."""
        return _chrf(self.word_order).sentence_score(completion, references).score / 100


class Rouge(ReferenceReward):
    """ROUGE F-measure for the best reference (package rouge-score). Range 0 to 1.

    An empty completion gets 0. Only ASCII letters and digits count, in lower case: other scripts get 0.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".

    Args:
        kind: "rouge1" to "rouge9" (n-grams), "rougeL" (longest common subsequence), or "rougeLsum" (the same
            per line).
        stemmer: whether words are reduced to their Porter stem.
    """

    def __init__(self, kind: str = "rougeL", *, stemmer: bool = False) -> None:
        if not isinstance(kind, str) or not re.fullmatch("rouge([1-9]|L|Lsum)", kind):
            raise ValueError(f"kind must be 'rouge1' to 'rouge9', 'rougeL' or 'rougeLsum', got {kind!r}")
        self.kind = kind
        self.stemmer = stemmer
        self.__name__ = kind

    def score(self, completion: str, references: list[str]) -> float:
        """F-measure of one completion."""
        return float(_rouge(self.kind, self.stemmer).score_multi(references, completion)[self.kind].fmeasure)


class WordErrorRate(ReferenceReward):
    """Minus the word error rate against the best reference (package jiwer). Range -1 to 0.

    Word errors (substitutions, deletions, insertions) divided by the reference's words; above 1 it counts as
    1, so that no text is worse than none: an empty completion gets -1. Against a reference without words, an
    empty completion gets 0, any other -1.

    Args:
        normalize: compare lower-case words without punctuation, as speech recognition does. False: compare
            what stands between blanks.
    """

    __name__ = "word_error_rate"

    def __init__(self, *, normalize: bool = True) -> None:
        self.normalize = normalize

    def score(self, completion: str, references: list[str]) -> float:
        """Minus the word error rate of one completion."""
        from jiwer import wer

        split = words if self.normalize else str.split
        said = " ".join(split(completion))
        truths = [" ".join(split(reference)) for reference in references]
        errors = [min(1.0, wer(truth, said)) if truth else float(bool(said)) for truth in truths]
        return 0.0 - min(errors)


# The scorers are kept per process, not in the rewards: they are slow to build, and not all of them pickle.


@cache
def _bleu(tokenize: str, lowercase: bool) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=tokenize, lowercase=lowercase, effective_order=True)


@cache
def _chrf(word_order: int) -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF(word_order=word_order)


@cache
def _rouge(kind: str, stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=stemmer)
