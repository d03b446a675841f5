"""`python -m benchmarks docs`: a page for every environment: its docstring, its spaces and one episode."""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from tqdm import tqdm

from agents.play import Episode, Sampling, play, play_script
from agents.report import write_text
from lm_envs.language_model import LanguageModel
from lm_envs.registration import ENVIRONMENTS
from lm_envs.text_env import TextGenEnv
from lm_envs.toy import solve
from lm_envs.toy.envs import ToyEnv

TEXT_SPEC, TOY_SPEC = "common-text.md", "common-toys.md"
EXAMPLE = "## An example episode"
MAX_TURNS = 6  # of an example; of a longer one the first and the last are shown
_SECTION = re.compile(r"^(Args|Raises|Returns|Attributes|References|Note):$", re.MULTILINE)
_ARGUMENT = re.compile(r"^ {4}([\w*, ]+): ", re.MULTILINE)


@dataclass(frozen=True)
class Docs:
    """Write docs/environments: one page per registered id, the common specifications, and an index."""

    ids: tuple[str, ...] = tuple(ENVIRONMENTS)
    out: Path = Path("docs/environments")

    def __call__(self) -> None:
        """Writes the pages."""
        self.out.mkdir(parents=True, exist_ok=True)
        for name, text in common_pages().items():
            write_text(self.out / name, text)
        for env_id in tqdm(self.ids, unit="page"):
            write_text(self.out / f"{env_id}.md", page(env_id))


def common_pages() -> dict[str, str]:
    """File name -> text of the pages that are not about one id."""
    return {
        "README.md": index(),
        TEXT_SPEC: f"# Text environments: what they have in common\n\n{body(TextGenEnv)}\n",
        TOY_SPEC: f"# Toys: what they have in common\n\n{body(ToyEnv)}\n",
    }


def index() -> str:
    """The table of all ids."""
    lines = ["# Environments", ""]
    lines += [
        f"What all [text environments]({TEXT_SPEC}) and all [toys]({TOY_SPEC}) have in common, and the ids:"
    ]
    lines += ["", "| id | what it is |", "|---|---|"]
    lines += [f"| [`{env_id}`]({env_id}.md) | {summary(documented(env_id))} |" for env_id in ENVIRONMENTS]
    lines += ["", "These pages are made from the docstrings by `python -m benchmarks docs`.", ""]
    return "\n".join(lines)


def page(env_id: str) -> str:
    """The whole page of an id."""
    return f"{specification(env_id)}\n{EXAMPLE}\n\n{example(env_id)}\n"


def specification(env_id: str) -> str:
    """A page without its example: what needs no language model's weights."""
    env = gymnasium.make(env_id)
    described = documented(env_id)
    arguments = ", ".join(f"{name}={value!r}" for name, value in ENVIRONMENTS[env_id][2].items())
    common = TOY_SPEC if is_toy(env_id) else TEXT_SPEC
    lines = [
        f"# {env_id}",
        "",
        summary(described),
        "",
        "| | |",
        "|---|---|",
        f'| make | `gymnasium.make("{env_id}")` |',
        *([f"| registered with | `{arguments}` |"] if arguments else []),
        f"| action space | `{env.action_space}` |",
        f"| observation space | {space_text(env.observation_space)} |",
        *task_modes(env),
        f"| in common with others | [observations, actions, arguments, episode end]({common}) |",
        "",
        body(described, with_summary=False),
        "",
    ]
    return "\n".join(lines)


def documented(env_id: str) -> type:
    """The class whose docstring describes an id: the task's, or the toy's."""
    env: Any = gymnasium.make(env_id).unwrapped
    return type(env) if is_toy(env_id) else type(env.task)


def is_toy(env_id: str) -> bool:
    """Whether an id is one of the toys."""
    return "Toy" in env_id


def summary(described: type) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(described) or "").split("\n\n")[0].split())


