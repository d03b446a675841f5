"""The recommendation task: users, clicks, the exact optimum, features, and stock PPO on them."""

from __future__ import annotations

import itertools
import json
import math
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from stable_baselines3 import PPO

from lm_envs.language_model import LanguageModel
from lm_envs.sb3 import make_vec_env
from lm_envs.tasks.base import Completion, Replace
from lm_envs.tasks.recommendation import Recommendation, RecommendationState
from lm_envs.tasks.record_task import Player
from lm_envs.testing import check_task

LEVELS = {"easy": 12, "medium": 6, "hard": 2}
ITEMS = {"red hat": ("red", "hat"), "red shoe": ("red", "shoe"), "blue hat": ("blue", "hat"), "bag": ("bag",)}
USER = {"liked": ["red hat"], "skipped": "bag, blue hat", "loves": "red", "hates": ["bag"]}


@pytest.fixture(scope="module")
def bundled() -> LanguageModel:
    return LanguageModel.load(lazy=True)


def start(task: Recommendation, index: int) -> RecommendationState:
    return task.start(np.random.default_rng(0), {"task_index": index})


def answer(task: Recommendation, state: RecommendationState, text: str, seed: Any = 0) -> Any:
    (feedback,) = task.respond([state], [Completion(text, (), (), "stop")], [np.random.default_rng(seed)])
    return feedback


def play(task: Recommendation, player: Player, episodes: int) -> float:
    """The mean return."""
    total = 0.0
    for index in range(episodes):
        state = start(task, index)
        for turn in itertools.count():
            feedback = answer(task, state, player(state), [index, turn])
            total += feedback.reward
            state = feedback.state
            if feedback.done:
                break
    return total / episodes


def counting(task: Recommendation) -> Player:
    """What the prompt tells, by counting: rates of clicks per attribute, less what was seen."""

    def player(state: RecommendationState) -> str:
        lines = dict(line.split(": ") for line in state.prompt.splitlines()[:4])
        seen = [
            (name, line.startswith("Liked"))
            for line, names in lines.items()
            for name in names.split(", ")
            if names != "none"
        ]

        def value(item: str) -> float:
            rates = 0.0
            for attribute in item.split():
                clicks = [clicked - 0.35 for name, clicked in seen if attribute in name.split()]
                rates += sum(clicks) / (2 + len(clicks))
            return rates - 0.4 * sum(name == item for name, _ in seen)

        return max(task.items, key=value)

    return player


# Users


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.filterwarnings("error")
def test_check_task(bundled: LanguageModel, level: Any) -> None:
    check_task(Recommendation(bundled, level=level))
    check_task(Recommendation(bundled, data=[USER], items=ITEMS))


@pytest.mark.parametrize(("level", "size"), LEVELS.items())
def test_users(bundled: LanguageModel, level: Any, size: int) -> None:
    """One setting and one form are loved, one of each hated; the history holds different items."""
    settings = ["sea", "forest", "castle", "island", "city", "winter"]
    forms = ["song", "tale", "play", "poem", "riddle"]
    task = Recommendation(bundled, level=level)
    assert sorted(task.items) == sorted(f"{a} {b}" for a in settings for b in forms)
    for index in range(100):
        record, state = task.record(index), start(task, index)
        assert len({*record["liked"], *record["skipped"]}) == size == len(state.history)
        (a, b), (c, d) = record["loves"], record["hates"]
        assert {a, c} < {*settings}
        assert {b, d} < {*forms}
        assert a != c
        assert b != d
        for item, taste in zip(task.items, state.taste, strict=True):
            setting, form = item.split()
            assert taste == (setting == a) + (form == b) - (setting == c) - (form == d)
        before = [", ".join(record[column]) or "none" for column in ("liked", "skipped")]
        assert state.prompt == (
            f"Liked before: {before[0]}\nSkipped before: {before[1]}\n"
            "Liked today: none\nSkipped today: none\nNext:"
        )


def test_histories_are_clicks_of_that_taste(bundled: LanguageModel) -> None:
    """Shares of liked items by taste, against the formula, within 4 standard errors."""
    task = Recommendation(bundled)
    counts = {taste: [0, 0] for taste in range(-2, 3)}
    for index in range(1000):
        state = start(task, index)
        for item, clicked in state.history:
            counts[state.taste[item]][clicked] += 1
    for taste, (skipped, liked) in counts.items():
        probability, total = 1 / (1 + math.exp(2 - 3 * taste)), liked + skipped
        error = 4 * math.sqrt(probability * (1 - probability) / total)
        assert liked / total == pytest.approx(probability, abs=error)


@pytest.mark.parametrize(
    ("level", "checksum"), [("easy", 3768922088), ("medium", 103747119), ("hard", 4103578822)]
)
def test_users_are_the_same_everywhere(bundled: LanguageModel, level: Any, checksum: int) -> None:
    tasks = [
        Recommendation(bundled, level=level, split="train"),
        Recommendation(bundled, level=level, split="test"),
    ]
    rows = [task.record(index) for task in tasks for index in range(5)]
    assert zlib.crc32(json.dumps(rows).encode()) == checksum


