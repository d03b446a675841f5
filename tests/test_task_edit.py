"""The edit task: corruptions, edits, the mask, what mending pays, and MaskablePPO on it."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import InvalidAction
from sb3_contrib import MaskablePPO

import lm_envs  # noqa: F401
from lm_envs.language_model import LanguageModel
from lm_envs.tasks.base import Completion, Replace
from lm_envs.tasks.edit import MAX_WORDS, WORDS, Edit, EditState, distance
from lm_envs.tasks.record_task import Player
from lm_envs.testing import check_task

LEVELS = {"easy": 1, "medium": 2, "hard": 4}
RECORD = {"text": "the fox the saw key", "reference": "the fox saw the key", "before": "A fox lived here."}


@pytest.fixture(scope="module")
def bundled() -> LanguageModel:
    return LanguageModel.load()


def start(task: Edit, index: int) -> EditState:
    return task.start(np.random.default_rng(0), {"task_index": index})


def completion(text: str) -> Completion:
    return Completion(text, (), (), "stop")


def play(task: Edit, states: list[EditState], player: Player) -> tuple[list[float], list[EditState]]:
    """Returns and last states of whole episodes."""
    states, rewards, running = list(states), [0.0] * len(states), list(range(len(states)))
    while running:
        turns = [completion(player(states[i])) for i in running]
        answers = task.respond(
            [states[i] for i in running], turns, [np.random.default_rng(0) for _ in running]
        )
        for i, answer in zip(running, answers, strict=True):
            rewards[i] += answer.reward
            states[i] = answer.state
        running = [i for i, answer in zip(running, answers, strict=True) if not answer.done]
    return rewards, states


def edited(text: list[str], edit: str) -> list[str] | None:
    """A second implementation of the edits, by list methods; None for what cannot be done."""
    name, *rest = edit.split()
    words, at = list(text), int(rest[0]) - 1 if rest else 0
    try:
        if name == "delete":
            del words[at]
        elif name == "swap":
            words[at + 1], words[at] = words[at], words[at + 1]
        elif name == "replace":
            words[at] = rest[1]
        elif name == "insert":
            if at > len(words):
                return None
            words.insert(at, rest[1])
    except IndexError:
        return None
    return words if 0 < len(words) <= 16 and (words != text or name == "done") else None


def alignment(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """Optimal string alignment by the textbook recursion."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            same = a[i - 1] == b[j - 1]
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (not same))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                table[i, j] = min(table[i, j], table[i - 2, j - 2] + 1)
    return int(table[-1, -1])


# Generated instances


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.filterwarnings("error")
def test_check_task(bundled: LanguageModel, level: Any) -> None:
    check_task(Edit(bundled, level=level))


def test_any_model_judges(tiny_models: dict[str, str]) -> None:
    for folder in tiny_models.values():
        check_task(Edit(LanguageModel.load(folder), data=[{**RECORD, "before": ""}], max_edits=2))


@pytest.mark.parametrize(("level", "count"), LEVELS.items())
@pytest.mark.parametrize("split", ["train", "test"])
def test_texts_are_as_many_edits_from_their_source_as_the_level_says(
    bundled: LanguageModel, level: Any, split: Any, count: int
) -> None:
    task = Edit(bundled, split=split, level=level)
    seen, frames = set(), set()
    for index in range(60):
        state = start(task, index)
        assert state.given == state.words != state.reference
        assert 6 <= len(state.reference) <= 12
        assert alignment(state.given, state.reference) == count
        source = " ".join(state.reference)
        assert source[0].isupper()
        assert source[-1] in ".!?"
        assert source.isascii()
        assert not set('"\n') & set(source)
        assert state.before[-1] in '.!?"'
        seen.add(source)
        frames.add(state.before.count(". "))
    assert len(seen) > 50
    assert len(frames) > 3


