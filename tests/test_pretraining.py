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
from collections import Counter
from itertools import chain, islice
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import lm_envs
from lm_envs.language_model import LanguageModel
from lm_envs.pretraining import __main__ as command
from lm_envs.pretraining import recipe as recipes
from lm_envs.pretraining import release, training
from lm_envs.pretraining.batches import PARTS, POOL, batches, padded, rows
from lm_envs.pretraining.checks import genders, is_unfinished, name_faults, pronoun_faults, role_faults
from lm_envs.pretraining.corpus import kind_of, text
from lm_envs.pretraining.measures import held_out_perplexity, sample_stories
from lm_envs.pretraining.own_text import OwnText, Pieces, cut, perplexity
from lm_envs.pretraining.recipe import TEXTS_PER_SEED, Recipe
from lm_envs.pretraining.release import SHARPNESS
from lm_envs.pretraining.stories import story
from lm_envs.pretraining.tokenizer import END_OF_TEXT, train_tokenizer
from lm_envs.pretraining.training import load_checkpoint, next_token_loss, train

BUNDLED = Path(lm_envs.__file__).parent / "bundled"
MIXTURES = ((0.0, {"story": 1}), (0.5, {"story": 1, "sentiment": 2}))
TINY = {
    **{"steps": 48, "rows": 2, "shards": 1, "vocab_size": 300, "tokenizer_texts": 50, "context_length": 256},
    **{"hidden_size": 16, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 32},
    **{"warmup_steps": 5, "compiled": False, "mixtures": MIXTURES},
}

OUT_OF_RANGE = (("steps", 0), ("steps", -1), ("steps", 10**9), ("seed", -1), ("seed", 2**40))
OWN = {"shards": 1, "compiled": False, "vocab_size": 400, "warmup_steps": 5}


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
    checkpoint = tmp_path_factory.mktemp("whole") / "c.safetensors"
    return train(Recipe(**TINY), text, tokenizer, checkpoint, progress=False)


