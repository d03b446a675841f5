"""The task "continuation": prompts, options, arguments and the default reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import save_tiny
from tasks import Dialogue
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from lm_envs.language_model import LanguageModel
from lm_envs.pretraining.stories import story
from lm_envs.tasks.continuation import Continuation
from lm_envs.text_env import TextGenEnv
from lm_envs.vector_env import TextGenVectorEnv


def zero(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [0.0] * len(completions)


def make(model: str, prompts: Any, **kwargs: Any) -> TextGenEnv:
    return TextGenEnv(model=model, prompts=prompts, **{"reward": zero, "max_new_tokens": 4, **kwargs})


def prompt_of(env: TextGenEnv, **kwargs: Any) -> str:
    observation, _ = env.reset(**kwargs)
    return env.language_model.decode(observation["input_ids"][: observation["attention_mask"].sum()])


# Prompts


def test_list_of_prompts(tiny_gpt2: str) -> None:
    env = make(tiny_gpt2, ["a", "b", "c"])
    assert {prompt_of(env, seed=seed) for seed in range(40)} == {"a", "b", "c"}
    assert prompt_of(env, options={"task_index": 2}) == "c"
    assert prompt_of(env, options={"prompt": "The end <eos>"}) == "The end <eos>"


def test_text_file(tiny_gpt2: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("one\r\n\n  two é\u2028x\n".encode())
    env = make(tiny_gpt2, str(path))
    assert [prompt_of(env, options={"task_index": index}) for index in range(2)] == ["one", "  two é\u2028x"]


def test_jsonl_columns_reach_the_reward(tiny_gpt2: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"p{i}", "reference": f"r{i}", "level": i} for i in range(4)]
    path.write_text("\n".join(map(json.dumps, rows)))
    seen: list[Any] = []

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        seen.append((prompts, completions, columns))
        return [float(level) for level in columns["level"]]

    env = TextGenVectorEnv(3, model=tiny_gpt2, prompts=path, reward=reward, max_new_tokens=1)
    encode = env.language_model.encode
    observation, _ = env.reset(seed=0)
    _, rewards, _, _, infos = env.step([encode(letter)[0] for letter in "xyz"])
    ((prompts, completions, columns),) = seen
    assert completions == ["x", "y", "z"]
    levels = [int(prompt[1]) for prompt in prompts]
    assert rewards.tolist() == columns["level"] == levels
    assert columns["reference"] == [f"r{level}" for level in levels]
    assert columns["prompt_ids"] == [encode(prompt) for prompt in prompts]
    assert columns["completion_ids"] == [encode(letter) for letter in "xyz"]
    assert infos["prompt"].tolist() == prompts
    for row, ids in zip(observation["input_ids"].tolist(), columns["prompt_ids"], strict=True):
        assert row[: len(ids)] == ids


BAD_FILES = [
    ("a.txt", b"one\n\xff\n", r"a\.txt, line 2 is not UTF-8"),
    ("a.txt", b"\n \n", r"a\.txt holds no prompts"),
    ("a.jsonl", b'{"prompt": "x"}\n{"prompt": \n', r"a\.jsonl, line 2 is not JSON"),
    (
        "a.jsonl",
        b'{"prompt": "x"}\n\n{"text": "y"}',
        r"a\.jsonl, line 3 has no column 'prompt'; its columns are \['text'\]",
    ),
    ("a.jsonl", b'["x"]', r"a\.jsonl, line 1 must be an object"),
    ("a.jsonl", b'{"prompt": 3}', r"a\.jsonl, line 1, prompt must be a str, got int 3"),
    ("a.jsonl", b'{"prompt": "\\ud800"}', r"a\.jsonl, line 1, prompt holds the lone surrogate"),
    (
        "a.jsonl",
        b'{"prompt": "x", "a": 1}\n{"prompt": "y"}',
        r"line 2: columns \['prompt'\], before it \['a', 'prompt'\]",
    ),
    ("a.jsonl", b'{"prompt": "x", "slots": 1}', r"line 1: the column 'slots' has a name"),
    ("a.csv", b"text\nx\n", r"a\.csv, line 2 has no column 'prompt'"),
    ("a.json", b"x", r"a\.json must be one of the kinds \.txt, \.jsonl, \.csv, \.parquet"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_bad_prompt_files(tiny_gpt2: str, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        make(tiny_gpt2, str(tmp_path / name))


def test_missing_prompt_file(tiny_gpt2: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        make(tiny_gpt2, "nowhere.txt")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "prompts must be a non-empty list"),
        (3, "prompts must be a non-empty list"),
        (["a", 3], r"prompts\[1\] must be a str, got int 3"),
        (["a", "b", "x\udc80y"], r"prompts\[2\] holds the lone surrogate '\\udc80' at character 1"),
        (
            ["a", "b " * 200],
            r"prompts\[1\] has \d+ tokens, at most 76 fit: context_length 80 minus max_new_tokens 4",
        ),
    ],
)
def test_bad_prompts_are_refused_when_the_environment_is_made(
    tiny_gpt2: str, prompts: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(tiny_gpt2, prompts)


def test_empty_prompt_is_bos_or_an_error(tiny_gpt2: str, tiny_qwen2: str) -> None:
    env = make(tiny_gpt2, ["", "x"])
    observation, _ = env.reset(options={"task_index": 0})
    assert observation["attention_mask"].sum() == 1
    assert observation["input_ids"][0] == env.language_model.bos_token_id
    with pytest.raises(ValueError, match=r"prompts\[1\]: .*empty.*no BOS"):
        make(tiny_qwen2, ["x", ""])


def test_truncated_prompts_keep_their_last_tokens(tiny_llama: str) -> None:
    text = "The baker is sad because the oven will not burn. " * 5
    env = make(tiny_llama, [text, "short"], truncate_prompts=True)
    ids = env.language_model.encode(text)
    observation, _ = env.reset(options={"task_index": 0})
    # Llama's tokenizer puts BOS in front, where it stays.
    assert observation["input_ids"][:76].tolist() == [env.language_model.bos_token_id, *ids[-75:]]
    assert observation["attention_mask"].sum() == 76
    assert prompt_of(env, options={"task_index": 1}) == "short"


# Options and arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"promt": "x"}, r"unknown reset options \['promt'\]; accepted: \['prompt', 'task_index'\]"),
        ({"prompt": "x", "task_index": 0}, "not both"),
        ({"prompt": b"x"}, r"options\['prompt'\] must be a str, got bytes"),
        ({"prompt": "\ud800"}, r"options\['prompt'\] holds the lone surrogate"),
        ({"prompt": "x" * 500}, r"prompt of slot 0 has \d+ tokens, at most 76 fit"),
        ({"task_index": -1}, "must be an integer >= 0, got -1"),
        ({"task_index": True}, "must be an integer >= 0, got True"),
        ({"task_index": 3}, r"must be in 0\.\.1, got 3"),
    ],
)
def test_bad_options_change_nothing(tiny_gpt2: str, options: dict[str, Any], message: str) -> None:
    vector = TextGenVectorEnv(2, model=tiny_gpt2, prompts=["a", "b"], max_new_tokens=4)
    for env in (make(tiny_gpt2, ["a", "b"]), vector):
        env.reset(seed=0)
        before = env.get_state()
        with pytest.raises(ValueError, match=message):
            env.reset(options=options)
        assert all(np.array_equal(before[key], value) for key, value in env.get_state().items())


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        ([True, False], TypeError),
        (np.array([1, 0]), TypeError),
        (np.array([True]), ValueError),
        (np.array([False, False]), ValueError),
    ],
)
def test_bad_reset_masks(tiny_gpt2: str, mask: Any, error: type[Exception]) -> None:
    env = TextGenVectorEnv(2, Dialogue(), tiny_gpt2)
    env.reset(seed=0)
    with pytest.raises(error, match=r"options\['reset_mask'\]"):
        env.reset(options={"reset_mask": mask})


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"max_new_tokens": 0}, ValueError, r"max_new_tokens must be an integer in 1\.\.79, got 0"),
        ({"max_new_tokens": 80}, ValueError, r"max_new_tokens must be an integer in 1\.\.79, got 80"),
        ({"max_new_tokens": 2.0}, ValueError, "max_new_tokens must be an integer"),
        ({"context_length": 81}, ValueError, r"context_length must be an integer in 2\.\.80, got 81"),
        ({"stop": [""]}, ValueError, "stop must be a non-empty str"),
        ({"stop": 3}, ValueError, "stop must be a non-empty str or a list of them, got 3"),
        ({"stop": ["a", 3]}, ValueError, "stop must be a non-empty str"),
        ({"observation": "token"}, ValueError, "observation must be one of .*'tokens'.*got 'token'"),
        ({"actions": "tokens"}, ValueError, "actions must be one of .*got 'tokens'"),
        (
            {"actions": "top_k", "top_k": 0},
            ValueError,
            r"top_k must be an integer in 1\.\.\d+, got 0",
        ),
        ({"task": "continue"}, ValueError, r"task must be one of \['continuation', .*\] or a task object"),
        ({"task": Dialogue}, TypeError, "object with start"),
        ({"task": Dialogue(), "prompts": ["a"]}, TypeError, r"unknown arguments \['prompts', 'reward'\]"),
        ({"split": "tst", "prompts": None}, ValueError, "split must be 'train' or 'test', got 'tst'"),
        ({"split": "test"}, ValueError, "cannot be used with prompts"),
        ({"reward": 3}, TypeError, "reward must be callable, got 3"),
        ({"fluency_weight": float("nan"), "reward": None}, ValueError, "fluency.*finite"),
    ],
)
def test_bad_arguments(tiny_gpt2: str, kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TextGenEnv(model=tiny_gpt2, **{"max_new_tokens": 4, "prompts": ["a"], "reward": zero, **kwargs})


@pytest.mark.parametrize("kwargs", [{"num_envs": 0}, {"num_envs": 2, "max_episode_steps": 0}])
def test_bad_vector_arguments(tiny_gpt2: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be an integer >= 1, got 0"):
        TextGenVectorEnv(task=Dialogue(), model=tiny_gpt2, **kwargs)


# The default task


@pytest.mark.parametrize("split", ["train", "test"])
def test_default_prompts_are_story_openings(tiny_gpt2: str, split: Any) -> None:
    task = Continuation(LanguageModel.load(tiny_gpt2, lazy=True), split=split)
    for seed in range(5):
        state = task.start(np.random.default_rng(seed), {})
        assert state.prompt == story(state.index, split).opening  # type: ignore[arg-type]
    assert task.start(np.random.default_rng(0), {"task_index": 7}).prompt == story(7, split).opening


def test_default_reward_by_hand(tmp_path: Path) -> None:
    """VADER's own analyzer, and log-probs and entropies of a plain forward pass."""
    folder = save_tiny(tmp_path, "gpt2")
    env = TextGenEnv(
        model=folder, prompts=["The key"], max_new_tokens=8, fluency_weight=0.25, fluency_slack=0.0
    )
    encode, eos = env.language_model.encode, env.language_model.eos_token_id
    env.reset(seed=0)
    completion = [*encode(" happy"), eos]
    for token in completion[:-1]:
        env.step(token)
    assert "model" not in vars(env.language_model)  # loaded for the first reward only
    _, reward, terminated, _, info = env.step(completion[-1])
    assert terminated
    ids = encode("The key") + completion
    with torch.no_grad():
        logits = env.language_model.model(torch.tensor([ids])).logits[0, :, : env.language_model.vocab_size]
    log_probs = logits.log_softmax(-1)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    first = len(ids) - len(completion)
    typical = [(log_probs[at - 1, ids[at]] + entropy[at - 1]).item() for at in range(first, len(ids))]
    sentiment = SentimentIntensityAnalyzer().polarity_scores(" happy")["compound"]
    fluency = max(-1.0, np.mean(typical))
    assert fluency < 0 < sentiment
    assert info["reward_parts"] == pytest.approx({"sentiment": sentiment, "fluency": fluency}, abs=1e-5)
    assert reward == pytest.approx(sentiment + 0.25 * fluency, abs=1e-5)


@pytest.mark.parametrize(("slack", "fluency"), [(100.0, 0.0), (0.0, -1.0)])
def test_fluency_is_bounded(tmp_path: Path, slack: float, fluency: float) -> None:
    """However predictable or surprising the text is. Greedily the least likely tokens: far below -1."""
    folder = save_tiny(tmp_path, "gpt2")
    env = TextGenEnv(model=folder, prompts=["The key"], max_new_tokens=2, fluency_slack=slack)
    observation, _ = env.reset(seed=0)
    terminated = False
    while not terminated:
        ids = torch.tensor(observation["input_ids"][None, : observation["attention_mask"].sum()])
        with torch.no_grad():
            token = int(env.language_model.model(ids).logits[0, -1].argmin())
        observation, _, terminated, _, info = env.step(token)
    assert info["reward_parts"]["fluency"] == fluency
