"""The task "transcription": the dictionary by ear and by Sardinas and Patterson's test; noise; tricks."""

from __future__ import annotations

import zlib
from collections.abc import Set
from pathlib import Path
from typing import Any

import jiwer
import pytest
from rapidfuzz.distance.Levenshtein import distance

from lm_envs.language_model import LanguageModel
from lm_envs.pretraining.telling import Dice
from lm_envs.tasks.base import Completion
from lm_envs.tasks.record_task import RecordState
from lm_envs.tasks.transcription import (
    NOISE,
    SIMILAR,
    Transcription,
    draw_text,
    mishear,
    pronounce,
    spoken,
    vocabulary,
)
from lm_envs.testing import check_task
from lm_envs.text_env import TextGenEnv

LEVELS = ("easy", "medium", "hard")
# Of the first twenty records.
CHECKSUMS = {"easy": 2893814349, "medium": 1531721709, "hard": 3751029968}


def reward_of(task: Transcription, record: dict[str, Any], text: str) -> float:
    state = task.opening(record, 0)
    (feedback,) = task.respond([state], [Completion(text, (1,), (0,), "eos")], [None])  # type: ignore[list-item]
    assert feedback.done
    assert feedback.info["reward_parts"] == {"word_error_rate": feedback.reward}
    return feedback.reward


# --- the dictionary ---------------------------------------------------------------------------------------


def test_words_that_sound_as_in_english() -> None:
    """A sample over all kinds of rules, worked out by ear (in a dialect that pronounces every r)."""
    expected = """
        the dh ah, baker b ey k er, barn b aa r n, boat b ow t, bridge b r ih jh, brave b r ey v,
        castle k ae s ah l, candle k ae n d ah l, carried k ae r iy d, cleaned k l iy n d, cottage k
        aa t ih jh, cried k r ay d, dropped d r aa p t, dusty d ah s t iy, flute f l uw t, forest f
        ao r eh s t, found f aw n d, followed f aa l ow d, helped hh eh l p t, kite k ay t, king k
        ih ng, laughed l ae f t, lonely l ow n l iy, mended m eh n d ih d, near n ih r, new n uw,
        noticed n ow t ih s t, old ow l d, queen k w iy n, shy sh ay, small s m ao l, smiled s m ay
        l d, teacher t iy ch er, thanked th ae ng k t, tower t aw er, visited v ih z ih t ih d,
        wanted w aa n t ih d, box b aa k s, young y ah ng, peter p iy t er, ruth r uw th, hugo hh y
        uw g ow
    """
    for entry in expected.split(","):
        word, *phonemes = entry.split()
        assert pronounce(word) == tuple(phonemes), word
        assert word in vocabulary()


def test_every_drawn_word_is_in_the_vocabulary() -> None:
    for level in LEVELS:
        for key in range(500):
            assert set(spoken(draw_text(Dice(key), level))) <= set(vocabulary())


def test_no_words_and_no_sequences_of_words_sound_alike() -> None:
    """Sardinas and Patterson 1953: a code is uniquely decodable iff no dangling suffix is a code word."""
    sounds = [pronounce(word) for word in vocabulary()]
    code = set(sounds)
    assert len(code) == len(sounds) > 120
    assert () not in code
    seen: set[tuple[str, ...]] = set()
    dangling = after(code, code) - {()}
    while not dangling <= seen:
        seen |= dangling
        dangling = after(code, dangling) | after(dangling, code)
    assert not seen & (code | {()})
    assert after({("ae", "n")}, code) & {("ah",)}  # with "an", "an a" would sound like "Anna"


