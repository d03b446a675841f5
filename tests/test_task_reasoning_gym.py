"""The task "reasoning_gym": items and scores are the library's; code in answers is not run; errors."""

from __future__ import annotations

import ast
import inspect
import json
import random
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import reasoning_gym
from reasoning_gym.composite import DatasetSpec
from reasoning_gym.factory import DATASETS

import lm_envs  # noqa: F401  (registers the ids)
from lm_envs.language_model import LanguageModel
from lm_envs.tasks.base import Completion
from lm_envs.tasks.reasoning_gym import RUNS_ANSWERS, ReasoningGym, Verifier, answer_of, own_global_randomness
from lm_envs.testing import check_reward, check_task
from lm_envs.text_env import TextGenEnv

LEVELS = ("easy", "medium", "hard")


def reward_of(task: ReasoningGym, record: Any, text: str) -> float:
    state = task.opening(record, 0)
    (feedback,) = task.respond([state], [Completion(text, (1,), (0,), "eos")], [None])  # type: ignore[list-item]
    assert feedback.done
    assert feedback.info["reward_parts"] == {"verifier": feedback.reward}
    return feedback.reward


# --- items ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_default_questions_are_answered_by_python(level: str) -> None:
    task = ReasoningGym(None, level=level)
    terms, digits = 2 + LEVELS.index(level), 1 + LEVELS.index(level)
    seen = []
    for record in map(task.record, range(200)):
        sum_ = re.fullmatch(
            r"State the final answer to the following arithmetic problem: (.*) =", record["question"]
        )
        assert sum_
        numbers = re.findall(r"\d+", sum_[1])
        seen.append((len(numbers), max(map(len, numbers))))
        assert task.prompt_of(record) == f"{record['question']}\nAnswer:"
        assert reward_of(task, record, f" {eval(sum_[1])}") == 1.0
        assert reward_of(task, record, f" {eval(sum_[1]) + 1}") < 1.0
    assert (max(n for n, _ in seen), max(m for _, m in seen)) == (terms, digits)


@pytest.mark.parametrize(
    ("dataset", "config"),
    [
        ("gcd", {"min_value": 2, "max_value": 50}),
        ("leg_counting", {"seed": 3}),
        ("gsm_symbolic", {"size": 70}),
    ],
)
def test_items_are_the_librarys(dataset: str, config: dict[str, Any]) -> None:
    """Each instance is an item of the dataset as the library makes it, with the curriculum's arguments."""
    task = ReasoningGym(None, dataset=dataset, config=config)
    made = reasoning_gym.create_dataset(dataset, **vars(task.dataset.config))
    for key, value in config.items():
        assert getattr(task.dataset.config, key) == value
    assert len(task.dataset) == config.get("size", 10_000)
    for record in map(task.record, range(10)):
        index = record["metadata"]["source_index"]
        assert {name: made[index][name] for name in ("question", "answer", "metadata")} == record
        for text in (record["answer"], "", "17", "no idea", f"about {record['answer']}"):
            assert reward_of(task, record, f" {text}") == pytest.approx(made.score_answer(text, record))


def test_config_and_curriculum() -> None:
    def arguments(**kwargs: Any) -> tuple[int, ...]:
        config = ReasoningGym(None, **kwargs).dataset.config
        return config.min_terms, config.max_terms, config.min_digits, config.max_digits

    assert arguments() == (2, 2, 1, 1)
    assert arguments(level="hard") == (2, 4, 1, 3)
    assert arguments(curriculum_level=4) == (2, 6, 1, 5)
    assert arguments(curriculum_level={"num_terms": 3}) == (2, 5, 1, 1)
    assert arguments(config={"min_digits": 2, "max_digits": 2}, level="medium") == (2, 3, 2, 2)
    assert arguments(curriculum_level=99) == (2, 12, 1, 10)  # the curriculum's last level


def test_splits_share_no_question_and_seeds_differ() -> None:
    sets = [
        {
            ReasoningGym(None, split=split, level="hard", config=config).record(i)["question"]
            for i in range(200)
        }
        for split, config in (("train", {}), ("test", {}), ("train", {"seed": 10**6}))
    ]
    assert not sets[0] & sets[1]
    assert len(sets[0] & sets[2]) < len(sets[0]) / 2


