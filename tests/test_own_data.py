"""The user's own records on every id: bare ones of the documented columns, from each kind of source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import gymnasium
import pytest

from lm_envs.registration import ENVIRONMENTS
from lm_envs.turn_level import TurnLevel

BOARD = "\n".join(["|@<", *["|"] * 8, "|*"])
ITEMS = {"skipped": "", "loves": "sea", "hates": ""}
# Two rows with the columns that must be there and no others; none of them is like a generated one.
ROWS: dict[str, list[dict[str, Any]]] = {
    "Story": [{"prompt": text, "keywords": ["x"]} for text in ("no end", "two")],
    "Control": [{"opening": text, "demands": ["the word x"]} for text in ("no end", "two")],
    "Sentiment": [{"prompt": text} for text in ("the thing is", "two")],
    "Translation": [{"source": text, "reference": "hello"} for text in ("hallo welt", "two")],
    "Summarization": [{"text": text, "reference": "x"} for text in ("no end", "two")],
    "QA": [{"context": text, "question": "who?", "reference": "d"} for text in ("no end", "two")],
    "Dialogue": [
        {"rules": "wet, gift", "opening": "hi", "answer": ["gift"], "wrong": ["cake"], "patience": 2}
        | {"facts": facts}
        for facts in ({"size": "small"}, {"shape": "round"})
    ],
    "Transcription": [{"phonemes": text, "reference": "x"} for text in ("aa", "b")],
    "Edit": [{"text": text, "reference": "a b"} for text in ("a", "b")],
    "Snake": [{"board": BOARD}, {"board": BOARD.replace("@<", "@<<")}],
    "Recommendation": [{"liked": text, **ITEMS} for text in ("", "sea song")],
    "ReasoningGym": [{"question": text, "answer": "1", "metadata": {}} for text in ("1?", "one?")],
}


def test_every_suite_id_is_here() -> None:
    suite = {env_id for env_id in ENVIRONMENTS if "Toy" not in env_id} - {"TextGen-v0"}
    assert suite == {f"TextGen-{name}-v0" for name in ROWS}


@pytest.mark.parametrize("name", ROWS)
def test_players_can_play_them(name: str) -> None:
    env = TurnLevel(gymnasium.make(f"TextGen-{name}-v0", data=ROWS[name]))
    task: Any = env.unwrapped.task  # type: ignore[attr-defined]
    episodes = env.unwrapped._core.episodes  # type: ignore[attr-defined]
    for index in range(2):
        for player in task.players().values():
            env.reset(options={"task_index": index})
            for _ in range(6):
                text = player(episodes.arrays.states[0])
                *_, terminated, truncated, _ = env.step(text)
                if terminated or truncated:
                    break


def test_columns_may_have_any_name_that_is_not_taken() -> None:
    row = {**ROWS["QA"][0], "reward": 3, "columns": 1, "model": "x"}
    env = TurnLevel(gymnasium.make("TextGen-QA-v0", data=[row]))
    env.reset(seed=0)
    assert env.step("d")[1] == 1
    with pytest.raises(ValueError, match="the column 'self' has a name"):
        gymnasium.make("TextGen-QA-v0", data=[{**row, "self": 1}])


@pytest.mark.parametrize(
    ("name", "column", "value", "message"),
    [
        ("Summarization", "keywords", None, "keywords must be a str or a non-empty list"),
        ("Summarization", "keywords", [], "keywords must be a str or a non-empty list"),
        ("Summarization", "keywords", " ", "keywords must not be blank"),
        ("Summarization", "wrong", 5, "wrong must be a str or a non-empty list"),
        ("Sentiment", "subject", 5, "subject must be a str, got int 5"),
        ("Edit", "before", 5, "before must be a str, got int 5"),
    ],
)
def test_columns_that_a_record_may_have_are_checked_too(
    tmp_path: Path, name: str, column: str, value: Any, message: str
) -> None:
    rows = [{**row, column: "x"} for row in ROWS[name]]
    rows[1][column] = value
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 2, {message}"):
        gymnasium.make(f"TextGen-{name}-v0", data=path)


@pytest.mark.parametrize(
    ("name", "column"), [("Summarization", "wrong"), ("Sentiment", "subject"), ("Edit", "before")]
)
@pytest.mark.parametrize("nothing", [None, ""])
def test_columns_that_a_record_may_lack(name: str, column: str, nothing: Any) -> None:
    rows = [
        {**ROWS[name][0], "keywords": "end", column: "x"},
        {**ROWS[name][1], "keywords": "end", column: nothing},
    ]
    env = TurnLevel(gymnasium.make(f"TextGen-{name}-v0", data=rows))
    env.reset(options={"task_index": 1})
    env.step("x")


@pytest.mark.parametrize("name", ROWS)
def test_all_sources_give_the_same_prompts(name: str, tmp_path: Path) -> None:
    rows = ROWS[name]
    # Arrow has no empty structs; a verifier's facts may be given as JSON.
    rows = [row | {"metadata": "{}"} if "metadata" in row else row for row in rows]
    dataset = datasets.Dataset.from_list(rows)
    dataset.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tasks = [
        gymnasium.make(f"TextGen-{name}-v0", data=data).unwrapped.task  # type: ignore[attr-defined]
        for data in (rows, dataset, tmp_path / "rows.parquet", tmp_path / "rows.jsonl")
    ]
    records = [[dict(task.record(index)) for index in range(2)] for task in tasks]
    assert len(set(tasks[0].prompts)) == (1 if name == "Dialogue" else 2)
    for task, read in zip(tasks[1:], records[1:], strict=True):
        assert task.prompts == tasks[0].prompts
        assert read == records[0]
