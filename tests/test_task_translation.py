"""The task "translation": both languages are read back by parsers of their own, and the tricks fail."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sacrebleu import sentence_bleu, sentence_chrf

from lm_envs.language_model import LanguageModel
from lm_envs.tasks.base import Completion
from lm_envs.tasks.translation import (
    ADJECTIVES,
    INTRANSITIVE,
    NOUNS,
    PLACES,
    TRANSITIVE,
    Translation,
)
from lm_envs.testing import check_task
from lm_envs.text_env import TextGenEnv

# Of the first twenty records.
CHECKSUMS = {"easy": 389358211, "medium": 2515834245, "hard": 2581131838}
LEVELS = ("easy", "medium", "hard")
DIRECTIONS = ("to_english", "from_english")


@pytest.fixture(scope="module")
def bundled() -> LanguageModel:
    return LanguageModel.load()


def reward_of(task: Translation, record: dict[str, Any], text: str) -> tuple[float, dict[str, float]]:
    state = task.opening(record, 0)
    (feedback,) = task.respond([state], [Completion(text, (1,), (0,), "eos")], [None])  # type: ignore[list-item]
    assert feedback.done
    return feedback.reward, feedback.info["reward_parts"]


# --- parsers of both languages, from the description in words: all ways to read a sentence ------------------

# Meanings: (subject, clause, place). A phrase is a pronoun, or (noun, plural, definite, adjective, clause);
# a clause is (verb, tense, negated, object).
Words = tuple[str, ...]
NOUN_STEMS = {noun.stem: noun for noun in NOUNS}
ADJECTIVE_STEMS = {adjective.stem: adjective.english for adjective in ADJECTIVES}
VERB_STEMS = {verb.stem: verb.base for verb in TRANSITIVE + INTRANSITIVE}
PLACE_STEMS = {noun.stem: noun.singular for noun in PLACES}


def read_velan(text: str) -> list[Any]:
    words = tuple(text.split())
    place = None
    if words[1:2] and words[1] in ("su", "nel", "gar"):
        assert words[0].endswith("o")
        place = {"su": "in", "nel": "near", "gar": "behind"}[words[1]], PLACE_STEMS[words[0][:-1]]
        words = words[2:]
    return [
        (subject, clause, place)
        for subject, vowel, rest in velan_phrases(words, "")
        for clause, left in velan_clauses(rest, vowel)
        if not left
    ]


def velan_phrases(words: Words, case: str, relative: bool = True) -> Iterator[tuple[Any, str, Words]]:
    pronouns = {"ila": "he", "ema": "she", "ilo": "it", "ile": "they"}
    for pronoun, english in pronouns.items():
        if words[:1] == (pronoun + case,):
            yield english, pronoun[-1], words[1:]
    clauses: list[tuple[Any, str, Words]] = [(None, vowel, words) for vowel in "aeou"]
    if relative:
        clauses += [
            (clause, vowel, rest)
            for vowel in "aeou"
            for clause, rest in velan_clauses(words, vowel + "r", False)
        ]
    for clause, vowel, (noun_word, *after) in ((c, v, rest or ("",)) for c, v, rest in clauses):
        ending = vowel + case
        noun = NOUN_STEMS.get(noun_word.removesuffix(ending)) if noun_word.endswith(ending) else None
        if noun is None or (noun.kind == "thing") != (vowel in "ou"):
            continue
        adjective = None
        if after and after[0].endswith(ending) and after[0].removesuffix(ending) in ADJECTIVE_STEMS:
            adjective = ADJECTIVE_STEMS[after.pop(0).removesuffix(ending)]
        definite = after[:1] != ["ti"]
        yield (noun.singular, vowel in "eu", definite, adjective, clause), vowel, tuple(after[not definite :])


def velan_clauses(words: Words, ending: str, relative: bool = True) -> Iterator[tuple[Any, Words]]:
    objects = [(None, words), *((found, rest) for found, _, rest in velan_phrases(words, "n", relative))]
    for found, rest in objects:
        negated = rest[:1] == ("ne",)
        word, *after = rest[negated:] or ("",)
        for tense, mark in (("present", "is"), ("past", "it"), ("future", "el")):
            if word.endswith(mark + ending) and word.removesuffix(mark + ending) in VERB_STEMS:
                yield (VERB_STEMS[word.removesuffix(mark + ending)], tense, negated, found), tuple(after)


def read_english(text: str) -> list[Any]:
    assert text[0].isupper()
    assert text.endswith(".")
    words = tuple((text[0].lower() + text[1:-1]).split())
    place = None
    if words[-3:-2] and words[-3] in ("in", "near", "behind"):
        place = words[-3], words[-1]
        assert words[-2] == "the"
        assert words[-1] in PLACE_STEMS.values()
        words = words[:-3]
    return [
        (subject, clause, place)
        for subject, plural, rest in english_phrases(words, ("he", "she", "it", "they"))
        for clause, left in english_clauses(rest, plural)
        if not left
    ]


def english_phrases(
    words: Words, pronouns: Words, relative: bool = True
) -> Iterator[tuple[Any, bool, Words]]:
    for english, pronoun in zip(("he", "she", "it", "they"), pronouns, strict=True):
        if words[:1] == (pronoun,):
            yield english, english == "they", words[1:]
    if words[:1] and words[0] in ("the", "a", "an", "some"):
        article, rest = words[0], words[1:]
        assert article not in ("a", "an") or (article == "an") == (rest[0][0] in "aeiou")
        adjective = rest[0] if rest[0] in ADJECTIVE_STEMS.values() else None
        rest = rest[adjective is not None :]
        (noun,) = (noun for noun in NOUNS if rest[0] in (noun.singular, noun.plural))
        plural = rest[0] == noun.plural
        assert (article in ("the", "some")) if plural else (article != "some")
        before = noun.singular, plural, article == "the", adjective
        rest = rest[1:]
        yield (*before, None), plural, rest
        if relative and rest and rest[0] in (("that", "who") if noun.kind == "person" else ("that",)):
            for clause, left in english_clauses(rest[1:], plural, relative=False):
                yield (*before, clause), plural, left


def english_clauses(words: Words, plural: bool, relative: bool = True) -> Iterator[tuple[Any, Words]]:
    do = "do" if plural else "does"
    negations = {"will not": "future", "won't": "future", "did not": "past", "didn't": "past"}
    negations |= {f"{do} not": "present", f"{do}n't": "present"}
    starts = []
    for verb in TRANSITIVE + INTRANSITIVE:
        starts += [(verb.base, tense, True, f"{start} {verb.base}") for start, tense in negations.items()]
        starts.append((verb.base, "future", False, f"will {verb.base}"))
        starts.append((verb.base, "past", False, verb.past))
        starts.append((verb.base, "present", False, verb.base if plural else verb.third))
    for base, tense, negated, start in starts:
        size = len(start.split())
        if words[:size] == tuple(start.split()):
            yield (base, tense, negated, None), words[size:]
            for found, _, rest in english_phrases(words[size:], ("him", "her", "it", "them"), relative):
                yield (base, tense, negated, found), rest


@pytest.mark.parametrize("level", LEVELS)
def test_both_sentences_mean_the_same_and_can_be_read_in_one_way(level: str) -> None:
    task, back = (Translation(None, level=level, direction=direction) for direction in DIRECTIONS)
    for index in range(400):
        record = task.record(index)
        (meaning,) = read_velan(record["source"])
        for english in record["reference"]:
            assert read_english(english) == [meaning], (record["source"], english)
        # "that" or "who" for each person with a clause, "not" or "n't": all of them, each once.
        english = record["reference"][0]
        phrases = [meaning[0], meaning[1][3]]
        people = {noun.singular for noun in NOUNS if noun.kind == "person"}
        who = sum(
            type(phrase) is tuple and phrase[4] is not None and phrase[0] in people for phrase in phrases
        )
        assert len(set(record["reference"])) == len(record["reference"]) == 2 ** (who + (" not " in english))
        record = back.record(index)
        (velan,) = record["reference"]
        assert read_velan(velan) == read_english(record["source"])


def test_the_examples_of_the_documentation() -> None:
    english = "The dog that followed the cats did not find a new boat near the mill."
    assert read_velan("ravo nel belen ketitar mata fomon tipon ti ne rufita") == read_english(english)
    assert "ravo nel belen ketitar mata fomon tipon ti ne rufita" in (Translation.__doc__ or "")
    assert english in (Translation.__doc__ or "")


def test_no_two_words_look_alike() -> None:
    stems = [word.stem for word in NOUNS + PLACES + ADJECTIVES + TRANSITIVE + INTRANSITIVE]
    assert len(set(stems)) == len(stems)
    for words in (
        [form for noun in NOUNS + PLACES for form in (noun.singular, noun.plural)],
        [form for verb in TRANSITIVE + INTRANSITIVE for form in (verb.base, verb.third, verb.past)],
    ):
        assert len(set(words)) == len(words)


# --- generator --------------------------------------------------------------------------------------------


def test_pinned_instances() -> None:
    """The same sentences on every platform."""
    for level, checksum in CHECKSUMS.items():
        records = [Translation(None, level=level).record(index) for index in range(20)]
        assert zlib.crc32(repr([sorted(record.items()) for record in records]).encode()) == checksum, level


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_splits_share_no_source(level: str, direction: str) -> None:
    sources = [
        {
            Translation(None, split=split, level=level, direction=direction).record(i)["source"]
            for i in range(500)
        }
        for split in ("train", "test")
    ]
    assert not sources[0] & sources[1]
    assert len(sources[0]) > 400  # varied


def test_levels_get_harder() -> None:
    """Sentences get longer, and use more forms of words."""
    lengths, forms = [], []
    for level in LEVELS:
        sources = [Translation(None, level=level).record(index)["source"].split() for index in range(300)]
        lengths.append(sum(map(len, sources)))
        forms.append(len({word for source in sources for word in source}))
    assert lengths == sorted(lengths)
    assert forms[0] < forms[1] / 2 < forms[2]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_prompts_and_references_are_short(level: str, direction: str, bundled: LanguageModel) -> None:
    task = Translation(bundled, level=level, direction=direction)
    for record in map(task.record, range(300)):
        assert len(bundled.encode_prompt(task.prompt_of(record))) <= 80
        assert all(len(bundled.encode(f" {text}\n")) <= 40 for text in record["reference"])
        assert (task.prompt_of(record) + "".join(record["reference"])).isascii()


# --- reward -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["chrf", "bleu"])
def test_reward_is_sacrebleus(metric: str) -> None:
    task = Translation(None, level="hard", metric=metric)
    score = {"chrf": sentence_chrf, "bleu": sentence_bleu}[metric]
    for index in range(30):
        record = task.record(index)
        for text in (*record["reference"], " The dogs did not see the old king.", record["source"], "a", ""):
            reward, parts = reward_of(task, record, text)
            assert reward == pytest.approx(score(text, record["reference"]).score / 100, abs=1e-12)
            assert parts == {metric: reward, "exact": float(text in record["reference"])}
    assert reward_of(task, record, "") == (0.0, {metric: 0.0, "exact": 0.0})


def test_exact_metric() -> None:
    task = Translation(None, metric="exact")
    record = {"source": "x", "reference": ["The cat ran.", "A cat ran."]}
    for text, expected in ((" A cat ran.", 1), ("The cat ran. ", 1), ("the cat ran.", 0), ("", 0)):
        assert reward_of(task, record, text) == (expected, {"exact": expected})


# Metric -> what stays above all tricks that know no word, a gloss, and a right translation's words, sorted.
BARS = {"chrf": (0.25, 0.4, 0.7), "bleu": (0.15, 0.15, 0.5), "exact": (0.01, 0.02, 0.15)}


@pytest.mark.parametrize("metric", BARS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_tricks_fail(level: str, direction: str, metric: str) -> None:
    task = Translation(None, level=level, direction=direction, split="test", metric=metric)
    states = [task.opening(task.record(index), index) for index in range(200)]
    means = {}
    players = task.players()
    players["shuffled"] = lambda state: " ".join(sorted(state.columns["reference"][0].split()))
    for name, player in players.items():
        values = task.reward(
            [""] * 200, [player(s) for s in states], reference=[s.columns["reference"] for s in states]
        )
        means[name] = sum(values) / 200
    assert means.pop("best") == pytest.approx(1.0)
    shuffled, gloss = means.pop("shuffled"), means.pop("gloss")
    assert [max(means.values()) < BARS[metric][0], gloss < BARS[metric][1], shuffled < BARS[metric][2]] == [
        True
    ] * 3, (means, gloss, shuffled)


# --- data, arguments, environment -------------------------------------------------------------------------


def test_check_task(tiny_gpt2: str) -> None:
    for level in LEVELS:
        check_task(Translation(LanguageModel.load(tiny_gpt2), level=level))


def test_own_data(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('source,reference\n"Der Hund schläft.","The dog sleeps."\n', encoding="utf-8")
    task = Translation(None, data=path)
    assert task.prompts == ["Text: Der Hund schläft.\nTranslation:"]
    assert reward_of(task, dict(task.record(0)), " The dog sleeps.")[0] == pytest.approx(1.0)
    rows = [{"source": "ja", "reference": ["yes", "yeah"]}]
    assert reward_of(Translation(None, data=rows), rows[0], "yeah")[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"data": [{"source": "a"}]}, r"data\[0\] has no column 'reference'"),
        ({"data": [{"source": "a", "reference": []}]}, r"data\[0\], reference must be a str or a non-empty"),
        ({"data": [{"source": 1, "reference": "a"}]}, r"data\[0\], source must be a str, got int 1"),
        ({"direction": "french"}, "direction must be 'to_english' or 'from_english', got 'french'"),
        ({"metric": "ter"}, "metric must be 'chrf', 'bleu' or 'exact', got 'ter'"),
        ({"level": "extreme"}, "level must be"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Translation(None, **kwargs)


def test_an_episode(bundled: LanguageModel) -> None:
    """The best player's tokens through the environment, up to the line break."""
    env = TextGenEnv(task="translation", max_new_tokens=40, stop="\n", level="hard")
    env.reset(seed=0, options={"task_index": 5})
    record = Translation(None, level="hard").record(5)
    for token in bundled.encode(f" {record['reference'][0]}\n"):
        _, reward, terminated, _, info = env.step(token)
    assert terminated
    assert info["completion"] == f" {record['reference'][0]}"
    assert reward == pytest.approx(1.0)
