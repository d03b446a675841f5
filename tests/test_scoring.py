"""Chunked log-probs against a plain log-softmax, and completion scores against plain forward passes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from models import ARCHITECTURES, build_model
from torch import Tensor, nn

from lm_envs import completion_scoring, scoring
from lm_envs.completion_scoring import forget, recall, score_completions
from lm_envs.language_model import LanguageModel
from lm_envs.scoring import head, hidden_states, token_log_probs, trunk

N, H, V, EXTRA = 11, 6, 9, 2


def inputs(dtype: torch.dtype = torch.float64) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """A head with EXTRA padded rows, hidden states, tokens, and a mask that allows each of `tokens`."""
    torch.manual_seed(0)
    layer = nn.Linear(H, V + EXTRA).to(dtype)
    hidden = torch.randn(N, H, dtype=dtype, requires_grad=True)
    tokens = torch.randint(V, (N,))
    mask = (torch.rand(N, V) < 0.6).scatter(1, tokens[:, None], True)
    return layer, hidden, tokens, mask


@pytest.mark.parametrize("logits_per_chunk", [1, 3 * V, 11 * V, 10**6])  # 1 row, 3 rows, exactly all, all
@pytest.mark.parametrize("masked", ["no", "row", "shared"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_log_softmax(
    logits_per_chunk: int, masked: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "LOGITS_PER_CHUNK", logits_per_chunk)
    monkeypatch.setattr(scoring, "FEWEST_ROWS_PER_CHUNK", 1)
    layer, hidden, tokens, row_mask = inputs()
    mask = {"no": None, "row": row_mask, "shared": row_mask.any(0)}[masked]
    parameters = [hidden, *layer.parameters()]

    logits = layer(hidden)[:, :V] / temperature
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    expected = torch.distributions.Categorical(logits=logits)
    expected_log_probs = logits.log_softmax(-1)[torch.arange(N), tokens]
    weights = torch.linspace(-1, 1, N, dtype=torch.float64)
    # Categorical replaces -inf by the smallest number in its entropy, which has the same value and gradient.
    ((expected_log_probs + 0.3 * expected.entropy()) * weights).sum().backward()
    expected_gradients = [parameter.grad.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None

    arguments: dict[str, Any] = {"vocab_size": V, "temperature": temperature, "action_mask": mask}
    log_probs, entropy = token_log_probs(layer, hidden, tokens, **arguments, with_entropy=True)
    ((log_probs + 0.3 * entropy) * weights).sum().backward()
    torch.testing.assert_close(log_probs, expected_log_probs)
    torch.testing.assert_close(entropy, expected.entropy())
    for parameter, gradient in zip(parameters, expected_gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    with torch.no_grad():
        again, none = token_log_probs(layer, hidden, tokens, **arguments)
    assert none is None
    torch.testing.assert_close(again, expected_log_probs)


def test_logits_exist_only_by_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "LOGITS_PER_CHUNK", 4 * V)
    monkeypatch.setattr(scoring, "FEWEST_ROWS_PER_CHUNK", 1)
    layer, hidden, tokens, _ = inputs()
    rows: list[int] = []
    layer.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    kept: list[torch.Size] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        log_probs, _ = token_log_probs(layer, hidden, tokens, vocab_size=V)
    assert not [shape for shape in kept if shape[1:] in ((V,), (V + EXTRA,))]  # no logits wait for backward
    log_probs.sum().backward()
    assert rows == [4, 4, 3, 4, 4, 3]  # forward, and once more backward
    assert token_log_probs(layer, hidden[:0], tokens[:0], vocab_size=V)[0].shape == (0,)


def test_dtypes_and_errors() -> None:
    layer, hidden, tokens, mask = inputs(torch.bfloat16)
    assert token_log_probs(layer, hidden, tokens, vocab_size=V)[0].dtype == torch.float32
    layer, hidden, tokens, mask = inputs()
    mask[3, tokens[3]] = False
    excluded, _ = token_log_probs(layer, hidden, tokens, vocab_size=V, action_mask=mask)
    assert excluded[3] == -torch.inf
    assert excluded[:3].isfinite().all()
    for broken in (torch.nan, torch.inf):
        with torch.no_grad():
            layer.bias[0] = broken
        with pytest.raises(FloatingPointError, match="rows"):
            token_log_probs(layer, hidden, tokens, vocab_size=V)
    with pytest.raises(ValueError, match="temperature must be a finite number > 0, got 0"):
        token_log_probs(layer, hidden, tokens, vocab_size=V, temperature=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_of_padded_rows(architecture: str) -> None:
    model = build_model(architecture, 20).double()
    rows = [[1, 2, 3, 4, 5], [6, 7], [8]]
    ids = torch.zeros(3, 5, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    with torch.no_grad():
        logits = head(model)(hidden_states(model, ids))
        for i, row in enumerate(rows):
            expected = model(input_ids=torch.tensor([row])).logits[0]
            torch.testing.assert_close(logits[i, : len(row)], expected, rtol=0, atol=1e-10)


def test_trunk_and_head_inside_peft() -> None:
    import peft

    model = build_model("llama", 20)
    plain_trunk, plain_head = trunk(model), head(model)
    assert plain_trunk is model.model
    assert plain_head is model.lm_head
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, lora)
    assert trunk(wrapped) is plain_trunk
    assert head(wrapped) is plain_head
    virtual = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    prompt_tuned = peft.get_peft_model(build_model("llama", 20), virtual)
    with pytest.raises(ValueError, match="prompt-learning"):
        trunk(prompt_tuned)


def plain_log_probs(
    model: nn.Module, context: list[int], completion: list[int], temperature: float
) -> np.ndarray:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([context + completion])).logits[0]
    rows = (logits[..., :20] / temperature).log_softmax(-1)[len(context) - 1 : -1]
    return rows[torch.arange(len(completion)), completion].numpy()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tokens_per_pass", [1, 12, 2048])
def test_score_completions(architecture: str, tokens_per_pass: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scoring.TOKENS_PER_PASS, "cpu", tokens_per_pass)
    model = build_model(architecture, 23).double()  # three padded rows
    contexts = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11], [12, 13]]
    completions = [[4, 5], [6, 7, 8, 9, 10, 11], [], [19], [3], [2, 1, 0]]
    scores, entropies = score_completions(
        model, contexts, completions, vocab_size=20, context_length=64, temperature=0.8, with_entropy=True
    )
    assert [score.dtype for score in scores] == [np.float64] * 6
    for context, completion, score, entropy in zip(contexts, completions, scores, entropies, strict=True):
        assert score.shape == entropy.shape == (len(completion),)
        if completion:
            expected = plain_log_probs(model, context, completion, 0.8)
            np.testing.assert_allclose(score, expected, rtol=0, atol=1e-10)
            with torch.no_grad():
                logits = model(torch.tensor([context + completion])).logits[0, len(context) - 1 : -1, :20]
            expected = torch.distributions.Categorical(logits=logits / 0.8).entropy().numpy()
            np.testing.assert_allclose(entropy, expected, rtol=0, atol=1e-10)


def test_all_completions_add_up_to_one() -> None:
    model = build_model("llama", 5).double()
    completions = [list(row) for row in itertools.product(range(5), repeat=3)]
    scores, _ = score_completions(
        model, [[1, 2]] * len(completions), completions, vocab_size=5, context_length=64
    )
    assert np.exp([score.sum() for score in scores]).sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("lengths", "runs"),
    [
        ([], []),
        ([3, 3, 3, 3], [(0, 3), (3, 4)]),  # 9 tokens of 10
        ([1, 2, 2, 5, 5, 20, 20], [(0, 3), (3, 5), (5, 6), (6, 7)]),  # 2 * 3, 5 * 2, 20
    ],
)
def test_passes(lengths: list[int], runs: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scoring.TOKENS_PER_PASS, "cpu", 10)
    cut = scoring.passes(np.array(lengths, np.int64), torch.device("cpu"))
    assert [(run.start, run.stop) for run in cut] == runs


def test_recall_of_what_a_frozen_model_scored(tiny_llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion_scoring, "REMEMBERED_ROWS", 2)
    model = LanguageModel.load(tiny_llama)
    scores = model.log_probs([[1, 2], [3], [4]], [[5, 6], [7], [8, 9]])
    module = model.model
    assert recall(module, np.array([1, 2, 5, 6])) is None  # the oldest of three
    assert recall(module, np.array([3, 7])) is scores[1]
    assert recall(module, np.array([4, 8, 9])) is scores[2]
    assert recall(module, np.array([4, 8])) is None
    model.log_probs([[10]], [[11]], temperature=0.5)
    assert recall(module, np.array([10, 11])) is None
    forget(module)
    assert recall(module, np.array([3, 7])) is None
    assert recall(build_model("llama", 5), np.array([3, 7])) is None
