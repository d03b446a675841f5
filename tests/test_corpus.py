"""The corpus: its texts are the environments' own contexts, of training instances, and fit the window."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zlib
from collections import Counter
from typing import Any

import gymnasium
import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from agents.play import token_mode
from lm_envs.language_model import LanguageModel
from lm_envs.pretraining import corpus
from lm_envs.pretraining.stories import Split, Story, story
from lm_envs.pretraining.tokenizer import train_tokenizer
from lm_envs.registration import ENVIRONMENTS
from lm_envs.tasks.record_task import TEST_SHARE, RecordTask

TASKS = tuple(kind for kind in corpus.MIXTURE if kind != "story")
SPLITS: tuple[Split, Split] = ("train", "test")
ONE_TURN = ("sentiment", "translation", "summarization", "qa", "transcription")
IDS = {str(kwargs.get("task")): env_id for env_id, (_, _, kwargs) in ENVIRONMENTS.items()}


def text(index: int, kind: str) -> str:
    return corpus.text(index, {kind: 1})


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, int]]:
    """The tasks and numbers of the records that texts are made of; the last is that of the last text."""
    text(0, "reasoning_gym")  # the players of puzzles read records when they are made
    seen: list[tuple[Any, int]] = []
    record = RecordTask.record

    def spy(task: Any, index: int) -> Any:
        seen.append((task, index))
        return record(task, index)

    monkeypatch.setattr(RecordTask, "record", spy)
    return seen


# What the environments show


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Random weights, and a tokenizer that was learnt from the corpus, as the bundled model's is."""
    tokenizer = train_tokenizer((corpus.text(number) for number in range(2000)), 2048, 256)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return LanguageModel.load(str(folder))


def make(model: LanguageModel, kind: str, level: str) -> Any:
    options = {"level": level, "model": model.path, **token_mode(IDS[kind])}
    return gymnasium.make(IDS[kind], **options).unwrapped


def row_of(model: LanguageModel, text: str) -> list[int]:
    """The token ids of a training row."""
    return [*model.encode_prompt(text), model.eos_token_id or 0]


def shown(observation: dict[str, np.ndarray]) -> list[int]:
    return observation["input_ids"][: observation["attention_mask"].sum()].tolist()


def is_replayed(env: Any, row: list[int], context: list[int]) -> bool:
    """Whether the environment, which shows a context now, shows a row's tokens as they are written on."""
    while context == row[: len(context)]:
        context = [*context, row[len(context)]]
        observation, _, terminated, truncated, info = env.step(context[-1])
        if terminated or truncated or ("completion" in info and len(context) == len(row)):
            return context == row and info["finish_reason"] in ("eos", "task")
        context = shown(observation)
    return False


@pytest.mark.parametrize("kind", ONE_TURN)
def test_tasks_of_one_turn(kind: str, model: LanguageModel, drawn: list[tuple[Any, int]]) -> None:
    for number in range(30):
        row = row_of(model, text(number, kind))
        task, index = drawn[-1]
        env = make(model, kind, task.level)
        assert is_replayed(env, row, shown(env.reset(seed=0, options={"task_index": index})[0]))


def test_puzzles(model: LanguageModel, drawn: list[tuple[Any, int]]) -> None:
    options = {"curriculum_level": corpus.PUZZLES, **token_mode(IDS["reasoning_gym"])}
    env: Any = gymnasium.make(IDS["reasoning_gym"], model=model.path, **options).unwrapped
    for number in range(5):
        drawn.clear()
        written = text(number, "reasoning_gym")
        solved = re.split(r"\n(?=State)", written)
        easy = [index for task, index in list(drawn) if not task.record(index)["answer"].startswith("-")]
        assert len(solved) == 8
        for puzzle, index in zip(solved, easy, strict=False):
            context = shown(env.reset(seed=0, options={"task_index": index})[0])
            assert is_replayed(env, row_of(model, puzzle), context)


def test_control(model: LanguageModel, drawn: list[tuple[Any, int]]) -> None:
    for number in range(20):
        written = text(number, "control")
        task, index = drawn[-1]
        (demands,) = re.findall(r"^Demands: (.*)\.$", written, re.MULTILINE)
        data = [{"demands": demands, "opening": task.record(index)["opening"]}]
        env = gymnasium.make(IDS["control"], data=data, model=model.path)
        assert is_replayed(env, row_of(model, written), shown(env.reset(seed=0)[0]))