def test_splits_share_no_prompt(bundled: LanguageModel) -> None:
    train, test = (
        {start(task, index).prompt for index in range(500)}
        for task in (Recommendation(bundled), Recommendation(bundled, split="test"))
    )
    assert not train & test
    assert len(train) > 490


@pytest.mark.parametrize("level", LEVELS)
def test_prompts_fit(bundled: LanguageModel, level: Any) -> None:
    """After a session of whatever items."""
    task, dice = Recommendation(bundled, level=level), np.random.default_rng(0)
    for index in range(50):
        state = start(task, index)
        for _ in range(8):
            state = answer(task, state, task.items[dice.integers(30)], index).state
        assert len(bundled.encode(state.prompt)) < 160
    assert max(len(bundled.encode(f" {item}\n")) for item in task.items) <= 8


# Clicks


def test_a_session(bundled: LanguageModel) -> None:
    """State, prompt, reward and info of each turn, followed by hand."""
    task = Recommendation(bundled, data=[USER], items=ITEMS, turns=3)
    state = start(task, 0)
    assert state.prompt.startswith(
        "Liked before: red hat\nSkipped before: bag, blue hat\nLiked today: none\n"
    )
    today: dict[bool, list[str]] = {True: [], False: []}
    for turn, (text, item) in enumerate([(" red hat", "red hat"), ("red  shoe ", "red shoe"), ("red", "")]):
        feedback = answer(task, state, text, turn)
        state, clicked = feedback.state, feedback.info["clicked"]
        assert feedback.info == {"item": item, "clicked": clicked, "reward_parts": {"click": clicked / 3}}
        assert feedback.reward == clicked / 3
        assert feedback.done == (turn == 2)
        if item:
            today[clicked].append(item)
        else:
            assert not clicked
        liked, skipped = (", ".join(today[clicked]) or "none" for clicked in (True, False))
        assert state.prompt == (
            f"Liked before: red hat\nSkipped before: bag, blue hat\nLiked today: {liked}\n"
            f"Skipped today: {skipped}\nNext:"
        )
        assert feedback.context == Replace(state.prompt)


@pytest.mark.parametrize(
    ("item", "log_odds"),
    [("red hat", -2 + 3 - 1.5), ("red shoe", -2 + 3), ("blue hat", -2 - 1.5), ("bag", -2 - 3 - 1.5)],
)
def test_how_often_users_click(bundled: LanguageModel, item: str, log_odds: float) -> None:
    """4000 draws, within 4 standard errors; then once more, when it has been shown twice more."""
    task = Recommendation(bundled, data=[USER], items=ITEMS)
    state, number = start(task, 0), task.items.index(item)
    for shown in (0, 2):
        now = replace(state, today=((number, True), (number, False))[:shown])
        clicks = [answer(task, now, item, seed).info["clicked"] for seed in range(4000)]
        probability = 1 / (1 + math.exp(-(log_odds - 1.5 * shown)))
        error = 4 * math.sqrt(probability * (1 - probability) / 4000)
        assert np.mean(clicks) == pytest.approx(probability, abs=error)


def test_best_player_is_optimal(bundled: LanguageModel) -> None:
    """Against dynamic programming over what has been shown."""
    task = Recommendation(bundled, data=[USER], items=ITEMS, turns=5)
    best, state = task.players()["best"], start(task, 0)
    odds = dict(zip(task.items, (-2 + 3, -2 + 3, -2, -2 - 3), strict=True))
    before = (1, 0, 1, 1)

    @cache
    def value(shown: tuple[int, ...], left: int) -> float:
        if not left:
            return 0.0
        return max(
            1 / (1 + math.exp(1.5 * shown[i] - odds[item]))
            + value((*shown[:i], shown[i] + 1, *shown[i + 1 :]), left - 1)
            for i, item in enumerate(task.items)
        )

    expected = 0.0
    for _ in range(5):
        number = task.items.index(best(state))
        expected += state.probability(number)
        state = replace(state, today=(*state.today, (number, False)))
    assert expected == pytest.approx(value(before, 5))


@pytest.mark.parametrize("level", LEVELS)
def test_best_player_and_cheap_tricks(bundled: LanguageModel, level: Any) -> None:
    task = Recommendation(bundled, split="test", level=level)
    players = task.players()
    means = {name: play(task, player, 100) for name, player in players.items()}
    best = means.pop("best")
    assert next(iter(players)) == "best"
    assert best > 0.65
    assert max(means.values()) < 0.5 * best
    assert play(task, lambda state: "", 5) == 0.0
    # It is no guessing game: who reads the prompt does better than any trick.
    assert play(task, counting(task), 100) > 1.3 * max(means.values())


def test_levels_get_harder(bundled: LanguageModel) -> None:
    """For who reads the prompt, compared with the best player."""
    scores = []
    for level in LEVELS:
        task = Recommendation(bundled, level=level)  # type: ignore[arg-type]
        scores.append(play(task, counting(task), 150) / play(task, task.players()["best"], 150))
    assert scores[0] > scores[1] > scores[2]


