"""Loading rules, special tokens, limits and scores of LanguageModel."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from models import ARCHITECTURES, SENTENCES, build_model, save_tiny
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

from lm_envs import language_model as language_model_module
from lm_envs.errors import ModelError
from lm_envs.language_model import LanguageModel
from lm_envs.text_env import TextGenEnv
from lm_envs.tokenization import encode_chat, special_ids


@pytest.fixture
def folder(tiny_llama: str, tmp_path: Path) -> Path:
    """A copy of the tiny Llama, to be damaged."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def change_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# What a loaded model is.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_facts(architecture: str, tiny_models: dict[str, str]) -> None:
    path = tiny_models[architecture]
    lm = LanguageModel.load(path, device="cpu")
    assert (lm.name, lm.path) == (path, path)
    assert lm.vocab_size == len(lm.tokenizer)
    assert (lm.hidden_size, lm.context_length) == (16, 80)
    assert (lm.device, lm.dtype, lm.chat) == (torch.device("cpu"), torch.float32, False)
    assert lm.eos_token_id == lm.tokenizer.convert_tokens_to_ids("<eos>")
    assert lm.pad_token_id == (lm.tokenizer.pad_token_id if architecture == "qwen2" else lm.eos_token_id)
    assert (lm.bos_token_id is None) == (architecture == "qwen2")
    assert not lm.model.training
    assert not any(weights.requires_grad for weights in lm.model.parameters())
    # The surplus embedding rows of the tiny Qwen2 never show.
    decoder = lm.decoder(2)
    decoder.step([1, 2])
    assert decoder.logits().shape == (2, lm.vocab_size)
    assert lm.model.get_output_embeddings().weight.shape[0] == lm.vocab_size + 7 * (architecture == "qwen2")


def test_dtypes_and_devices(tiny_gpt2: str) -> None:
    for dtype in ("float64", "bfloat16"):
        by_name = LanguageModel.load(tiny_gpt2, device="cpu", dtype=dtype)
        by_value = LanguageModel.load(tiny_gpt2, device=torch.device("cpu"), dtype=getattr(torch, dtype))
        assert by_name.model is by_value.model
        assert by_name.model.dtype == by_name.dtype == getattr(torch, dtype)
    with pytest.raises(ValueError, match=r"dtype must be 'auto' or one of .*, got 'float8'"):
        LanguageModel.load(tiny_gpt2, dtype="float8")
    for device in ("gpu", "cpu:abc", "auto:1", "cuda:", ""):
        with pytest.raises(ValueError, match=rf"device must be 'auto' or one of .*, got '{device}'"):
            LanguageModel.load(tiny_gpt2, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(tiny_gpt2: str) -> None:
    with pytest.raises(ValueError, match=r"device='cuda:1' cannot be used here: .*CUDA"):
        LanguageModel.load(tiny_gpt2, device="cuda:1")


def test_weights_are_shared_until_the_files_change(folder: Path) -> None:
    first, second = LanguageModel.load(folder, device="cpu"), LanguageModel.load(str(folder), device="cpu")
    assert first.model is second.model
    assert LanguageModel.load(folder, device="cpu", dtype="float64").model is not first.model
    build_model("llama", 290, seed=1).save_pretrained(folder)
    third = LanguageModel.load(folder, device="cpu")
    assert third.model is not first.model
    assert not torch.equal(third.model.lm_head.weight, first.model.lm_head.weight)


def test_weights_are_freed_with_their_last_user(folder: Path) -> None:
    from lm_envs.model_loading import _shared

    lm = LanguageModel.load(folder, device="cpu")
    assert any(key[0] == str(folder) for key in _shared)
    del lm
    gc.collect()
    assert not any(key[0] == str(folder) for key in _shared)


def test_pickles_and_copies_by_name(tiny_qwen2: str) -> None:
    lm = LanguageModel.load(tiny_qwen2, device="cpu", dtype="float64", chat=True)
    data = pickle.dumps(lm)
    assert len(data) < 500
    for other in (pickle.loads(data), copy.deepcopy(lm)):
        assert other.model is lm.model
        assert (other.chat, other.dtype) == (True, torch.float64)


def test_lazy_loading_imports_no_torch(tiny_gpt2: str) -> None:
    code = (
        "import sys; from lm_envs.language_model import LanguageModel\n"
        f"lm = LanguageModel.load({tiny_gpt2!r}, lazy=True)\n"
        "assert lm.decode(lm.encode_prompt('Mira')) == 'Mira' and lm.vocab_size and lm.context_length\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("changes", "context_length"),
    [
        ({"sliding_window": 9}, 9),
        ({"sliding_window": 9, "use_sliding_window": False}, 80),
        ({"sliding_window": 9, "layer_types": ["full_attention", "full_attention"]}, 80),
        ({"sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"]}, 9),
        ({"sliding_window": None}, 80),
        ({"sliding_window": 99}, 80),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 12}}, 12),
        (
            {
                "rope_parameters": None,
                "rope_scaling": {"type": "longrope"},
                "original_max_position_embeddings": 12,
            },
            12,
        ),
    ],
)
def test_context_length_stays_inside_attention_windows(
    changes: dict, context_length: int, folder: Path
) -> None:
    change_json(folder / "config.json", **changes)
    assert LanguageModel.load(folder, lazy=True).context_length == context_length


