"""Reward functions: `reward(prompts, completions, **columns) -> list[float]`, as TRL's `reward_funcs`.

Each is a small picklable object; libraries and models are imported when one is made or first called. Use them
alone, in a `WeightedSum`, or in place of them any function of your own with that signature.
"""

from lm_envs.rewards.base import RewardFunction
from lm_envs.rewards.checking import WeightedSum, checked, scored
from lm_envs.rewards.fluency import Fluency
from lm_envs.rewards.reference import Bleu, Chrf, ExactMatch, Rouge, WordErrorRate
from lm_envs.rewards.reward_model import RewardModel
from lm_envs.rewards.sentiment import Sentiment
from lm_envs.rewards.surface import DistinctN, KeywordCoverage, Length, Regex, RepetitionPenalty
from lm_envs.rewards.token_f1 import TokenF1

__all__ = [
    "Bleu",
    "Chrf",
    "DistinctN",
    "ExactMatch",
    "Fluency",
    "KeywordCoverage",
    "Length",
    "Regex",
    "RepetitionPenalty",
    "RewardFunction",
    "RewardModel",
    "Rouge",
    "Sentiment",
    "TokenF1",
    "WeightedSum",
    "WordErrorRate",
    "checked",
    "scored",
]
