"""Sentiment of a text by the VADER lexicon."""

from __future__ import annotations

from functools import cache
from typing import Any

from lm_envs.rewards.base import TextReward


class Sentiment(TextReward):
    """VADER's compound score of the completion, -1 (most negative) to 1 (most positive), no unit.

    An empty completion gets 0, as does a text without a word of the lexicon (English only).

    Source: Hutto & Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
    Media Text"; the package vaderSentiment.
    """

    __name__ = "sentiment"

    def score(self, completion: str) -> float:
        """The compound score of one completion."""
        return _analyzer().polarity_scores(completion)["compound"]


@cache
def _analyzer() -> Any:
    """One analyzer per process: reading the lexicon takes far longer than scoring a text."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