def test_sizes_that_the_file_leaves_to_defaults(tiny_gpt2: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_gpt2, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    del config["n_positions"]
    (folder / "config.json").write_text(json.dumps(config))
    assert LanguageModel.load(folder, lazy=True).context_length == 1024


# Text and special tokens.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_special_tokens_in_a_text_stay_text(architecture: str, tiny_models: dict[str, str]) -> None:
    lm = LanguageModel.load(tiny_models[architecture], lazy=True)
    text = "Mira <eos> is <bos>\u00e9<|im_end|> \U0001f600 <pad>\n"
    ids = lm.encode(text)
    assert not set(ids) & set(lm.tokenizer.all_special_ids)
    assert lm.decode(ids) == text
    assert lm.decode(np.array([*ids, lm.eos_token_id])) == text
    assert lm.encode("") == []


def test_bos_where_the_tokenizer_adds_it(tiny_gpt2: str, tiny_llama: str, tiny_qwen2: str) -> None:
    gpt2, llama, qwen2 = (LanguageModel.load(path, lazy=True) for path in (tiny_gpt2, tiny_llama, tiny_qwen2))
    assert gpt2.encode_prompt("Mira") == gpt2.encode("Mira")
    assert llama.encode_prompt("Mira") == [llama.bos_token_id, *llama.encode("Mira")]
    assert gpt2.encode_prompt("") == [gpt2.bos_token_id]
    assert llama.encode_prompt("") == [llama.bos_token_id]
    with pytest.raises(ValueError, match="prompt '' is empty"):
        qwen2.encode_prompt("")


def test_chat_template(tiny_qwen2: str, tiny_gpt2: str) -> None:
    lm = LanguageModel.load(tiny_qwen2, lazy=True, chat=True)
    for text in ("Tell me about Mira.", "\n two lines\n", ""):
        expected = lm.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True
        )
        assert lm.encode_prompt(text) == expected["input_ids"]
    # Only the template's own special tokens are there, whatever the user writes.
    start, end = lm.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    ids = lm.encode_prompt("a<|im_end|>\n<|im_start|>system\nb<eos>")
    assert [i for i in ids if i in lm.tokenizer.all_special_ids] == [start, end, start]
    assert "a<|im_end|>\n<|im_start|>system\nb<eos>" in lm.decode(ids)
    with pytest.raises(ValueError, match="has no chat template"):
        LanguageModel.load(tiny_gpt2, lazy=True, chat=True)


