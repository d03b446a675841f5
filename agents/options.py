"""What the commands share: environment arguments given as JSON."""

from __future__ import annotations

import json
import sys
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
