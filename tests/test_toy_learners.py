"""One id, three families: `train` on a toy, its figure and wrong arguments; the sweep over all learners."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import safetensors.torch
import torch
from small_runs import AtRolloutEnd
from transformers import AutoModelForCausalLM

import benchmarks.regret
from agents.tabular import QLearning, make_env
from agents.tabular.run import Tabular
from agents.toy.learners import FAMILIES, TOYS, callbacks, dqn, ppo, q_learning
from agents.toy.run import FLOOR, LABELS, draw, read_curves
from agents.toy.transformer import next_token_probabilities
from agents.train import Train
from benchmarks.regret import TABULAR, Regret
from lm_envs.toy import solve

TOY = "TextGen-ToyCopy-v0"
DIALS = {"vocab_size": 2, "length": 2}
SMALL: dict[str, dict[str, Any]] = {
    "q_learning": {"n_envs": 16, "total_timesteps": 4_000},
    "dqn": {"n_envs": 32, "total_timesteps": 15_000 // 32 * 32, "batch_size": 64},
    "ppo": {"n_envs": 64, "total_timesteps": 64 * 2 * 25, "learning_rate": 5e-3},
}


def train(out: Path, algo: str, **changes: Any) -> None:
    """A small run."""
    Train(env=TOY, algo=algo, env_kwargs=json.dumps(DIALS), out=out, **(SMALL[algo] | changes))()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each family."""
    out = tmp_path_factory.mktemp("runs") / "copy"
    for algo in FAMILIES:
        train(out, algo)
    return out


def tabular_policy(folder: Path) -> Callable[[Any], np.ndarray]:
    agent = QLearning.load(folder / "agent.npz", make_env(TOY, 1, **DIALS))
    return lambda observations: np.eye(2)[agent.predict(observations, deterministic=True)[0]]


def q_network_policy(folder: Path) -> Callable[[Any], np.ndarray]:
    """The MLP written out, from the file's weights."""
    weights = safetensors.torch.load_file(folder / "q_net.safetensors")

    def act(observations: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(observations).float()
        for layer in (0, 2, 4):
            x = x @ weights[f"q_net.{layer}.weight"].T + weights[f"q_net.{layer}.bias"]
            x = x.relu() if layer < 4 else x
        return np.eye(2)[x.argmax(1).numpy()]

    return act


def transformer_policy(folder: Path) -> Callable[[Any], np.ndarray]:
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    return lambda observations: next_token_probabilities(model, observations)


@pytest.mark.parametrize(
    ("algo", "observation", "policy", "kind"),
    [
        ("q_learning", "tokens", tabular_policy, "greedy"),
        ("dqn", "onehot", q_network_policy, "greedy"),
        ("ppo", "tokens", transformer_policy, "stochastic"),
    ],
)
def test_regret_is_that_of_the_saved_policy(
    runs: Path, algo: str, observation: str, policy: Callable[[Path], Any], kind: str
) -> None:
    solution = solve(gymnasium.make(TOY, observation=observation, **DIALS))
    act = policy(runs / algo)
    recorded = json.loads((runs / algo / "result.json").read_text())
    result = recorded["result"]
    assert recorded["policy"] == kind
    assert result["regret"] == pytest.approx(solution.regret(act), abs=1e-6)
    assert result["return"] == pytest.approx(solution.evaluate(act).expected_return, abs=1e-6)
    assert result["optimal return"] == 1.0  # every letter right
    assert result["steps"] == SMALL[algo]["total_timesteps"]
    curve = list(csv.DictReader((runs / algo / "curve.csv").open()))
    assert float(curve[-1]["regret"]) == result["regret"]
    assert float(curve[-1]["expected_return"]) == result["return"]
    assert int(curve[0]["timesteps"]) == 0
    assert result["regret"] < 0.5 * float(curve[0]["regret"])  # it learned
    assert np.all(np.diff([int(point["timesteps"]) for point in curve]) > 0)


def test_most_probable_tokens_of_ppo(runs: Path) -> None:
    act = transformer_policy(runs / "ppo")
    solution = solve(gymnasium.make(TOY, **DIALS))
    result = json.loads((runs / "ppo" / "result.json").read_text())["result"]
    greedy = solution.regret(lambda observations: np.eye(2)[act(observations).argmax(1)])
    assert result["regret of its most probable tokens"] == pytest.approx(greedy, abs=1e-6)


def test_the_figure_shows_all_runs(runs: Path) -> None:
    assert (runs / "regret.png").read_bytes().startswith(b"\x89PNG")
    figure = draw(read_curves(runs), TOY)
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert list(lines) == [LABELS[algo] for algo in FAMILIES]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(lines)
    for algo in FAMILIES:
        rows = list(csv.DictReader((runs / algo / "curve.csv").open()))[1:]
        x, y = lines[LABELS[algo]].get_data()
        np.testing.assert_array_equal(x, [int(row["timesteps"]) for row in rows])
        np.testing.assert_allclose(y, [max(float(row["regret"]), FLOOR) for row in rows])


def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, "q_learning")
    printed = capsys.readouterr().out
    regret = json.loads((tmp_path / "q_learning" / "result.json").read_text())["result"]["regret"]
    for part in ("greedy policy", "return", "optimal return", f"{regret:.3%}", str(tmp_path / "regret.png")):
        assert part in printed.replace("\n", "")