def test_chat_templates_that_trim_and_tokenizers_that_mark_beginnings() -> None:
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>"], show_progress=False)
    bpe.train_from_iterator([*SENTENCES, "[INST][/INST]"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", unk_token="<unk>")
    tokenizer.chat_template = "{{ bos_token }}[INST] {{ messages[0]['content'] | trim }} [/INST]"
    for text in ("A fox waits.", "  a fox ", ""):
        message = [{"role": "user", "content": text}]
        expected = tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
        assert encode_chat(tokenizer, special_ids(tokenizer), text) == expected
    ids = encode_chat(tokenizer, special_ids(tokenizer), "a <s> fox")
    assert ids.count(tokenizer.bos_token_id) == 1


def test_tokenizers_of_whole_words(tmp_path: Path) -> None:
    lm = LanguageModel.load(save_tiny(tmp_path, word_level=True), lazy=True)
    assert lm.decode(lm.encode("the fox waits")) == "the fox waits"
    assert lm.encode("xylophone") == [lm.tokenizer.unk_token_id]
    with pytest.raises(ValueError, match="text 'the <eos> waits' holds the special token '<eos>'"):
        lm.encode("the <eos> waits")


def test_tokenizers_without_end_or_padding(tmp_path: Path) -> None:
    lm = LanguageModel.load(save_tiny(tmp_path, eos=False, bos=False), device="cpu")
    assert (lm.eos_token_id, lm.bos_token_id, lm.pad_token_id) == (None, None, 0)
    assert lm.log_probs([[1]], [[2, 3]])[0].shape == (2,)


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff"])
def test_lone_surrogates(text: str, tiny_gpt2: str) -> None:
    lm = LanguageModel.load(tiny_gpt2, lazy=True)
    with pytest.raises(ValueError, match="lone surrogate at index"):
        lm.encode_prompt(text)


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["list"]])
@pytest.mark.parametrize("chat", [False, True])
def test_prompts_that_are_no_text(text: object, chat: bool, tiny_qwen2: str) -> None:
    lm = LanguageModel.load(tiny_qwen2, lazy=True, chat=chat)
    with pytest.raises(ValueError, match="text must be a str, got"):
        lm.encode_prompt(text)


# Scores.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_equal_the_models_own_loss(architecture: str, tiny_models: dict[str, str]) -> None:
    path = tiny_models[architecture]
    lm = LanguageModel.load(path, device="cpu", dtype="float64")
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    context, completion = lm.encode_prompt("A fox waits"), lm.encode(" by the river.")
    labels = torch.tensor([[-100] * len(context) + completion])
    logits = plain(input_ids=torch.tensor([context + completion])).logits[..., : lm.vocab_size]
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:]).item()
    scores = lm.log_probs([context, context], [completion, []])
    assert scores[0].mean() == pytest.approx(-loss, abs=1e-10)
    assert scores[1].shape == (0,)
    assert lm.perplexity([context], [completion]) == pytest.approx(np.exp([loss]))
    assert lm.log_probs([], []) == []


def test_score_arguments(tiny_llama: str) -> None:
    lm = LanguageModel.load(tiny_llama, device="cpu")
    assert lm.log_probs([[1]], [[2]])[0].dtype == np.float32
    with pytest.raises(ValueError, match="got 1 contexts but 2 completions"):
        lm.log_probs([[1]], [[1], [2]])
    with pytest.raises(ValueError, match=r"contexts\[1\] is empty"):
        lm.log_probs([[1], []], [[1], [2]])
    with pytest.raises(ValueError, match=r"contexts\[0\] \+ completions\[0\] is 85 tokens; accepted: up to"):
        lm.log_probs([[1] * 80], [[2] * 5])
    with pytest.raises(ValueError, match="token id 290 in row 0; accepted: 0 to 289"):
        lm.log_probs([[1]], [[290]])
    with pytest.raises(ValueError, match=r"completions\[1\] is empty"):
        lm.perplexity([[1], [1]], [[1], []])
    with pytest.raises(ValueError, match=r"completions\[0\] must be integers, got float64 \[2.7\]"):
        lm.log_probs([[1]], [[2.7]])  # type: ignore[list-item]
    for temperature in (0.0, -1.0, np.inf, "hot"):
        for completion in ([], [1]):
            with pytest.raises(ValueError, match="temperature must be a finite number > 0"):
                lm.log_probs([[1]], [completion], temperature=temperature)  # type: ignore[arg-type]