# Tokenizer


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_round_trips(tokenizer, written):
    ids = tokenizer(written, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == written


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


def test_rows_are_texts_between_end_of_text(tokenizer):
    texts = ["Ida left.", 'He was "late"\nagain.', "An <|endoftext|> inside."]
    for written, row in zip(texts, rows(tokenizer, texts), strict=True):
        assert row[0] == row[-1] == tokenizer.eos_token_id
        assert row.count(tokenizer.eos_token_id) == 2  # what looks like a special token is text
        assert tokenizer.decode(row) == f"{END_OF_TEXT}{written}{END_OF_TEXT}"


def test_rows_are_cut_behind_what_the_model_can_read(tokenizer):
    """256 tokens go in, so 257 are in a row: one whose last token is the 257th is the longest uncut one."""
    word = tokenizer("?", add_special_tokens=False)["input_ids"]
    assert len(word) == 1
    lengths = [len(row) for row in rows(tokenizer, ["?" * n for n in (254, 255, 256, 400)])]
    assert lengths == [256, 257, 257, 257]
    assert rows(tokenizer, ["?" * 256])[0][-1] == word[0]


def _texts(tokenizer, recipe, pools, **options):
    found = []
    for parts in islice(batches(recipe, text, tokenizer, **options), pools * POOL):
        assert sum(len(ids) for ids, _ in parts) == recipe.rows // recipe.shards
        for ids, lengths in parts:
            assert ids.dtype == np.int64
            assert ids.shape == (len(lengths), lengths.max())
            for row, length in zip(ids, lengths, strict=True):
                assert (row[length:] == tokenizer.eos_token_id).all()
                found.append(row[:length].tolist())
    return found


def test_batches_of_all_shards_hold_every_text_once(tokenizer):
    recipe = Recipe(**TINY | {"rows": 6, "shards": 2, "seed": 3})
    found = [row for shard in range(2) for row in _texts(tokenizer, recipe, 2, shard=shard)]
    first = 3 * TEXTS_PER_SEED
    expected = [text(number, MIXTURES[0][1]) for number in range(first, first + 2 * POOL * 6)]
    assert sorted(found) == sorted(rows(tokenizer, expected))


def test_the_mixture_follows_the_curriculum(tokenizer):
    """The second mixture begins in the middle of the second pool, so the third is the first to have it."""
    recipe = Recipe(**TINY | {"steps": 3 * POOL})
    found = _texts(tokenizer, recipe, 3)
    numbers = range(3 * POOL * 2)
    early = [text(number, MIXTURES[0][1]) for number in numbers[: 4 * POOL]]
    late = [text(number, MIXTURES[1][1]) for number in numbers[4 * POOL :]]
    assert sorted(found) == sorted(rows(tokenizer, early + late))
    assert {kind_of(number, MIXTURES[1][1]) for number in numbers[4 * POOL :]} == {"story", "sentiment"}


@pytest.mark.parametrize(
    ("step", "expected"), [(0, "a"), (299, "a"), (300, "b"), (599, "b"), (600, "c"), (999, "c")]
)
def test_a_mixture_holds_from_its_share_of_the_steps(step, expected):
    mixtures = ((0.0, {"a": 1}), (0.3, {"b": 1}), (0.6, {"c": 1}))
    assert Recipe(**TINY | {"steps": 1000, "mixtures": mixtures}).mixture(step) == {expected: 1}


@pytest.mark.parametrize("start", [1, POOL - 1, POOL, POOL + 5])
def test_batches_can_be_entered_anywhere(tokenizer, start):
    recipe = Recipe(**TINY | {"rows": 4, "shards": 2})
    whole = chain.from_iterable(islice(batches(recipe, text, tokenizer, shard=1), start, start + 4))
    entered = chain.from_iterable(islice(batches(recipe, text, tokenizer, shard=1, start=start), 4))
    for (ids, lengths), (ids_too, lengths_too) in zip(whole, entered, strict=True):
        np.testing.assert_array_equal(ids, ids_too)
        np.testing.assert_array_equal(lengths, lengths_too)


def test_steps_hold_all_lengths_with_little_padding_and_shards_are_of_like_length(tokenizer):
    recipe = Recipe(**TINY | {"rows": 32, "shards": 2, "mixtures": ((0.0, {"story": 1, "sentiment": 1}),)})
    first, second = (list(islice(batches(recipe, text, tokenizer, shard=shard), POOL)) for shard in range(2))
    assert all(len(parts) == PARTS for parts in first)
    blocks = [block for parts in first for block in parts]
    assert sum(lengths.sum() for _, lengths in blocks) / sum(ids.size for ids, _ in blocks) > 0.9
    widths = np.array([[[ids.shape[1] for ids, _ in parts] for parts in shard] for shard in (first, second)])
    assert np.corrcoef(widths.reshape(2, -1))[0, 1] > 0.9
    for shard in (first, second):  # in every step the short texts of the pool come first, then the long ones
        shortest, *_, longest = zip(*([lengths for _, lengths in parts] for parts in shard), strict=True)
        assert np.max(shortest) <= np.min(longest)
        assert np.median(longest) > 1.5 * np.median(shortest)


# Loss


@torch.no_grad()
def test_loss_is_the_sum_over_real_tokens_of_each_row_alone(trained, tokenizer):
    token_rows = rows(tokenizer, [story(seed, "test").text for seed in range(3)] + ["Ida left."])
    ids, lengths = (torch.from_numpy(array) for array in padded(token_rows, 0))
    model = trained.model.double()
    alone = []
    for row in token_rows:
        log_probs = model(torch.tensor([row])).logits[0].log_softmax(-1)
        alone += [-log_probs[i, token].item() for i, token in enumerate(row[1:])]
    assert next_token_loss(model, ids, lengths).item() == pytest.approx(np.sum(alone), abs=1e-8)
    model.float()


def test_the_fast_loss_is_the_loss_in_bfloat16(trained, tokenizer, monkeypatch):
    """With its own attention, gradients included; compiling itself is left to torch."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    model = trained.model
    batch = [torch.from_numpy(array) for array in padded(rows(tokenizer, [story(1).text, "Ida."]), 0)]
    exact = next_token_loss(model, *batch)
    expected = torch.autograd.grad(exact, list(model.parameters()))
    fast = training._fast_loss(model)(model, *batch)
    found = torch.autograd.grad(fast, list(model.parameters()))
    assert model.config._attn_implementation == "float32_sdpa"
    model.set_attn_implementation("sdpa")
    assert fast.item() == pytest.approx(exact.item(), rel=0.01)
    for gradient, gradient_too in zip(expected, found, strict=True):
        assert (gradient - gradient_too).norm() < 0.1 * gradient.norm()


# Training


def test_training_learns(trained, tokenizer):
    texts = [story(seed, "test").text for seed in range(20)]
    assert perplexity(trained.model, tokenizer, texts) < 0.5 * len(tokenizer)  # uniform: 1.0
    recipe = Recipe(**TINY)
    assert trained.tokens == sum(len(row) - 1 for row in _texts(tokenizer, recipe, 3))
    assert not trained.model.training
    assert (trained.steps, trained.recipe) == (48, recipe)


def test_training_leaves_the_global_random_state_alone(tokenizer, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(Recipe(**TINY | {"steps": 1}), text, tokenizer, tmp_path / "c.safetensors", progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_a_killed_run_goes_on_to_the_same_weights(trained, tokenizer, tmp_path):
    """What goes on from a killed process's file ends bit-equal to the uninterrupted run."""
    tokenizer.save_pretrained(tmp_path)
    checkpoint = tmp_path / "c.safetensors"
    code = f"""
import time, torch, pathlib
from transformers import AutoTokenizer
from lm_envs.pretraining import corpus, recipe, training
torch.set_num_threads(1)
loss = training.next_token_loss
training.next_token_loss = lambda *args: (time.sleep(0.05), loss(*args))[1]
tokenizer = AutoTokenizer.from_pretrained({str(tmp_path)!r})
path = pathlib.Path({str(checkpoint)!r})
tiny = recipe.Recipe(**{TINY!r})
training.train(tiny, corpus.text, tokenizer, path, checkpoint_seconds=0, progress=False)
"""
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 300
        while not (checkpoint.exists() and _steps_done(checkpoint) >= 7):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    steps = _steps_done(checkpoint)
    assert 7 <= steps < TINY["steps"]
    assert load_checkpoint(checkpoint, tokenizer).steps == steps

    resumed = train(Recipe(**TINY), text, tokenizer, checkpoint, progress=False)
    assert resumed.tokens == trained.tokens
    _assert_same_weights(resumed.model, trained.model)
    finished = load_checkpoint(checkpoint, tokenizer)
    assert (finished.steps, finished.tokens, finished.recipe) == (48, trained.tokens, trained.recipe)
    _assert_same_weights(finished.model, trained.model)


def _steps_done(checkpoint: Path) -> int:
    with safe_open(checkpoint, framework="np") as file:
        return json.loads(file.metadata()["progress"])[0]


def _assert_same_weights(model, other):
    expected = other.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_two_processes_make_the_weights_of_one(tokenizer, tmp_path):
    recipe = Recipe(**TINY | {"steps": 6, "rows": 4, "shards": 2})
    one, two = (
        train(recipe, text, tokenizer, tmp_path / f"{n}.safetensors", processes=n, progress=False)
        for n in (1, 2)
    )
    assert (one.processes, two.processes) == (1, 2)
    assert one.tokens == two.tokens
    _assert_same_weights(one.model, two.model)
    both = Recipe(**TINY | {"steps": 6, "rows": 4, "shards": 1})
    other = train(both, text, tokenizer, tmp_path / "c.safetensors", progress=False)
    with pytest.raises(AssertionError):  # the comparison can fail
        _assert_same_weights(one.model, other.model)


def test_a_checkpoint_of_other_settings_is_refused(tokenizer, tmp_path):
    checkpoint = tmp_path / "c.safetensors"
    recipe = Recipe(**TINY | {"steps": 2})
    train(recipe, text, tokenizer, checkpoint, checkpoint_seconds=0, progress=False)
    with pytest.raises(ValueError, match=re.escape(str(checkpoint))):
        train(Recipe(**TINY | {"steps": 3}), text, tokenizer, checkpoint, progress=False)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *((name, value, f"{name} must be from .*, got {value}") for name, value in OUT_OF_RANGE),
        ("rows", 3, "rows must be a multiple of shards, .*, got 3 and 2"),
        ("shards", 0, "rows must be a multiple of shards"),
        ("mixtures", ((0.1, {"story": 1}),), "mixtures must start"),
        ("mixtures", ((0.0, {"story": 1}), (0.5, {"story": 1}), (0.4, {"story": 1})), "mixtures must start"),
    ],
)
def test_recipes_out_of_range_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{name: value})


