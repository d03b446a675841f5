"""The checks of stories, the figures made of them, and the command that prints them."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import build_model, build_tokenizer

from benchmarks import model as command
from benchmarks.model import Model, share_of_the_way
from lm_envs.pretraining import corpus
from lm_envs.pretraining import seen as seen_module
from lm_envs.pretraining.checks import (
    all_sentences,
    genders,
    is_unfinished,
    mentions,
    name_faults,
    names,
    pronoun_faults,
    role_faults,
    sentence_slips,
    sentences,
    share,
)
from lm_envs.pretraining.measures import (
    EndingQuality,
    StoryQuality,
    complete,
    generator_perplexity,
    held_out_perplexity,
    is_story,
    sample_stories,
)
from lm_envs.pretraining.recipe import Recipe
from lm_envs.pretraining.seen import Seen
from lm_envs.pretraining.stories import story

CAST = {
    **dict.fromkeys(("Mira", "Ida", "aunt", "teacher", "sister"), "she"),
    **dict.fromkeys(("Tom", "Ben", "miller", "uncle", "baker", "cook"), "he"),
}
GOOD = (
    "Mira was a brave girl in a village who wanted to bake a plum pie. Her aunt gave her an egg. "
    'But the fire went out. "I will help you," said her aunt. She lit the fire, and Mira was happy.'
)


@pytest.fixture(scope="module")
def held_out() -> list[str]:
    return [story(seed, "test").text for seed in range(400)]


@pytest.fixture(scope="module")
def seen() -> Seen:
    seen = Seen(genders(), {story(seed).thing for seed in range(4000)})
    for seed in range(4000):
        seen.add(story(seed).text)
    return seen


# Names


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "Mira lived by the sea. Her friend Tom came. Tom sang.",
        "Mira lived by the sea. Her old friend, Tom, came.",
        "By the sea lived a girl. A boy named Tom sang. His sister Ida sang too.",
        "Mira's aunt sang, and Mira's pie burned.",
    ],
)
def test_names_that_are_introduced(text: str) -> None:
    assert name_faults(text, CAST) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Mira baked a pie. Tom ate it.", "Tom was never introduced"),
        ("Mira and her friend Tom sang. Then Ida came, and Ida sang.", "Ida was never introduced"),
        ('Mira sang. "Well done, Ben!" said her friend Ben.', "Ben was never introduced"),
        ('Mira lost. "It is over!" called Tom.', "Tom was never introduced"),
        ("A girl sang. The sun rose. The pie burned. Mira cried.", "Mira is introduced late"),
        ("A girl sang.", "nobody has a name"),
    ],
)
def test_names_that_nobody_introduced(text: str, fault: str) -> None:
    assert name_faults(text, CAST) == [fault]


def test_names_of_a_text() -> None:
    assert names("Ida saw Tom's hat. Idaho. The miller.") == {"Ida", "Tom"}


def test_roles_stand_behind_an_article() -> None:
    found = mentions("Tom wanted to cook. The old cook laughed, and his aunt cooked for a baker.", CAST)
    assert [(each.word, each.determiner) for each in found] == [
        ("Tom", ""),
        ("cook", "the"),
        ("aunt", "his"),
        ("baker", "a"),
    ]


# Pronouns and roles


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "Tom hurt himself. His aunt held his hand, and she smiled.",
        "When he woke, Tom laughed.",
        "Mira met the miller. He gave her his coat.",
        "Tom was a shy boy. His uncle and her sister met Mira.",
    ],
)
def test_pronouns_with_somebody_to_refer_to(text: str) -> None:
    assert pronoun_faults(text, CAST) == []


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("Mira lost his hat.", ["his"]),
        ("Mira sang. Then he cried himself to sleep.", ["he", "himself"]),
        ("Tom asked her aunt.", ["her"]),  # the aunt is not her own aunt
        ("Tom asked her old aunt.", ["her"]),
        ("She sang. Mira sang.", ["She"]),
        ("A girl named Tom sang.", ["Tom is called a girl"]),
        ("Tom and his sister Ben sang.", ["Ben is called a sister"]),
        ("Mira was a shy boy.", ["Mira is called a boy"]),
    ],
)
def test_pronouns_of_nobody(text: str, faults: list[str]) -> None:
    found = pronoun_faults(text, CAST)
    assert len(found) == len(faults)
    assert all(
        line.startswith((f"{fault.lower()}:", fault)) for line, fault in zip(found, faults, strict=True)
    )


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        (GOOD, []),
        ("Mira asked the miller. The old miller met a baker. The baker sang.", []),
        ("Mira asked the miller. The baker sang.", ["the baker after the miller"]),
        ("Mira asked her aunt. Her uncle sang, and the uncle left.", ["the uncle after the aunt"]),
        ("Mira wanted to cook. The old baker sang.", []),
    ],
)
def test_second_helpers(text: str, faults: list[str]) -> None:
    assert role_faults(text, CAST) == faults


# Sentences


@pytest.mark.parametrize(
    ("sentence", "slips"),
    [
        ("Tom saw the dog dog.", ["a doubled word"]),
        ("He knew that that was so.", []),
        ("It was long, long ago.", []),
        ("Tom ate a apple.", ['"a" before a vowel']),
        ("Tom ate an pear.", ['"an" before a consonant']),
        ("Tom waited an hour.", []),
        ("Tom saw the a dog.", ["two articles"]),
        ("Mira gave her the coat.", []),
        ("Tom wanted to baked a pie.", ["a past after to or a modal verb"]),
        ("Tom could went home.", ["a past after to or a modal verb"]),
        ("Tom went to bed and could feed the red hen.", []),
        ("They was glad.", ["verb and subject disagree"]),
        ("Tom saw the.", ["an end too soon"]),
        ("Tom ran , and fell.", ["wrong punctuation"]),
        ("Tom waited...", []),
        ("tom ran.", ["no capital"]),
        ("Tom ran and", ["no end"]),
        ('"Run!" cried Tom.', []),
    ],
)
def test_slips(sentence: str, slips: list[str]) -> None:
    assert sentence_slips(sentence) == slips


def test_sentences_with_and_without_an_unfinished_one() -> None:
    text = '"Why?" she cried. "Go home," said he. Then the'
    assert sentences(text) == ['"Why?" she cried.', '"Go home," said he.']
    assert all_sentences(text) == [*sentences(text), "Then the"]
    assert all_sentences("Nothing") == ["Nothing"]
    assert all_sentences("") == []


@pytest.mark.parametrize(
    ("text", "unfinished"),
    [("Tom ran.", False), ('"Run!"', False), ("Tom ran", True), ('"Tom ran.', True), ("", True)],
)
def test_unfinished_texts(text: str, unfinished: bool) -> None:
    assert is_unfinished(text) is unfinished


# The generator's own stories, and mistakes put into them


def test_the_generator_makes_no_mistake(held_out: list[str], seen: Seen) -> None:
    cast = genders()
    for text in held_out:
        assert name_faults(text, cast) + pronoun_faults(text, cast) + role_faults(text, cast) == [], text
        assert [slip for sentence in all_sentences(text) for slip in sentence_slips(sentence)] == [], text
        assert not is_unfinished(text)
        assert seen.unknown_names(text) == []
    assert share(bool(seen.turned(text)) for text in held_out) <= 0.01


def test_wrong_names_are_found(held_out: list[str]) -> None:
    """The hero has another name in one later sentence."""
    found = []
    for text in held_out:
        told = all_sentences(text)
        hero = next(mention.word for mention in mentions(text, genders()) if mention.is_name)
        other = next(name for name in ("Mira", "Tom", "Ida") if name not in text)
        places = [number for number, sentence in enumerate(told) if number > 2 and hero in sentence]
        if places:
            told[places[-1]] = told[places[-1]].replace(hero, other)
            found.append(bool(name_faults(" ".join(told), genders())))
    assert len(found) > 300
    assert all(found)


def test_most_turned_pronouns_are_found(held_out: list[str], seen: Seen) -> None:
    """One pronoun of another gender; where it may be the helper's, only a known sentence tells."""
    other = {"he": "she", "she": "he", "his": "her", "him": "her", "himself": "herself", "herself": "himself"}
    found = []
    for number, text in enumerate(held_out):
        places = [match for match in re.finditer(r"\b(?:he|she|his|him|himself|herself)\b", text)]
        if places:
            place = random.Random(number).choice(places)
            turned = text[: place.start()] + other[place[0]] + text[place.end() :]
            found.append(bool(pronoun_faults(turned, genders()) or seen.turned(turned)))
    assert len(found) > 150
    assert share(found) > 0.6