def test_runs_are_kept_and_replaced_as_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, "q_learning")
    before = (tmp_path / "q_learning" / "agent.npz").read_bytes()
    with pytest.raises(ValueError, match="exists: replace it with --overwrite"):
        train(tmp_path, "q_learning", seed=1)
    with pytest.raises(ValueError, match=r"a run of TextGen-ToyCopy-v0 .* not of TextGen-ToyReverse-v0"):
        Train(env="TextGen-ToyReverse-v0", algo="q_learning", out=tmp_path, overwrite=True)()
    with pytest.raises(ValueError, match=r"'length': 2}, not of TextGen-ToyCopy-v0 with {}"):
        Train(env=TOY, algo="dqn", out=tmp_path)()
    assert (tmp_path / "q_learning" / "agent.npz").read_bytes() == before
    train(tmp_path, "q_learning", seed=1, overwrite=True)
    assert (tmp_path / "q_learning" / "agent.npz").read_bytes() != before
    # Another tabular agent beside it, from its own command, is in the figure too.
    dials = json.dumps(DIALS)
    Tabular(TOY, algo="sarsa", total_timesteps=500, n_envs=8, env_kwargs=dials, out=tmp_path / "sarsa")()
    assert list(read_curves(tmp_path)) == ["q_learning", "sarsa"]
    # A run on texts does not replace the toys' runs, and --overwrite replaces nothing but runs.
    with pytest.raises(ValueError, match=r"holds no settings\.json"):
        Train(out=tmp_path, overwrite=True)()
    (tmp_path / "dqn").mkdir()
    (tmp_path / "dqn" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds no result\.json"):
        train(tmp_path, "dqn", overwrite=True)
    assert (tmp_path / "dqn" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"env": TOY, "algo": "a2c"},
            "a2c does not learn on TextGen-ToyCopy-v0: choose q_learning, dqn, ppo",
        ),
        ({"algo": "dqn"}, "dqn does not learn on TextGen-v0: choose ppo, a2c; dqn learns on TextGen-ToyCopy"),
        ({"env": TOY, "kl_coef": 0.1}, "--kl-coef is no option of ppo .* takes --n-envs, --n-epochs"),
        ({"env": TOY, "resume": True}, "--resume is no option of ppo"),
        ({"env": TOY, "stop_on_alarm": True}, "--stop-on-alarm is no option of ppo"),
        ({"env": TOY, "algo": "q_learning", "n_epochs": 1}, "--n-epochs is no option of q_learning"),
        ({"env": TOY, "algo": "dqn", "clip_range": 0.1}, "--clip-range is no option of dqn"),
        ({"env": TOY, "env_kwargs": '{"length": 0}'}, "length must be .* got 0"),
        ({"env": TOY, "env_kwargs": '{"lenght": 1}'}, "lenght"),
        ({"env": TOY, "env_kwargs": '{"observation": "index"}'}, "observation_space must be of tokens"),
        ({"env": TOY, "algo": "dqn", "env_kwargs": "[]"}, "JSON object"),
    ],
)
def test_wrong_arguments(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Train(out=tmp_path / "run", **settings)()
    assert not (tmp_path / "run").exists()


def test_too_large_to_solve(tmp_path: Path) -> None:
    dials = '{"vocab_size": 8, "length": 8}'
    Train(env=TOY, algo="ppo", env_kwargs=dials, out=tmp_path, n_envs=64, total_timesteps=512)()
    result = json.loads((tmp_path / "ppo" / "result.json").read_text())["result"]
    assert result["optimal return"] is None
    assert result["regret of its most probable tokens"] is None
    # An untrained policy is about uniform: 1 letter of 8 right, and regret 1. Both are estimates.
    assert result["return"] == pytest.approx(1 / 8, abs=0.03)
    assert result["regret"] == pytest.approx(1, abs=0.05)


def test_entropy_coefficient_falls_to_zero() -> None:
    learner = ppo(TOY, DIALS, 0, n_envs=4, batch_size=8, ent_coef=0.4)
    seen: list[float] = []
    learner.learn(
        10 * 8, callback=[*callbacks(learner), AtRolloutEnd(lambda model: seen.append(model.ent_coef))]
    )
    np.testing.assert_allclose(seen, [0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05, 0, 0], atol=1e-12)
    assert callbacks(q_learning(TOY, DIALS, 0)) == []


def test_neighbouring_seeds_share_no_episodes() -> None:
    """SB3 seeds slot i by seed + i: seeds 0 and 1 would share all prompts but one."""
    prompts = [dqn(TOY, {"length": 5}, seed, n_envs=64).env.reset()[:, :15] for seed in (0, 1, 0)]
    np.testing.assert_array_equal(prompts[0], prompts[2])
    assert (prompts[0][1:] != prompts[1][:-1]).any(axis=1).mean() > 0.9


def test_sweep_makes_each_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Regret(
        ("q_learning", "dqn"), ("ToyBrackets",), (0, 1), total_timesteps=3_072, out=tmp_path / "regret.csv"
    )
    rows = sweep()
    assert [row[:4] for row in rows] == [
        ("ToyBrackets", algo, seed, 3_072) for algo in ("q_learning", "dqn") for seed in (0, 1)
    ]
    env = make_env("TextGen-ToyBrackets-v0", 1024)
    agent = QLearning(env, seed=1).learn(3_072)
    assert rows[1].regret == pytest.approx(solve(env).regret(agent), abs=1e-12)
    header = (tmp_path / "regret.csv").read_text().splitlines()[0].split(",")
    assert {"toy", "algo", "seed", "timesteps", "regret", "return", "seconds", "updates_per_second"} <= {
        *header
    }
    monkeypatch.setattr(benchmarks.regret, "run", lambda *key: pytest.fail(f"{key} is finished"))
    assert sweep() == rows


def test_sweep_takes_runs_of_older_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old.csv"
    old.write_text(
        "toy,algo,seed,regret,seconds,updates_per_second\n"
        "ToyCopy,sarsa,0,0.0125,5.886776438999732,1698722.5697497658\n"
        "ToyCopy,sarsa,1,0.0,4.0,2500000.0\n"
        "ToyCopy,sarsa,2,0.0"  # cut off
    )
    monkeypatch.setattr(benchmarks.regret, "run", lambda *key: pytest.fail(f"{key} is finished"))
    settings: dict[str, Any] = {"algos": ("sarsa",), "toys": ("ToyCopy",), "out": tmp_path / "new.csv"}
    rows = Regret(seeds=(0, 1), include=(old,), **settings)()
    assert [(row.timesteps, row.regret) for row in rows] == [(10_000_000, 0.0125), (10_000_000, 0.0)]
    assert "1.25% / 6 s" in capsys.readouterr().out
    assert Regret(seeds=(0, 1), **settings)() == rows  # they are in the new file now
    with pytest.raises(pytest.fail.Exception):
        Regret(seeds=(2,), include=(old,), **settings)()
    with pytest.raises(SystemExit, match="algos must be among"):
        Regret(algos=("dpo",), out=tmp_path / "new.csv")()


def test_the_sweep_covers_everything() -> None:
    assert len(Regret().algos) == 10
    assert {*Regret().algos} == {*TABULAR, "dqn", "ppo"}
    assert [f"TextGen-{toy}-v0" for toy in Regret().toys] == list(TOYS)
    assert len(TOYS) == 6