def test_processes_must_fit_the_shards(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"processes must be 1 or .* 1, got 2"):
        train(Recipe(**TINY), text, tokenizer, tmp_path / "c.safetensors", processes=2)


# The command and the folder


@pytest.fixture
def small(monkeypatch):
    """The command with a tiny recipe and quick measurements."""
    tiny = TINY | {"vocab_size": 1000, "tokenizer_texts": 200}  # short enough for stories to fit
    del tiny["steps"]
    monkeypatch.setattr(recipes, "Recipe", functools.partial(Recipe, **tiny))
    quick = functools.partial(release.write_release, held_out=5, counted=50)
    monkeypatch.setattr(release, "write_release", quick)
    monkeypatch.setattr(release, "sample_stories", lambda *_, seed, **__: [f"Story {seed} {{as}} it is."])


def test_the_command_writes_a_whole_folder(tmp_path, monkeypatch, capsys, small):
    monkeypatch.chdir(tmp_path)
    arguments = ["--out", "model", "--steps", "2", "--seed", "1"]
    command.main(arguments)
    assert "held-out perplexity" in capsys.readouterr().out
    folder = tmp_path / "model"
    check_sums(folder)
    card = (folder / "MODEL_CARD.md").read_text()
    assert "python -m lm_envs.pretraining --steps 2 --seed 1`" in card
    assert "float32_sdpa" not in (folder / "config.json").read_text()
    assert "> Story 2 {as} it is." in card
    assert "{" not in card.replace("{as}", "")
    assert "What it can do" not in card
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert card_perplexity(folder) == pytest.approx(held_out_perplexity(model, tokenizer, 5), rel=1e-3)

    trained = load_checkpoint(folder / "checkpoint/training.safetensors", tokenizer).model
    ids = torch.arange(40).reshape(2, 20)
    torch.testing.assert_close(model(ids).logits, SHARPNESS * trained(ids).logits)

    # again, with the results of these weights
    weights = (folder / "model.safetensors").read_bytes()
    results = {"weights": hashlib.sha256(weights).hexdigest()[:12], **RESULTS}
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "benchmarks/results/model.json").write_text(json.dumps(results))
    command.main([*arguments, "--write-only"])
    assert (folder / "model.safetensors").read_bytes() == weights
    check_sums(folder)
    card = (folder / "MODEL_CARD.md").read_text()
    assert "| stories with a name that was never introduced | 25.0% | 0.0% | <= 10% |" in card
    assert "Mean return on 7 held-out instances" in card
    assert "| TextGen-v0 | 0.125 | 0.250 | 0.375 | 0.500 | - | - |" in card
    assert "| TextGen-Edit-v0 | 0.125 | 0.250 | 0.375 | 0.500 | 0.875 | 50% |" in card

    # results of other weights are left out
    results["weights"] = "0" * 12
    (tmp_path / "benchmarks/results/model.json").write_text(json.dumps(results))
    command.main([*arguments, "--write-only"])
    card = (folder / "MODEL_CARD.md").read_text()
    assert "never introduced" not in card
    assert "What it can do" not in card


