"""The user's own data, checked: a list of dicts, a JSONL, CSV or Parquet file, or a `datasets.Dataset`.

Errors name the row: `data[3]`, or the file and its line (a Parquet file's row).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_envs.rewards.base import text_list

# Checks one value: takes its name, for errors, and the value; returns the value to keep.
Check = Callable[[str, Any], Any]

SUFFIXES = (".jsonl", ".csv", ".parquet")
# What a reward is called with besides the columns of a record.
RESERVED = {"self", "prompts", "completions", "prompt_ids", "completion_ids", "slots"}


def check_text(text: Any, name: str) -> None:
    """Raises ValueError naming `name` unless `text` is a str that UTF-8 can hold (no lone surrogates)."""
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a str, got {type(text).__name__} {text!r:.60}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"{name} holds the lone surrogate {text[error.start]!r} at character {error.start}"
        raise ValueError(message) from error


def a_text(name: str, value: Any) -> str:
    """A column of texts."""
    check_text(value, name)
    return value


def texts(name: str, value: Any) -> list[str]:
    """A column of references: a text, or a non-empty list of texts."""
    return [a_text(name, text) for text in text_list(name, value)]


def phrases(name: str, value: Any) -> list[str]:
    """A column of things to be named: a text, or a non-empty list of texts, each with something in it."""
    found = texts(name, value)
    if not all(text.strip() for text in found):
        raise ValueError(f"{name} must not be blank, got {value!r:.60}")
    return found


def or_nothing(check: Check) -> Check:
    """As this check, but None, an empty text and an empty list pass as they are: what a record may lack."""

    def check_if_given(name: str, value: Any) -> Any:
        is_given = value is not None and not (isinstance(value, str | list) and not value)
        return check(name, value) if is_given else value

    return check_if_given


def load_records(
    data: Any,
    columns: Mapping[str, Check],
    argument: str = "data",
    *,
    optional: Mapping[str, Check] | None = None,
) -> list[dict[str, Any]]:
    """Records that have at least the asked columns; further ones stay, for rewards to read.

    Args:
        data: a non-empty sequence of dicts (a `datasets.Dataset` is one), or the path of a `.jsonl` (one
            object a line), `.csv` (UTF-8, with a header) or `.parquet` file (needs pyarrow). All records have
            the same columns.
        columns: name -> check of its values.
        optional: the same for columns that may be missing.
        argument: what errors call the data.

    Raises:
        ValueError: no records, an undecodable line, a missing column, a reserved name, or a value that its
            check refuses.
        FileNotFoundError: no such file.
        ImportError: a Parquet file without pyarrow.
    """
    named = _from_file(Path(data)) if isinstance(data, str | Path) else _from_sequence(data, argument)
    records: list[dict[str, Any]] = []
    for name, row in named:
        if not isinstance(row, Mapping):
            raise ValueError(f"{name} must be an object with the columns {sorted(columns)}, got {row!r:.60}")
        record = dict(row)
        if missing := sorted(columns.keys() - record.keys()):
            raise ValueError(f"{name} has no column {missing[0]!r}; its columns are {sorted(record)}")
        if taken := sorted(RESERVED & record.keys()):
            raise ValueError(
                f"{name}: the column {taken[0]!r} has a name that rewards get otherwise; rename it"
            )
        if records and record.keys() != records[0].keys():
            raise ValueError(f"{name}: columns {sorted(record)}, before it {sorted(records[0])}")
        for column, check in {**columns, **(optional or {})}.items():
            if column in record:
                record[column] = check(f"{name}, {column}", record[column])
        records.append(record)
    if not records:
        raise ValueError(f"{data} holds no records")
    return records


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, without `\\n`; ValueError naming the line that is none.

    Not `splitlines()`: JSON strings and prompts may hold U+2028 and its like.
    """
    return _decoded(path).split("\n")


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line} is not UTF-8: {error}") from error


def _from_sequence(data: Any, argument: str) -> Iterator[tuple[str, Any]]:
    is_rows = isinstance(data, Sequence) or (hasattr(data, "column_names") and hasattr(data, "__len__"))
    if isinstance(data, Mapping) or not is_rows or not len(data):
        raise ValueError(
            f"{argument} must be a non-empty list of dicts, a datasets.Dataset or the path of a file "
            f"({', '.join(SUFFIXES)}), got {type(data).__name__} {data!r:.60}"
        )
    for index in range(len(data)):
        yield f"{argument}[{index}]", data[index]


def _from_file(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} must be one of the kinds {', '.join(SUFFIXES)}")
    return {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[path.suffix](path)


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            name = f"{path}, line {number}"
            try:
                yield name, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{name} is not JSON: {error}") from error


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise ValueError(f"{path}, line 1 names a column twice: {header}")
        before = reader.line_num
        for row in reader:
            name, before = f"{path}, line {before + 1}", reader.line_num
            if row:
                if len(row) != len(header):
                    raise ValueError(f"{name} has {len(row)} fields, the header {len(header)}")
                yield name, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is not CSV: {error}") from error


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: pip install 'lm-envs[data]'") from error
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not Parquet: {error}") from error
    for number, row in enumerate(rows, 1):
        yield f"{path}, row {number}", row
