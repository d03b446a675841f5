"""The README's Python runs as it stands, but for the number of training steps and the reader's own paths."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
SHORTER = {"50_000": "3584", "n_eval_episodes=256": "n_eval_episodes=4", "n_envs=64": "n_envs=8"}


def test_every_python_block_runs(
    tiny_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(
        r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len(blocks) >= 4
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text(json.dumps({"prompt": "The baker", "level": 1}) + "\n", encoding="utf-8")
    names: dict[str, object] = {}  # later blocks go on with what earlier ones imported
    for block in blocks:
        for long, short in {**SHORTER, "path/or/hub-id": tiny_llama}.items():
            block = block.replace(long, short)  # noqa: PLW2901
        exec(compile(block, "README.md", "exec"), names)
    assert "mean held-out reward" in capsys.readouterr().out
    assert Path("my-model/model.safetensors").is_file()