SHARES = {"unknown_names": 0.25, "people": 0.5, "broken_sentences": 0.0, "copies": 0.0, "masked_copies": 0.0}
ENDINGS = {"endings": {"sensible": 0.5, "good": 0.25, "bad": 0.25}}
MEANS = {"random": 0.125, "trick": 0.25, "sampled": 0.375, "greedy": 0.5, "episodes": 7}
RESULTS = {
    "quality": {
        "model": {"stories": 4, **SHARES, **ENDINGS},
        "generator": dict.fromkeys(SHARES, 0.0) | ENDINGS,
    },
    "competence": {
        "TextGen-v0": {**MEANS, "best": None, "greedy_share": None},
        "TextGen-Edit-v0": {**MEANS, "best": 0.875, "greedy_share": 0.5},
    },
}


def test_counts_worked_by_hand(tokenizer):
    counts = release.TextCounts.of(
        ["Ida left home today.", "Tom sat. Tom sat.", "Tom sat. Tom sat."], tokenizer
    )
    first, second = (len(row) - 1 for row in rows(tokenizer, ["Ida left home today.", "Tom sat. Tom sat."]))
    assert counts == release.TextCounts(
        texts=3,
        distinct_texts=2,
        tokens=first + 2 * second,
        distinct_tokens=first + second,
        sentences=2,
        four_grams=2,
    )


