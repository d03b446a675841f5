"""The fused forward pass: the same function as transformers', and only where it is known to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import ARCHITECTURES, CONTEXT_LENGTH, build_model
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel

from lm_envs import fused
from lm_envs.decoding import Decoder
from lm_envs.fused import FusedTrunk, linear

VOCAB_SIZE = 50
CONTEXTS = [[1, 2, 3], list(range(40)), [7], [9] * 20]
STEPS = [[5, 6, 7, 8], [9, 10, 11, 12]]

Passes = list[tuple[int, ...]]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    """Shapes (n, T) of the fused forward passes from here on."""
    shapes: Passes = []
    forward = FusedTrunk.forward

    def record(self: FusedTrunk, input_ids: torch.Tensor, *args: Any) -> torch.Tensor:
        shapes.append(tuple(input_ids.shape))
        return forward(self, input_ids, *args)

    monkeypatch.setattr(FusedTrunk, "forward", record)
    return shapes


def decode_and_compare(model: PreTrainedModel, atol: float) -> None:
    """Prefill, step all slots and some of them; logits against full forward passes of each context alone."""
    decoder = Decoder(model, 4, vocab_size=VOCAB_SIZE, context_length=CONTEXT_LENGTH)
    decoder.prefill(range(4), CONTEXTS)
    for tokens in STEPS:
        decoder.step(tokens)
    decoder.step([13], [1])
    rows = [[*context, *(tokens[i] for tokens in STEPS)] for i, context in enumerate(CONTEXTS)]
    rows[1] += [13]
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([row])).logits[0, -1, :VOCAB_SIZE] for row in rows]
    torch.testing.assert_close(decoder.logits(), torch.stack(expected), rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("gpt2", {}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "n_inner": 24, "layer_norm_epsilon": 0.1}),
        ("gpt2", {"scale_attn_weights": False}),
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 8, "num_key_value_heads": 1}),
        ("llama", {"num_key_value_heads": 4, "rms_norm_eps": 0.1, "hidden_act": "swish"}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
        ("qwen2", {}),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False}),
    ],
)
def test_the_same_function(architecture: str, config: dict[str, Any], passes: Passes) -> None:
    model = build_model(architecture, VOCAB_SIZE + 3, **config)
    for name, bias in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(bias)
    decode_and_compare(model.double(), atol=1e-10)
    assert passes == [(1, 1), (3, 40), (4, 1), (4, 1), (1, 1)]


def restless(model: PreTrainedModel) -> PreTrainedModel:
    model.base_model.register_forward_pre_hook(lambda module, args: None)
    return model


def own_forward(model: PreTrainedModel) -> PreTrainedModel:
    last = model.base_model.layers[-1].mlp
    last.forward = lambda x: 2 * type(last).forward(last, x)
    return model


def subclassed(model: PreTrainedModel) -> PreTrainedModel:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    model.base_model.layers[0].mlp.up_proj.__class__ = Doubled
    return model


def with_lora(model: PreTrainedModel) -> PreTrainedModel:
    import peft

    config = peft.LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config).double().eval()


def llama(**config: Any) -> PreTrainedModel:
    return build_model("llama", VOCAB_SIZE, **config).double()


def other(model_class: type[PreTrainedModel], config_class: type[Any], **config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {"vocab_size": VOCAB_SIZE, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"intermediate_size": 32, "max_position_embeddings": CONTEXT_LENGTH, "initializer_range": 0.4}
    return (
        model_class(config_class(**{**shape, "bos_token_id": None, "eos_token_id": None, **config}))
        .double()
        .eval()
    )


LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}


@pytest.mark.parametrize(
    "build",
    [
        lambda: restless(llama()),
        lambda: own_forward(llama()),
        lambda: subclassed(llama()),
        lambda: with_lora(llama()),
        lambda: llama(hidden_act="gelu"),
        lambda: llama(rope_parameters=LINEAR_ROPE),
        lambda: build_model("gpt2", VOCAB_SIZE, activation_function="relu").double(),
        lambda: other(GPTNeoXForCausalLM, GPTNeoXConfig),
        lambda: other(MistralForCausalLM, MistralConfig, num_key_value_heads=2),
    ],
    ids=["hook", "forward", "subclass", "lora", "activation", "rope", "relu", "gpt-neox", "mistral"],
)
def test_anything_else_goes_through_transformers(
    build: Callable[[], PreTrainedModel], passes: Passes
) -> None:
    decode_and_compare(build(), atol=1e-10)
    assert passes == []


def test_layers_that_look_back_only_so_far_are_not_fused() -> None:
    sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    model = build_model("qwen2", VOCAB_SIZE, **sliding)
    assert set(model.config.layer_types) == {"full_attention", "sliding_attention"}
    assert fused.fuse(model.base_model, CONTEXT_LENGTH, torch.float32) is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_hook_may_come_and_go(architecture: str, passes: Passes) -> None:
    model = build_model(architecture, VOCAB_SIZE).double()
    decoder = Decoder(model, 4, vocab_size=VOCAB_SIZE, context_length=CONTEXT_LENGTH)
    decoder.prefill(range(4), CONTEXTS)
    before, seen = len(passes), []
    hook = list(model.base_model.modules())[-1].register_forward_hook(lambda *args: seen.append(1))
    decoder.step(STEPS[0])
    assert seen
    assert len(passes) == before
    hook.remove()
    decoder.step(STEPS[1])
    assert len(passes) == before + 1
    rows = [[*context, STEPS[0][i], STEPS[1][i]] for i, context in enumerate(CONTEXTS)]
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([row])).logits[0, -1] for row in rows]
    torch.testing.assert_close(decoder.logits(), torch.stack(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_hook_on_the_head_is_heard(architecture: str) -> None:
    model = build_model(architecture, VOCAB_SIZE)
    decoder = Decoder(model, 1, vocab_size=VOCAB_SIZE, context_length=CONTEXT_LENGTH)
    decoder.prefill([0], [[1, 2]])
    plain = decoder.logits()
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: 2 * output)
    torch.testing.assert_close(decoder.logits(), 2 * plain)


def test_a_head_with_bias() -> None:
    model = build_model("llama", VOCAB_SIZE + 3)
    model.set_output_embeddings(nn.Linear(16, VOCAB_SIZE + 3))
    decode_and_compare(model.double(), atol=1e-10)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_autocast_for_some_passes(architecture: str, passes: Passes) -> None:
    model = build_model(architecture, VOCAB_SIZE, initializer_range=0.1)
    decoder = Decoder(model, 4, vocab_size=VOCAB_SIZE, context_length=CONTEXT_LENGTH)
    decoder.prefill(range(4), CONTEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        decoder.step(STEPS[0])
    decoder.step(STEPS[1])
    rows = [[*context, STEPS[0][i], STEPS[1][i]] for i, context in enumerate(CONTEXTS)]
    with torch.no_grad():
        expected = torch.stack([model(input_ids=torch.tensor([row])).logits[0, -1] for row in rows])
    torch.testing.assert_close(decoder.logits(), expected, rtol=0, atol=0.02)
    assert passes.count((4, 1)) == 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_clear_reads_the_weights_again(architecture: str) -> None:
    model = build_model(architecture, VOCAB_SIZE).double()
    decoder = Decoder(model, 4, vocab_size=VOCAB_SIZE, context_length=CONTEXT_LENGTH)
    decoder.prefill(range(4), CONTEXTS)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    decoder.clear()
    decoder.prefill(range(4), CONTEXTS)
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([row])).logits[0, -1] for row in CONTEXTS]
    torch.testing.assert_close(decoder.logits(), torch.stack(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_of_large_matrices(architecture: str, monkeypatch: pytest.MonkeyPatch, passes: Passes) -> None:
    monkeypatch.setattr(fused, "SMALL_MATRIX", 0)
    monkeypatch.setattr(fused, "BLOCK", 3)  # does not divide the layers' sizes
    monkeypatch.setattr(fused, "BLOCKED_INPUTS", range(4, 9))
    decode_and_compare(build_model(architecture, VOCAB_SIZE + 3), atol=1e-4)
    assert (4, 1) in passes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_in_bfloat16(architecture: str, passes: Passes) -> None:
    # Logits reach 1.2 here; bfloat16's rounding at that size is 0.004.
    decode_and_compare(build_model(architecture, VOCAB_SIZE, initializer_range=0.1).bfloat16(), atol=0.02)
    assert passes


@pytest.mark.parametrize("rows", [1, 7, 8, 33, 64, 65])
@pytest.mark.parametrize("features", [32, 700, 1024])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear(rows: int, features: int, with_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 512), torch.randn(features, 512)
    bias = torch.randn(features) if with_bias else None
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    for inputs in (x, x.t().contiguous().t()):
        torch.testing.assert_close(linear(inputs, weight, bias).double(), expected, rtol=0, atol=2e-4)
