"""Decoder against a full forward pass of every slot's context alone."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from models import ARCHITECTURES, CONTEXT_LENGTH, build_model
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import PreTrainedModel

from lm_envs import cuda_graphs, decoding, scoring
from lm_envs.decoding import Decoder

VOCAB_SIZE = 50
NUM_SLOTS = 4


def make_model(architecture: str = "gpt2", dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    # Three embedding rows more than the decoder may use, as in a padded model.
    return build_model(architecture, VOCAB_SIZE + 3).to(dtype)


def make_decoder(model: PreTrainedModel, num_slots: int = NUM_SLOTS) -> Decoder:
    return Decoder(model, num_slots, vocab_size=VOCAB_SIZE, context_length=CONTEXT_LENGTH)


@torch.no_grad()
def full_forward(model: PreTrainedModel, context: list[int]) -> torch.Tensor:
    """Next-token logits (V,) from a plain forward pass of one context."""
    return model(input_ids=torch.tensor([context])).logits[0, -1, :VOCAB_SIZE]


def assert_exact(
    decoder: Decoder, model: PreTrainedModel, contexts: list[list[int]], atol: float = 1e-10
) -> None:
    for slot, context in enumerate(contexts):
        assert decoder.tokens[slot, : decoder.lengths[slot]].tolist() == context
        if context:
            expected = full_forward(model, context)
            torch.testing.assert_close(decoder.logits([slot])[0], expected, rtol=0, atol=atol)


token = st.integers(0, VOCAB_SIZE - 1)
# Lengths on both sides of the width bucket of 32, up to a full slot.
context = st.lists(token, min_size=1, max_size=12) | st.lists(token, min_size=30, max_size=CONTEXT_LENGTH)
some_slots = st.lists(st.integers(0, NUM_SLOTS - 1), min_size=1, max_size=NUM_SLOTS, unique=True)


class DecoderMachine(RuleBasedStateMachine):
    """Random interleavings of everything a decoder can do, next to plain lists."""

    model: PreTrainedModel
    atol: float
    cache: dict[tuple[int, ...], torch.Tensor]  # full forward passes, by context

    @initialize()
    def start(self) -> None:
        self.decoder = make_decoder(self.model)
        self.contexts: list[list[int]] = [[] for _ in range(NUM_SLOTS)]
        self.forwarded = 0
        self.snapshots: list[tuple[Any, list[list[int]]]] = []

    def _move(self, slot: int, new: list[int]) -> None:
        """Bring a slot of the plain lists to a context, counting the tokens that have to be forwarded."""
        old = self.contexts[slot]
        if old != new:
            common = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
            common = min(len(old), len(new)) if common is None else common
            self.forwarded += len(new) - min(common, len(new) - 1)
        self.contexts[slot] = list(new)

    @rule(slots=some_slots, data=st.data())
    def step(self, slots: list[int], data: st.DataObject) -> None:
        slots = [slot for slot in slots if len(self.contexts[slot]) < CONTEXT_LENGTH]
        tokens = [data.draw(token) for _ in slots]
        self.decoder.step(tokens, slots)
        for slot, new in zip(slots, tokens, strict=True):
            self._move(slot, [*self.contexts[slot], new])

    @rule(data=st.data())
    def step_all(self, data: st.DataObject) -> None:
        if max(map(len, self.contexts)) < CONTEXT_LENGTH:
            tokens = [data.draw(token) for _ in range(NUM_SLOTS)]
            hidden = self.decoder.step(np.array(tokens))
            assert hidden.shape == (NUM_SLOTS, 16)
            for slot, new in enumerate(tokens):
                self._move(slot, [*self.contexts[slot], new])

    @rule(slots=some_slots, data=st.data())
    def advance(self, slots: list[int], data: st.DataObject) -> None:
        """Slots that stay, grow by one, grow by more, shrink, branch off or start anew, in one call."""
        new = []
        for slot in slots:
            old = self.contexts[slot]
            kept = data.draw(st.integers(0, len(old)) | st.just(len(old)))
            grown = data.draw(st.just(1) | st.integers(0, 5))
            row = (old[:kept] + [data.draw(token) for _ in range(grown)])[:CONTEXT_LENGTH]
            new.append(row or [data.draw(token)])
        padded = np.full((len(slots), CONTEXT_LENGTH), -1)  # filler is never read
        for i, row in enumerate(new):
            padded[i, : len(row)] = row
        self.decoder.advance(padded, [len(row) for row in new], slots)
        for slot, row in zip(slots, new, strict=True):
            self._move(slot, row)

    @rule(slots=some_slots, data=st.data())
    def prefill(self, slots: list[int], data: st.DataObject) -> None:
        new = [data.draw(context) for _ in slots]
        self.decoder.prefill(slots, new)
        for slot, row in zip(slots, new, strict=True):
            self._move(slot, row)

    @rule(source=st.integers(0, NUM_SLOTS - 1), copies=some_slots)
    def fork(self, source: int, copies: list[int]) -> None:
        self.decoder.fork(source, copies)
        for slot in copies:
            self.contexts[slot] = list(self.contexts[source])

    @rule(slots=some_slots | st.none())
    def snapshot(self, slots: list[int] | None) -> None:
        taken = list(range(NUM_SLOTS)) if slots is None else slots
        self.snapshots.append((self.decoder.snapshot(slots), [list(self.contexts[slot]) for slot in taken]))

    @rule(data=st.data(), elsewhere=st.booleans())
    def restore(self, data: st.DataObject, elsewhere: bool) -> None:
        if not self.snapshots:
            return
        snapshot, contexts = data.draw(st.sampled_from(self.snapshots))
        slots = data.draw(st.permutations(range(NUM_SLOTS)))[: len(contexts)] if elsewhere else None
        self.decoder.restore(snapshot, slots)
        for slot, row in zip(snapshot.slots if slots is None else slots, contexts, strict=True):
            self.contexts[slot] = list(row)

    @invariant()
    def every_slot_equals_its_full_forward(self) -> None:
        for slot, row in enumerate(self.contexts):
            if row and tuple(row) not in self.cache:
                self.cache[tuple(row)] = full_forward(self.model, row)
            assert self.decoder.tokens[slot, : self.decoder.lengths[slot]].tolist() == row
        filled = [slot for slot in range(NUM_SLOTS) if self.contexts[slot]]
        expected = [self.cache[tuple(self.contexts[slot])] for slot in filled]
        if filled:
            logits = self.decoder.logits(filled)
            torch.testing.assert_close(logits, torch.stack(expected), rtol=0, atol=self.atol)
        assert self.decoder.tokens_forwarded == self.forwarded


def run_machine(examples: int, **attributes: Any) -> None:
    """Run a `DecoderMachine` with these attributes so many times."""
    run_state_machine_as_test(
        type("Machine", (DecoderMachine,), {**attributes, "cache": {}}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=15,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_random_interleavings_are_exact(architecture: str, attention: str) -> None:
    model = make_model(architecture)
    model.set_attn_implementation(attention)
    # Llama's and Qwen2's eager attention takes its softmax in float32.
    atol = 1e-5 if attention == "eager" else 1e-10
    run_machine(25, model=model, atol=atol)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recorded_steps_are_exact(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CUDA graph needs, without a GPU: a trace has all numbers and addresses of its first run."""
    replays: list[torch.Tensor] = []

    def record(forward: cuda_graphs.Pass, inputs: torch.Tensor) -> cuda_graphs.Pass:
        forward(inputs)  # as before a capture, which must do no harm
        trace = make_fx(forward)(inputs)

        def replay(inputs: torch.Tensor) -> torch.Tensor:
            replays.append(inputs)
            return trace(inputs)

        return replay

    monkeypatch.setattr(cuda_graphs, "record", record)
    monkeypatch.setattr(decoding, "RECORDING_DEVICES", ("cpu",))
    run_machine(8, model=make_model(architecture), atol=1e-10)
    assert len(replays) > 10