def test_easy_mistakes_are_swaps_doubles_and_gaps(bundled: LanguageModel) -> None:
    task, kinds = Edit(bundled), []
    for index in range(90):
        state = start(task, index)
        given, source = list(state.given), list(state.reference)
        if len(given) == len(source):
            assert sorted(given) == sorted(source)
            kinds.append("swap")
        elif len(given) > len(source):
            assert any(a == b for a, b in pairwise(given))
            kinds.append("double")
        else:
            (missing,) = [word for word in WORDS if source.count(word) > given.count(word)]
            assert missing
            kinds.append("gap")
    assert min(kinds.count(kind) for kind in ("swap", "double", "gap")) > 15


@pytest.mark.parametrize("level", LEVELS)
def test_edits_that_are_offered_lead_to_the_source(bundled: LanguageModel, level: Any) -> None:
    """In as many turns as there are mistakes, and one to say so."""
    task = Edit(bundled, level=level)
    best = task.players()["best"]
    for index in range(40):
        words, state = list(start(task, index).given), start(task, index)
        for _ in range(LEVELS[level]):
            edit = best(state)
            assert edit in task.choices["edit"]
            after = edited(words, edit)
            assert after is not None
            words, state = after, replace(state, words=tuple(after))
        assert tuple(words) == state.reference
        assert best(state) == "done"


@pytest.mark.parametrize(
    ("level", "checksum"), [("easy", 3038111393), ("medium", 688029585), ("hard", 2423856990)]
)
def test_instances_are_the_same_everywhere(bundled: LanguageModel, level: Any, checksum: int) -> None:
    rows = [
        Edit(bundled, level=level, split=split).record(i) for split in ("train", "test") for i in range(5)
    ]  # type: ignore[arg-type]
    assert zlib.crc32(json.dumps(rows).encode()) == checksum


def test_splits_share_no_sentence_in_its_story(bundled: LanguageModel) -> None:
    train, test = (
        {(row["before"], row["reference"]) for row in map(Edit(bundled, split=split).record, range(150))}  # type: ignore[arg-type]
        for split in ("train", "test")
    )
    assert not train & test


@pytest.mark.parametrize("level", LEVELS)
def test_prompts_fit(bundled: LanguageModel, level: Any) -> None:
    """The first prompt, and the longest that edits can make of it."""
    task = Edit(bundled, level=level)
    for index in range(60):
        state = start(task, index)
        longest = (*state.words, *["with"] * 6)[:MAX_WORDS]
        prompt = task._prompt(state.before, longest, 1)
        assert len(bundled.encode(prompt)) + 16 <= 256
    assert max(len(bundled.encode(f" {edit}\n")) for edit in task.choices["edit"]) <= 16


# Edits and the mask


def test_the_mask_allows_what_can_be_done(bundled: LanguageModel) -> None:
    task = Edit(bundled, level="hard")
    texts = [start(task, index).words for index in range(10)]
    texts += [("the",), ("a", "a"), ("the", "it") * 8, tuple("abcdefghijklmno")]
    states = [replace(start(task, 0), words=words) for words in texts]
    mask = task.allowed(states, "edit")
    assert mask.dtype == bool
    assert mask.shape == (len(states), 1 + 16 + 15 + 2 * 16 * 8)
    for state, row in zip(states, mask, strict=True):
        for edit, allowed in zip(task.choices["edit"], row, strict=True):
            after = edited(list(state.words), edit)
            assert allowed == (after is not None), (edit, state.words)
    assert task.allowed([], "edit").shape == (0, 288)


def test_turns_do_the_edits(bundled: LanguageModel) -> None:
    task = Edit(bundled, level="hard")
    dice = np.random.default_rng(0)
    for index in range(20):
        state = start(task, index)
        for left in range(5, 0, -1):
            edit = task.choices["edit"][1 + dice.integers(287)]
            (answer,) = task.respond([state], [completion(f" {edit}")], [dice])
            expected = edited(list(state.words), edit) or list(state.words)
            numbered = " ".join(f"{number} {word}" for number, word in enumerate(expected, 1))
            prompt = f"{state.before}\nText: {numbered}\nEdits left: {left}\nEdit:"
            assert answer.context == Replace(prompt)
            assert answer.info == {"text": " ".join(expected)}
            assert (answer.reward, answer.done, answer.state.prompt) == (0.0, False, prompt)
            state = answer.state
        (answer,) = task.respond([state], [completion("nonsense")], [dice])
        assert answer.done
        assert answer.info["text"] == " ".join(state.words)


