"""The score table: what is played, kept and put together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from agents.play import Sampling, play, play_script
from benchmarks import players, task_tables, tasks
from benchmarks.task_tables import SCRIPT, Score
from benchmarks.tasks import Tasks
from lm_envs.language_model import LanguageModel

DIALOGUE = "TextGen-Dialogue-v0"


def row(**changes: Any) -> dict[str, Any]:
    cell = {"id": DIALOGUE, "player": "random", "seed": 0, "longest": 3, "returns": [1.0, 2.0]}
    return cell | changes


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The cells that a run plays, which is replaced: the cell with seed s returns s everywhere."""
    cells = []

    def fake(self: Tasks, env_id: str, player: str, seed: int) -> dict[str, Any]:
        cells.append((env_id, player, seed))
        returns = [float(seed)] * 2
        return row(id=env_id, player=player, seed=seed, settings=self.settings(player), returns=returns)

    monkeypatch.setattr(Tasks, "play", fake)
    return cells


def test_a_stopped_run_goes_on(tmp_path: Path, played: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    some = Tasks(ids=(DIALOGUE,), players=("random", "ppo"), seeds=(0, 1), out=tmp_path)
    some()
    assert played == [(DIALOGUE, player, seed) for player in ("random", "ppo") for seed in (0, 1)]
    played.clear()
    dataclasses.replace(some, seeds=(0, 1, 2))()
    assert played == [(DIALOGUE, player, 2) for player in ("random", "ppo")]
    played.clear()
    dataclasses.replace(some, kl_coef=0.5)()  # concerns PPO only
    assert played == [(DIALOGUE, "ppo", seed) for seed in (0, 1)]
    played.clear()
    monkeypatch.setattr(tasks, "bundled_checksum", lambda: "another model")
    some()
    assert len(played) == 4


def test_lines_that_were_cut_off_are_no_results(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    tasks.append(path, row(seed=0))
    with path.open("a") as file:
        file.write('{"id": "TextGen-')  # a run that was killed
    tasks.append(path, row(seed=1))
    tasks.append(path, row(seed=1, longest=9))
    done = tasks.finished(path)
    assert {key[2]: each["longest"] for key, each in done.items()} == {0: 3, 1: 9}
    assert tasks.finished(tmp_path / "nothing") == {}


def test_the_table_by_hand(tmp_path: Path, played: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    players = ("random", SCRIPT + "best", SCRIPT + "empty", SCRIPT + "echo")
    Tasks(ids=(DIALOGUE,), players=players, seeds=(3,), out=tmp_path)()
    text = (tmp_path / "tasks.md").read_text()
    three = "3.00 [3.00, 3.00]*"
    assert (
        f"| {DIALOGUE} | tokens | token, 2048 | 3 tokens | {three} | - | - | - | - | {three} (empty) |"
        in text
    )
    assert "Scores" in capsys.readouterr().out


def test_shares_of_the_best_player() -> None:
    def at(mean: float) -> Score:
        return Score(mean, mean, mean, 3)

    scores = {SCRIPT + "best": at(1.0), SCRIPT + "empty": at(-1.0), SCRIPT + "copy": at(0.5), "ppo": at(2.0)}
    text = task_tables.markdown(task_tables.trick_table({"an id": scores}))
    cells = [line.split(" | ") for line in text.splitlines()[2:]]
    assert [(line[1], line[3].rstrip(" |")) for line in cells] == [
        ("best", "100%"),
        ("empty", "0%"),
        ("copy", "75%"),
    ]


def test_scores_of_few_seeds_are_marked() -> None:
    results = {(DIALOGUE, "random", seed): row(seed=seed, returns=[float(seed)] * 4) for seed in (0, 2, 4)}
    assert str(task_tables.collect(results)[DIALOGUE]["random"]).startswith("2.00 [0.00, 4.00]")
    assert not str(task_tables.collect(results)[DIALOGUE]["random"]).endswith("*")
    del results[DIALOGUE, "random", 4]
    assert str(task_tables.collect(results)[DIALOGUE]["random"]) == "1.00 [0.00, 2.00]*"


def test_the_gain_is_paired_by_instance() -> None:
    """Between instances returns differ by 8, between players always by 0.5."""
    results = {
        (DIALOGUE, player, seed): row(player=player, seed=seed, returns=[gain, gain + 8.0])
        for player, gain in (("ppo", 0.5), ("sampled", 0.0))
        for seed in (0, 1, 2)
    }
    assert str(task_tables.collect(results)[DIALOGUE][task_tables.GAIN]) == "0.50 [0.50, 0.50]"
    del results[DIALOGUE, "sampled", 1]
    assert str(task_tables.collect(results)[DIALOGUE][task_tables.GAIN]) == "0.50 [0.50, 0.50]*"


def test_a_run_of_some_cells_keeps_the_others_in_the_table(tmp_path: Path, played: list[Any]) -> None:
    Tasks(ids=(DIALOGUE,), players=("random",), seeds=(0, 1, 2), out=tmp_path)()
    Tasks(ids=("TextGen-QA-v0",), players=("random",), seeds=(5,), out=tmp_path)()
    lines = (tmp_path / "tasks.md").read_text().splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| TextGen")]
    assert {row[0]: row[4] for row in cells} == {
        DIALOGUE: "1.00 [0.00, 2.00]",
        "TextGen-QA-v0": "5.00 [5.00, 5.00]*",
    }


def test_unknown_ids_and_players_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="TextGen-Nothing-v0"):
        Tasks(ids=("TextGen-Nothing-v0",), out=tmp_path)()
    with pytest.raises(SystemExit, match="has no 'magic'"):
        Tasks(ids=(DIALOGUE,), players=("magic",), out=tmp_path)()


def test_scripts_meet_the_instances_that_models_meet() -> None:
    """The prompts of `play`; each return that of the task played by hand with the environment's own seed."""
    task = players.task_of(DIALOGUE)
    best = task.players()["best"]
    options: dict[str, Any] = {"seed": 500, "env_kwargs": {"split": "test", "level": "medium"}}
    games = play_script(best, DIALOGUE, 6, **options)
    assert [game.reward for game in games] == pytest.approx([1.0] * 6)
    model = LanguageModel.load()
    samples = play(model.decoder(6), model.decoder(6), DIALOGUE, sampling=Sampling(), **options)
    assert [game.prompt for game in games] == [sample.prompt for sample in samples]
    assert all(game.turns[0][0] == game.prompt for game in games)
    env: Any = gymnasium.make(DIALOGUE, split="test", level="medium", render_mode="ansi")
    for slot, game in enumerate(games):
        env.reset(seed=500 + slot)
        for _, written in game.turns:
            for token in model.encode(written + "\n")[:24]:
                env.step(token)
        # what was read and written, in order, is the context that the environment shows
        shown = env.render().replace("\x1b[1m", "").replace("\x1b[0m", "")
        told = "".join(read.lstrip("\n") + written + "\n" for read, written in game.turns)
        assert shown.startswith(told.rstrip("\n"))


def test_random_play_is_repeatable_and_within_the_mask() -> None:
    first, again, other = (players.play_randomly("TextGen-Edit-v0", 24, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert all(np.isfinite(first[0]))


def test_a_whole_cell_of_each_learner(tmp_path: Path) -> None:
    """PPO where actions are tokens by default and where they are choices, to the line in the file."""
    small = Tasks(
        ids=(DIALOGUE, "TextGen-Edit-v0"),
        players=("ppo",),
        seeds=(0,),
        episodes=2,
        total_timesteps=64,
        n_envs=2,
        out=tmp_path,
    )
    small()
    for line in (tmp_path / "tasks.jsonl").read_text().splitlines():
        cell = json.loads(line)
        assert len(cell["returns"]) == 2
        assert cell["mean"] == pytest.approx(np.mean(cell["returns"]), abs=1e-4)
        assert cell["steps"] >= 64