@pytest.mark.parametrize(
    "arguments", [["--steps", "0"], ["--seed", "-1"], ["--steps", "many"], ["--write-only"]]
)
def test_the_command_names_bad_arguments(arguments, capsys, tmp_path):
    with pytest.raises(SystemExit):
        command.main(["--out", str(tmp_path), *arguments])
    assert arguments[0].strip("-") in capsys.readouterr().err


# A text of one's own


def _poems(count: int) -> str:
    """Documents of a text that is easy to learn, and that a unigram model cannot know."""
    rng = np.random.default_rng(0)
    days = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    animals = ("cat", "owl", "fox", "hen", "cow", "bee")
    return "\n\n".join(
        f"On {days[rng.integers(7)]} a grey {animal} came.\nThe {animal} sang: o {animal}, {animal}!"
        for animal in (animals[rng.integers(6)] for _ in range(count))
    )


def test_the_command_learns_a_text_of_ones_own(tmp_path, capsys, monkeypatch):
    file, out = tmp_path / "poems.txt", tmp_path / "model"
    file.write_text(_poems(600), encoding="utf-8")
    small = {"rows": 8, "hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 64}
    monkeypatch.setattr("lm_envs.pretraining.own_text.SMALL", OWN | small)
    command.main(["--text", str(file), "--out", str(out), "--steps", "80"])
    printed = capsys.readouterr().out
    stated = float(re.search(r"held-out perplexity ([\d.]+)", printed)[1])
    assert f'gymnasium.make("TextGen-v0", model="{out}", prompts=[\'On ' in printed

    check_sums(out)
    own = OwnText.read(file)
    documents = file.read_text(encoding="utf-8").split("\n\n")
    assert list(own.held_out) == documents[9::10]
    model = LanguageModel.load(out)
    train_ids = Counter(token for each in own.train for token in [*model.encode(each), model.eos_token_id])
    unigram, nats, tokens = 0.0, 0.0, 0
    for each in own.held_out:
        ids = [*model.encode(each), model.eos_token_id]
        nats -= float(model.log_probs([[model.bos_token_id]], [ids])[0].sum(dtype=np.float64))
        total = train_ids.total() + model.vocab_size  # add-one smoothing
        unigram -= sum(math.log((train_ids[token] + 1) / total) for token in ids)
        tokens += len(ids)
    assert stated == pytest.approx(math.exp(nats / tokens), rel=1e-2)
    assert nats / tokens < 0.75 * unigram / tokens

    env = gymnasium.make("TextGen-v0", model=str(out), prompts=["On Monday a grey"])
    env.reset(seed=0)
    assert isinstance(env.step(env.action_space.sample())[1], float)
    env.close()

    command.main(["--text", str(file), "--out", str(out), "--steps", "80"])  # is finished: not trained again
    assert f"held-out perplexity {stated:.3f}" in capsys.readouterr().out
    file.write_text(_poems(500), encoding="utf-8")
    with pytest.raises(SystemExit):
        command.main(["--text", str(file), "--out", str(out), "--steps", "80"])
    assert "other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 characters of text; at least 5,000"),
        (b" \n\n \n" * 2000, "0 characters of text"),
        (b"too short", "9 characters"),
        (b"fine\n" * 2000 + b"caf\xe9 au lait\n", "line 2001 is not UTF-8: byte 0xe9 at offset 10003"),
    ],
)
def test_unusable_files_are_named(tmp_path, content, message, capsys):
    file = tmp_path / "mine.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        OwnText.read(file)
    assert str(file) in str(error.value)
    with pytest.raises(SystemExit):
        command.main(["--text", str(file), "--out", str(tmp_path)])
    assert str(file) in capsys.readouterr().err.replace("\n", "")