@pytest.mark.parametrize("text", ["", "delete", "delete 0", "delete 17", "insert 1 fox", "DONE", "swap 1 2"])
def test_text_that_is_no_edit_changes_nothing(bundled: LanguageModel, text: str) -> None:
    task = Edit(bundled)
    state = start(task, 0)
    (answer,) = task.respond([state], [completion(text)], [np.random.default_rng(0)])
    assert not answer.done
    assert answer.state == replace(state, prompt=answer.state.prompt, edits_left=5)


# The reward


def log_prob(model: LanguageModel, context: str, text: str) -> float:
    """Mean over the text's tokens, by a plain forward pass."""
    before, after = model.encode_prompt(context), model.encode(f" {text}")
    with torch.no_grad():
        logits = model.model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
    return float(np.mean([logits[len(before) + i - 1, token] for i, token in enumerate(after)]))


@pytest.mark.parametrize(
    ("edits", "similarity"),
    [
        (["done"], 0.0),
        (["swap 3", "done"], 1.0),
        (["delete 3", "done"], 0.0),  # "the fox saw key" still lacks a word
        (["delete 3", "insert 4 the", "done"], 1.0),
        (["delete 1", "delete 1", "done"], -1.0),
    ],
)
@pytest.mark.parametrize("weight", [0.5, 0.25])
def test_reward_by_hand(bundled: LanguageModel, edits: list[str], similarity: float, weight: float) -> None:
    task = Edit(bundled, data=[RECORD], grammar_weight=weight)
    script = iter(edits)
    (reward,), (state,) = play(task, [start(task, 0)], lambda state: next(script))
    final, given, source = (
        log_prob(bundled, RECORD["before"], text)
        for text in (" ".join(state.words), RECORD["text"], RECORD["reference"])
    )
    assert abs(source - given) > 0.1
    grammar = np.clip((final - given) / max(source - given, 1), -1, 1)
    assert reward == pytest.approx(weight * grammar + (1 - weight) * similarity, abs=1e-4)
    if edits == ["done"]:
        assert reward == 0.0


def test_distance_is_optimal_string_alignment() -> None:
    dice = np.random.default_rng(0)
    for _ in range(200):
        a, b = (tuple(dice.choice(list("abcd"), size=dice.integers(1, 9)).tolist()) for _ in range(2))
        assert distance(a, b) == alignment(a, b)


@pytest.mark.parametrize("level", LEVELS)
def test_best_player_and_cheap_tricks(bundled: LanguageModel, level: Any) -> None:
    task = Edit(bundled, split="test", level=level)
    players = task.players()
    states = [start(task, index) for index in range(25)]
    means = {name: np.mean(play(task, states, player)[0]) for name, player in players.items()}
    best = means.pop("best")
    assert next(iter(players)) == "best"
    assert best > 0.97
    assert means["done"] == 0.0
    assert means["random"] < -0.4
    assert max(means.values()) < 0.6 * best
    silent, _ = play(task, states[:5], lambda state: "")
    assert silent == [0.0] * 5


def test_another_sentence_pays_nothing(bundled: LanguageModel) -> None:
    """However likely: a clean sentence of another story, in the place of the text."""
    task = Edit(bundled)
    for index in range(10):
        other = start(task, index + 10).reference
        state = replace(start(task, index), words=other)
        (answer,) = task.respond([state], [completion("done")], [np.random.default_rng(0)])
        assert answer.info["reward_parts"]["similarity"] == -1.0
        assert answer.reward <= 0.0


def test_a_text_without_mistakes_is_best_left_alone(bundled: LanguageModel) -> None:
    task = Edit(bundled, data=[{"text": "The fox saw the key.", "reference": "The fox saw the key."}])
    state = start(task, 0)
    assert state.prompt.startswith("Text: 1 The 2 fox")
    assert task.players()["best"](state) == "done"
    nothing, _ = play(task, [state], lambda state: "done")
    worse, _ = play(task, [state], lambda state: "delete 1")
    assert nothing == [0.0]
    assert worse[0] < -0.4