@pytest.mark.parametrize("damage", ["drop", "swap", "double"])
def test_most_broken_sentences_are_found(held_out: list[str], seen: Seen, damage: str) -> None:
    found = []
    for number, text in enumerate(held_out):
        dice = random.Random(number)
        told = text.split()
        place = dice.randrange(1, len(told) - 2)
        if damage == "drop":
            del told[place]
        elif damage == "swap":
            told[place : place + 2] = reversed(told[place : place + 2])
        else:
            told.insert(place, told[place])
        broken = " ".join(told)
        slips = any(map(sentence_slips, all_sentences(broken)))
        found.append(slips or any(seen.strange(broken)))
    plain = share(any(seen.strange(text)) for text in held_out)
    assert plain < 0.2  # with so few training stories
    assert share(found) > 0.8


# What the training stories hold


def small(*texts: str) -> Seen:
    seen = Seen(CAST, ("plum pie", "pie", "rose"))
    for text in texts:
        seen.add(text)
    return seen


def test_masks_by_hand() -> None:
    seen = small()
    assert [" ".join(sentence) for sentence in seen.mask(GOOD)] == [
        "HERO was a brave girl in a village who wanted to bake a THING .",
        "ROLE gave her an egg .",
        "But the fire went out .",
        '" I will help you , " said ROLE .',
        "She lit the fire , and HERO was happy .",
    ]
    masked = "HERO met his friend NAME and the kind old ROLE 's THING ."
    assert seen.mask("Tom met his friend Ben and the kind old miller's rose.") == [tuple(masked.split())]
    assert seen.mask("Tom cut the old miller's rose.") == [("HERO", "cut", "ROLE", "'s", "THING", ".")]