def test_buffers_of_older_versions_do_not_matter(tmp_path: Path) -> None:
    """transformers once saved GPT-2's causal masks beside its weights."""
    folder = Path(save_tiny(tmp_path))
    expected = LanguageModel.load(folder, device="cpu").log_probs([[1, 2]], [[3]])
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.0.attn.bias"] = torch.ones(1, 1, 80, 80, dtype=torch.uint8).tril()
    weights["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    np.testing.assert_array_equal(
        LanguageModel.load(folder, device="cpu").log_probs([[1, 2]], [[3]]), expected
    )


def test_text_after_a_context_keeps_its_blank(tmp_path: Path) -> None:
    """Decoders like SentencePiece's drop the blank at the beginning of what they decode."""
    folder = save_tiny(tmp_path)
    plain = LanguageModel.load(folder, device="cpu")
    file = tmp_path / "tokenizer.json"
    settings = json.loads(file.read_text())
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    settings["decoder"] = {"type": "Sequence", "decoders": [settings["decoder"], strip]}
    file.write_text(json.dumps(settings))
    lm = LanguageModel.load(folder, device="cpu")
    text = "A fox waits by the river until the rain is over."
    ids = lm.encode(text)
    assert lm.decode(ids) == text
    assert any(lm.decode(ids[end:]) != plain.decode(ids[end:]) for end in range(1, len(ids)))
    for end in range(1, len(ids)):
        assert lm.decode_after(ids[:end], ids[end:]) == plain.decode_after(ids[:end], ids[end:])
        assert plain.decode_after(ids[:end], ids[end:]) == plain.decode(ids[end:])
    env = TextGenEnv(model=folder, prompts=["A fox"], reward=lambda completions, **columns: [0.0])
    env.reset(seed=0)
    river = plain.encode(" by the river")
    for token in [*river, plain.eos_token_id]:
        info = env.step(token)[-1]
    assert info["completion"] == " by the river"


def test_nan_weights_raise(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][5] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FloatingPointError):
        LanguageModel.load(folder, device="cpu").log_probs([[1]], [[2]])


# Folders that are refused. Each damage, and what the error names.


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def empty_config(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def odd_sizes(folder: Path) -> None:
    change_json(folder / "config.json", vocab_size="many")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')


def larger_tokenizer(folder: Path) -> None:
    change_json(folder / "config.json", vocab_size=289)


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def remote_code(folder: Path) -> None:
    change_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Evil"})


def remote_tokenizer(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def cut_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:20])


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def garbage_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x10" + b"\0" * 7 + b"not json at all!" + b"0" * 99)


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def empty_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")


def encoder_decoder(folder: Path) -> None:
    change_json(folder / "config.json", is_encoder_decoder=True)


def masked_model(folder: Path) -> None:
    change_json(folder / "config.json", architectures=["BertForMaskedLM"])


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (no_config, "config.json: no such file"),
        (broken_config, "config.json: "),
        (list_config, "config.json: expected a JSON object"),
        (empty_config, "config.json: cannot read"),
        (odd_sizes, "config.json: vocab_size must be a positive integer, got 'many'"),
        (no_tokenizer, "no tokenizer; expected one of tokenizer.json"),
        (broken_tokenizer, "tokenizer.json: cannot load"),
        (larger_tokenizer, "the tokenizer knows 290 ids, but vocab_size in config.json is 289"),
        (no_weights, "no weights; expected model.safetensors"),
        (pickled_weights, "pytorch_model.bin: pickled weights can run code"),
        (remote_code, "config.json: 'auto_map'"),
        (remote_tokenizer, "tokenizer_config.json: 'auto_map'"),
        (cut_weights, "model.safetensors: .* the file is damaged"),
        (cut_header, "model.safetensors: not a safetensors file"),
        (empty_weights, "model.safetensors: not a safetensors file"),
        (garbage_weights, "model.safetensors: not a safetensors file"),
        (missing_shard, "model-00002-of-00002.safetensors: no such file"),
        (empty_index, "model.safetensors.index.json: no 'weight_map'"),
        (encoder_decoder, "config.json: .* is not a causal language model"),
        (masked_model, "config.json: BertForMaskedLM is not a causal language model"),
    ],
)  # fmt: skip
def test_damaged_folders_are_refused_before_loading(
    damage: Callable[[Path], None], names: str, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=names) as raised:
        LanguageModel.load(folder, lazy=True)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"num_hidden_layers": 3}, "model.safetensors lacks weights .*model.layers.2"),
        ({"num_hidden_layers": 1}, "model.safetensors holds weights .*model.layers.1"),
        ({"intermediate_size": 48}, "model.safetensors holds weights of another shape .*mlp.down_proj"),
        ({"model_type": "no-such-type"}, "config.json"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes: dict, names: str, folder: Path) -> None:
    change_json(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=names) as raised:
        LanguageModel.load(folder, device="cpu")
    assert str(folder) in str(raised.value)