# Features and Discrete actions


def test_features_by_hand(bundled: LanguageModel) -> None:
    task = Recommendation(bundled, data=[USER], items=ITEMS, turns=4)
    state = start(task, 0)
    assert task.attributes == ("red", "hat", "shoe", "blue", "bag")
    # liked: red, hat, shoe, blue, bag; skipped: the same; shown: red hat, red shoe, blue hat, bag
    first = [1, 1, 0, 0, 0, *[0, 1, 0, 1, 1], *[1, 0, 1, 1], *[0, 0, 1]]
    clicked = replace(state, today=((1, False), (0, True)), turns_left=1)
    second = [2, 2, 0, 0, 0, *[1, 1, 1, 1, 1], *[2, 1, 1, 1], *[1, 0, 0.25]]
    skipped = replace(state, today=((1, True), (1, False)), turns_left=2)
    third = [2, 1, 1, 0, 0, *[1, 1, 1, 1, 1], *[1, 2, 1, 1], *[0, 1, 0.5]]
    features = task.view([state, clicked, skipped], "features")
    assert features.dtype == np.float32
    assert features.tolist() == [first, second, third]
    assert all(row in task.views["features"] for row in features)


def test_an_item_is_the_turn_that_writes_its_name() -> None:
    actions = gymnasium.make("TextGen-Recommendation-v0", observation="text", actions="item")
    tokens = gymnasium.make("TextGen-Recommendation-v0", observation="text")
    assert actions.action_space == gymnasium.spaces.Discrete(30)
    for env in (actions, tokens):
        env.reset(seed=3)
    for number in (7, 20):
        seen, reward, *_, info = actions.step(number)
        for token in tokens.unwrapped.language_model.encode(f" {info['item']}\n"):
            written, same, *_ = tokens.step(token)
        assert (written, same) == (seen, reward)
        assert info["item"] == actions.unwrapped.task.items[number] in seen


def test_stock_ppo_learns_to_read_a_user(bundled: LanguageModel) -> None:
    """From the features, in a few seconds: better than random, and than the most popular item."""
    kwargs: dict[str, Any] = {"observation": "features", "actions": "item"}
    env = make_vec_env("TextGen-Recommendation-v0", n_envs=32, seed=0, **kwargs)
    learner = PPO(
        "MlpPolicy", env, n_steps=64, batch_size=256, n_epochs=4, learning_rate=1e-3, gamma=0.0, seed=0
    )
    learner.learn(10_000)
    task = Recommendation(bundled, split="test")

    def player(state: RecommendationState) -> str:
        action, _ = learner.predict(task.view([state], "features")[0], deterministic=True)
        return task.items[int(action)]

    learned, tricks = play(task, player, 150), task.players()
    assert learned > 1.2 * play(task, tricks["random"], 150)
    assert learned > 2 * play(task, tricks["most_popular"], 150)


# The user's data


def test_data_from_a_csv_file(bundled: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "users.csv"
    path.write_text('liked,skipped,loves,hates\n"sea song, sea tale",,sea,\n,winter poem,,"winter, poem"\n')
    task = Recommendation(bundled, data=path)
    first, second = task.prompts or ()
    assert first.startswith("Liked before: sea song, sea tale\nSkipped before: none\n")
    assert second.startswith("Liked before: none\nSkipped before: winter poem\n")
    assert start(task, 0).taste[task.items.index("sea poem")] == 1
    assert start(task, 1).taste[task.items.index("winter poem")] == -2
    assert task.players()["popular"](start(task, 0)).startswith("sea")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": [{"liked": []}]}, r"data\[0\] has no column 'hates'"),
        (
            {"data": [USER, {**USER, "liked": ["hat"]}], "items": ITEMS},
            r"data\[1\], liked must hold names out of \['red hat', .*got 'hat'",
        ),
        ({"data": [{**USER, "loves": "green"}], "items": ITEMS}, r"data\[0\], loves must hold .*got 'green'"),
        (
            {"data": [{**USER, "hates": 3}], "items": ITEMS},
            r"data\[0\], hates must be a list of names.*got 3",
        ),
        ({"items": ITEMS}, "items is a catalogue for users of your own: pass data as well"),
        ({"data": [USER], "items": {}}, "items must be a non-empty dict"),
        ({"data": [USER], "items": {"hat": "red"}}, r"items\['hat'\] must be a non-empty list"),
        (
            {"data": [USER], "items": {"a, b": ["red"]}},
            r"items\['a, b'\]: 'a, b' must be words, without commas",
        ),
        ({"turns": 0}, "turns must be an integer >= 1, got 0"),
    ],
)
def test_bad_arguments(bundled: LanguageModel, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recommendation(bundled, **arguments)


def test_bad_rows_of_files_are_named_by_line(bundled: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "users.csv"
    path.write_text("liked,skipped,loves,hates\nsea song,,sea,\nsea opera,,sea,\n")
    with pytest.raises(ValueError, match=r"users\.csv, line 3, liked must hold names .*got 'sea opera'"):
        Recommendation(bundled, data=path)
