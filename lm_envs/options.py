"""Checks reset options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lm_envs.rewards.base import whole_number
from lm_envs.tasks.prompts import check_text

OPTIONS = ("prompt", "task_index")


def check_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Reset options for a task: `{}`, `{"prompt": str}` or `{"task_index": int}`.

    Raises:
        ValueError: unknown keys, both keys, or a value of the wrong kind.
    """
    options = dict(options or {})
    unknown = sorted(map(str, options.keys() - set(OPTIONS)))
    if unknown:
        raise ValueError(f"unknown reset options {unknown}; accepted: {list(OPTIONS)}")
    if len(options) > 1:
        raise ValueError("give one of the reset options 'prompt' and 'task_index', not both")
    if "prompt" in options:
        check_text(options["prompt"], "options['prompt']")
    if "task_index" in options:
        options["task_index"] = whole_number("options['task_index']", options["task_index"], 0)
    return options


def check_reset_mask(mask: Any, num_envs: int) -> np.ndarray:
    """The slots that a reset mask selects, (n,) int64; errors as in Gymnasium's `SyncVectorEnv`."""
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise TypeError(f"options['reset_mask'] must be a numpy array of dtype bool, got {mask!r:.80}")
    if mask.shape != (num_envs,) or not mask.any():
        raise ValueError(
            f"options['reset_mask'] must have shape ({num_envs},) and at least one True, got {mask!r:.80}"
        )
    return np.flatnonzero(mask)