def test_too_few_questions_for_a_split() -> None:
    errors = []
    for split in ("train", "test"):
        try:
            ReasoningGym(None, config={"size": 1}, split=split).record(0)
        except ValueError as error:
            errors.append(str(error))
    assert len(errors) == 1
    assert "has no prompt among 1000 generated ones" in errors[0]


def test_global_generators_stay_as_they_were() -> None:
    """pool_matrix seeds NumPy's generator, list_functions draws from Python's."""
    for dataset in ("pool_matrix", "list_functions"):
        task = ReasoningGym(None, dataset=dataset, config={"size": 500})
        before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]  # noqa: NPY002
        records = [task.record(index) for index in range(30)]
        assert before == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index, union-attr]  # noqa: NPY002
        random.seed(8)
        assert records == [task.record(index) for index in range(30)]
    with pytest.raises(KeyError), own_global_randomness(0):
        raise KeyError
    random.seed(1)
    value = random.random()
    random.seed(1)
    with own_global_randomness(2):
        random.random()
    assert random.random() == value


# --- answers ----------------------------------------------------------------------------------------------


def test_answer_of() -> None:
    assert answer_of("  -3 \n") == "-3"
    assert answer_of("I think <answer>4</answer>, no, <answer>\n5 </answer>.") == "5"
    assert answer_of("<answer>4") == "<answer>4"
    assert answer_of("") == ""


def test_an_answer_on_which_the_verifier_fails_gets_nothing() -> None:
    task = ReasoningGym(None, dataset="prime_factorization")
    record = task.record(0)
    with pytest.raises(ValueError, match="banana"):
        task.dataset.score_answer("banana", record)
    assert reward_of(task, record, "banana") == 0.0
    assert reward_of(task, record, record["answer"]) == 1.0


def test_empty_completion() -> None:
    assert reward_of(ReasoningGym(None), ReasoningGym(None).record(0), "") == 0.0


def test_verifiers_that_run_answers_are_known() -> None:
    """By their source: the calls of eval and sympy's parse_expr that are given the answer."""
    found = set()
    for name, (dataset, _) in DATASETS.items():
        tree = ast.parse(textwrap.dedent(inspect.getsource(dataset.score_answer)))
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call):
                continue
            called = ast.unparse(call.func).rpartition(".")[2]
            given = {
                node.id for argument in call.args for node in ast.walk(argument) if isinstance(node, ast.Name)
            }
            if called in ("eval", "exec", "parse_expr", "sympify") and "answer" in given:
                found.add(name)
    found -= {"propositional_logic"}  # a parser of its own
    assert found == RUNS_ANSWERS


@pytest.mark.parametrize("dataset", sorted(RUNS_ANSWERS))
def test_answers_are_not_run_unless_allowed(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=f"dataset='{dataset}' runs the agent's text as Python code; allow_eval=True"
    ):
        ReasoningGym(None, dataset=dataset)
    task = ReasoningGym(None, dataset=dataset, allow_eval=True, config={"size": 20})
    record = task.record(0)
    assert reward_of(task, record, record["answer"]) == 1.0
    # The danger is real: this answer is run.
    monkeypatch.setattr(sys, "ran", False, raising=False)
    reward_of(task, record, "[setattr(__import__('sys'), 'ran', True)]")
    assert sys.ran  # type: ignore[attr-defined]


def test_mixtures_are_refused_too() -> None:
    config = {"datasets": [DatasetSpec("gcd", 1, {}), DatasetSpec("puzzle24", 1, {})]}
    with pytest.raises(ValueError, match="dataset='puzzle24' runs"):
        ReasoningGym(None, dataset="composite", config=config)
    config["datasets"].pop()
    record = ReasoningGym(None, dataset="composite", config=config).record(0)
    assert record["metadata"]["source_dataset"] == "gcd"


@pytest.mark.parametrize("level", LEVELS)
def test_tricks_fail(level: str) -> None:
    task = ReasoningGym(None, level=level, split="test")
    records = [task.record(index) for index in range(100)]
    columns = {name: [record[name] for record in records] for name in task.columns}
    states = [task.opening(record, 0) for record in records]

    def mean(texts: list[str]) -> float:
        return sum(task.reward([""] * 100, texts, **columns)) / 100

    means = {name: mean([player(state) for state in states]) for name, player in task.players().items()}
    assert means.pop("best") == 1.0
    assert max(means.values()) < 0.25
    assert max(mean([str(number)] * 100) for number in range(-20, 31)) < 0.25


