"""Snake on a 10 x 10 board: the agent writes a move, and reads the next board."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium
import numpy as np

from lm_envs.pretraining.telling import Dice
from lm_envs.rewards.base import whole_number
from lm_envs.tasks.base import Completion, Feedback, Replace
from lm_envs.tasks.record_task import Player, RecordTask
from lm_envs.tasks.records import Check, a_text

if TYPE_CHECKING:
    from lm_envs.language_model import LanguageModel

SIZE = 10
CELLS = SIZE * SIZE
MOVES = ("up", "down", "left", "right")  # number ^ 1 is the opposite move
STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # (rows, columns) of the moves
HEAD, FOOD, EMPTY = "@", "*", "."
ARROWS = "^v<>"  # a body cell: the move from it to the cell before it
NO_MOVE_COST = 0.1
# Length of the snake at the start.
LENGTHS = {"easy": 3, "medium": 12, "hard": 24}

WALL = -1
# NEIGHBOURS[cell][move]: the cell that the move leads to; cells are numbered row by row.
NEIGHBOURS = tuple(
    tuple(
        (row + down) * SIZE + column + right
        if 0 <= row + down < SIZE and 0 <= column + right < SIZE
        else WALL
        for down, right in STEPS
    )
    for row in range(SIZE)
    for column in range(SIZE)
)
_MOVES_TO_GO = re.compile(r"^(\d+) moves? to go", re.MULTILINE)
# Colours of `Snake.frame`, and the width of a cell in pixels: 400 x 400 in all.
_PIXELS = 40
_PAPER, _LINES, _FOOD = (246, 246, 240), (226, 226, 218), (214, 64, 52)
_HEAD, _EYES = (24, 92, 46), (255, 255, 255)
_NECK, _TAIL = np.array([52, 140, 74]), np.array([172, 214, 160])


@dataclass(frozen=True)
class SnakeState:
    """A position.

    Attributes:
        snake: at least two cells, head first; cell = 10 * row + column, row 0 at the top.
        food: the cell of the food; -1 when the snake fills the board.
        moves_left: moves until the game ends.
        eaten: food eaten so far.
        index: number of the starting position; None if it was given as a reset option.
    """

    snake: tuple[int, ...]
    food: int
    moves_left: int
    eaten: int = 0
    index: int | None = None

    @cached_property
    def prompt(self) -> str:
        """The position as text."""
        return prompt_text(self.snake, self.food, self.moves_left)

    @property
    def heading(self) -> int:
        """The number of the move that goes straight on."""
        return NEIGHBOURS[self.snake[1]].index(self.snake[0])


def a_board(name: str, value: Any) -> str:
    """A column of boards."""
    parse_board(name, a_text(name, value))
    return value


class Snake(RecordTask):
    """Steer a snake to its food on a 10 x 10 board, one move word a turn.

    The agent reads the board, writes `up`, `down`, `left` or `right`, and reads the next board, which takes
    the place of the one before. The whole position is in the text: `@` is the head, each arrow of the body
    points to the next cell towards the head, `*` is the food; a row's empty cells on the right are left out.

    ```
    213 moves to go.
    |
    |
    |....*
    |
    |
    |...v
    |...>>>@
    |
    |
    |
    Food: 4 up, 2 left.
    Open: up, down, right.
    Move: up
    ```

    "Open" lists the moves that do not end the game at once. Rules:

    - Food makes the snake one cell longer, and new food falls on an empty cell, each equally likely.
    - Leaving the board or running into the body ends the game. The cell of the tail is free when the snake
      does not eat, since the tail moves on.
    - A move straight back is ignored: the snake goes straight on.
    - A text that is no move word (blanks around it and capitals do not matter) costs 0.1, and the snake goes
      straight on.
    - The game ends after `moves` moves, or when the snake fills the board. A limit on moves without food is
      not needed: moves are all there is to spend, and circling wastes them.

    Reward: +1 for food, -1 for death, -0.1 for a text that is no move, paid turn by turn
    (`info["reward_parts"]`: "food", "death", "no_move"; `info["eaten"]` is the food of the game so far). A
    game's sum lies between -1 - 0.1 `moves` and `moves`. Empty completions run into the wall: -1.1 or less.

    Levels: the length of the snake at the start, "easy" 3, "medium" 12, "hard" 24, coiled at random, but so
    that the head can reach the tail.

    Besides text: `actions="move"` is `Discrete(4)` in the order up, down, left, right; `observation="grid"`
    is `Box(-1, 1, (10, 10), float32)`: food 1, head -1, empty 0, and -0.1 - 0.4 i / n in that cell of a body
    of n cells, the head's included, that is the i-th from the tail's end, 1 <= i < n: the more negative, the
    longer it stays taken. The moves to go are not in the grid.

    Data: a column "board" with a starting position, written as above. The ten rows beginning with `|` count,
    other lines do not matter. `reset(options={"prompt": ...})` takes such a text, too; its "moves to go"
    count, if they are there.

    Players, mean reward of 200 games from test positions:

    | player | easy | medium | hard |
    |---|---|---|---|
    | best: a shortest way to the food, if the tail can be reached from there | 32.4 | 27.8 | 22.3 |
    | greedy_open: of the open moves, the one nearest to the food | 17.9 | 9.8 | 4.6 |
    | greedy: the move nearest to the food | 3.7 | 1.1 | 0.1 |
    | random_open: an open move | 1.9 | -0.4 | -0.6 |
    | random, up | -0.9 | -0.9 | -0.9 |
    | empty | -1.5 | -1.4 | -1.4 |

    How it could be hacked: staying alive pays nothing, and nothing else than eating does. Nonsense in place
    of "straight on" costs 0.1 a turn. The two hint lines tell a reader who ignores the board where to go
    (greedy_open); he ends in the snake's own coils, with 57% of what the best player has above "empty" at
    level easy, 38% at medium and 25% at hard.

    Args:
        language_model: the frozen model of the environment; this task does not ask it.
        data: records with a column "board", see `lm_envs.tasks.records.load_records`.
        split: "train" or "test", of generated starting positions.
        level: "easy", "medium" or "hard".
        moves: how many moves a game lasts at most, at least 1.

    Raises:
        ValueError: a bad board (names index or file and line), split, level or number of moves.
    """

    columns: ClassVar[Mapping[str, Check]] = {"board": a_board}
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"move": tuple(f" {word}" for word in MOVES)}
    views: ClassVar[Mapping[str, gymnasium.Space]] = {
        "grid": gymnasium.spaces.Box(-1.0, 1.0, (SIZE, SIZE), np.float32)
    }

    def __init__(self, language_model: LanguageModel, *, moves: int = 300, **kwargs: Any) -> None:
        self.moves = whole_number("moves", moves, 1)
        super().__init__(language_model, **kwargs)

    def generate(self, dice: Dice) -> dict[str, Any]:
        """A coiled snake that can reach its own tail, and food."""
        length = LENGTHS[self.level]
        while True:
            snake = [dice.below(CELLS)]
            while len(snake) < length:
                free = [cell for cell in NEIGHBOURS[snake[-1]] if cell != WALL and cell not in snake]
                if not free:
                    break
                snake.append(dice.pick(free))
            if len(snake) == length and _reaches_tail(tuple(snake)):
                food = dice.pick([cell for cell in range(CELLS) if cell not in snake])
                return {"board": "\n".join(rows_of(tuple(snake), food))}

    def prompt_of(self, record: Mapping[str, Any]) -> str:
        """The first position as text."""
        return prompt_text(*parse_board("board", record["board"]), self.moves)

    def opening(self, record: Mapping[str, Any], index: int) -> SnakeState:
        """The first position."""
        return SnakeState(*parse_board("board", record["board"]), self.moves, index=index)

    def ask(self, prompt: str) -> SnakeState:
        """Goes on from a position written as the environment writes it."""
        position = parse_board("options['prompt']", a_text("options['prompt']", prompt))
        to_go = _MOVES_TO_GO.search(prompt)
        return SnakeState(*position, int(to_go[1]) if to_go and int(to_go[1]) else self.moves)

    def respond(
        self,
        states: Sequence[SnakeState],
        completions: Sequence[Completion],
        rngs: Sequence[np.random.Generator],
    ) -> list[Feedback]:
        """Moves the snakes; see `Task.respond`."""
        return [
            self._answer(state, completion.text, rng)
            for state, completion, rng in zip(states, completions, rngs, strict=True)
        ]

    def _answer(self, state: SnakeState, text: str, rng: np.random.Generator) -> Feedback:
        word = text.strip().lower()
        is_move = word in MOVES
        snake, food, is_dead = advance(
            state.snake, state.food, MOVES.index(word) if is_move else state.heading, rng
        )
        ate = len(snake) - len(state.snake)
        after = SnakeState(snake, food, state.moves_left - 1, state.eaten + ate, state.index)
        parts = {"food": float(ate), "death": -float(is_dead), "no_move": 0.0 if is_move else -NO_MOVE_COST}
        info = {"reward_parts": parts, "eaten": after.eaten}
        reward = sum(parts.values())
        if is_dead or food < 0 or after.moves_left == 0:
            return Feedback(reward, True, after, {**info, "finish_reason": "task"})
        return Feedback(reward, False, after, info, Replace(after.prompt))

    def view(self, states: Sequence[SnakeState], mode: str) -> np.ndarray:
        """The boards as numbers, (n, 10, 10) float32; `mode` is "grid"."""
        grids = np.zeros((len(states), CELLS), np.float32)
        for grid, state in zip(grids, states, strict=True):
            grid[list(state.snake)] = _CODES[len(state.snake)]
            if state.food >= 0:
                grid[state.food] = 1.0
        return grids.reshape(-1, SIZE, SIZE)

    def frame(self, state: SnakeState) -> np.ndarray:
        """A picture of the board, (400, 400, 3) uint8: the head has eyes, the body fades towards the tail."""
        board = np.empty((SIZE, SIZE, _PIXELS, _PIXELS, 3), np.uint8)
        board[:] = _LINES
        board[:, :, 1:, 1:] = _PAPER
        for place, cell in reversed(list(enumerate(state.snake))):
            age = place / (len(state.snake) - 1)
            square = board[cell // SIZE, cell % SIZE]
            square[3:-2, 3:-2] = _HEAD if place == 0 else (_NECK + (_TAIL - _NECK) * age).astype(np.uint8)
            if place:  # a bridge to the next cell shows how the snake runs
                forward = NEIGHBOURS[cell].index(state.snake[place - 1])
                _edge(square, forward)[:] = square[20, 20]
                ahead = board[state.snake[place - 1] // SIZE, state.snake[place - 1] % SIZE]
                _edge(ahead, forward ^ 1)[:] = square[20, 20]
        down, right = STEPS[state.heading]
        head = board[state.snake[0] // SIZE, state.snake[0] % SIZE]
        for side in (-1, 1):
            y, x = 20 + 8 * down + 8 * side * right, 20 + 8 * right + 8 * side * down
            head[y - 3 : y + 3, x - 3 : x + 3] = _EYES
        if state.food >= 0:
            rows, columns = np.ogrid[:_PIXELS, :_PIXELS]
            disc = (rows - 20) ** 2 + (columns - 20) ** 2 < 13**2
            board[state.food // SIZE, state.food % SIZE][disc] = _FOOD
        return board.transpose(0, 2, 1, 3, 4).reshape(SIZE * _PIXELS, SIZE * _PIXELS, 3)

    def players(self) -> dict[str, Player]:
        """A careful player, and the cheap tricks; each reads only what is in the prompt."""
        return {
            "best": lambda state: f" {MOVES[_careful(state.snake, state.food)]}",
            "greedy_open": lambda state: f" {MOVES[_greedy(state, _open_moves(state.snake))]}",
            "greedy": lambda state: f" {MOVES[_greedy(state, list(range(4)))]}",
            "random_open": lambda state: f" {MOVES[_random(state, _open_moves(state.snake))]}",
            "random": lambda state: f" {MOVES[_random(state, list(range(4)))]}",
            "up": lambda state: " up",
            "empty": lambda state: "",
        }


def advance(
    snake: tuple[int, ...], food: int, move: int, rng: np.random.Generator
) -> tuple[tuple[int, ...], int, bool]:
    """One move of the game.

    Args:
        snake: cells, head first, at least two.
        food: the cell of the food.
        move: its number in `MOVES`.
        rng: drawn from if the snake eats.

    Returns:
        The snake and the food after the move, and whether the snake is dead; then it has not moved.
    """
    head = NEIGHBOURS[snake[0]][move]
    if head == snake[1]:
        head = NEIGHBOURS[snake[0]][move ^ 1]
    if head == food:
        snake = (head, *snake)
        taken = set(snake)
        free = [cell for cell in range(CELLS) if cell not in taken]
        return snake, free[rng.integers(len(free))] if free else -1, False
    body = snake[:-1]
    if head == WALL or head in body:
        return snake, food, True
    return (head, *body), food, False


def rows_of(snake: Sequence[int], food: int) -> list[str]:
    """The ten rows of the board as text."""
    cells = [EMPTY] * CELLS
    if food >= 0:
        cells[food] = FOOD
    cells[snake[0]] = HEAD
    for ahead, cell in pairwise(snake):
        cells[cell] = ARROWS[NEIGHBOURS[cell].index(ahead)]
    text = "".join(cells)
    return ["|" + text[start : start + SIZE].rstrip(EMPTY) for start in range(0, CELLS, SIZE)]


def prompt_text(snake: tuple[int, ...], food: int, moves_left: int) -> str:
    """A position as the agent reads it."""
    (row, column), (food_row, food_column) = divmod(snake[0], SIZE), divmod(food, SIZE)
    down, right = food_row - row, food_column - column
    ways = [f"{abs(down)} {'down' if down > 0 else 'up'}"] if down else []
    ways += [f"{abs(right)} {'right' if right > 0 else 'left'}"] if right else []
    lines = [
        f"{moves_left} moves to go.",
        *rows_of(snake, food),
        f"Food: {', '.join(ways) if food >= 0 else 'none'}.",
        f"Open: {', '.join(MOVES[move] for move in _open_moves(snake)) or 'none'}.",
        "Move:",
    ]
    return "\n".join(lines)


def parse_board(name: str, text: str) -> tuple[tuple[int, ...], int]:
    """The snake (cells, head first) and the food of a board as `rows_of` writes it.

    Args:
        name: what errors call the board.
        text: lines; those that begin with `|` are the rows, the others do not matter.

    Raises:
        ValueError: it is no position of this game; says why.
    """
    rows = [line[1:].rstrip() for line in text.splitlines() if line.startswith("|")]
    if len(rows) != SIZE or any(len(row) > SIZE for row in rows):
        shape = [len(row) for row in rows]
        raise ValueError(
            f"{name} must have {SIZE} lines of '|' and at most {SIZE} cells, got rows of {shape} cells"
        )
    cells = "".join(row.ljust(SIZE, EMPTY) for row in rows)
    if strange := set(cells) - set(HEAD + FOOD + EMPTY + ARROWS):
        raise ValueError(
            f"{name} must be made of {HEAD + FOOD + EMPTY + ARROWS!r}, it has {sorted(strange)[0]!r}"
        )
    for thing, symbol in (("head", HEAD), ("food", FOOD)):
        if cells.count(symbol) != 1:
            raise ValueError(f"{name} must have one {thing} {symbol!r}, it has {cells.count(symbol)}")
    arrows = [cell for cell in range(CELLS) if cells[cell] in ARROWS]
    behind = {NEIGHBOURS[cell][ARROWS.index(cells[cell])]: cell for cell in arrows}
    snake = [cells.index(HEAD)]
    while snake[-1] in behind:
        snake.append(behind[snake[-1]])
    if len(snake) < 2 or len(snake) != len(arrows) + 1:
        raise ValueError(f"{name} must have a body of arrows, each pointing to the next cell up to the head")
    return tuple(snake), cells.index(FOOD)


def _codes(length: int) -> np.ndarray:
    """What the grid holds for the cells of a snake, head first, (length,) float32."""
    stay = np.arange(length, 0, -1) / length  # the share of the body that leaves before this cell does
    codes = -(0.1 + 0.4 * stay)
    codes[0] = -1.0
    return codes.astype(np.float32)


_CODES = [np.zeros(0, np.float32), *(_codes(length) for length in range(1, CELLS + 1))]


def _edge(square: np.ndarray, move: int) -> np.ndarray:
    """The strip between the body drawn in a cell's square and the cell's edge in the direction of a move."""
    return (square[:3, 8:-8], square[-2:, 8:-8], square[8:-8, :3], square[8:-8, -2:])[move]


def _open_moves(snake: tuple[int, ...]) -> list[int]:
    """Moves that do not end the game at once; food is never on the tail. A snake cannot turn back."""
    body = snake[:-1] if len(snake) > 2 else snake
    return [move for move, cell in enumerate(NEIGHBOURS[snake[0]]) if cell != WALL and cell not in body]


def _distance(a: int, b: int) -> int:
    return abs(a // SIZE - b // SIZE) + abs(a % SIZE - b % SIZE)


def _greedy(state: SnakeState, moves: Sequence[int]) -> int:
    """The first of the moves that leads nearest to the food."""
    cells = NEIGHBOURS[state.snake[0]]
    return min(moves or [0], key=lambda m: _distance(cells[m], state.food) if cells[m] != WALL else CELLS)


def _random(state: SnakeState, moves: Sequence[int]) -> int:
    moves = moves or [0]
    return moves[zlib.crc32(state.prompt.encode()) % len(moves)]


def _path(snake: tuple[int, ...], target: int) -> list[int]:
    """Cells of a shortest way from the head to the target around the body where it lies now; [] if none.

    The tail's own cell may be the target: it is empty by the time the head gets there.
    """
    came_from: dict[int, int] = dict.fromkeys(snake, WALL)
    if target == snake[-1]:
        del came_from[target]
    frontier = [snake[0]]
    while frontier:
        following = []
        for cell in frontier:
            for near in NEIGHBOURS[cell]:
                if near != WALL and near not in came_from:
                    came_from[near] = cell
                    if near == target:
                        way = [near]
                        while came_from[way[-1]] != snake[0]:
                            way.append(came_from[way[-1]])
                        return way[::-1]
                    following.append(near)
        frontier = following
    return []


def _reaches_tail(snake: tuple[int, ...]) -> bool:
    """Whether the head can follow the tail: then the snake can live for ever without eating."""
    return len(snake) < 3 or bool(_path(snake, snake[-1]))


def _careful(snake: tuple[int, ...], food: int) -> int:
    """The move of a shortest way to the food if the tail can be reached from there; else a long way round."""
    way = _path(snake, food)
    if way:
        eaten = tuple(way[::-1]) + snake
        if _reaches_tail(eaten[: len(snake) + 1]):
            return NEIGHBOURS[snake[0]].index(way[0])
    moves = _open_moves(snake)
    after = {move: (NEIGHBOURS[snake[0]][move], *snake[:-1]) for move in moves}
    safe = [
        move for move in moves if NEIGHBOURS[snake[0]][move] != food and _reaches_tail(after[move])
    ] or moves
    return max(safe, key=lambda move: len(_path(after[move], snake[-2])), default=0)
