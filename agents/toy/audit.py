"""`python -m agents.toy.audit`: PPO with a KL penalty against the exact KL-regularised optimum.

On a toy environment the policy pi*(a|s), proportional to p_ref(a|s) exp(Q*(s,a) / kl_coef), is known. Stock
PPO with `TransformerPolicy`, `EpisodeRolloutBuffer` and `KLCallback` starts at a transformer that was fitted
to the reference, and should end at pi*: a wrong log-probability, sampler, KL, GAE or minibatch anywhere in
that chain would lead elsewhere.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO

from agents.options import check_counts, check_file, check_positive, mistakes_as_messages
from agents.report import save_figure
from agents.toy.critic import Audited, CriticAudit
from agents.toy.transformer import fit_to_ngram, save_toy_transformer
from lm_envs.language_model import LanguageModel
from lm_envs.sb3 import EpisodeRolloutBuffer, KLCallback, TransformerPolicy, make_vec_env
from lm_envs.toy import Solution, TradeOff, solve

ENV_ID = "TextGen-ToyBigram-v0"
CRITIC_AUDITS = 5  # how often in a run the critic is held against the truth


class AuditSettings(NamedTuple):
    """How PPO is run.

    Many episodes and few updates a rollout; a learning rate that falls linearly to 0, so that what is left at
    the end is no noise of the last updates, and that begins low: large first steps can make a wrong token so
    certain that the right ones are never drawn again. Lambda is 1, so that an imperfect critic cannot move
    the optimum.
    """

    rollouts: int = 400
    n_envs: int = 1024
    n_epochs: int = 2
    minibatches: int = 2
    learning_rate: float = 1e-3
    gae_lambda: float = 1.0


class AuditResult(NamedTuple):
    """What PPO reached, and the exact optimum. All are exact values, in reward or nats per episode."""

    kl_coef: float
    objective: float  # expected_return - kl_coef * kl
    optimal_objective: float
    reference_objective: float  # of the reference itself: where PPO began
    expected_return: float
    kl: float  # from the n-gram model
    distance: float  # total variation from pi*, mean over the tokens of episodes of pi*
    optimal: TradeOff  # where pi* is

    @property
    def gap(self) -> float:
        """What is missing to the optimal objective, relative to its size."""
        return (self.optimal_objective - self.objective) / abs(self.optimal_objective)


def fitted_transformer(folder: str | Path, seed: int = 0, **env_kwargs: Any) -> Path:
    """A transformer with the n-gram model's distributions, in `folder`.

    Args:
        folder: where to.
        seed: of weights and texts.
        env_kwargs: the environment's dials.
    """
    env = make_vec_env(ENV_ID, 1, **env_kwargs).env
    save_toy_transformer(env, folder, seed=seed)
    fit_to_ngram(folder, env, seed=seed)
    return Path(folder)


def audit_ppo(
    folder: str | Path,
    kl_coef: float,
    settings: AuditSettings | None = None,
    *,
    seed: int = 0,
    callbacks: tuple[Any, ...] = (),
    progress_bar: bool = False,
    **env_kwargs: Any,
) -> AuditResult:
    """Trains PPO from a fitted transformer, with that as reference, and compares with the exact solution.

    Args:
        folder: what `fitted_transformer` wrote for the same dials.
        kl_coef: reward per nat, > 0.
        settings: PPO's; None: the defaults.
        seed: of everything random.
        callbacks: SB3 callbacks to run as well, behind the KL penalty's.
        progress_bar: whether one is shown.
        env_kwargs: the environment's dials.
    """
    settings = settings or AuditSettings()
    env = make_vec_env(ENV_ID, settings.n_envs, seed=seed, **env_kwargs)
    solution = solve(env.env, kl_coef=kl_coef)
    steps = solution.tables.length
    model = PPO(
        TransformerPolicy,
        env,
        rollout_buffer_class=EpisodeRolloutBuffer,
        normalize_advantage=False,
        gamma=1.0,
        gae_lambda=settings.gae_lambda,
        n_steps=steps,
        batch_size=steps * settings.n_envs // settings.minibatches,
        n_epochs=settings.n_epochs,
        learning_rate=lambda remaining: settings.learning_rate * remaining,
        policy_kwargs={"model": str(folder)},
        seed=seed,
        device="cpu",
    )
    penalty = KLCallback(kl_coef, reference=LanguageModel.load(folder, device="cpu"))
    total = settings.rollouts * steps * settings.n_envs
    model.learn(total, callback=[penalty, *callbacks], progress_bar=progress_bar)
    return compare(solution, model)


def compare(solution: Solution, policy: Any) -> AuditResult:
    """A policy beside the optimal one of a KL-regularised solution.

    Args:
        solution: with kl_coef > 0.
        policy: as `Solution.evaluate` takes it.
    """
    reached, optimal = solution.evaluate(policy), solution.evaluate(solution.policy)
    distances = 0.5 * np.abs(reached.policy - solution.policy).sum(axis=1)
    return AuditResult(
        kl_coef=solution.kl_coef,
        objective=reached.objective,
        optimal_objective=solution.optimal_return,
        reference_objective=solution.evaluate(solution.tables.reference).objective,
        expected_return=reached.expected_return,
        kl=reached.kl,
        distance=float(optimal.visits[:-1] @ distances[:-1]) / solution.tables.length,
        optimal=TradeOff(solution.kl_coef, optimal.expected_return, optimal.kl),
    )


@dataclass(frozen=True)
class Audit:
    """Train PPO for several KL coefficients, print what it reached, and draw it beside the exact frontier.

    A second table tells how far its critic and its GAE were from the exact V and A of their policy.
    """

    kl_coefs: tuple[float, ...] = (0.05, 0.1, 0.3)
    """Reward per nat of KL divergence."""
    rollouts: int = AuditSettings().rollouts
    seed: int = 0
    out: Path = Path("benchmarks/results/toy_kl_frontier.png")
    """The figure."""

    def __call__(self) -> None:
        """Runs the audit."""
        check_counts(rollouts=self.rollouts)
        for kl_coef in self.kl_coefs:
            check_positive(kl_coefs=kl_coef)
        check_file(self.out)
        settings = AuditSettings(rollouts=self.rollouts)
        with tempfile.TemporaryDirectory() as folder:
            fitted_transformer(folder, self.seed)
            env, results, critics = make_vec_env(ENV_ID).env, [], {}
            for kl_coef in self.kl_coefs:
                print(f"kl_coef {kl_coef:g}")
                critic = CriticAudit(env, every=max(1, (self.rollouts - 1) // (CRITIC_AUDITS - 1)))
                results.append(
                    audit_ppo(
                        folder, kl_coef, settings, seed=self.seed, callbacks=(critic,), progress_bar=True
                    )
                )
                critics[kl_coef] = critic.history
        console = Console()
        console.print(result_table(results))
        console.print(critic_table(critics))
        frontier = solve(env, kl_coef=1.0).frontier(np.geomspace(0.02, 30, 80))
        plot(results, frontier, self.out)
        print(f"figure   {self.out}")


def result_table(results: list[AuditResult]) -> Table:
    """One row per KL coefficient."""
    title = f"{ENV_ID}: PPO against the exact KL-regularised optimum"
    names = ("kl_coef", "objective", "optimal", "gap", "return", "optimal", "KL", "optimal", "TV")
    table = right_aligned(title, names)
    for r in results:
        table.add_row(
            f"{r.kl_coef:g}",
            f"{r.objective:.4f}",
            f"{r.optimal_objective:.4f}",
            f"{r.gap:.2%}",
            f"{r.expected_return:.3f}",
            f"{r.optimal.expected_return:.3f}",
            f"{r.kl:.3f}",
            f"{r.optimal.kl:.3f}",
            f"{r.distance:.4f}",
        )
    return table


def critic_table(histories: dict[float, list[Audited]]) -> Table:
    """One row per rollout that was audited, by KL coefficient; correlations and root-mean-square errors."""
    names = ("kl_coef", "rollout", "V corr", "V error", "A corr", "A error")
    table = right_aligned("value head against exact V, GAE against exact A", names)
    for kl_coef, history in histories.items():
        for found in history:
            numbers = (*found.values, *found.advantages)
            table.add_row(f"{kl_coef:g}", str(found.rollout), *(f"{number:.3f}" for number in numbers))
    return table


def right_aligned(title: str, names: tuple[str, ...]) -> Table:
    """An empty table with these columns."""
    table = Table(title=title, box=SIMPLE, collapse_padding=True, pad_edge=False)
    for name in names:
        table.add_column(name, justify="right")
    return table


def plot(results: list[AuditResult], frontier: list[TradeOff], path: Path) -> None:
    """Draws return against KL: the exact frontier, the optima on it, where PPO began and what it reached."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    curve = [(point.kl, point.expected_return) for point in frontier]
    axes.plot(*zip(*curve, strict=True), color="0.6", label="exact frontier")
    axes.plot(0, results[0].reference_objective, "s", color="0.3", label="reference, where PPO begins")
    optima = [(r.optimal.kl, r.optimal.expected_return) for r in results]
    axes.plot(*zip(*optima, strict=True), "o", mfc="none", ms=11, color="tab:blue", label="exact optimum")
    reached = [(r.kl, r.expected_return) for r in results]
    axes.plot(*zip(*reached, strict=True), "x", color="tab:red", label="PPO + TransformerPolicy")
    for r in results:
        axes.annotate(
            f"kl_coef {r.kl_coef:g}",
            (r.optimal.kl, r.optimal.expected_return),
            xytext=(-10, 3),
            textcoords="offset points",
            ha="right",
        )
    axes.set_xlabel("KL from the reference, nats per episode")
    axes.set_ylabel("expected return")
    axes.set_title(f"{ENV_ID}: PPO with a KL penalty")
    axes.margins(y=0.12)
    axes.legend(loc="lower right")
    save_figure(figure, path)


if __name__ == "__main__":
    torch.set_num_threads(1)  # matrices of 32 columns gain nothing from more
    with mistakes_as_messages():
        tyro.cli(Audit, prog="python -m agents.toy.audit")()