# --- data, arguments, environment -------------------------------------------------------------------------


def test_check_task_and_reward() -> None:
    for dataset in ("chain_sum", "family_relationships"):
        check_task(ReasoningGym(LanguageModel.load(), dataset=dataset, config={"size": 500}))
    task = ReasoningGym(None)
    record = task.record(0)
    check_reward(Verifier(task.dataset), **{name: [record[name]] * 8 for name in task.columns})
    with pytest.raises(ValueError, match="needs the column 'answer'; there are"):
        Verifier(task.dataset)(["a"], ["b"], question=["c"], metadata=[{}])


def test_own_data(tmp_path: Path) -> None:
    item = reasoning_gym.create_dataset("gcd", seed=5, size=3)[2]
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps({name: item[name] for name in ("question", "answer", "metadata")}))
    task = ReasoningGym(None, dataset="gcd", data=path)
    assert task.prompts == [f"{item['question']}\nAnswer:"]
    assert reward_of(task, task.record(0), f" {item['answer']}") == 1.0
    rows = [{"question": "1 + 1 =", "answer": "2", "metadata": "{}"}]
    assert reward_of(ReasoningGym(None, data=rows), ReasoningGym(None, data=rows).record(0), "2.0") == 1.0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"dataset": "chain_sums"},
            r"dataset must be one of the \d+ of .* such as chain_sum, .*; got 'chain_sums'",
        ),
        (
            {"config": {"max_term": 3}},
            r"config=\{'max_term': 3\} does not fit dataset='chain_sum': .* Its arguments are \['allow",
        ),
        (
            {"config": {"min_terms": 9}},
            "does not fit .* max_terms must be >= min_terms.* they were .*'max_terms': 2",
        ),
        (
            {"curriculum_level": {"terms": 1}},
            r"names 'terms'; the attributes of .* are \['num_digits', 'num_terms'\]",
        ),
        ({"curriculum_level": -1}, "curriculum_level must be an integer >= 0, got -1"),
        ({"curriculum_level": 1, "level": "hard"}, "level='hard' and curriculum_level=1 exclude each other"),
        ({"dataset": "gsm_symbolic", "level": "hard"}, "dataset='gsm_symbolic' has no curriculum: .* got 2"),
        ({"level": "extreme"}, "level must be 'easy', 'medium' or 'hard', got 'extreme'"),
        ({"data": [{"question": "a", "answer": "b"}]}, r"data\[0\] has no column 'metadata'"),
        (
            {"data": [{"question": "a", "answer": 1, "metadata": {}}]},
            r"data\[0\], answer must be a str, got int",
        ),
        ({"data": [{"question": "a", "answer": None, "metadata": "{"}]}, r"data\[0\], metadata is not JSON"),
        (
            {"data": [{"question": "a", "answer": None, "metadata": 3}]},
            r"data\[0\], metadata must be an object, got 3",
        ),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReasoningGym(None, **kwargs)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "reasoning_gym"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"pip install 'lm-envs\[reasoning-gym\]'"):
        ReasoningGym(None)


def test_the_package_is_imported_when_an_environment_is_made() -> None:
    code = (
        "import sys, gymnasium, lm_envs, lm_envs.tasks.reasoning_gym; print('reasoning_gym' in sys.modules);"
        "gymnasium.make('TextGen-ReasoningGym-v0'); print('reasoning_gym' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["False", "True"]


def test_a_question_longer_than_the_window_is_named() -> None:
    env = TextGenEnv(task="reasoning_gym", dataset="rectangle_count", max_new_tokens=4)
    with pytest.raises(ValueError, match=r"task_index \d+\) has \d{4} tokens, at most 252 fit"):
        env.reset(seed=0)


@pytest.mark.parametrize("level", LEVELS)
def test_an_episode(level: str) -> None:
    """The best player's tokens through the environment; prompt and answer are short."""
    env = gymnasium.make("TextGen-ReasoningGym-v0", level=level)
    model = LanguageModel.load()
    task = ReasoningGym(None, level=level)
    for index in range(30):
        _, info = env.reset(seed=0, options={"task_index": index})
        record = task.record(index)
        assert len(model.encode_prompt(task.prompt_of(record))) <= 80
        for token in model.encode(f" {record['answer']}\n"):
            _, reward, terminated, _, info = env.step(token)
        assert terminated
        assert (reward, info["completion"]) == (1.0, f" {record['answer']}")
