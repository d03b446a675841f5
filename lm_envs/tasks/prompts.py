"""Prompts from lists and files, checked; errors name the prompt's index, or the file and its line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_FILE = "the path of a .txt or .jsonl file"
# What a reward is called with besides the columns of a file.
_RESERVED = {"prompts", "completions", "prompt_ids", "completion_ids", "reward", "slots"}


def check_text(text: Any, name: str) -> None:
    """Raises ValueError naming `name` unless `text` is a str that UTF-8 can hold (no lone surrogates)."""
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a str, got {type(text).__name__} {text!r:.60}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"{name} holds the lone surrogate {text[error.start]!r} at character {error.start}"
        raise ValueError(message) from error


def load_prompts(prompts: Sequence[str] | str | Path) -> list[dict[str, Any]]:
    """Prompts and their columns.

    Args:
        prompts: a non-empty sequence of texts, or the path of a UTF-8 file: `.txt`, one prompt a line (blank
            lines are skipped), or `.jsonl`, one object a line with the key "prompt"; all lines have the same
            keys.

    Returns:
        One dict a prompt, with the key "prompt" and, from a JSON Lines file, its other columns.

    Raises:
        ValueError: no prompts, or a bad one; names its index, or the file and the line.
        FileNotFoundError: no such file.
    """
    if isinstance(prompts, str | Path):
        return _load_file(Path(prompts))
    if not isinstance(prompts, Sequence) or not prompts:
        raise ValueError(f"prompts must be a non-empty list of str or {_FILE}, got {prompts!r:.60}")
    for index, prompt in enumerate(prompts):
        check_text(prompt, f"prompts[{index}]")
    return [{"prompt": prompt} for prompt in prompts]


def _load_file(path: Path) -> list[dict[str, Any]]:
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"prompts must be a non-empty list of str or {_FILE}, got {str(path)!r}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    rows: list[dict[str, Any]] = []
    # Not splitlines(): JSON strings and prompts may hold U+2028 and its like.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            name = f"{path}, line {number}"
            row = _parse(line, name) if path.suffix == ".jsonl" else {"prompt": line.rstrip("\r")}
            if taken := sorted(_RESERVED & row.keys()):
                raise ValueError(
                    f"{name}: the column {taken[0]!r} has a name that rewards get otherwise; rename it"
                )
            if rows and row.keys() != rows[0].keys():
                raise ValueError(f"{name}: columns {sorted(row)}, before it {sorted(rows[0])}")
            rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no prompts")
    return rows


def _parse(line: str, name: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(row, dict) or "prompt" not in row:
        raise ValueError(f'{name} must be a JSON object with the key "prompt", got {line[:60]!r}')
    check_text(row["prompt"], f"{name}, prompt")
    return row
