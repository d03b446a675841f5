"""What the commands share: environment arguments given as JSON, and folders of runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def parse_env_kwargs(text: str) -> dict[str, Any]:
    """A JSON object as environment arguments; exits with a clear message if it is not one."""
    try:
        kwargs = json.loads(text)
    except json.JSONDecodeError as error:
        sys.exit(
            f"env-kwargs must be a JSON object such as '{{\"max_new_tokens\": 32}}', got {text!r}: {error}"
        )
    if not isinstance(kwargs, dict):
        sys.exit(f"env-kwargs must be a JSON object, got {text!r}")
    return kwargs


def check_folder(folder: Path, overwrite: bool, marker: str) -> None:
    """Exits unless a run may be written to `folder`.

    Args:
        folder: may exist or not.
        overwrite: whether a run in it may be replaced.
        marker: a file that every run has; a folder with other things in it is never replaced.
    """
    if not folder.exists():
        return
    if not overwrite:
        sys.exit(f"{folder} exists: replace it with --overwrite, or choose another folder with --out")
    if not (folder / marker).exists() and (not folder.is_dir() or any(folder.iterdir())):
        sys.exit(f"{folder} holds no {marker}, so it is no such run: --overwrite does not replace it")
