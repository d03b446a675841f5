"""The pages in docs/environments against the code they are made from."""

from __future__ import annotations

import re
from pathlib import Path

import gymnasium
import pytest

from benchmarks import docs
from lm_envs.registration import ENVIRONMENTS

FOLDER = Path(__file__).parents[1] / "docs" / "environments"
# Episodes that no language model's weights have a part in: the same on every machine.
EXACT = [env_id for env_id in ENVIRONMENTS if "Toy" in env_id] + ["TextGen-Dialogue-v0", "TextGen-Snake-v0"]
AGAIN = "run `python -m benchmarks docs`"


def test_there_is_a_page_for_every_id_and_no_other() -> None:
    expected = {f"{env_id}.md" for env_id in ENVIRONMENTS} | set(docs.common_pages())
    assert {path.name for path in FOLDER.iterdir()} == expected, AGAIN


@pytest.mark.parametrize("name", ["README.md", docs.TEXT_SPEC, docs.TOY_SPEC])
def test_common_pages_are_up_to_date(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == docs.common_pages()[name], AGAIN


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_specifications_are_up_to_date(env_id: str) -> None:
    written = (FOLDER / f"{env_id}.md").read_text(encoding="utf-8")
    specification, found, example = written.partition(docs.EXAMPLE)
    assert specification.rstrip("\n") == docs.specification(env_id).rstrip("\n"), AGAIN
    assert found
    assert "<b>" in example


@pytest.mark.parametrize("env_id", EXACT)
def test_examples_are_up_to_date(env_id: str) -> None:
    written = (FOLDER / f"{env_id}.md").read_text(encoding="utf-8")
    assert written.partition(docs.EXAMPLE)[2].strip() == docs.example(env_id), AGAIN


def test_pages_have_one_title_and_links_that_lead_somewhere() -> None:
    for path in FOLDER.iterdir():
        text = re.sub("```.*?```|<pre>.*?</pre>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert len(re.findall("^# ", text, re.MULTILINE)) == 1, path.name
        for target in re.findall(r"\]\(([^)#]*\.md)", text):
            assert (FOLDER / target).exists(), f"{path.name}: {target}"


def test_a_docstring_as_markdown_by_hand() -> None:
    class Described:
        """Does things
        well.

        ## Description
        More.

        Args:
            one: the first,
                on two lines.
            two, three: others.

        Raises:
            ValueError: never.

        ## References
        - Somebody, 2020.
        """

    assert docs.summary(Described) == "Does things well."
    assert docs.body(Described, with_summary=False) == (
        "## Description\nMore.\n\n"
        "## Arguments\n\n- `one`: the first,\n  on two lines.\n- `two, three`: others.\n\n"
        "## Raises\n\n- `ValueError`: never.\n\n"
        "## References\n- Somebody, 2020."
    )


def test_text_is_escaped_and_the_agents_is_bold(monkeypatch: pytest.MonkeyPatch) -> None:
    episode = docs.Episode(
        "p", "c", -0.001, 0.0, 3, "stop", {"b": 1.0, "a": -0.004}, [("a <b", " yes "), ("\nc", "d")]
    )
    assert docs.preformatted(episode) == (
        "<pre>\na &lt;b<b> yes</b>\nc<b> d</b>\n</pre>\n\nReturn 0.00 (a 0.00, b 1.00); 3 tokens, 2 turns."
    )
    monkeypatch.setattr(docs, "MAX_TURNS", 2)
    many = docs.Episode("p", "c", 1.0, 0.0, 3, "stop", {}, [(str(n), "x") for n in range(5)])
    assert re.findall(r"^\d|\[.*\]", docs.preformatted(many), re.MULTILINE) == ["0", "[... 3 turns ...]", "4"]


def test_one_line_of_a_box() -> None:
    assert docs.one_line(gymnasium.spaces.Box(0, 7, (3, 2), "int8")) == "Box(0, 7, (3, 2), int8)"
