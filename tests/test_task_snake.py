"""Snake: rules against a second implementation, boards as text, levels, players, the grid, pictures."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from stable_baselines3 import DQN
from stable_baselines3.common.env_checker import check_env

import lm_envs  # noqa: F401
from agents.snake import HeadCentred, TrainSnake
from lm_envs.language_model import LanguageModel
from lm_envs.tasks import Completion, Feedback, Replace
from lm_envs.tasks.snake import Snake, SnakeState
from lm_envs.testing import check_task

LEVELS = ("easy", "medium", "hard")
WAYS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
POINTS = {"^": (-1, 0), "v": (1, 0), "<": (0, -1), ">": (0, 1)}

RING = """|>>>>>>>>>v
|^v<<<<<<<<
|^>>>>>>>>v
|^v<<<<<<<<
|^>>>>>>>>v
|^v<<<<<<<<
|^>>>>>>>>v
|^v<<<<<<<<
|^>>>>>>>>v
|^*@<<<<<<<"""  # 99 cells; the tail lies in the corner under the food's left neighbour
SQUARE = """|
|.>v
|.^@
|......*
|
|
|
|
|
|"""  # the head is behind its tail


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel.load(None, lazy=True)


def read(text: str) -> tuple[list[tuple[int, int]], tuple[int, int] | None]:
    """The snake, head first, and the food of a board, as (row, column): a reader of its own."""
    rows = [line[1:] for line in text.split("\n") if line[:1] == "|"]
    assert len(rows) == 10
    cells = {(r, c): symbol for r, row in enumerate(rows) for c, symbol in enumerate(row) if symbol != "."}
    assert all(r < 10 and c < 10 for r, c in cells)
    (head,) = [cell for cell, symbol in cells.items() if symbol == "@"]
    foods = [cell for cell, symbol in cells.items() if symbol == "*"]
    snake = [head]
    while True:
        behind = [
            (r, c)
            for (r, c), symbol in cells.items()
            if symbol in POINTS and (r + POINTS[symbol][0], c + POINTS[symbol][1]) == snake[-1]
        ]
        if not behind:
            break
        (cell,) = behind
        snake.append(cell)
    assert len(snake) + len(foods) == len(cells)
    return snake, foods[0] if foods else None


def turn(text: str) -> Completion:
    return Completion(text, (), (), "stop")


def play(task: Snake, state: SnakeState, text: str, seed: int = 0) -> Feedback:
    (feedback,) = task.respond([state], [turn(text)], [np.random.default_rng(seed)])
    return feedback


def game(task: Snake, player: Any, index: int) -> tuple[float, int]:
    """Return and food of one game."""
    rng = np.random.default_rng(index)
    state, total = task.start(rng, {"task_index": index}), 0.0
    while True:
        (feedback,) = task.respond([state], [turn(player(state))], [rng])
        state, total = feedback.state, total + feedback.reward
        if feedback.done:
            return total, feedback.info["eaten"]


# Positions


@pytest.mark.parametrize("level", LEVELS)
def test_task_keeps_the_contract(model: LanguageModel, level: str) -> None:
    check_task(Snake(model, level=level))


@pytest.mark.parametrize(("level", "length"), [("easy", 3), ("medium", 12), ("hard", 24)])
def test_starting_positions(model: LanguageModel, level: str, length: int) -> None:
    task = Snake(model, level=level)
    prompts = [task.start(np.random.default_rng(0), {"task_index": index}).prompt for index in range(60)]
    assert len(set(prompts)) == 60
    for prompt in prompts:
        snake, food = read(prompt)
        assert len(set(snake)) == length
        assert food is not None
        assert food not in snake
        # The head reaches the tail: flood the empty cells from the head.
        seen, edge = {snake[0]}, [snake[0]]
        while edge:
            r, c = edge.pop()
            for dr, dc in WAYS.values():
                near = (r + dr, c + dc)
                if 0 <= near[0] < 10 and 0 <= near[1] < 10 and near not in seen and near not in snake[:-1]:
                    seen.add(near)
                    edge.append(near)
        assert snake[-1] in seen or length == 3


def test_same_positions_for_ever(model: LanguageModel) -> None:
    sums = {
        level: zlib.crc32(
            "".join(Snake(model, level=level).record(index)["board"] for index in range(20)).encode()
        )
        for level in LEVELS
    }
    assert sums == {"easy": 2216944141, "medium": 1456462191, "hard": 1464042633}


def test_no_position_is_in_both_splits(model: LanguageModel) -> None:
    train, test = (
        {Snake(model, split=split).record(index)["board"] for index in range(300)}  # type: ignore[arg-type]
        for split in ("train", "test")
    )
    assert not train & test


@pytest.mark.parametrize("level", LEVELS)
def test_prompts_fit(model: LanguageModel, level: str) -> None:
    task = Snake(model, level=level)
    prompts = [task.start(np.random.default_rng(0), {"task_index": index}).prompt for index in range(200)]
    assert max(len(model.encode_prompt(prompt)) for prompt in prompts) <= 180


def test_longest_board_fits(model: LanguageModel) -> None:
    """All 100 cells are written."""
    task = Snake(model, data=[{"board": RING}])
    assert len(model.encode_prompt(task.start(np.random.default_rng(0), {}).prompt)) <= 180


# Rules


class Ages:
    """Another Snake: a board of numbers, how many more moves each cell stays taken."""

    def __init__(self, snake: list[tuple[int, int]], food: tuple[int, int] | None) -> None:
        self.board = np.zeros((12, 12), int)
        self.board[[0, 11]] = self.board[:, [0, 11]] = 10**6
        for place, (r, c) in enumerate(snake):
            self.board[r + 1, c + 1] = len(snake) - place
        self.food = food
        self.head = snake[0]
        self.way = (snake[0][0] - snake[1][0], snake[0][1] - snake[1][1])

    def move(self, word: str) -> str:
        """ "ate", "died" or "moved"."""
        way = WAYS.get(word, self.way)
        if way != (-self.way[0], -self.way[1]):
            self.way = way
        head = (self.head[0] + self.way[0], self.head[1] + self.way[1])
        inside = self.board[1:-1, 1:-1]
        length = inside.max()
        if head == self.food:
            inside[head] = length + 1
            self.head = head
            return "ate"
        if self.board[head[0] + 1, head[1] + 1] > 1:
            return "died"
        inside[inside > 0] -= 1
        inside[head] = length
        self.head = head
        return "moved"

    def cells(self) -> list[tuple[int, int]]:
        inside = self.board[1:-1, 1:-1]
        order = np.argsort(-inside, axis=None)[: np.count_nonzero(inside)]
        return [(int(at) // 10, int(at) % 10) for at in order]


@pytest.mark.parametrize("level", LEVELS)
def test_rules_against_another_snake(model: LanguageModel, level: str) -> None:
    """Games half of good moves, half of random texts: positions, hints, rewards and ends agree."""
    task, dice = Snake(model, level=level), np.random.default_rng(7)  # type: ignore[arg-type]
    best = task.players()["best"]
    eaten = ends = 0
    for index in range(12):
        rng = np.random.default_rng(index)
        state = task.start(rng, {"task_index": index})
        other = Ages(*read(state.prompt))
        for number in range(1, 301):
            snake, food = read(state.prompt)
            is_open = [word for word, (dr, dc) in WAYS.items() if self_open(snake, dr, dc)]
            assert f"Open: {', '.join(is_open) or 'none'}.\n" in state.prompt
            assert food is not None
            assert offset(state.prompt) == (food[0] - snake[0][0], food[1] - snake[0][1])
            words = ("up", "down", "left", "right", "", "Up\n", "jump", "up up")
            text = best(state) if dice.random() < 0.9 else str(dice.choice(words))
            word = text.strip().lower()
            fine = 0.0 if word in WAYS else -0.1
            outcome = other.move(word)
            (feedback,) = task.respond([state], [turn(text)], [rng])
            parts = {"food": float(outcome == "ate"), "death": -float(outcome == "died"), "no_move": fine}
            assert feedback.info["reward_parts"] == parts
            assert feedback.reward == pytest.approx(sum(parts.values()))
            eaten += outcome == "ate"
            assert feedback.done == (outcome == "died" or number == 300)
            if feedback.done:
                ends += outcome == "died"
                break
            state = feedback.state
            assert feedback.context == Replace(state.prompt)
            assert state.prompt.startswith(f"{300 - number} moves to go.\n")
            snake, food = read(state.prompt)
            assert snake == other.cells()
            assert (food == other.food) == (outcome != "ate")
            other.food = food
    assert eaten > 20
    assert ends > 5


def self_open(snake: list[tuple[int, int]], down: int, right: int) -> bool:
    r, c = snake[0][0] + down, snake[0][1] + right
    return 0 <= r < 10 and 0 <= c < 10 and (r, c) not in snake[:-1]


def offset(prompt: str) -> tuple[int, int]:
    """(rows down, columns right) of the hint line."""
    (line,) = re.findall(r"^Food: (.*)\.$", prompt, re.MULTILINE)
    ways = [part.split() for part in line.split(", ")]
    return (
        sum(int(far) * WAYS[way][0] for far, way in ways),
        sum(int(far) * WAYS[way][1] for far, way in ways),
    )


def test_food_falls_on_every_empty_cell_alike(model: LanguageModel) -> None:
    task = Snake(model)
    state = SnakeState(snake=(44, 43, 42), food=45, moves_left=9)
    rng = np.random.default_rng(0)
    draws = [task.respond([state], [turn("right")], [rng])[0].state.food for _ in range(9600)]
    counts = np.bincount(draws, minlength=100)
    assert not counts[[42, 43, 44, 45]].any()
    assert chisquare(np.delete(counts, [42, 43, 44, 45])).pvalue > 1e-3


def test_the_tail_makes_room(model: LanguageModel) -> None:
    task = Snake(model, data=[{"board": SQUARE}])
    state = task.start(np.random.default_rng(0), {})
    assert state.snake == (22, 12, 11, 21)
    feedback = play(task, state, "left")
    assert not feedback.done
    assert feedback.state.snake == (21, 22, 12, 11)


def test_two_cells_cannot_turn_back(model: LanguageModel) -> None:
    board = "\n".join(["|", "|*", "|........>@", *["|"] * 7])
    task = Snake(model, data=[{"board": board}])
    state = task.start(np.random.default_rng(0), {})
    assert "Open: up, down." in state.prompt
    assert play(task, state, "left").reward == -1  # straight on, into the wall


def test_a_full_board_ends_the_game(model: LanguageModel) -> None:
    task = Snake(model, data=[{"board": RING}])
    state = task.start(np.random.default_rng(0), {})
    feedback = play(task, state, "left")
    assert (feedback.reward, feedback.done) == (1.0, True)
    assert feedback.info["finish_reason"] == "task"
    assert sorted(feedback.state.snake) == list(range(100))
    assert "Food: none." in feedback.state.prompt
    assert task.view([feedback.state], "grid").max() < 0


def test_moves_run_out(model: LanguageModel) -> None:
    task = Snake(model, moves=2, data=[{"board": SQUARE}])
    state = task.start(np.random.default_rng(0), {})
    first = play(task, state, "down")
    second = play(task, first.state, "down")
    assert [first.done, second.done, second.reward] == [False, True, 0.0]
    assert second.info["finish_reason"] == "task"


@pytest.mark.parametrize("moves", [0, -1, 2.0, True, "9"])
def test_bad_number_of_moves(model: LanguageModel, moves: Any) -> None:
    with pytest.raises(ValueError, match=r"moves must be an integer >= 1, got "):
        Snake(model, moves=moves)


# Data and prompts


def test_boards_of_the_users(model: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "boards.jsonl"
    path.write_text("\n".join(json.dumps({"board": board}) for board in (SQUARE, RING)))
    task = Snake(model, data=path, moves=50)
    snakes = [task.start(np.random.default_rng(0), {"task_index": index}).snake for index in range(2)]
    assert [len(snake) for snake in snakes] == [4, 99]
    assert task.prompts is not None
    assert task.prompts[0].startswith(f"50 moves to go.\n{SQUARE}\nFood: 1 down, 4 right.\n")


BAD_BOARDS = [
    (7, "must be a str"),
    ("|>@*", "must have 10 lines of"),
    (SQUARE.replace("*", "....*"), "must have 10 lines of"),
    (SQUARE.replace(".>v", ".>x"), "it has 'x'"),
    (SQUARE.replace("*", ""), "must have one food '*', it has 0"),
    (SQUARE.replace("@", "<"), "must have one head '@', it has 0"),
    (SQUARE.replace(".>v", ".>>"), "must have a body of arrows"),
    (SQUARE.replace(".>v", ".>v....>"), "must have a body of arrows"),
    (SQUARE.replace(".>v", "").replace(".^@", "..@"), "must have a body of arrows"),
]


@pytest.mark.parametrize(("board", "message"), BAD_BOARDS)
def test_bad_boards_are_named(model: LanguageModel, board: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"data\[1\], board.*{re.escape(message)}"):
        Snake(model, data=[{"board": SQUARE}, {"board": board}])
    if isinstance(board, str):
        with pytest.raises(ValueError, match=rf"options\['prompt'\].*{re.escape(message)}"):
            Snake(model).start(np.random.default_rng(0), {"prompt": board})


def test_a_prompt_can_be_gone_on_from(model: LanguageModel) -> None:
    task = Snake(model, level="hard")
    state = task.start(np.random.default_rng(0), {"task_index": 4})
    for _ in range(20):
        state = play(task, state, task.players()["best"](state)).state
    again = task.start(np.random.default_rng(0), {"prompt": state.prompt})
    assert (again.snake, again.food, again.moves_left) == (state.snake, state.food, 280)
    assert task.start(np.random.default_rng(0), {"prompt": SQUARE}).moves_left == 300


def test_the_documented_board(model: LanguageModel) -> None:
    (shown,) = re.findall(r"```\n(.*?) up\n *```", Snake.__doc__ or "", re.DOTALL)
    shown = re.sub(r"^ {4}", "", shown, flags=re.MULTILINE)
    assert Snake(model).start(np.random.default_rng(0), {"prompt": shown}).prompt == shown


# Players


def test_tricks_stay_far_behind(model: LanguageModel) -> None:
    """Scores count from that of empty completions."""
    task = Snake(model, split="test")
    scores = {
        name: np.mean([game(task, player, index)[0] for index in range(25)])
        for name, player in task.players().items()
    }
    assert next(iter(scores)) == "best"
    zero, best = scores["empty"], scores.pop("best")
    assert -2.0 < zero < -1.0
    assert max(scores.values()) - zero < 0.75 * (best - zero)


def test_levels_get_harder(model: LanguageModel) -> None:
    """By what the best trick eats before it is caught."""
    eaten = []
    for level in LEVELS:
        task = Snake(model, split="test", level=level)  # type: ignore[arg-type]
        player = task.players()["greedy_open"]
        eaten.append(np.mean([game(task, player, index)[1] for index in range(40)]))
    assert eaten[0] > eaten[1] + 3 > eaten[2] + 6


def test_the_best_player_does_not_die(model: LanguageModel) -> None:
    task = Snake(model, split="test", level="hard", moves=1000)
    best = task.players()["best"]
    for index in range(3):
        total, eaten = game(task, best, 1000 + index)
        assert total == eaten > 40


def test_nonsense_costs_a_tenth(model: LanguageModel) -> None:
    task = Snake(model)
    state = SnakeState(snake=(44, 43, 42), food=45, moves_left=9)
    for text in ("", "straight", "up down", "right right", "r", "Right!"):
        assert play(task, state, text).reward == pytest.approx(play(task, state, "right").reward - 0.1)
    assert play(task, state, " RIGHT ").reward == 1.0


# The grid, moves and pictures


def test_grid(model: LanguageModel) -> None:
    task = Snake(model)
    state = SnakeState(snake=(44, 34, 33, 23), food=90, moves_left=9)
    (grid,) = task.view([state], "grid")
    expected = np.zeros((10, 10), np.float32)
    expected[4, 4], expected[9, 0] = -1, 1
    expected[3, 4], expected[3, 3], expected[2, 3] = -0.4, -0.3, -0.2
    np.testing.assert_allclose(grid, expected, atol=1e-7)
    assert task.views["grid"].contains(grid)


def test_moves_and_grids_of_the_environment() -> None:
    env: Any = gymnasium.make("TextGen-Snake-v0", observation="grid", actions="move")
    assert env.action_space == gymnasium.spaces.Discrete(4)
    assert env.observation_space == gymnasium.spaces.Box(-1.0, 1.0, (10, 10), np.float32)
    prompt = f"7 moves to go.\n{SQUARE}"
    for action, head in enumerate([(3, 2), (3, 2), (2, 1), (2, 3)]):  # up is straight back: ignored
        env.reset(seed=0, options={"prompt": prompt})
        grid, reward, terminated, truncated, info = env.step(action)
        assert np.unravel_index(grid.argmin(), grid.shape) == head
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert info["reward_parts"]["no_move"] == 0.0


def test_tokens_play_the_same_game() -> None:
    """The same game by tokens and by moves: the same boards, rewards and end."""
    env: Any = gymnasium.make("TextGen-Snake-v0")
    other: Any = gymnasium.make("TextGen-Snake-v0", actions="move", observation="grid")
    env.reset(seed=3)
    grid, _ = other.reset(seed=3)
    task, dice = other.unwrapped.task, np.random.default_rng(0)
    encode = env.unwrapped.language_model.encode
    for _ in range(60):
        action = int(dice.integers(4))
        reward = 0.0
        for token in encode(f" {('up', 'down', 'left', 'right')[action]}\n"):
            observation, paid, terminated, _, _ = env.step(token)
            reward += paid
        grid, expected, over, _, _ = other.step(action)
        assert (reward, terminated) == (expected, over)
        if over:
            env.reset()
            other.reset()
            continue
        text = env.unwrapped.language_model.decode(
            observation["input_ids"][: observation["attention_mask"].sum()]
        )
        state = task.start(np.random.default_rng(0), {"prompt": text})
        np.testing.assert_array_equal(grid, task.view([state], "grid")[0])


def test_plain_sb3_takes_it() -> None:
    env = gymnasium.make("TextGen-Snake-v0", observation="grid", actions="move")
    check_env(env)
    model = DQN("MlpPolicy", env, learning_starts=50, buffer_size=100, seed=0).learn(80)
    assert model.predict(env.reset(seed=0)[0])[0] in range(4)


def test_frames_show_the_board() -> None:
    env: Any = gymnasium.make("TextGen-Snake-v0", actions="move", render_mode="rgb_array")
    env.reset(seed=0, options={"prompt": SQUARE})
    frame = env.render()
    assert frame.shape == (400, 400, 3)
    assert frame.dtype == np.uint8
    centres = frame[20::40, 20::40].astype(int)
    is_paper = (centres == centres[9, 9]).all(axis=2)
    assert set(zip(*np.nonzero(~is_paper), strict=True)) == {(1, 1), (1, 2), (2, 1), (2, 2), (3, 6)}
    assert centres[3, 6, 0] > centres[3, 6, 1]  # the food is red, the snake is green and darkest at the head
    assert all((centres[cell].argmax() == 1) for cell in [(1, 1), (1, 2), (2, 1), (2, 2)])
    assert centres[2, 2].sum() < centres[1, 2].sum() < centres[1, 1].sum() < centres[2, 1].sum()
    env.step(1)
    assert (env.render() != frame).any()


# The shipped DQN


def test_grid_seen_from_the_head(model: LanguageModel) -> None:
    task = Snake(model, level="medium")
    states = [task.start(np.random.default_rng(0), {"task_index": index}) for index in range(20)]
    grids = task.view(states, "grid")
    features = HeadCentred(task.views["grid"])(torch.from_numpy(grids)).numpy()
    for state, grid, seen in zip(states, grids, features, strict=True):
        row, column = divmod(state.snake[0], 10)
        expected = np.full((19, 19), -1.0, np.float32)
        expected[9 - row : 19 - row, 9 - column : 19 - column] = grid
        np.testing.assert_array_equal(seen.reshape(19, 19), expected)


def test_training_writes_its_results(tmp_path: Path) -> None:
    TrainSnake(steps=120, num_envs=4, games=2, out=tmp_path)()
    report = json.loads((tmp_path / "snake_dqn.json").read_text())
    assert report["test"]["dqn"]["games"] == 2
    assert report["settings"]["n_steps"] == 3
    assert report["test"]["best"]["eaten"]["mean"] > report["test"]["random"]["eaten"]["mean"]
    assert len((tmp_path / "snake_dqn.csv").read_text().splitlines()) == 11
    assert {path.name for path in tmp_path.iterdir()} == {
        f"snake_dqn.{kind}" for kind in ("csv", "json", "png", "gif")
    }
