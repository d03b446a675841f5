"""Tabular agents: exact keys, one row per visited context, the face of stable-baselines3."""

from agents.tabular.agent import TabularAgent
from agents.tabular.behaviour import Behaviour, EpsilonGreedy, Proposal, Random, Softmax
from agents.tabular.monte_carlo import MonteCarlo
from agents.tabular.one_step import DoubleQLearning, ExpectedSarsa, QLearning, Sarsa
from agents.tabular.policy_gradient import ActorCritic, PolicyGradient, Reinforce
from agents.tabular.q_lambda import QLambda
from agents.tabular.schedules import Exponential, Linear
from agents.tabular.slots import make_env
from agents.tabular.value_agent import ValueAgent
from agents.tabular.value_iteration import ValueIteration

ALGORITHMS: dict[str, type[TabularAgent]] = {
    "q_learning": QLearning,
    "double_q_learning": DoubleQLearning,
    "sarsa": Sarsa,
    "expected_sarsa": ExpectedSarsa,
    "q_lambda": QLambda,
    "monte_carlo": MonteCarlo,
    "reinforce": Reinforce,
    "actor_critic": ActorCritic,
    "value_iteration": ValueIteration,
}

__all__ = [
    "ALGORITHMS",
    "ActorCritic",
    "Behaviour",
    "DoubleQLearning",
    "EpsilonGreedy",
    "ExpectedSarsa",
    "Exponential",
    "Linear",
    "MonteCarlo",
    "PolicyGradient",
    "Proposal",
    "QLambda",
    "QLearning",
    "Random",
    "Reinforce",
    "Sarsa",
    "Softmax",
    "TabularAgent",
    "ValueAgent",
    "ValueIteration",
    "make_env",
]
