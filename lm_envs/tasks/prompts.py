"""Prompts from lists and files, checked; errors name the prompt's index, or the file and its line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_envs.tasks.records import SUFFIXES, a_text, check_text, load_records, read_lines


def load_prompts(prompts: Any) -> list[dict[str, Any]]:
    """Prompts and their columns.

    Args:
        prompts: a non-empty sequence of texts, the path of a UTF-8 `.txt` file, one prompt a line (blank
            lines are skipped), or records with a column "prompt", as `load_records` takes them.

    Returns:
        One dict a prompt, with the key "prompt" and the records' other columns.

    Raises:
        ValueError: no prompts, or a bad one; names its index, or the file and the line.
        FileNotFoundError: no such file.
    """
    if isinstance(prompts, str | Path) and Path(prompts).suffix == ".txt":
        rows = [{"prompt": line.rstrip("\r")} for line in read_lines(Path(prompts)) if line.strip()]
        if not rows:
            raise ValueError(f"{prompts} holds no prompts")
        return rows
    if isinstance(prompts, str | Path):
        if Path(prompts).suffix not in (kinds := (".txt", *SUFFIXES)):
            raise ValueError(f"prompts: {prompts} must be one of the kinds {', '.join(kinds)}")
    elif isinstance(prompts, Sequence) and not prompts:
        raise ValueError(f"prompts must be a non-empty list of texts or records, got {prompts!r}")
    elif isinstance(prompts, Sequence) and any(isinstance(prompt, str) for prompt in prompts):
        for index, prompt in enumerate(prompts):
            check_text(prompt, f"prompts[{index}]")
        return [{"prompt": prompt} for prompt in prompts]
    return load_records(prompts, {"prompt": a_text}, "prompts")
