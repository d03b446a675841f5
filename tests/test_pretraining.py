"""How the bundled model is made: tokenizer, batches, loss, a killed run that goes on, its folder."""

import functools
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import lm_envs
from lm_envs.pretraining import __main__ as command
from lm_envs.pretraining import release, training
from lm_envs.pretraining.batches import POOL, batches, padded, rows
from lm_envs.pretraining.checks import mixes_genders, names, sentences
from lm_envs.pretraining.measures import (
    SampleQuality,
    Variety,
    generator_perplexity,
    held_out_perplexity,
    sample_stories,
)
from lm_envs.pretraining.stories import story
from lm_envs.pretraining.tokenizer import END_OF_TEXT, train_tokenizer
from lm_envs.pretraining.training import Recipe, next_token_loss, train

BUNDLED = Path(lm_envs.__file__).parent / "bundled"
TINY = {
    **{"steps": 48, "rows": 2, "vocab_size": 300, "tokenizer_stories": 50, "context_length": 256},
    **{"hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 32, "warmup_steps": 5},
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer((story(seed).text for seed in range(50)), 300, 256)


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    return train(
        Recipe(**TINY), tokenizer, tmp_path_factory.mktemp("whole") / "c.safetensors", progress=False
    )


# Tokenizer


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_round_trips(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_tokenizer_conventions(tokenizer):
    assert len(tokenizer) == 300
    assert tokenizer.bos_token == tokenizer.eos_token == END_OF_TEXT
    assert tokenizer.bos_token_id == 0
    assert tokenizer.pad_token is None
    assert tokenizer("Mira")["input_ids"][0] == 0
    assert tokenizer("Mira")["input_ids"].count(0) == 1
    assert tokenizer.model_max_length == 256


def test_opening_ids_start_the_text_ids(tokenizer):
    for seed in range(50):
        told = story(seed)
        opening = tokenizer(told.opening)["input_ids"]
        assert tokenizer(told.text)["input_ids"][: len(opening)] == opening


# Batches


def test_rows_are_stories_between_end_of_text(tokenizer):
    for seed, row in zip(range(5), rows(tokenizer, range(5), "test"), strict=True):
        assert tokenizer.decode(row) == f"{END_OF_TEXT}{story(seed, 'test').text}{END_OF_TEXT}"


def test_batches_hold_every_story_once(tokenizer):
    texts = []
    for ids, lengths in islice(batches(tokenizer, rows_per_batch=3, seed=0), 2 * POOL):
        assert ids.dtype == np.int64
        assert ids.shape == (3, lengths.max())
        for row, length in zip(ids, lengths, strict=True):
            assert (row[length:] == tokenizer.eos_token_id).all()
            texts.append(tokenizer.decode(row[1 : length - 1]))
    assert sorted(texts) == sorted(story(seed).text for seed in range(2 * POOL * 3))


@pytest.mark.parametrize("start", [1, POOL - 1, POOL, POOL + 5])
def test_batches_can_be_entered_anywhere(tokenizer, start):
    whole = islice(batches(tokenizer, rows_per_batch=2, seed=1), start, start + 4)
    entered = islice(batches(tokenizer, rows_per_batch=2, seed=1, start=start), 4)
    for (ids, lengths), (ids_too, lengths_too) in zip(whole, entered, strict=True):
        np.testing.assert_array_equal(ids, ids_too)
        np.testing.assert_array_equal(lengths, lengths_too)


def test_batches_pad_little_and_differ_between_seeds(tokenizer):
    first, other = (list(islice(batches(tokenizer, rows_per_batch=16, seed=seed), POOL)) for seed in (0, 1))
    real = sum(lengths.sum() for _, lengths in first)
    assert real / sum(ids.size for ids, _ in first) > 0.95
    assert not np.array_equal(first[0][0], other[0][0])


# Loss


@torch.no_grad()
def test_loss_is_the_mean_over_real_tokens_of_each_row_alone(trained, tokenizer):
    token_rows = rows(tokenizer, range(4), "test")
    ids, lengths = (torch.from_numpy(array) for array in padded(token_rows, 0))
    model = trained.model.double()
    alone = []
    for row in token_rows:
        log_probs = model(torch.tensor([row])).logits[0].log_softmax(-1)
        alone += [-log_probs[i, token].item() for i, token in enumerate(row[1:])]
    assert next_token_loss(model, ids, lengths).item() == pytest.approx(np.mean(alone), abs=1e-10)
    assert next_token_loss(model, ids, lengths, "sum").item() == pytest.approx(np.sum(alone), abs=1e-8)
    assert held_out_perplexity(model, tokenizer, 4, batch=3) == pytest.approx(math.exp(np.mean(alone)))
    model.float()


# Training


def test_training_learns(trained, tokenizer):
    assert held_out_perplexity(trained.model, tokenizer, 20) < 0.5 * len(tokenizer)  # uniform: 1.0
    assert trained.tokens == sum(len(row) - 1 for row in rows(tokenizer, range(96), "train"))
    assert not trained.model.training


def test_training_leaves_the_global_random_state_alone(tokenizer, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(Recipe(**TINY | {"steps": 1}), tokenizer, tmp_path / "c.safetensors", progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_a_killed_run_goes_on_to_the_same_weights(trained, tokenizer, tmp_path):
    """What goes on from a killed process's file ends bit-equal to the uninterrupted run."""
    tokenizer.save_pretrained(tmp_path)
    checkpoint = tmp_path / "c.safetensors"
    code = f"""
import time, torch, pathlib
from transformers import AutoTokenizer
from lm_envs.pretraining import training
torch.set_num_threads(1)
loss = training.next_token_loss
training.next_token_loss = lambda *args: (time.sleep(0.05), loss(*args))[1]
tokenizer = AutoTokenizer.from_pretrained({str(tmp_path)!r})
path = pathlib.Path({str(checkpoint)!r})
training.train(training.Recipe(**{TINY!r}), tokenizer, path, checkpoint_seconds=0, progress=False)
"""
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 60
        while not (checkpoint.exists() and _steps_done(checkpoint) >= 7):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 7 <= _steps_done(checkpoint) < TINY["steps"]

    resumed = train(Recipe(**TINY), tokenizer, checkpoint, progress=False)
    assert resumed.tokens == trained.tokens
    expected = trained.model.state_dict()
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def _steps_done(checkpoint: Path) -> int:
    with safe_open(checkpoint, framework="np") as file:
        return json.loads(file.metadata()["progress"])[0]


def test_a_checkpoint_of_other_settings_is_refused(tokenizer, tmp_path):
    checkpoint = tmp_path / "c.safetensors"
    recipe = Recipe(**TINY | {"steps": 2})
    train(recipe, tokenizer, checkpoint, checkpoint_seconds=0, progress=False)
    with pytest.raises(ValueError, match=re.escape(str(checkpoint))):
        train(Recipe(**TINY | {"steps": 3}), tokenizer, checkpoint, progress=False)


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 0), ("steps", -1), ("steps", 10**9), ("seed", -1), ("seed", 2**40)]
)
def test_recipes_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be from .*, got {value}"):
        Recipe(**{name: value})


# Measures


def test_samples_follow_the_model_and_end(trained, tokenizer):
    """Greedy is not asked for, so the oracle is the distribution: first tokens against the model's own."""
    with torch.no_grad():
        expected = trained.model(torch.tensor([[0]])).logits[0, -1].softmax(-1)
    texts = sample_stories(trained.model, tokenizer, count=4000, seed=0, max_new_tokens=1)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    top = int(expected.argmax())
    share = np.mean([found == [top] for found in ids])
    assert share == pytest.approx(expected[top].item(), abs=0.04)
    again = sample_stories(trained.model, tokenizer, count=2, seed=3, max_new_tokens=20)
    assert again == sample_stories(trained.model, tokenizer, count=2, seed=3, max_new_tokens=20)


def test_checks_on_texts_worked_by_hand():
    assert names("Ida saw Tom's hat. Idaho.") == {"Ida", "Tom"}
    assert mixes_genders("Ida took his hat.")
    assert mixes_genders("Ida and Tom")
    assert not mixes_genders("Ida took her hat to the theater.")
    assert sentences('"It worked!" sang Ida. "Go home," said he. "Why?" she cried.') == [
        '"It worked!" sang Ida.',
        '"Go home," said he.',
        '"Why?" she cried.',
    ]
    quality = SampleQuality.of(["Ida left.", "Ida met Tom.", 'Ida said, "no.', "Tom lost her"])
    assert quality == SampleQuality(several_names=0.25, mixed_genders=0.5, unfinished=0.5)


def test_the_generator_passes_its_own_checks(tokenizer):
    texts = [story(seed).text for seed in range(300)]
    assert SampleQuality.of(texts) == SampleQuality(0.0, 0.0, 0.0)
    variety = Variety.of(300)
    assert variety.texts == len(set(texts)) == 300
    assert variety.sentences == len({sentence for text in texts for sentence in sentences(text)})
    nats = sum(story(seed, "test").nats for seed in range(20))
    tokens = sum(len(tokenizer(story(seed, "test").text)["input_ids"]) for seed in range(20))
    assert generator_perplexity(tokenizer, 20) == pytest.approx(math.exp(nats / tokens))


# The command and the folder


def test_the_command_writes_a_whole_folder(tmp_path, monkeypatch, capsys):
    small = {name: value for name, value in TINY.items() if name != "steps"}
    quick = functools.partial(release.write_release, held_out=5, sampled=2, counted=50)
    monkeypatch.setattr(release, "write_release", quick)
    monkeypatch.setattr(training, "Recipe", functools.partial(Recipe, **small))
    command.main(["--out", str(tmp_path), "--steps", "2", "--seed", "1"])
    assert "held-out perplexity" in capsys.readouterr().out
    check_sums(tmp_path)
    assert not (tmp_path / "checkpoint").exists()
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert "python -m lm_envs.pretraining --steps 2 --seed 1`" in card
    assert "{" not in card
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert card_perplexity(tmp_path) == pytest.approx(held_out_perplexity(model, tokenizer, 5), rel=1e-3)


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--seed", "-1"], ["--steps", "many"]])
def test_the_command_names_bad_arguments(arguments, capsys, tmp_path):
    with pytest.raises(SystemExit):
        command.main(["--out", str(tmp_path), *arguments])
    assert arguments[0].strip("-") in capsys.readouterr().err


def check_sums(folder: Path) -> None:
    """SHA256SUMS is what the sha256sum program would write, for every file that a loader reads."""
    stated = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= set(stated)
    for name, checksum in stated.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum, name


def card_perplexity(folder: Path) -> float:
    found = re.search(r"\| Held-out perplexity \| \*\*([\d.]+)\*\*", (folder / "MODEL_CARD.md").read_text())
    assert found
    return float(found[1])


def test_the_bundled_folder_is_whole_and_small():
    check_sums(BUNDLED)
    assert (BUNDLED / "model.safetensors").stat().st_size < 10e6
    assert {tensor.dtype for tensor in load_file(BUNDLED / "model.safetensors").values()} == {torch.float32}


def test_the_bundled_model_is_as_good_as_its_card_says():
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    model = AutoModelForCausalLM.from_pretrained(BUNDLED).eval()
    assert len(tokenizer) == model.config.vocab_size == Recipe().vocab_size
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 256
    assert held_out_perplexity(model, tokenizer, 200) == pytest.approx(card_perplexity(BUNDLED), rel=0.02)

    quality = SampleQuality.of(sample_stories(model, tokenizer, count=64, seed=7))
    assert quality.several_names <= 0.15
    assert quality.mixed_genders <= 0.15
    assert quality.unfinished <= 0.05
