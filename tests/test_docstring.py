"""The specification in `TextGenEnv`'s docstring against the code."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

import pytest

from lm_envs.tasks.continuation import Continuation
from lm_envs.text_env import TextGenEnv


def documented_defaults(heading: str) -> dict[str, Any]:
    """Argument -> default, from the tables below a heading of the class docstring."""
    text = inspect.getdoc(TextGenEnv) or ""
    section = text.split(heading)[1].split("## Vectorized")[0]
    section = section.split("Arguments of ")[0] if heading == "## Arguments" else section
    rows = re.findall(r"^\| `(\w+)`\s*\|[^|]*\| `([^`]*)`\s*\|", section, re.MULTILINE)
    return {name: ast.literal_eval(default) for name, default in rows}


@pytest.mark.parametrize(
    ("heading", "function", "not_arguments"),
    [
        ("## Arguments", TextGenEnv.__init__, {"self", "task_kwargs"}),
        ("Arguments of ", Continuation.__init__, {"self", "language_model"}),
    ],
)
def test_documented_defaults_are_the_codes(heading: str, function: Any, not_arguments: set[str]) -> None:
    parameters = inspect.signature(function).parameters
    defaults = {name: each.default for name, each in parameters.items() if name not in not_arguments}
    assert documented_defaults(heading) == defaults


def test_documented_observation_space_is_the_codes(tiny_gpt2: str) -> None:
    text = inspect.getdoc(TextGenEnv) or ""
    rows = re.findall(r"^\| `(\w+)`\s*\| `\(L,\)` \| (\w+)\s*\| (\d\.\.V-1|0, 1)\s*\|", text, re.MULTILINE)
    env = TextGenEnv(model=tiny_gpt2, prompts=["a"])
    vocab_size, space = env.language_model.vocab_size, env.observation_space
    assert {name for name, _, _ in rows} == set(space.spaces)
    for name, dtype, documented in rows:
        low, high = (0, vocab_size - 1) if documented == "0..V-1" else (0, 1)
        assert space[name].dtype == dtype
        assert space[name].shape == (env.context_length,)
        assert (space[name].low.min(), space[name].high.max()) == (low, high)


def test_documentation_has_the_sections_in_order() -> None:
    headings = re.findall(r"^## (.*)$", inspect.getdoc(TextGenEnv) or "", re.MULTILINE)
    assert headings == [
        "Description",
        "Observation space",
        "Action space",
        "Rewards",
        "Starting state",
        "Episode end",
        "Arguments",
        "Vectorized use",
        "References",
        "Version history",
    ]