def test_copies() -> None:
    seen = small(GOOD)
    other = GOOD.replace("Mira", "Tom").replace("girl", "boy").replace("aunt", "uncle")
    assert seen.is_copy(GOOD)
    assert seen.is_masked_copy(GOOD)
    twin = GOOD.replace("Mira", "Ida").replace("aunt", "sister").replace("plum pie", "rose")
    assert not seen.is_copy(twin)
    assert seen.is_masked_copy(twin)
    assert not seen.is_masked_copy(other)  # "boy" is another word
    assert not seen.is_masked_copy(GOOD.replace("egg", "apple"))
    boy = "Mira lost her rose, and she cried."
    assert small(boy).is_masked_copy("Tom lost his pie, and he cried.")


def test_strange_triples() -> None:
    seen = small("Mira gave the rose to the miller.", "Tom ran home.")
    assert seen.strange("Ben gave the pie to the baker.") == [[]]
    assert seen.strange("Tom ran home. Ida ran the rose.") == [
        [],
        ["NAME ran the", "ran the THING", "the THING .", "THING . >"],
    ]


def test_unknown_names() -> None:
    seen = small("Mira sang on Monday. It rained.")
    assert seen.unknown_names("Tom sang on Monday, and Grettel sang.") == ["Grettel"]
    assert seen.unknown_names("Tom ran.") == []


def test_pronouns_of_the_wrong_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen_module, "ENOUGH", 3)
    begin = "{hero} met the {role}. {hero} hurt {his} knee. The {role} lent {hero} {a} coat."
    seen = small(
        begin.format(hero="Mira", role="miller", his="her", a="his"),
        begin.format(hero="Tom", role="teacher", his="his", a="his"),
        begin.format(hero="Ben", role="teacher", his="his", a="her"),
    )
    right = begin.format(hero="Ida", role="baker", his="her", a="his")
    assert seen.turned(right) == []
    wrong = begin.format(hero="Ida", role="baker", his="his", a="his")
    assert seen.turned(wrong) == ["Ida hurt his knee."]
    assert pronoun_faults(wrong, CAST) == []  # what the rule alone cannot know
    assert seen.turned("Ida met the baker. Ida lost his shoe.") == []  # a new sentence


# Figures


def test_story_quality_by_hand() -> None:
    seen = small(GOOD, "Mira ran. She fell.", "Tom ran home.")
    texts = [
        GOOD,
        "Ida ran. She fell.",
        "Tom ran home. Ida fell.",
        "Tom ran. She fell",
    ]
    quality = StoryQuality.of(texts, seen, CAST)
    assert quality == StoryQuality(
        stories=4,
        words=pytest.approx(np.mean([len(text.split()) for text in texts])),
        unknown_names=0.25,
        people=0.25,
        pronouns=0.25,
        roles=0.0,
        turned=0.0,
        broken_sentences=pytest.approx(2 / 11),  # "Ida fell." and "She fell"
        slips=0.0,
        strange=pytest.approx(2 / 11),
        unfinished_sentences=pytest.approx(1 / 11),
        broken_stories=0.5,
        unfinished=0.25,
        copies=0.25,
        masked_copies=0.5,
    )
    with pytest.raises(ValueError, match="texts is empty"):
        StoryQuality.of([], seen, CAST)