def test_stories_go_on_where_prompts_end(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Story] = []
    monkeypatch.setattr(corpus, "story", lambda *args: told.append(story(*args)) or told[-1])
    env = gymnasium.make("TextGen-v0", model=model.path)
    for number in range(20):
        row = row_of(model, text(number, "story"))
        context = shown(env.reset(options={"prompt": told[-1].opening})[0])
        assert context == row[: len(context)]
        assert len(row) > len(context) + 5


def test_dialogues(model: LanguageModel, drawn: list[tuple[Any, int]]) -> None:
    for number in range(12):
        row = row_of(model, text(number, "dialogue"))
        task, index = drawn[-1]
        env = make(model, "dialogue", task.level)
        starts = (shown(env.reset(seed=seed, options={"task_index": index})[0]) for seed in range(100))
        assert any(is_replayed(env, row, start) for start in starts)


def test_snake(model: LanguageModel) -> None:
    env = make(model, "snake", "easy")
    for number in range(40):
        written = text(number, "snake")
        prompt = written[: written.index("Move:") + len("Move:")]
        context = shown(env.reset(seed=0, options={"prompt": prompt})[0])
        assert is_replayed(env, row_of(model, written), context)


def test_edit(model: LanguageModel, drawn: list[tuple[Any, int]]) -> None:
    sizes = Counter[int]()
    for number in range(30):
        drawn.clear()
        written = text(number, "edit")
        instances, with_story = list(drawn), not written.startswith("Text")
        turns = [written] if with_story else re.split(r"\n(?=Text)", written)
        for turn in turns:
            row = row_of(model, turn)
            assert any(is_shown(model, row, *instance, with_story) for instance in instances)
        sizes[len(turns)] += 1
    assert sizes.keys() == {1, 6}


def is_shown(model: LanguageModel, row: list[int], task: Any, index: int, with_story: bool) -> bool:
    """Whether a row's edit can be the next of an instance, with or without the story before it."""
    record = dict(task.record(index))
    if not with_story:
        del record["before"]
    env = gymnasium.make(IDS["edit"], data=[record], model=model.path, **token_mode(IDS["edit"])).unwrapped
    return any(is_replayed(env, row, context) for context in contexts(env, 0, task.players()["best"]))


def contexts(env: Any, index: int, player: Any) -> Any:
    """What the environment shows at the beginning, and after each turn of a player."""
    for turns in range(env.task.max_edits):
        context = shown(env.reset(seed=0, options={"task_index": index})[0])
        for _ in range(turns):
            for token in env._core.turn(player(env._core.episodes.arrays.states[0])):
                observation, _, is_over, _, _ = env.step(token)
            if is_over:
                return
            context = shown(observation)
        yield context


def test_recommendation(model: LanguageModel, drawn: list[tuple[Any, int]]) -> None:
    sizes = Counter[int]()
    for number in range(60):
        written = text(number, "recommendation")
        task, index = drawn[-1]
        today = [*listed(written, "Liked today"), *listed(written, "Skipped today")]
        sizes[len(today)] += 1
        if len(today) > 1:  # their order is not in the text
            continue
        env, row = make(model, "recommendation", task.level), row_of(model, written)
        for seed in range(300):
            context = shown(env.reset(seed=seed, options={"task_index": index})[0])
            for item in today:
                for token in env._core.turn(item):
                    context = shown(env.step(token)[0])
            if is_replayed(env, row, context):
                break
        else:
            pytest.fail(written)
    assert sizes.keys() == set(range(8))


def listed(text: str, line: str) -> list[str]:
    (found,) = re.findall(rf"^{line}: (.*)$", text, re.MULTILINE)
    return [] if found == "none" else found.split(", ")


# What is in the texts