def test_missing_files_are_named(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
            OwnText.read(path)


def test_documents_are_split_at_blank_lines(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n \r\n\r\n".join(f"{n}\r\nä" * 300 for n in range(20)).encode())
    own = OwnText.read(file)
    documents = [f"{n}\nä" * 300 for n in range(20)]
    assert own.held_out == (documents[9], documents[19])
    assert own.train == (*documents[:9], *documents[10:19])


def test_a_text_without_blank_lines_is_held_out_at_its_end(tmp_path):
    file = tmp_path / "mine.txt"
    lines = "\n".join(map(str, range(3000)))
    file.write_text(lines)
    own = OwnText.read(file)
    assert own.train[0] + own.held_out[0] == lines
    assert len(own.held_out[0]) == pytest.approx(0.1 * len(lines), rel=0.01)


def test_pieces_tile_a_document_and_only_the_last_one_ends(tokenizer):
    """Row by row, each token of a long document is told once, and the end where it ends."""
    whole = " ".join(story(seed).text for seed in range(12))
    pieces = cut(tokenizer, [whole, "Ida left."])
    token_rows = rows(tokenizer, pieces)
    ends = [row[-1] == tokenizer.eos_token_id for row in token_rows]
    assert ends == [False] * (len(pieces) - 2) + [True, True]
    told = tokenizer.decode([token for row in token_rows[:-1] for token in row], skip_special_tokens=True)
    assert told == whole
    assert pieces[-1] == "Ida left."


def test_pieces_come_once_an_epoch_in_another_order():
    source = Pieces(tuple("abcdefghij"))
    first, second = ([source(number, {}) for number in range(start, start + 10)] for start in (0, 10))
    assert sorted(first) == sorted(second) == list("abcdefghij")
    assert first != second


# What ships


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

    texts = sample_stories(model, tokenizer, count=64, seed=7)
    assert len(texts) == 64
    known = genders()
    for faults in (name_faults, pronoun_faults, role_faults):
        assert np.mean([bool(faults(each, known)) for each in texts]) <= 0.15, faults
    assert np.mean([is_unfinished(each) for each in texts]) <= 0.05