def test_a_recording_ends_with_what_it_was_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wider cache, another dtype and new weights each record anew; nothing else does."""
    recorded: list[torch.Tensor] = []

    def record(forward: cuda_graphs.Pass, inputs: torch.Tensor) -> cuda_graphs.Pass:
        recorded.append(inputs)
        return forward

    monkeypatch.setattr(cuda_graphs, "record", record)
    monkeypatch.setattr(decoding, "RECORDING_DEVICES", ("cpu",))
    decoder = make_decoder(make_model(dtype=torch.float32))
    counts = []
    for length in (2, 20, 31, 32, 33):
        decoder.prefill(range(NUM_SLOTS), [[1] * length] * NUM_SLOTS)
        decoder.step([2, 3, 4, 5])
        counts.append(len(recorded))
    assert counts == [1, 1, 1, 2, 2]  # widths 32 and 64
    decoder.step([2, 3, 4], [0, 1, 2])  # one slot idles
    assert len(recorded) == 2
    with torch.autocast("cpu", torch.bfloat16):
        decoder.step([2, 3, 4, 5])
    assert len(recorded) == 3
    decoder.clear()
    decoder.prefill(range(NUM_SLOTS), [[1, 2]] * NUM_SLOTS)
    decoder.step([2, 3, 4, 5])
    assert len(recorded) == 4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float32_is_close(architecture: str) -> None:
    model = make_model(architecture, torch.float32)
    decoder = make_decoder(model)
    contexts = [[1, 2, 3], list(range(40)), [7], [9] * 20]
    decoder.prefill(range(4), contexts)
    decoder.step([5, 6, 7, 8])
    assert_exact(decoder, model, [[*row, 5 + i] for i, row in enumerate(contexts)], atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mixed_precision(architecture: str) -> None:
    model = make_model(architecture, torch.float32)
    decoder = make_decoder(model)
    contexts = [[1, 2, 3], list(range(40)), [7], [9] * 20]
    with torch.autocast("cpu", torch.bfloat16):
        decoder.prefill(range(4), contexts)
        decoder.step([5, 6], [0, 2])
        for slot, row in enumerate([[1, 2, 3, 5], contexts[1], [7, 6], contexts[3]]):
            expected = full_forward(model, row).float()
            torch.testing.assert_close(decoder.logits([slot])[0].float(), expected, rtol=0, atol=0.1)


def test_a_reset_encodes_no_other_slot() -> None:
    decoder = make_decoder(make_model())
    decoder.prefill(range(4), [[1, 2, 3], [4, 5], [6], [7, 8, 9]])
    before = decoder.tokens_forwarded
    decoder.prefill([2], [[1, 2, 3, 4, 5]])
    assert decoder.tokens_forwarded == before + 5
    rows = np.array([[1, 2, 3, 9, 0], [4, 5, 9, 0, 0], [9, 9, 0, 0, 0], [7, 8, 9, 9, 0]])
    decoder.advance(rows, [4, 3, 2, 4])  # three steps and a reset
    assert decoder.tokens_forwarded == before + 5 + 3 + 2
    decoder.advance(rows, [4, 3, 2, 4])  # nothing is missing
    assert decoder.tokens_forwarded == before + 5 + 3 + 2


def test_long_prefills_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scoring.TOKENS_PER_PASS, "cpu", 16)
    model, contexts = make_model(), [list(range(2, 2 + n)) for n in (3, 40, 5, 17)]
    decoder, sizes = make_decoder(model), []
    hook = model.base_model.wte.register_forward_hook(lambda *args: sizes.append(tuple(args[1][0].shape)))
    decoder.prefill(range(4), contexts)
    hook.remove()
    assert sizes == [(2, 5), (1, 17), (1, 40)]
    assert decoder.tokens_forwarded == 65
    assert_exact(decoder, model, contexts)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_training_mode_changes_nothing_and_is_kept() -> None:
    model = make_model()  # GPT-2 has dropout 0.1
    model.gradient_checkpointing_enable()
    model.train()
    model.base_model.ln_f.eval()
    decoder, contexts = make_decoder(model), [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]]
    modes = [module.training for module in model.modules()]
    hidden = decoder.prefill(range(4), contexts)
    decoder.step([1, 2, 3, 4])
    assert [module.training for module in model.modules()] == modes
    assert not hidden.requires_grad
    assert not hidden.is_inference()
    model.eval()
    assert_exact(decoder, model, [[*row, i + 1] for i, row in enumerate(contexts)])


def test_clear_after_the_weights_changed() -> None:
    model = make_model("llama")
    decoder, contexts = make_decoder(model), [[1, 2, 3], [4, 5], [6], [7, 8]]
    decoder.prefill(range(4), contexts)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(0.9)
    decoder.clear()
    assert decoder.lengths.tolist() == [0, 0, 0, 0]
    decoder.prefill(range(4), contexts)
    assert_exact(decoder, model, contexts)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lora_adapters_take_part(architecture: str) -> None:
    import peft

    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    base = make_model(architecture)
    plain = full_forward(base, [1, 2, 3])
    model = peft.get_peft_model(base, config).double().eval()
    decoder, contexts = make_decoder(model), [[1, 2, 3], [4, 5], [6], [7, 8]]
    decoder.prefill(range(4), contexts)
    assert_exact(decoder, model, contexts)
    assert (full_forward(model, [1, 2, 3]) - plain).abs().max() > 0.01


def test_a_slot_that_held_nan_recovers() -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.base_model.embed_tokens.weight[13] = torch.nan
    decoder, contexts = make_decoder(model), [[1] * 20, [4, 5], [6], [7, 8]]
    decoder.prefill(range(4), contexts)
    decoder.step([13, 1, 1, 1])
    assert decoder.logits([0]).isnan().all()
    contexts = [[3, 2], [4, 5, 1], [6, 1], [7, 8, 1]]
    decoder.prefill([0], contexts[:1])
    assert_exact(decoder, model, contexts)
    decoder.step([13], [1])
    decoder.fork(0, [1])
    assert_exact(decoder, model, [contexts[0], contexts[0], *contexts[2:]])


def test_a_failed_pass_claims_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    decoder, contexts = make_decoder(model), [[1, 2, 3], [4, 5], [6], [7, 8]]
    decoder.prefill(range(4), contexts)
    with monkeypatch.context() as patch:
        patch.setattr(model.base_model.h[1], "forward", None)
        with pytest.raises(TypeError):
            decoder.prefill([1], [[4, 9, 9]])
    decoder.prefill([1], [[4, 5]])
    assert_exact(decoder, model, contexts)


def test_results_are_copies() -> None:
    decoder = make_decoder(make_model())
    first = decoder.step([1, 2, 3, 4])
    kept, snapshot = first.clone(), decoder.snapshot()
    decoder.step([5], [0])
    decoder.step([5, 6, 7, 8])
    assert torch.equal(first, kept)
    again = pickle.loads(pickle.dumps(snapshot))
    decoder.restore(again)
    assert torch.equal(decoder.hidden, kept)
    assert decoder.tokens[:, 0].tolist() == [1, 2, 3, 4]


def test_bad_arguments() -> None:
    decoder = make_decoder(make_model())
    with pytest.raises(ValueError, match="num_slots must be >= 1, got 0"):
        make_decoder(make_model(), 0)
    with pytest.raises(ValueError, match="slot 1 has 0 tokens; accepted: 1 to"):
        decoder.prefill([1], [[]])
    with pytest.raises(ValueError, match="slot 1 has 81 tokens; accepted: 1 to 80"):
        decoder.prefill([1], [[1] * 81])
    with pytest.raises(ValueError, match="token id 50 is out of range; accepted: 0 to 49"):
        decoder.step([1, 2, 3, 50])
    with pytest.raises(ValueError, match="token id -1 is out of range"):
        decoder.prefill([0], [[1, -1]])
    with pytest.raises(ValueError, match="tokens must have shape"):
        decoder.step([1, 2, 3])
    with pytest.raises(ValueError, match="input_ids and lengths must be"):
        decoder.advance(np.zeros((4, 3), int), [1, 2, 3])
    with pytest.raises(ValueError, match=r"tokens must be integers, got float64 \[1.9"):
        decoder.step([1.9, 1, 1, 1])
    with pytest.raises(ValueError, match="contexts must be integers, got bool"):
        decoder.prefill([0], [[True]])
    for slots in ([0, 0], [4], [-1]):
        with pytest.raises(ValueError, match="slots must be distinct, in 0 to 3"):
            decoder.step([1] * len(slots), slots)
    with pytest.raises(ValueError, match="slots must be a list of integers"):
        decoder.step([1], [True])
    with pytest.raises(ValueError, match="slot 0 is empty"):
        decoder.logits()
    decoder.prefill([3], [[1] * 80])
    with pytest.raises(ValueError, match="slot 3 already holds 80 tokens"):
        decoder.step([1, 1, 1, 1])
    with pytest.raises(ValueError, match="slots must be 2, one per snapshot row, got 3"):
        decoder.restore(decoder.snapshot([0, 1]), [0, 1, 2])
    assert decoder.lengths.tolist() == [0, 0, 0, 80]
    assert decoder.step([], []).shape == (0, 16)
    assert decoder.prefill([], []).shape == (0, 16)
