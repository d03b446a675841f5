"""The forward pass of GPT-2, Llama and Qwen2 in few operations, for decoding.

In transformers, a step of a small model is hundreds of Python calls and operations that take longer to start
than to compute. `fuse` reads the weights of a base model that consists of known parts only; what it returns
computes the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import NewGELUActivation, SiLUActivation
from transformers.models.gpt2 import modeling_gpt2 as gpt2
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.pytorch_utils import Conv1D

from lm_envs.kv_cache import SlotCache

# A model's parts must be of exactly these classes: a subclass (an adapter's, a quantized layer) may compute
# anything.
_GPT2 = {gpt2.GPT2Model, gpt2.GPT2Block, gpt2.GPT2Attention, gpt2.GPT2MLP, NewGELUActivation}
_GPT2 |= {nn.ModuleList, nn.Embedding, Conv1D, nn.LayerNorm, nn.Dropout}
_LLAMA = {llama.LlamaModel, llama.LlamaDecoderLayer, llama.LlamaAttention, llama.LlamaMLP, llama.LlamaRMSNorm}
_LLAMA |= {llama.LlamaRotaryEmbedding, nn.ModuleList, nn.Embedding, nn.Linear, SiLUActivation, nn.SiLU}
_QWEN2 = {qwen2.Qwen2Model, qwen2.Qwen2DecoderLayer, qwen2.Qwen2Attention, qwen2.Qwen2MLP, qwen2.Qwen2RMSNorm}
_QWEN2 |= {qwen2.Qwen2RotaryEmbedding, nn.ModuleList, nn.Embedding, nn.Linear, SiLUActivation, nn.SiLU}

# A matrix of up to this many weights stays in a CPU core's own cache while it is used.
SMALL_MATRIX = 2**19
# Larger ones are read faster in blocks of so many rows, for inputs of so few.
BLOCK, BLOCKED_INPUTS = 32, range(8, 65)

Function = Callable[[Tensor], Tensor]


def fuse(trunk: Any, context_length: int, dtype: torch.dtype) -> FusedTrunk | None:
    """The fused forward pass of a base model; None where only transformers' own code is known to be right.

    It holds copies of weights: once they have changed, it has to be made anew.

    Args:
        trunk: base model of a causal LM.
        context_length: positions are below it.
        dtype: of matrix products; under autocast another one than the weights'.
    """
    families: dict[type[nn.Module], set[type[nn.Module]]]
    families = {gpt2.GPT2Model: _GPT2, llama.LlamaModel: _LLAMA, qwen2.Qwen2Model: _QWEN2}
    parts = families.get(type(trunk), set())
    weights, config = list(trunk.parameters()), trunk.config
    known = (
        {type(module) for module in trunk.modules()} <= parts
        and all(type(weight) is nn.Parameter for weight in weights)
        and len({(weight.device, weight.dtype) for weight in weights}) == 1
        and config._attn_implementation == "sdpa"
        and not getattr(config, "add_cross_attention", False)
        and (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") == "default"
        and set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}
    )
    return FusedTrunk(trunk, context_length, dtype) if known else None


def untouched(modules: Iterable[nn.Module]) -> bool:
    """Whether modules still do what their classes say: none has a hook or a `forward` of its own."""
    return not any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
        for module in modules
    )


@dataclass
class _Layer:
    """hidden += output(attention(qkv(attention_norm(hidden)))); hidden += mlp(mlp_norm(hidden))."""

    attention_norm: Function
    qkv: Function  # (n, H) -> (n, (query heads + 2 * key heads) * head size)
    output: Function
    mlp_norm: Function
    mlp: Function
    scaling: float


class FusedTrunk:
    """The forward pass that `fuse` makes. It is right as long as the model's modules are `untouched`."""

    def __init__(self, trunk: Any, context_length: int, dtype: torch.dtype) -> None:
        config = trunk.config
        self._embedding = trunk.get_input_embeddings().weight
        self._positions: Tensor | None = None
        if isinstance(trunk, gpt2.GPT2Model):
            self._positions = trunk.wpe.weight
            self._heads = self._key_heads = config.num_attention_heads
            self._layers = [_gpt2_layer(block, dtype) for block in trunk.h]
            self._norm = _layer_norm(trunk.ln_f)
        else:
            positions = torch.arange(context_length, device=self._embedding.device)
            cos, sin = trunk.rotary_emb(self._embedding, positions[None])
            # A head's first half is turned by minus the sine of the second, and the second by plus the first.
            self._cos, self._sin = (x.view(context_length, 1, 2, -1).clone() for x in (cos, sin))
            self._sin[:, :, 0].neg_()
            self._heads, self._key_heads = config.num_attention_heads, config.num_key_value_heads
            self._layers = [_llama_layer(layer, dtype) for layer in trunk.layers]
            self._norm = _rms_norm(trunk.norm)

    def forward(
        self, input_ids: Tensor, positions: Tensor, mask: Tensor, last: Tensor, cache: SlotCache
    ) -> Tensor:
        """Last hidden states (n, H) of one token a row.

        Args:
            input_ids: (n, T) int64.
            positions: (n, T) int64.
            mask: (n, 1, T, width), what is added to the scores of the `width` cached positions.
            last: (n,) int64, which of the T tokens.
            cache: set to the same rows and positions.
        """
        n, length = input_ids.shape
        query_heads, key_heads = self._heads, self._key_heads
        hidden = F.embedding(input_ids, self._embedding)
        if self._positions is not None:
            hidden += F.embedding(positions, self._positions)
        else:
            cos, sin = self._cos[positions], self._sin[positions]
        hidden = hidden.view(n * length, -1)
        grouped_mask = self._for_groups(mask)
        for index, layer in enumerate(self._layers):
            qkv = layer.qkv(layer.attention_norm(hidden)).contiguous()
            qkv = qkv.view(n, length, query_heads + 2 * key_heads, -1)
            qk, value = qkv.split([query_heads + key_heads, key_heads], dim=2)
            if self._positions is None:
                halves = qk.unflatten(-1, (2, -1))
                qk = torch.addcmul(halves * cos, halves.flip(-2), sin).flatten(-2).to(qk.dtype)
            query, key = qk.split([query_heads, key_heads], dim=2)
            keys, values = cache.update(key.transpose(1, 2), value.transpose(1, 2), index)
            if layer is self._layers[-1] and length > 1:
                # Nothing reads the other tokens any more.
                rows = torch.arange(n, device=last.device)
                grouped_mask = self._for_groups(mask[rows, :, last][:, :, None])
                query, hidden = query[rows, last][:, None], hidden.view(n, length, -1)[rows, last]
                length = 1
            # The query heads that share a key head are so many queries to it.
            query = query.unflatten(2, (key_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)
            attended = F.scaled_dot_product_attention(
                query, keys, values, attn_mask=grouped_mask, scale=layer.scaling
            )
            attended = attended.unflatten(2, (-1, length)).permute(0, 3, 1, 2, 4)
            hidden += layer.output(attended.reshape(n * length, -1))
            hidden += layer.mlp(layer.mlp_norm(hidden))
        return self._norm(hidden)

    def _for_groups(self, mask: Tensor) -> Tensor:
        """A mask (n, 1, T, width) for each query head of a group: (n, 1, groups * T, width)."""
        groups = self._heads // self._key_heads
        return mask[:, :, None].expand(-1, -1, groups, -1, -1).flatten(2, 3)


def _gpt2_layer(block: Any, dtype: torch.dtype) -> _Layer:
    up, down = _linear([block.mlp.c_fc], dtype), _linear([block.mlp.c_proj], dtype)
    return _Layer(
        attention_norm=_layer_norm(block.ln_1),
        qkv=_linear([block.attn.c_attn], dtype),
        output=_linear([block.attn.c_proj], dtype),
        mlp_norm=_layer_norm(block.ln_2),
        mlp=lambda x: down(F.gelu(up(x), approximate="tanh")),
        scaling=block.attn.scaling,
    )


def _llama_layer(layer: Any, dtype: torch.dtype) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    gate, up, down = (_linear([part], dtype) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    return _Layer(
        attention_norm=_rms_norm(layer.input_layernorm),
        qkv=_linear([attention.q_proj, attention.k_proj, attention.v_proj], dtype),
        output=_linear([attention.o_proj], dtype),
        mlp_norm=_rms_norm(layer.post_attention_layernorm),
        mlp=lambda x: down(F.silu(gate(x)).mul_(up(x))),
        scaling=attention.scaling,
    )


def _layer_norm(norm: nn.LayerNorm) -> Function:
    return lambda x: F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _rms_norm(norm: Any) -> Function:
    # As transformers: in float32 whatever the dtype, but for the weight.
    weight, eps = norm.weight, norm.variance_epsilon
    if weight.dtype == torch.float64:  # to the last bit: a GPU's kernel adds up in another order
        return norm.forward
    return lambda x: F.rms_norm(x.float(), weight.shape, None, eps).to(x.dtype).mul_(weight)


def _linear(modules: list[Any], dtype: torch.dtype) -> Function:
    """One product for linear layers (or one Conv1D) that read the same input."""
    weights = [module.weight.detach() for module in modules]
    weights = [weight.t() if isinstance(modules[0], Conv1D) else weight for weight in weights]
    weight = (torch.cat(weights) if len(weights) > 1 else weights[0]).to(dtype)
    bias = modules[0].bias
    if bias is not None:
        bias = torch.cat([module.bias.detach() for module in modules]).to(dtype)
    if weight.device.type == "cpu":
        small = weight.numel() <= SMALL_MATRIX
        weight = weight.t().contiguous().t() if small else weight.contiguous()
    return lambda x: linear(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, faster on CPU for few rows and a large matrix.

    There the time is that of reading the weights, and a library's matrix product rearranges them first.
    Products of blocks of the weights' rows with the transposed input do not.

    Args:
        x: (n, K).
        weight: (N, K).
        bias: (N,) or None.

    Returns:
        (n, N), not always contiguous.
    """
    features = weight.shape[0] - weight.shape[0] % BLOCK
    blocked = (
        len(x) in BLOCKED_INPUTS
        and features > 0
        and x.dtype == weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and weight.numel() > SMALL_MATRIX
        and weight.is_contiguous()
    )
    if not blocked:
        return F.linear(x, weight, bias)
    columns = x.t().contiguous().expand(features // BLOCK, -1, -1)
    product = torch.bmm(weight[:features].view(-1, BLOCK, x.shape[1]), columns).view(features, -1)
    if features < weight.shape[0]:
        product = torch.cat([product, weight[features:] @ columns[0]])
    return product.t() if bias is None else product.add_(bias[:, None]).t()