def test_ending_quality_by_hand() -> None:
    told = [story(seed, "test") for seed in range(4)]
    endings = [
        f"The {told[0].thing} was a wonderful joy.",
        "It was a terrible, sad day.",
        f"{told[2].thing} it was and",
        f"Zed wept over the {told[3].thing}.",
    ]
    quality = EndingQuality.of(told, endings, genders() | {"Zed": "he"})
    assert quality == EndingQuality(
        stories=4, sensible=0.25, keeps_cast=0.75, on_topic=0.75, finished=0.75, good=0.25, bad=0.5
    )


def test_the_generator_ends_its_stories_sensibly() -> None:
    told = [story(seed, "test") for seed in range(200)]
    quality = EndingQuality.of(told, [each.ending for each in told], genders())
    assert quality.keeps_cast == quality.finished == 1.0
    assert quality.sensible == quality.on_topic > 0.9


# Sampling


def test_stories_are_told_from_the_other_kinds_of_text() -> None:
    for row in range(300):
        assert is_story(corpus.text(row)) == (corpus.kind_of(row) == "story")


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    tokenizer = build_tokenizer(add_bos=True)
    return build_model("llama", len(tokenizer), max_position_embeddings=256), tokenizer


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = build_model("llama", 300, max_position_embeddings=1024), tiny[1]
    torch.nn.init.zeros_(model.lm_head.weight)
    assert held_out_perplexity(model, tokenizer, 3, batch=2) == pytest.approx(len(tokenizer), rel=1e-5)


def test_the_generators_perplexity() -> None:
    tokenizer = build_tokenizer(add_bos=True)
    told = [story(seed, "test") for seed in range(5)]
    tokens = sum(len(tokenizer(each.text)["input_ids"]) for each in told)  # BOS for the closing EOS
    nats = sum(each.nats for each in told)
    assert generator_perplexity(tokenizer, 5) == pytest.approx(math.exp(nats / tokens))


def test_stories_that_do_not_fit_are_passed_over() -> None:
    tokenizer = build_tokenizer(add_bos=True)
    told = [story(seed, "test") for seed in range(20)]
    lengths = {each: len(tokenizer(each.text)["input_ids"]) + 1 for each in told}
    tokenizer.model_max_length = sorted(lengths.values())[9]
    fitting = [each for each in told if lengths[each] <= tokenizer.model_max_length]
    nats, tokens = sum(each.nats for each in fitting), sum(lengths[each] - 1 for each in fitting)
    expected = pytest.approx(math.exp(nats / tokens))
    assert generator_perplexity(tokenizer, len(fitting)) == expected


def test_a_tokenizer_that_no_story_fits_is_named() -> None:
    tokenizer = build_tokenizer(add_bos=True)
    tokenizer.model_max_length = 8
    with pytest.raises(ValueError, match="fit into 8 tokens"):
        generator_perplexity(tokenizer, 2)


def test_completions_follow_their_prompts(tiny: tuple[Any, Any]) -> None:
    """Of a model that is sure of itself: the argmax after each prompt, whatever else is in the batch."""
    tokenizer = tiny[1]
    sure = build_model("llama", len(tokenizer), max_position_embeddings=256)
    sure.lm_head.weight.data *= 1e4
    prompts = ["", "Mira finds a key", "The baker is", "A fox", "At night"]
    written = complete(sure, tokenizer, prompts, seed=0, max_new_tokens=6, batch=3)
    for prompt, text in zip(prompts, written, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        greedy = sure.generate(ids, do_sample=False, max_new_tokens=6, eos_token_id=tokenizer.eos_token_id)
        assert text == tokenizer.decode(greedy[0, ids.shape[1] :], skip_special_tokens=True)


def test_completions_are_drawn_from_the_model(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    with torch.no_grad():
        logits = model(torch.tensor([[tokenizer.bos_token_id]])).logits[0, 0]
    expected = logits.softmax(-1).numpy()
    texts = complete(model, tokenizer, [""] * 2000, seed=0, max_new_tokens=1, batch=500)
    for token in np.argsort(-expected)[:3]:
        share_of = np.mean([text == tokenizer.decode([token]) for text in texts])
        assert share_of == pytest.approx(expected[token], abs=0.04)
    again = [complete(model, tokenizer, ["", "A"], seed=3, max_new_tokens=9) for _ in range(2)]
    assert again[0] == again[1]


def test_completions_stop_where_the_window_ends() -> None:
    tokenizer = build_tokenizer(add_bos=True)
    model = build_model("llama", len(tokenizer), max_position_embeddings=12)
    model.lm_head.weight.data[tokenizer.eos_token_id] = 0.0
    for text in complete(model, tokenizer, ["", "A fox"], seed=0):
        assert text
    assert complete(model, tokenizer, [], seed=0) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, True),
        ("Review: It was good.", False),
        ("Text: a\nAnswer: b", False),
        ('"Run!" said Tom: he ran.', True),
        ("", True),
    ],
)
def test_what_counts_as_a_story(text: str, expected: bool) -> None:
    assert is_story(text) is expected


