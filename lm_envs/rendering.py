"""Episodes as text and as pictures: the context, the agent's own tokens marked, and what they earned."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gymnasium import logger
from gymnasium.error import ResetNeeded

if TYPE_CHECKING:
    from lm_envs.core import EnvCore

WIDTH, HEIGHT = 800, 400  # pixels; multiples of 16, as video encoders like them
_MARGIN, _LINE_HEIGHT, _FONT_SIZE, _SMALL_FONT_SIZE = 20, 26, 18, 14
_PAPER, _INK, _FAINT, _RULE = (255, 255, 255), (20, 20, 20), (110, 110, 110), (210, 210, 210)
_UNLIKELY, _LIKELY, _UNKNOWN = np.array([255, 170, 150]), np.array([165, 225, 165]), (205, 222, 245)
# A word and the blanks behind it; what has no blanks is broken after 40 characters.
_WORD = re.compile(r"\n|\S{1,40}[^\S\n]*|[^\S\n]+")
_HALF = "\ufffd"  # what a token that ends inside a character decodes to
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


class Piece(NamedTuple):
    """Some text of the context."""

    text: str
    own: bool  # written by the agent; then it is one token
    probability: float | None  # of an own token under the language model, if that is loaded


class Span(NamedTuple):
    """Some text of one piece in one line of a picture."""

    x: float  # pixels
    width: float  # pixels
    text: str
    piece: Piece


class Renderer:
    """Renders single slots.

    A task with a method `frame(state) -> (height, width, 3) uint8`, of one size for all states, draws its own
    "rgb_array" pictures (a game's board, say). Other episodes are drawn as text.

    Args:
        core: what is rendered.
        mode: one of `modes`, or None.
        modes: the modes that the environment offers.
    """

    def __init__(self, core: EnvCore, mode: str | None, modes: list[str]) -> None:
        if mode is not None and mode not in modes:
            raise ValueError(f"render_mode must be None or one of {modes}, got {mode!r}")
        self._core = core
        self._mode = mode
        self._printed = ""

    def render(self, slot: int) -> Any:
        """A str for "ansi"; for "rgb_array" the task's frame, or text in (400, 800, 3) uint8; else None."""
        if self._mode is None:
            logger.warn('render() needs a render_mode: gymnasium.make(id, render_mode="ansi"), say')
            return None
        if self._core.episodes.arrays.episodes[slot] < 0:
            raise ResetNeeded("call reset() before render()")
        if self._mode == "ansi":
            pieces = self._pieces(slot, with_probabilities=False)
            text = "".join(f"{_BOLD}{piece.text}{_PLAIN}" if piece.own else piece.text for piece in pieces)
            return f"{text}\n{self._status(slot)}\n"
        if self._mode != "rgb_array":
            return None
        task_frame = getattr(self._core.task, "frame", None)
        return self._text_frame(slot) if task_frame is None else self._task_frame(slot, task_frame)

    def show(self, slot: int) -> None:
        """In "human" mode, prints what is new since the last call: the text as it grows, then the result."""
        if self._mode != "human":
            return
        over = not self._core.episodes.arrays.running[slot]
        text = "".join(piece.text for piece in self._pieces(slot, with_probabilities=False))
        if not over:
            text = text.rstrip(_HALF)
        is_continued = bool(self._printed) and text.startswith(self._printed)
        print(text[len(self._printed) :] if is_continued else f"\n{text}", end="", flush=True)
        self._printed = text
        if over:
            print(f"\n{self._status(slot)}")
            self._printed = ""

    def _status(self, slot: int) -> str:
        a = self._core.episodes.arrays
        written = a.lengths[slot] - a.turn_starts[slot]
        parts = [f"token {written} of {self._core.episodes.max_new_tokens}"]
        if a.turns[slot]:
            parts.append(f"turn {a.turns[slot] + 1}")
        if a.turns[slot] or not a.running[slot]:
            parts.append(f"reward {a.returns[slot]:+.3f}")
        if not a.running[slot]:
            parts.append("episode over")
        return " · ".join(parts)

    def _pieces(self, slot: int, with_probabilities: bool) -> list[Piece]:
        """The context as text: what the agent read, run by run, and what it wrote, token by token."""
        a, decode = self._core.episodes.arrays, self._core.language_model.decode
        ids = a.tokens[slot, : a.lengths[slot]].tolist()
        own = a.own[slot, : len(ids)].astype(bool)
        probabilities = self._probabilities(ids) if with_probabilities else [None] * len(ids)
        starts = np.flatnonzero(np.diff(own, prepend=~own[:1]))
        pieces = []
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            if not own[start]:
                pieces.append(Piece(decode(ids[start:end]), False, None))
                continue
            before = ""
            for at in range(start, end):
                text = decode(ids[start : at + 1])
                if at + 1 < end:
                    text = text.rstrip(_HALF)  # the character belongs to the token that completes it
                pieces.append(Piece(text[len(before) :], True, probabilities[at]))
                before = text
        return pieces

    def _probabilities(self, ids: list[int]) -> list[float] | list[None]:
        """The probability of each token given those before it, if the language model's weights are loaded."""
        model = self._core.language_model
        if "model" not in vars(model) or len(ids) < 2:  # a cached property: there once it was used
            return [None] * len(ids)
        (log_probs,) = model.log_probs([ids[:1]], [ids[1:]])
        return [1.0, *np.exp(log_probs).tolist()]

    def _task_frame(self, slot: int, task_frame: Callable[[Any], np.ndarray]) -> np.ndarray:
        frame = np.asarray(task_frame(self._core.episodes.arrays.states[slot]))
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(
                f"task.frame() must be (height, width, 3) uint8, got {frame.shape} of {frame.dtype}"
            )
        return frame

    def _text_frame(self, slot: int) -> np.ndarray:
        from PIL import Image, ImageDraw, ImageFont

        image = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
        draw = ImageDraw.Draw(image)
        font, small = ImageFont.load_default(_FONT_SIZE), ImageFont.load_default(_SMALL_FONT_SIZE)
        pieces = self._pieces(slot, with_probabilities=True)
        lines = _lay_out(pieces, font.getlength)
        footer = HEIGHT - _MARGIN - _LINE_HEIGHT
        visible = (footer - _MARGIN) // _LINE_HEIGHT
        for row, line in enumerate(lines[-visible:]):
            y = _MARGIN + row * _LINE_HEIGHT
            for span in line:
                if span.piece.own:
                    box = (span.x, y, span.x + span.width - 1, y + _LINE_HEIGHT - 5)
                    draw.rectangle(box, fill=_shade(span.piece.probability))
            for span in line:
                draw.text((span.x, y), span.text, font=font, fill=_INK)
        draw.line((_MARGIN, footer, WIDTH - _MARGIN, footer), fill=_RULE)
        shaded = any(piece.probability is not None for piece in pieces)
        legend = "shading: probability, red 0 to green 1" if shaded else "shaded: the agent's tokens"
        draw.text((_MARGIN, footer + 8), self._status(slot), font=small, fill=_INK)
        draw.text((WIDTH - _MARGIN, footer + 8), legend, font=small, fill=_FAINT, anchor="ra")
        return np.array(image)


def _shade(probability: float | None) -> tuple[int, int, int]:
    if probability is None:
        return _UNKNOWN
    red, green, blue = (_UNLIKELY + (_LIKELY - _UNLIKELY) * probability).astype(int).tolist()
    return red, green, blue


def _lay_out(pieces: list[Piece], measure: Callable[[str], float]) -> list[list[Span]]:
    """Lines of text, wrapped at blanks; `measure` gives the width of a text in pixels."""
    owners = [piece for piece in pieces for _ in piece.text]
    lines: list[list[Span]] = [[]]
    x = float(_MARGIN)
    for match in _WORD.finditer("".join(piece.text for piece in pieces)):
        word = match.group()
        if word == "\n" or (lines[-1] and x + measure(word.rstrip()) > WIDTH - _MARGIN):
            lines.append([])
            x = _MARGIN
        for _, run in groupby(range(match.start(), match.end()), key=lambda at: id(owners[at])):
            at = list(run)
            text = word[at[0] - match.start() : at[-1] + 1 - match.start()].rstrip("\n")
            lines[-1].append(Span(x, measure(text), text, owners[at[0]]))
            x += lines[-1][-1].width
    return lines