def test_missing_lm_head_is_refused_unless_tied(folder: Path, tiny_qwen2: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights .*lm_head\.weight"):
        LanguageModel.load(folder, device="cpu")
    assert "lm_head.weight" not in load_file(Path(tiny_qwen2) / "model.safetensors")
    LanguageModel.load(tiny_qwen2, device="cpu")


def test_sharded_weights_load(folder: Path, tiny_llama: str) -> None:
    (folder / "model.safetensors").unlink()
    expected = LanguageModel.load(tiny_llama, device="cpu").model
    expected.save_pretrained(folder, max_shard_size="10KB")
    assert not (folder / "model.safetensors").exists()
    loaded = LanguageModel.load(folder, device="cpu").model
    assert torch.equal(loaded.lm_head.weight, expected.lm_head.weight)


SMALL = {"vocab_size": 290, "hidden_size": 16, "num_hidden_layers": 1}


@pytest.mark.parametrize(
    "model",
    [
        # Attention looks ahead; positions come from the 2-D mask; logits are scaled; there is no KV cache.
        lambda: BertLMHeadModel(
            BertConfig(**SMALL, num_attention_heads=2, intermediate_size=16, max_position_embeddings=64)
        ),
        lambda: BloomForCausalLM(BloomConfig(vocab_size=290, hidden_size=16, n_layer=1, n_head=2)),
        lambda: CohereForCausalLM(
            CohereConfig(**SMALL, num_attention_heads=2, intermediate_size=16, logit_scale=0.1)
        ),
        lambda: MambaForCausalLM(MambaConfig(**SMALL, state_size=4)),
    ],
    ids=["bert", "bloom", "cohere", "mamba"],
)
def test_architectures_that_do_not_decode_exactly_are_refused(
    model: Callable[[], torch.nn.Module], folder: Path
) -> None:
    torch.manual_seed(0)
    built = model()
    for weights in built.parameters():
        torch.nn.init.normal_(weights, std=0.4)
    built.save_pretrained(folder)
    change_json(folder / "config.json", max_position_embeddings=64)
    with pytest.raises(ModelError, match=r"architecture .* is not supported") as raised:
        LanguageModel.load(folder, device="cpu")
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "~/no-such-folder", "a/b/c"])
def test_paths_never_go_to_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match="no such folder") as raised:
        LanguageModel.load(name)
    assert Path(name).name in str(raised.value)


def test_hub_ids_go_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="no-such-owner/no-such-model"):
        LanguageModel.load("no-such-owner/no-such-model")


def test_bundled_files_are_verified(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model_module, "BUNDLED", folder)
    with pytest.raises(ModelError, match="SHA256SUMS: no such file"):
        LanguageModel.load(lazy=True)
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (folder / "SHA256SUMS").write_text("".join(lines))
    lm = LanguageModel.load(device="cpu")
    assert (lm.name, lm.path) == ("bundled", str(folder))
    assert pickle.loads(pickle.dumps(lm)).name == "bundled"

    file = folder / "model.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-100] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ModelError, match=r"model\.safetensors: its SHA-256"):
        LanguageModel.load(lazy=True)
    file.unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        LanguageModel.load(lazy=True)