def body(described: type, with_summary: bool = True) -> str:
    """A docstring as markdown: Google's sections become headings, their arguments a list."""
    text = inspect.getdoc(described) or ""
    if not with_summary:
        text = text.partition("\n\n")[2]
    start, *rest = _SECTION.split(text)
    parts = [start.rstrip()]
    for name, section in zip(rest[::2], rest[1::2], strict=True):
        heading = {"Args": "Arguments"}.get(name, name)
        entries, more = re.match(r"((?:\n {4}.*|\n(?=\n {4}))*)(.*)", section, re.DOTALL).groups()  # type: ignore[union-attr]
        entries = _ARGUMENT.sub(r"- `\1`: ", entries.lstrip("\n") + "\n")
        entries = re.sub(r"^ {8}", "  ", entries, flags=re.MULTILINE)
        parts += [f"## {heading}\n\n{entries.rstrip()}", more.strip()]
    return "\n\n".join(part for part in parts if part)


def space_text(space: gymnasium.Space) -> str:
    """A space in markdown; of a Dict each entry."""
    if isinstance(space, gymnasium.spaces.Dict):
        return "<br>".join(f"`{key}`: `{one_line(each)}`" for key, each in space.items())
    return f"`{one_line(space)}`"


def one_line(space: gymnasium.Space) -> str:
    """A space's repr; the bounds of a Box are two numbers."""
    if isinstance(space, gymnasium.spaces.Box):
        return f"Box({space.low.min()}, {space.high.max()}, {space.shape}, {space.dtype})"
    return " ".join(str(space).split())


def task_modes(env: gymnasium.Env) -> list[str]:
    """Table rows for a task's own actions and observations."""
    task = env.unwrapped.task  # type: ignore[attr-defined]
    choices, views = getattr(task, "choices", None) or {}, getattr(task, "views", None) or {}
    rows = [f'| `actions="{mode}"` | `Discrete({len(texts)})` |' for mode, texts in choices.items()]
    return rows + [f'| `observation="{mode}"` | {space_text(space)} |' for mode, space in views.items()]


def example(env_id: str) -> str:
    """One episode: of the best player known, or else of the bundled model."""
    if is_toy(env_id):
        return "An optimal policy plays; its tokens are bold.\n\n" + toy_example(env_id)
    players = task_players(env_id)
    if players:
        name = next(iter(players))
        who = f'The scripted player "{name}" plays'
        (episode,) = play_script(players[name], env_id, 1)
    else:
        who = "The bundled model plays, sampled"
        bundled = LanguageModel.load()
        (episode,) = play(bundled.decoder(1), bundled.decoder(1), env_id, sampling=Sampling())
    return f"{who}; what it writes is bold.\n\n{preformatted(episode)}"


def task_players(env_id: str) -> dict[str, Any]:
    """The scripted players of an id's task, best first."""
    env: Any = gymnasium.make(env_id).unwrapped
    return env.task.players() if hasattr(env.task, "players") else {}


def preformatted(episode: Episode) -> str:
    """A transcript as HTML, the agent's text in bold; of long episodes the first and the last turns."""
    turns: Sequence[tuple[str, str]] = episode.turns
    pieces = [
        f"{html.escape(read.strip())}<b>{html.escape(' ' + written.strip())}</b>" for read, written in turns
    ]
    half = MAX_TURNS // 2
    if len(pieces) > MAX_TURNS:
        pieces = [*pieces[:half], f"<i>[... {len(pieces) - 2 * half} turns ...]</i>", *pieces[-half:]]
    parts = ", ".join(f"{name} {decimals(value)}" for name, value in sorted(episode.reward_parts.items()))
    paid = f"Return {decimals(episode.reward)}" + (f" ({parts})" if parts else "")
    length = f"{episode.tokens} tokens, {len(turns)} turn{'s' * (len(turns) > 1)}"
    text = "\n".join(pieces)
    return f"<pre>\n{text}\n</pre>\n\n{paid}; {length}."


def decimals(value: float) -> str:
    """Two of them, and no minus before 0.00."""
    return f"{round(value, 2) + 0.0:.2f}"


def toy_example(env_id: str) -> str:
    """An optimal episode of a toy, as its "ansi" rendering shows it."""
    env: Any = gymnasium.make(env_id, observation="index", render_mode="ansi")
    policy = solve(env).policy
    state, _ = env.reset(seed=0)
    over = False
    while not over:
        state, _, terminated, truncated, _ = env.step(int(np.argmax(policy[state])))
        over = terminated or truncated
    shown = (
        html.escape(env.render()).replace("\x1b[1m", "<b>").replace("\x1b[0m", "</b>").replace("</b><b>", "")
    )
    return f"<pre>\n{shown.strip()}\n</pre>"