def after(starts: Set[tuple[str, ...]], words: Set[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """What is left of words that begin with one of the starts."""
    return {
        word[len(start) :]
        for start in starts
        for word in words
        if word[: len(start)] == start and word != start
    }


# --- noise ------------------------------------------------------------------------------------------------


def test_each_kind_of_noise() -> None:
    phonemes = tuple(phoneme for word in vocabulary() for phoneme in pronounce(word))
    assert mishear(phonemes, (0, 0, 0), Dice(1)) == list(phonemes)
    assert mishear(phonemes, (0, 100, 0), Dice(1)) == []
    heard = mishear(phonemes, (100, 0, 0), Dice(1))
    groups = [set(group.split()) for group in SIMILAR]
    for said, got in zip(phonemes, heard, strict=True):
        assert said != got
        assert any({said, got} <= group for group in groups)
    heard = mishear(phonemes, (0, 0, 100), Dice(1))
    assert heard[::2] == list(phonemes)
    assert set(heard[1::2]) == set(phonemes)  # every phoneme of the dictionary, and no other


@pytest.mark.parametrize("level", LEVELS)
def test_as_much_noise_as_stated(level: str) -> None:
    phonemes = ("m",) * 40_000
    heard = mishear(phonemes, NOISE[level], Dice(5))
    substituted, deleted, inserted = (share / 100 for share in NOISE[level])
    assert len(heard) / len(phonemes) == pytest.approx(1 + inserted - deleted, abs=0.005)
    assert heard.count("m") / len(phonemes) == pytest.approx(
        1 - substituted - deleted + inserted / 39, abs=0.008
    )


# --- generator --------------------------------------------------------------------------------------------


def test_pinned_instances() -> None:
    """The same records on every platform."""
    for level, checksum in CHECKSUMS.items():
        records = [Transcription(None, level=level).record(index) for index in range(20)]
        assert zlib.crc32(repr([sorted(record.items()) for record in records]).encode()) == checksum, level


@pytest.mark.parametrize("level", LEVELS)
def test_splits_share_no_text(level: str) -> None:
    train, test = (
        {Transcription(None, split=split, level=level).record(index)["reference"][0] for index in range(200)}
        for split in ("train", "test")
    )
    assert not train & test
    assert len(train) > 180


def test_levels_get_harder() -> None:
    """More phonemes to hear, and more of them wrong; at the hardest no commas."""
    lengths, errors = [], []
    for level in LEVELS:
        records = [Transcription(None, level=level).record(index) for index in range(100)]
        clean = [" ".join(" ".join(pronounce(word)) for word in spoken(r["reference"][0])) for r in records]
        heard = [record["phonemes"].replace(",", "") for record in records]
        lengths.append(sum(len(text.split()) for text in clean))
        errors.append(jiwer.wer(clean, heard))
        assert all(("," in record["phonemes"]) == (level != "hard") for record in records)
    assert lengths[0] < lengths[1] < lengths[2]
    assert 0.03 < errors[0] < 0.08
    assert 0.1 < errors[1] < 0.17
    assert errors[2] == pytest.approx(errors[1], abs=0.03)


@pytest.mark.parametrize("level", LEVELS)
def test_prompts_and_references_are_short(level: str) -> None:
    bundled = LanguageModel.load()
    task = Transcription(bundled, level=level)
    for record in map(task.record, range(200)):
        assert len(bundled.encode_prompt(task.prompt_of(record))) <= 120
        assert len(bundled.encode(f" {record['reference'][0]}\n")) <= 32
        assert (task.prompt_of(record) + record["reference"][0]).isascii()


def test_the_example_of_the_documentation() -> None:
    shown = (Transcription.__doc__ or "").split("> ")
    heard = [word.split() for word in shown[1].split("Sounds: ")[1].split(",")]
    text = shown[3].strip("*\n ").split("*")[0]
    clean = [pronounce(word) for word in spoken(text)]
    assert len(clean) == len(heard)
    assert sum(a != b for a, b in zip(map(list, clean), heard, strict=True)) == 2  # two noises


# --- reward -----------------------------------------------------------------------------------------------


def test_reward_is_minus_jiwers_word_error_rate() -> None:
    task = Transcription(None, level="medium")
    record = {"phonemes": "x", "reference": ["The brave baker found a drum."]}
    for text, errors in (
        (" The brave baker found a drum.", 0),
        ("the brave baker found a drum", 0),
        (" The baker found the drum.", 2),
        (" A big brave baker found a drum!", 2),
        ("", 6),
        ("no " * 20, 6),
    ):
        assert reward_of(task, record, text) == pytest.approx(-errors / 6)
        said = text.strip(" .!").lower()
        rate = jiwer.wer("the brave baker found a drum", said)
        assert reward_of(task, record, text) == pytest.approx(-min(1.0, rate))


def nearest_words(state: RecordState) -> str:
    """For what is heard between two commas, the word that is fewest edits away."""
    heard = [chunk.split() for chunk in state.columns["phonemes"].split(",")]
    sounds = {word: pronounce(word) for word in vocabulary()}
    return " " + " ".join(min(sounds, key=lambda word: distance(sounds[word], chunk)) for chunk in heard)


@pytest.mark.parametrize("level", LEVELS)
def test_tricks_fail_and_an_honest_listener_does_not(level: str) -> None:
    task = Transcription(None, level=level, split="test")
    states = [task.opening(task.record(index), index) for index in range(100)]
    references = [state.columns["reference"] for state in states]
    means = {}
    for name, player in (task.players() | {"nearest words": nearest_words}).items():
        values = task.reward([""] * 100, [player(state) for state in states], reference=references)
        means[name] = sum(values) / 100
    for index in range(10):  # the best of these as the answer to everything
        constant = Transcription(None, level=level).record(index)["reference"][0]
        means[constant] = sum(task.reward([""] * 100, [constant] * 100, reference=references)) / 100
    assert means.pop("best") == 0.0
    listener = means.pop("nearest words")
    if level != "hard":
        assert listener > {"easy": -0.05, "medium": -0.15}[level]
    assert -1.0 <= max(means.values()) < -0.65


# --- data, environment ------------------------------------------------------------------------------------


def test_check_task() -> None:
    for level in LEVELS:
        check_task(Transcription(LanguageModel.load(), level=level))


def test_own_data(tmp_path: Path) -> None:
    path = tmp_path / "heard.jsonl"
    path.write_text('{"phonemes": "hh ax l ow", "reference": ["hello", "hallo"]}\n')
    task = Transcription(None, data=path)
    assert task.prompts == ["Sounds: hh ax l ow\nText:"]
    assert reward_of(task, dict(task.record(0)), "Hallo!") == 0.0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"phonemes": "a"}], r"data\[0\] has no column 'reference'"),
        ([{"phonemes": ["a"], "reference": "a"}], r"data\[0\], phonemes must be a str, got list"),
        (
            [{"phonemes": "a", "reference": [3]}],
            r"data\[0\], reference must be a str or a non-empty list of str",
        ),
    ],
)
def test_bad_data(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transcription(None, data=data)


def test_an_episode() -> None:
    """The best player's tokens through the environment, up to the line break."""
    env = TextGenEnv(task="transcription", max_new_tokens=32, stop="\n", level="hard")
    env.reset(seed=0, options={"task_index": 5})
    text = Transcription(None, level="hard").record(5)["reference"][0]
    for token in LanguageModel.load().encode(f" {text}\n"):
        _, reward, terminated, _, info = env.step(token)
    assert terminated
    assert info["completion"] == f" {text}"
    assert reward == 0.0
