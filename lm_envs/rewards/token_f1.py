"""Overlap of an answer's words with the reference's."""

from __future__ import annotations

from collections import Counter

from lm_envs.rewards.base import ReferenceReward
from lm_envs.rewards.reference import normalized_answer


class TokenF1(ReferenceReward):
    """F1 of the words that completion and reference share, for the best reference. Range 0 to 1.

    With `m` words in common (each as often as both have it), `c` words in the completion and `r` in the
    reference: precision m / c, recall m / r, F1 their harmonic mean, 2 m / (c + r). Words are compared as
    `ExactMatch` compares texts: lower case, without ASCII punctuation and English articles.

    An empty completion gets 0, unless a reference is empty.

    Source: Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text".
    """

    __name__ = "token_f1"

    def score(self, completion: str, references: list[str]) -> float:
        """The F1 of one completion."""
        return max(_f1(normalized_answer(completion), normalized_answer(text)) for text in references)


def _f1(completion: str, reference: str) -> float:
    said, wanted = Counter(completion.split()), Counter(reference.split())
    size = said.total() + wanted.total()
    return 2 * (said & wanted).total() / size if size else 1.0