# The user's data


def test_data_from_a_file(bundled: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (RECORD, {**RECORD, "before": ""})))
    task = Edit(bundled, data=path, words=["fox", "saw"], max_edits=2)
    assert start(task, 0).prompt == (
        "A fox lived here.\nText: 1 the 2 fox 3 the 4 saw 5 key\nEdits left: 2\nEdit:"
    )
    assert start(task, 1).prompt == "Text: 1 the 2 fox 3 the 4 saw 5 key\nEdits left: 2\nEdit:"
    assert "replace 2 saw" in task.choices["edit"]
    assert "replace 2 the" not in task.choices["edit"]
    with pytest.raises(ValueError, match=r"options\['prompt'\] has no reference and text"):
        task.start(np.random.default_rng(0), {"prompt": "the fox"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": [{"text": "a"}]}, r"data\[0\] has no column 'reference'"),
        ({"data": [{**RECORD, "text": "a " * 17}]}, r"data\[0\], text must have 1 to 16 words, got 17"),
        ({"data": [{**RECORD, "text": " "}]}, r"data\[0\], text must have 1 to 16 words, got 0"),
        ({"data": [RECORD, {**RECORD, "reference": ""}]}, r"data\[1\], reference must have a word"),
        ({"data": [{**RECORD, "before": 3}]}, r"data\[0\], before must be a str, got int 3"),
        ({"words": []}, "words must be a non-empty list of different words"),
        ({"words": ["a", "a"]}, "words must be a non-empty list of different words"),
        ({"words": ["a", "b c"]}, r"words\[1\] must be one word, without blanks, got 'b c'"),
        ({"words": ["a", 3]}, r"words\[1\] must be a str, got int 3"),
        ({"max_edits": 0}, "max_edits must be an integer >= 1, got 0"),
        ({"grammar_weight": 1.5}, r"grammar_weight must be in 0\.\.1, got 1\.5"),
        ({"level": "brutal"}, "level must be"),
    ],
)
def test_bad_arguments(bundled: LanguageModel, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Edit(bundled, **arguments)


# In the environment


def test_masked_edits_are_refused() -> None:
    env = gymnasium.make("TextGen-Edit-v0").unwrapped
    observation, info = env.reset(seed=0)
    masked = np.flatnonzero(info["action_mask"] == 0)
    with pytest.raises(InvalidAction, match="masked"):
        env.step(int(masked[0]))
    assert np.array_equal(env.action_masks(), observation["action_mask"].astype(bool))
    *_, terminated, _, info = env.step(0)
    assert terminated
    assert info["completion"] == "done"


def test_a_word_by_word_edit_is_the_same_turn() -> None:
    actions = gymnasium.make("TextGen-Edit-v0", observation="text")
    tokens = gymnasium.make("TextGen-Edit-v0", observation="text", actions="token")
    task = actions.unwrapped.task
    for env in (actions, tokens):
        env.reset(seed=3)
    seen = actions.step(task.choices["edit"].index("delete 2"))[0]
    for token in tokens.unwrapped.language_model.encode(" delete 2\n"):
        written = tokens.step(token)[0]
    assert written == seen
    assert "Edits left: 5" in seen


def test_maskable_ppo_takes_allowed_edits_only(tiny_gpt2: str) -> None:
    """A masked one would raise; the masks that it saw are those of the texts."""
    env = gymnasium.make("TextGen-Edit-v0", model=tiny_gpt2, data=[RECORD], observation="embedding")
    learner = MaskablePPO("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=2, seed=0)
    learner.learn(128)
    buffer = learner.rollout_buffer
    masks, actions = buffer.action_masks.reshape(64, 288), buffer.actions.reshape(64).astype(int)
    assert masks[np.arange(64), actions].all()
    assert not masks.all()
    assert len({*map(tuple, masks)}) > 5
    assert len(learner.ep_info_buffer or ()) > 10
