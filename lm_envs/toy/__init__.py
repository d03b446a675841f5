"""Toy environments with exact solutions: six rules, small vocabularies, an n-gram model."""

from lm_envs.toy.ngram import NGram
from lm_envs.toy.policies import Policy, policy_array
from lm_envs.toy.regret import Regret, regret
from lm_envs.toy.solve import MAX_STATES, Evaluation, Solution, TradeOff, solve
from lm_envs.toy.transitions import Transitions

__all__ = [
    "MAX_STATES",
    "Evaluation",
    "NGram",
    "Policy",
    "Regret",
    "Solution",
    "TradeOff",
    "Transitions",
    "policy_array",
    "regret",
    "solve",
]
