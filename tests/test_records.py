"""The user's own data: every kind of source gives the same records, and errors say where the bad row is."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest

from lm_envs.tasks.base import Completion
from lm_envs.tasks.record_task import RecordTask, SingleTurn
from lm_envs.tasks.records import a_text, load_records, texts

COLUMNS = {"source": a_text, "reference": texts}
ROWS = [
    {"source": "ein Haus", "reference": "a house", "note": "x"},
    {"source": 'zwei "Häuser"\u2028, groß', "reference": "two\nbig houses", "note": ""},
]
EXPECTED = [row | {"reference": [row["reference"]]} for row in ROWS]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the file's format, by other libraries than the loader's."""
    if path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pandas.DataFrame(rows).to_parquet(path)
    else:
        pandas.DataFrame(rows).to_csv(path, index=False, quoting=csv.QUOTE_MINIMAL)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_files(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS)
    assert load_records(path, COLUMNS) == EXPECTED
    assert load_records(str(path), COLUMNS) == EXPECTED


def test_lists_and_datasets() -> None:
    assert load_records(ROWS, COLUMNS) == EXPECTED
    assert load_records(tuple(ROWS), COLUMNS) == EXPECTED
    assert load_records(datasets.Dataset.from_list(ROWS), COLUMNS) == EXPECTED


def test_the_users_rows_are_not_changed() -> None:
    rows = [dict(row) for row in ROWS]
    load_records(rows, COLUMNS)
    assert rows == ROWS


def test_several_references() -> None:
    (record,) = load_records([{"source": "a", "reference": ["b", "c"]}], COLUMNS)
    assert record["reference"] == ["b", "c"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfsource,reference\r\nx,y\r\n")
    assert load_records(path, COLUMNS) == [{"source": "x", "reference": ["y"]}]


BAD_FILES = [
    ("a.csv", b"source,reference\na,b\nc\n", r"a\.csv, line 3 has 1 fields, the header 2"),
    ("a.csv", b'source,reference\n"a\nb",c\nd,e,f\n', r"a\.csv, line 4 has 3 fields, the header 2"),
    ("a.csv", b'source,reference\na,"b\n', r"a\.csv, line \d is not CSV"),
    ("a.csv", b"source,source\na,b\n", r"a\.csv, line 1 names a column twice"),
    ("a.csv", b"source,reference\na,b\nc,\xff\n", r"a\.csv, line 3 is not UTF-8"),
    (
        "a.csv",
        b"source,target\na,b\n",
        r"a\.csv, line 2 has no column 'reference'; its columns are \['source'",
    ),
    ("a.csv", b"source,reference\n", r"a\.csv holds no records"),
    ("a.csv", b"", r"a\.csv holds no records"),
    ("a.jsonl", b'{"source": "a", "reference": "b"}\n{"source"', r"a\.jsonl, line 2 is not JSON"),
    (
        "a.jsonl",
        b'{"source": "a", "reference": []}',
        r"a\.jsonl, line 1, reference must be a str or a non-empty",
    ),
    (
        "a.jsonl",
        b'{"source": null, "reference": "b"}',
        r"a\.jsonl, line 1, source must be a str, got NoneType",
    ),
    ("a.jsonl", b'{"source": "a", "reference": "b", "slots": 1}', r"line 1: the column 'slots' has a name"),
    ("a.jsonl", b"3", r"a\.jsonl, line 1 must be an object with the columns"),
    ("a.parquet", b"no parquet", r"a\.parquet is not Parquet"),
    ("a.tsv", b"a", r"a\.tsv must be one of the kinds \.jsonl, \.csv, \.parquet"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_records(tmp_path / name, COLUMNS)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_missing_files(suffix: str) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_records(f"nowhere.{suffix}", COLUMNS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data must be a non-empty list of dicts"),
        (3, "data must be a non-empty list of dicts.* got int 3"),
        ({"train": ROWS}, "data must be a non-empty list of dicts"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}), "data must be a non-empty list"),
        ([ROWS[0], "x"], r"data\[1\] must be an object with the columns"),
        ([ROWS[0], {"source": "x"}], r"data\[1\] has no column 'reference'"),
        (
            [ROWS[0], {"source": "x", "reference": "y"}],
            r"data\[1\]: columns \['reference', 'source'\], before",
        ),
        ([{"source": "\ud800", "reference": "y"}], r"data\[0\], source holds the lone surrogate"),
    ],
)
def test_bad_data(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_records(data, COLUMNS)


# Tasks over records


class Double(SingleTurn):
    """Say it twice."""

    columns = {"source": a_text, "reference": texts}  # noqa: RUF012

    def generate(self, dice: Any) -> dict[str, Any]:
        size = {"easy": 3, "medium": 5, "hard": 8}[self.level]
        word = "".join(dice.pick("abcdefgh") for _ in range(size))
        return {"source": word, "reference": [word * 2]}

    def prompt_of(self, record: Any) -> str:
        return f"{record['source']} ="

    def default_reward(self) -> Any:
        def equal(completions: list[str], reference: list[list[str]], **_: Any) -> list[float]:
            return [float(text in refs) for text, refs in zip(completions, reference, strict=True)]

        return equal


def double(**kwargs: Any) -> Double:
    return Double(None, **kwargs)  # type: ignore[arg-type]  # its reward asks no model


def test_splits_share_no_prompt_and_levels_differ() -> None:
    train, test = (
        {double(split=split).record(i)["source"] for i in range(600)} for split in ("train", "test")
    )
    assert len(train) > 300
    assert not train & test
    assert {len(double(level=level).record(0)["source"]) for level in ("easy", "medium", "hard")} == {3, 5, 8}


def test_one_prompt_in_ten_is_in_the_test_split() -> None:
    """Counted over all 512 prompts: the train split holds about nine tenths of them."""
    seen = {double().record(i)["source"] for i in range(20_000)}
    assert 0.85 < len(seen) / 512 < 0.95


def test_a_record_is_drawn_asked_for_or_refused() -> None:
    task = double(data=[{"source": word, "reference": word * 2} for word in "abc"])
    drawn = {task.start(np.random.default_rng(seed), {}).index for seed in range(30)}
    assert drawn == {0, 1, 2}
    assert task.prompts == ["a =", "b =", "c ="]
    state = task.start(np.random.default_rng(0), {"task_index": 2})
    assert (state.prompt, state.columns["reference"]) == ("c =", ["cc"])
    (feedback,) = task.respond([state], [Completion("cc", (1,), (1,), "eos")], [np.random.default_rng(0)])
    assert (feedback.reward, feedback.done, feedback.info["reward_parts"]) == (1.0, True, {"equal": 1.0})
    with pytest.raises(ValueError, match=r"options\['task_index'\] must be in 0\.\.2, got 3"):
        task.start(np.random.default_rng(0), {"task_index": 3})
    with pytest.raises(ValueError, match="has no reference and source to judge by"):
        task.start(np.random.default_rng(0), {"prompt": "x"})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"split": "tst"}, "split must be 'train' or 'test', got 'tst'"),
        ({"level": 3}, "level must be 'easy', 'medium' or 'hard', got 3"),
        (
            {"level": "hard", "data": ROWS},
            "level='hard' choose generated instances and cannot be used with data",
        ),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        double(**kwargs)


def test_the_bases_say_what_is_missing() -> None:
    with pytest.raises(NotImplementedError):
        RecordTask(None).record(0)  # type: ignore[arg-type]