def test_only_stories_are_sampled(tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_envs.pretraining import measures

    def fake(model: Any, tokenizer: Any, prompts: list[str], *, seed: int, **options: Any) -> list[str]:
        return [f"Review: {seed}" if i % 2 else f"Story {seed} {i}." for i in range(len(prompts))]

    monkeypatch.setattr(measures, "complete", fake)
    texts = sample_stories(*tiny, count=40, seed=5)
    assert len(set(texts)) == 40
    assert all(map(is_story, texts))
    monkeypatch.setattr(measures, "complete", lambda *args, **options: ["Review: x"] * len(args[2]))
    assert sample_stories(*tiny, count=4, seed=5) == []


# The command


def test_the_way_from_random_to_best() -> None:
    assert share_of_the_way(0.5, 0.0, 2.0) == 0.25
    assert share_of_the_way(-1.0, -2.0, 2.0) == 0.25
    assert share_of_the_way(1.0, 2.0, 2.0) is None
    assert share_of_the_way(1.0, 0.0, None) is None


def test_the_command_measures_parts_and_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Quality of stories that are handed to it, then the scores of one id; another model starts anew."""
    written = [story(seed, "test") for seed in range(3)]

    def sample(*args: Any, count: int, **options: Any) -> list[str]:
        return [told.text for told in written][:count]

    def continue_(model: Any, tokenizer: Any, prompts: list[str], **options: Any) -> list[str]:
        return ["They smiled."] * len(prompts)

    monkeypatch.setattr(command, "sample_stories", sample)
    monkeypatch.setattr(command, "complete", continue_)
    out = tmp_path / "new" / "model.json"
    options: dict[str, Any] = {"stories": 3, "training_rows": 30, "out": out}
    Model(parts=("quality",), **options)()
    printed = capsys.readouterr().out
    assert written[0].text[:40] in printed
    results = json.loads(out.read_text())
    rows = [corpus.text(row, Recipe().mixture(0)) for row in range(30)]
    assert results["quality"]["training_stories"] == sum(map(is_story, rows))
    assert results["quality"]["model"]["unknown_names"] == 0.0
    assert results["quality"]["model"]["endings"]["on_topic"] == 0.0
    assert results["quality"]["generator"]["endings"]["finished"] == 1.0

    Model(parts=("competence",), ids=("TextGen-QA-v0",), episodes=3, **options)()
    both = json.loads(out.read_text())
    assert both["quality"] == results["quality"]
    row = both["competence"]["TextGen-QA-v0"]
    assert row["best"] > row["trick"]
    assert row["trick_name"] != "best"
    assert row["greedy_share"] == pytest.approx((row["greedy"] - row["floor"]) / (row["best"] - row["floor"]))
    assert list(tmp_path.glob("new/*")) == [out]

    monkeypatch.setattr(command, "checksum", lambda language_model: "another")
    Model(parts=("competence",), ids=("TextGen-QA-v0",), episodes=3, **options)()
    assert set(json.loads(out.read_text())) == {"model", "weights", "competence"}


def test_a_model_in_a_folder_is_measured(tmp_path: Path) -> None:
    """It acts, and it is the environment's own: its tokens are what the instances are made of."""
    out = tmp_path / "model.json"
    folder = tmp_path / "wide"
    tokenizer = build_tokenizer(add_bos=True)
    build_model("llama", len(tokenizer), max_position_embeddings=512).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Model(model=str(folder), parts=("competence",), ids=("TextGen-QA-v0",), episodes=16, out=out)()
    results = json.loads(out.read_text())
    assert results["model"] == str(folder)
    # long answers, which fit with the tokens of the bundled model, are cut off with those of this tokenizer
    assert 0.0 < results["competence"]["TextGen-QA-v0"]["best"] < 1.0


def test_unknown_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="TextGen-Nothing-v0"):
        Model(ids=("TextGen-Nothing-v0",), out=tmp_path / "model.json")()