def test_instances_are_of_the_train_split(
    drawn: list[tuple[Any, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    splits: list[str] = []
    monkeypatch.setattr(corpus, "story", lambda seed, split: splits.append(split) or story(seed, split))
    for number in range(1500):
        corpus.text(number)
    tasks = {type(task) for task, _ in drawn}
    assert tasks == {type(corpus._task(kind, "easy", "train")) for kind in TASKS}
    assert {task.split for task, _ in drawn} | {*splits} == {"train"}
    for task, index in drawn[::5]:
        assert zlib.crc32(task.prompt_of(task.record(index)).encode()) % TEST_SHARE


@pytest.mark.parametrize("kind", corpus.MIXTURE)
def test_held_out_texts_are_others(kind: str) -> None:
    train, test = ([corpus.text(number, {kind: 1}, split) for number in range(40)] for split in SPLITS)
    assert not {*train} & {*test}


def test_kinds_are_drawn_by_weight() -> None:
    mixture = {"snake": 0, "sentiment": 3, "transcription": 1}
    begins = Counter(corpus.text(number, mixture)[:6] for number in range(1000))
    assert begins.keys() == {"Review", "Sounds"}
    assert abs(begins["Review"] - 750) < 5 * (1000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize(
    ("index", "mixture", "message"),
    [
        (-1, {"story": 1}, "index must be >= 0, got -1"),
        (0, {"poem": 1}, "got 'poem'"),
        (0, {"story": 0}, "weights >= 0, one of them above 0"),
        (0, {"story": 2, "qa": -1}, "weights >= 0, one of them above 0"),
        (0, {}, "weights >= 0, one of them above 0"),
    ],
)
def test_bad_arguments(index: int, mixture: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        corpus.text(index, mixture)


def test_puzzles_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus._puzzles.cache_clear()
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(ImportError, match=re.escape("lm-envs[reasoning-gym]")):
        text(0, "reasoning_gym")
    assert text(0, "story")


SCRIPT = """
import json, sys, zlib
from lm_envs.pretraining import corpus
sums = {
    kind: zlib.crc32("".join(corpus.text(number, {kind: 1}) for number in range(30)).encode())
    for kind in corpus.MIXTURE
}
print(json.dumps(["torch" in sys.modules, "transformers" in sys.modules, sums]))
"""
# Of kinds without stories and names; another checksum means another bundled model.
PINNED = {
    "translation": 2934570219,
    "snake": 1104494729,
    "recommendation": 3585242189,
    "sentiment": 2566859210,
}


def test_texts_are_the_same_in_every_process_and_need_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    has_torch, has_transformers, there = json.loads(ran.stdout)
    assert not has_torch
    assert not has_transformers
    here = {
        kind: zlib.crc32("".join(text(number, kind) for number in range(30)).encode())
        for kind in corpus.MIXTURE
    }
    assert there == here
    assert {kind: here[kind] for kind in PINNED} == PINNED


@pytest.mark.parametrize("kind", corpus.MIXTURE)
def test_rows_fit_the_window(kind: str, model: LanguageModel) -> None:
    assert max(len(row_of(model, text(number, kind))) for number in range(200)) <= 256


# What the texts teach


def test_snake_moves_are_open_and_mostly_lead_to_the_food() -> None:
    lengths, nearer = set(), 0
    for number in range(400):
        board, _, move = text(number, "snake").rpartition("\nMove: ")
        (ways,) = re.findall(r"^Open: (.*)\.$", board, re.MULTILINE)
        assert move in ways.split(", ") or ways == "none"
        (food,) = re.findall(r"^Food: (.*)\.$", board, re.MULTILINE)
        nearer += move in food
        lengths.add(sum(line.count(arrow) for line in board.split("\n|")[1:] for arrow in "^v<>") + 1)
    assert {*range(3, 25)} <= lengths
    assert nearer > 300


def test_edits_mend_but_for_some_missing_words_and_swaps(drawn: list[tuple[Any, int]]) -> None:
    mended, overlooked = Counter[str](), Counter[str]()
    for number in range(500):
        drawn.clear()
        written = text(number, "edit")
        if any(task.level != "easy" for task, _ in drawn):
            continue
        references = [task.record(index)["reference"].split() for task, index in list(drawn)]
        turns = re.findall(r"^Text: (.*)\nEdits left: \d\nEdit:(.*)$", written, re.MULTILINE)
        for numbered, said in turns:
            words, (name, *arguments) = numbered.split()[1::2], said.split()
            if name == "done" and words not in references:
                is_swap = sorted(words) in map(sorted, references)
                assert is_swap or len(turns) == 1
                overlooked["swap" if is_swap else "insert"] += 1
                continue
            at = int(arguments[0]) - 1 if arguments else 0
            if name == "swap":
                words[at : at + 2] = words[at + 1], words[at]
            elif name == "delete":
                assert words[at] == words[at - 1]
                del words[at]
            elif name == "insert":
                words.insert(at, arguments[1])
            assert words in references
            mended[name] += 1
    assert min(mended.values()) >= 5
    # A sentence with a mistake that is seen makes two texts, the clean one among them: about half as many.
    assert overlooked["insert"] > 2 * mended["insert"]
    assert 0.5 * mended["swap"] < overlooked["swap"] < 1.7 * mended["swap"]
    assert mended["delete"] > 200


def test_recommendations_are_popular_or_the_best(drawn: list[tuple[Any, int]]) -> None:
    popular = 0
    for number in range(300):
        written = text(number, "recommendation")
        task, _ = drawn[-1]
        turn = len([*listed(written, "Liked today"), *listed(written, "Skipped today")])
        popular += written.endswith(f"Next:{task._by_popularity[turn]}")
    assert 180 <= popular < 250


@pytest.mark.parametrize("kind", corpus.WORDS_LEFT_OUT)
def test_languages_are_taught_in_part(kind: str) -> None:
    whole, taught = Counter[str](), Counter[str]()
    for number in range(1500):
        record = corpus._task(kind, "easy", "train").record(number)
        whole.update(re.findall("[a-z]+", (record.get("source") or record["reference"][0]).lower()))
        source, _, target = text(number, kind).rpartition("\n")
        taught.update(re.findall("[a-z]+", (source if kind == "translation" else target).lower()))
    often = {word for word, count in whole.items() if count >= 10}
    left_out = {word for word in often if corpus.is_left_out(kind, word)}
    assert 0.25 < len(left_out) / len(often) < 0.6
    assert not left_out & taught.keys()
    assert len(often - left_out - taught.keys()) <= 2  # "bridge" stands behind "under" only


def test_questions_and_demands_are_taught_in_part() -> None:
    asked = [corpus._task("qa", "easy", "train").record(number)["question"] for number in range(300)]
    assert 60 < sum(question.startswith(corpus.QUESTIONS_LEFT_OUT) for question in asked) < 160
    listed = [corpus._task("control", "easy", "train").record(number)["demands"] for number in range(300)]
    assert 180 < sum(each.startswith(corpus.DEMANDS_LEFT_OUT) for demands in listed for each in demands) < 320
    for number in range(200):
        assert not re.search(r"^Question: (Where|Whom)", text(number, "qa"), re.MULTILINE)
        assert not re.search(
            r"^Demands:.*( |; )(the word|begin)", text(number, "control").replace("not the", "")
        )


def test_summaries_tell_the_goal_or_its_beginning_and_no_trouble(drawn: list[tuple[Any, int]]) -> None:
    brief = 0
    for number in range(300):
        summary = text(number, "summarization").rpartition("\nSummary: ")[2]
        task, index = drawn[-1]
        hero, goal, *_ = task.record(index)["keywords"]
        whole = f"{hero} wanted to {goal}."
        if summary != whole:
            assert summary.endswith(".")
            assert whole.startswith(f"{summary[:-1]} ")
            assert len(summary.split()) >= 4
            brief += 1
    assert 120 < brief < 220


def test_reviews_name_their_subject_at_times(drawn: list[tuple[Any, int]]) -> None:
    named = 0
    for number in range(300):
        written = text(number, "sentiment")
        task, index = drawn[-1]
        record = task.record(index)
        named += f"this {record['subject']}" in written[len(record["prompt"]) :]
    assert abs(named - 120) < 5 * (300 * 0.4 * 0.6) ** 0.5


def test_answers_to_puzzles_are_right() -> None:
    sizes = Counter[int]()
    for number in range(30):
        solved = text(number, "reasoning_gym")
        found = re.findall(r": (\d(?: [+-] \d){1,2}) =\nAnswer: (\d+)$", solved, re.MULTILINE)
        assert len(found) == 8
        for problem, answered in found:
            terms = re.findall(r"[+-]?\d", problem.replace(" ", ""))
            assert int(answered) == sum(map(int, terms))
            sizes[len(terms)] += 1
    assert min(sizes[2], sizes[3]) > 60


def test_dialogues_end_well_by_the_first_rule() -> None:
    for number in range(100):
        said = text(number, "dialogue").splitlines()
        rules = said[0].removeprefix("Rules: ")
        assert re.search(rf"you get (a )?{re.split('[,;.] ', rules)[1]}", said[-3])
        assert re.fullmatch(r"User: Thank you! [345] stars\.", said[-2])
        assert said[-1] == "Desk: You are welcome. Goodbye."
