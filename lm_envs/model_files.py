"""What can be told about a model folder without loading it: is it complete, undamaged and safe?"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_envs.errors import ModelError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")


def check_folder(folder: Path) -> None:
    """Check a model folder's files: presence, no remote code, no pickles, whole safetensors.

    Raises:
        ModelError: naming the folder and the file at fault.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder")
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).exists() or name == "config.json":
            refuse_remote_code(read_json(folder / name), folder / name)
    if not any((folder / name).exists() for name in TOKENIZERS):
        raise ModelError(f"{folder}: no tokenizer; expected one of {', '.join(TOKENIZERS)}")
    for file in _weight_files(folder):
        _check_safetensors(file)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; ModelError if it is missing, not JSON or not an object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: {'no such file' if not file.exists() else error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file}: expected a JSON object, got {type(content).__name__}")
    return content


def refuse_remote_code(config: Mapping[str, Any], source: object) -> None:
    """ModelError if a configuration asks for Python code from the model's own folder."""
    if config.get("auto_map"):
        raise ModelError(
            f"{source}: 'auto_map' asks to run code that comes with the model, which is never done; if the "
            f"implementation in transformers is what you want, remove 'auto_map' from a copy of the file"
        )


def file_stamp(path: str) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of a folder's files that decide a model: another stamp is another model."""
    files = sorted(Path(path).glob("*.safetensors")) + sorted(Path(path).glob("config.json"))
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def verify_checksums(folder: Path) -> None:
    """Compare every file listed in folder/SHA256SUMS (`<hex>  <name>` lines) with its SHA-256.

    Raises:
        ModelError: naming the file that is missing or differs.
    """
    sums = folder / "SHA256SUMS"
    if not sums.exists():
        raise ModelError(f"{sums}: no such file")
    for line in sums.read_text(encoding="utf-8").splitlines():
        expected, name = line.split(maxsplit=1)
        file = folder / name.lstrip("*")
        if not file.exists():
            raise ModelError(f"{file}: no such file, but {sums} lists it")
        if hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise ModelError(f"{file}: its SHA-256 is not the one in {sums}: it is damaged or was changed")


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        shards = read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelError(f"{folder / INDEX}: no 'weight_map'")
        return [folder / str(name) for name in sorted(set(shards.values()))]
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        raise ModelError(f"{folder / pickles[0]}: pickled weights can run code; save it as safetensors")
    raise ModelError(f"{folder}: no weights; expected {WEIGHTS} or {INDEX}")


def _check_safetensors(file: Path) -> None:
    """The format is: header length (8 bytes, little endian), JSON header with byte ranges, the bytes."""
    if not file.exists():
        raise ModelError(f"{file}: no such file")
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        try:
            if length > size - 8:
                raise ValueError("its header is cut off")
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ModelError(f"{file}: not a safetensors file ({error})") from error
    if size != expected:
        raise ModelError(f"{file}: {size} bytes, but its header asks for {expected}: the file is damaged")
