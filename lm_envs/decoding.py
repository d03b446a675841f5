"""Batched decoding: B slots at lengths of their own, one forward pass a step, nothing encoded twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from lm_envs.cuda_graphs import RecordedPasses
from lm_envs.fused import FusedTrunk, fuse, linear, untouched
from lm_envs.kv_cache import SlotCache
from lm_envs.scoring import head, passes, trunk
from lm_envs.tokenization import token_array

# Where steps of all slots are recorded and replayed.
RECORDING_DEVICES = ("cuda",)


@dataclass(frozen=True)
class Snapshot:
    """What `Decoder.snapshot` copied of n slots; valid as long as the model's weights do not change."""

    slots: np.ndarray  # (n,) int64, where they were taken from
    lengths: np.ndarray  # (n,) int64
    tokens: np.ndarray  # (n, max(lengths)) int64
    hidden: Tensor  # (n, H)
    layers: dict[int, tuple[Tensor, Tensor]]  # layer -> keys, values (n, heads, max(lengths), head size)


class Decoder:
    """Contexts of B slots with their keys, values and last hidden states, advanced together.

    Every result equals a full forward pass of that slot's context alone, up to rounding. A slot costs only
    the tokens that are not cached for it: `tokens_forwarded` counts them. Gradients are never recorded and
    dropout is off, whatever mode the model is in. After the model's weights have changed, call `clear`.

    Args:
        model: Hugging Face causal LM, plain or peft-wrapped.
        num_slots: B >= 1.
        vocab_size: V; logits and token ids are those below it.
        context_length: the most tokens a slot can hold.

    Attributes:
        num_slots: B.
        context_length: the most tokens a slot can hold.
        tokens_forwarded: real tokens (no padding) that went through the model so far.
        lengths: (B,) int64, tokens cached per slot. Read only.
        tokens: (B, context_length) int64; the first `lengths[i]` of row i are what the cache holds. Read
            only.
        hidden: (B, H) in the model's dtype, last hidden state at each slot's last token.
    """

    def __init__(self, model: nn.Module, num_slots: int, *, vocab_size: int, context_length: int) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots must be >= 1, got {num_slots!r}")
        self.num_slots = num_slots
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.tokens_forwarded = 0
        self._model = model
        self.clear()

    def clear(self) -> None:
        """Forget every slot's context."""
        self._trunk, self._head = trunk(self._model), head(self._model)
        self._modules = list(self._trunk.modules())
        self._fused: FusedTrunk | None = None
        self._fused_dtype: torch.dtype | None = None  # that `_fused` was made for; None: not yet made
        self._cache = SlotCache(self.num_slots, self.context_length)
        self._recorded = RecordedPasses()
        self.lengths = np.zeros(self.num_slots, np.int64)
        self.tokens = np.zeros((self.num_slots, self.context_length), np.int64)
        weights = next(self._trunk.parameters())
        self._dtype = weights.dtype
        width = self._model.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]
        self.hidden = torch.zeros(self.num_slots, width, device=weights.device, dtype=self._dtype)

    def advance(self, input_ids: ArrayLike, lengths: ArrayLike, slots: ArrayLike | None = None) -> Tensor:
        """Bring slots to the given contexts, whatever they hold now.

        Slots that lack one token share one step; others are prefilled from the first difference; slots that
        are there already cost nothing; one that holds more than its new context has that context's last token
        redone.

        Args:
            input_ids: (n, L) token ids, right padded with anything.
            lengths: (n,) tokens of each context, 1 to context_length.
            slots: (n,) distinct slots; None: all.

        Returns:
            (n, H) hidden states at the contexts' last tokens.

        Raises:
            ValueError: a length, token or slot out of range.
        """
        slots = self._check_slots(slots)
        contexts, lengths = token_array("input_ids", input_ids), np.asarray(lengths, np.int64)
        if contexts.ndim != 2 or len(contexts) != len(slots) or lengths.shape != slots.shape:
            raise ValueError(
                f"input_ids and lengths must be ({len(slots)}, L) and ({len(slots)},), "
                f"got {contexts.shape} and {lengths.shape}"
            )
        if len(slots) == 0:
            return self.hidden[:0]
        longest = min(self.context_length, contexts.shape[1])
        wrong = (lengths < 1) | (lengths > longest)
        if wrong.any():
            i = int(wrong.argmax())
            raise ValueError(
                f"the context of slot {slots[i]} has {lengths[i]} tokens; accepted: 1 to {longest}"
            )
        width = int(lengths.max())
        cached = self.lengths[slots]
        same = contexts[:, :width] == self.tokens[slots, :width]
        matched = np.where(same.all(1), width, same.argmin(1))
        matched = np.minimum(matched, np.minimum(cached, lengths))
        # The last token is redone where its hidden state is not the stored one.
        starts = np.where(lengths == cached, matched, np.minimum(matched, lengths - 1))
        rewound = slots[starts < cached]
        if len(rewound) and self._forget_broken(rewound):
            return self.advance(contexts, lengths, slots)
        missing = lengths - starts
        one = missing == 1
        if one.any():
            self._forward(slots[one], starts[one], missing[one], contexts[one, starts[one]][:, None])
        if (missing > 1).any():
            self._prefill(slots, starts, missing, contexts)
        return self._select(slots)

    def prefill(self, slots: ArrayLike, contexts: Sequence[Sequence[int]]) -> Tensor:
        """Bring slots to the given contexts, as `advance`.

        Args:
            slots: (n,) distinct slots.
            contexts: n lists of 1 to context_length token ids.

        Returns:
            (n, H) hidden states at the contexts' last tokens.

        Raises:
            ValueError: a context, token or slot out of range.
        """
        lengths = np.array([len(context) for context in contexts], np.int64)
        padded = np.zeros((len(contexts), lengths.max(initial=1)), np.int64)
        tokens = token_array("contexts", [token for context in contexts for token in context])
        padded[np.arange(padded.shape[1]) < lengths[:, None]] = tokens
        return self.advance(padded, lengths, slots)

    def step(self, tokens: ArrayLike, slots: ArrayLike | None = None) -> Tensor:
        """Append one token to each slot.

        Args:
            tokens: (n,) token ids.
            slots: (n,) distinct slots; None: all.

        Returns:
            (n, H) hidden states at the new tokens.

        Raises:
            ValueError: a token or slot out of range, or a slot that is full.
        """
        slots = self._check_slots(slots)
        tokens = token_array("tokens", tokens)
        if tokens.shape != slots.shape:
            raise ValueError(f"tokens must have shape {slots.shape}, one per slot, got {tokens.shape}")
        if len(slots):
            full = self.lengths[slots] >= self.context_length
            if full.any():
                raise ValueError(f"slot {slots[full.argmax()]} already holds {self.context_length} tokens")
            self._forward(slots, self.lengths[slots], np.ones_like(slots), tokens[:, None])
        return self._select(slots)

    @torch.no_grad()
    def logits(self, slots: ArrayLike | None = None) -> Tensor:
        """Next-token logits (n, V) of slots (None: all) in the model's dtype.

        Raises:
            ValueError: a slot is empty, so that it has no next token.
        """
        slots = self._check_slots(slots)
        if (self.lengths[slots] == 0).any():
            raise ValueError(f"slot {slots[self.lengths[slots].argmin()]} is empty")
        hidden = self._select(slots)
        if type(self._head) is nn.Linear and untouched([self._head]):
            bias = None if self._head.bias is None else self._head.bias[: self.vocab_size]
            return linear(hidden, self._head.weight[: self.vocab_size], bias).contiguous()
        return self._head(hidden)[:, : self.vocab_size]

    @torch.no_grad()
    def fork(self, source: int, targets: ArrayLike) -> None:
        """Copy slot `source` over the slots `targets`, so that each can go on by itself."""
        self.restore(self.snapshot([source]), targets)

    @torch.no_grad()
    def snapshot(self, slots: ArrayLike | None = None) -> Snapshot:
        """Copy slots (None: all) aside, for `restore`."""
        slots = self._check_slots(slots)
        lengths = self.lengths[slots]
        longest = int(lengths.max(initial=0))
        rows = self._rows(slots)
        return Snapshot(
            slots=slots.copy(),
            lengths=lengths,
            tokens=self.tokens[slots, :longest],
            hidden=self.hidden[rows],
            layers=self._cache.read(rows, longest),
        )

    @torch.no_grad()
    def restore(self, snapshot: Snapshot, slots: ArrayLike | None = None) -> None:
        """Bring slots back to a snapshot.

        Args:
            snapshot: of this decoder, or of another one with the same model.
            slots: (n,) distinct slots for the snapshot's n rows, or any number for its only row; None: the
                slots it was taken from.
        """
        slots = self._check_slots(snapshot.slots if slots is None else slots)
        if len(snapshot.lengths) not in (1, len(slots)):
            raise ValueError(f"slots must be {len(snapshot.lengths)}, one per snapshot row, got {len(slots)}")
        rows = self._rows(slots)
        longest = snapshot.tokens.shape[1]
        self._cache.write(rows, snapshot.layers)
        self.hidden = self.hidden.to(snapshot.hidden.dtype)
        self.hidden = self.hidden.index_copy(0, rows, snapshot.hidden.expand(len(slots), -1))
        self.tokens[slots, :longest] = snapshot.tokens
        self.lengths[slots] = snapshot.lengths

    def _prefill(
        self, slots: np.ndarray, starts: np.ndarray, missing: np.ndarray, contexts: np.ndarray
    ) -> None:
        """Forward what rows with more than one missing token lack, rows of similar length together."""
        order = np.argsort(missing, kind="stable")
        order = order[missing[order] > 1]
        for run in passes(missing[order], self.hidden.device):
            rows = order[run]
            columns = starts[rows, None] + np.arange(missing[rows].max())
            block = contexts[rows[:, None], np.minimum(columns, contexts.shape[1] - 1)]
            self._forward(slots[rows], starts[rows], missing[rows], block)

    @torch.no_grad()
    def _forward(self, slots: np.ndarray, starts: np.ndarray, counts: np.ndarray, block: np.ndarray) -> None:
        """One forward pass: row i appends block[i, :counts[i]] to the first starts[i] tokens of slots[i]."""
        real = np.arange(block.shape[1]) < counts[:, None]
        block = np.where(real, block, 0)
        if block.min() < 0 or block.max() >= self.vocab_size:
            wrong = block[(block < 0) | (block >= self.vocab_size)][0]
            raise ValueError(f"token id {wrong} is out of range; accepted: 0 to {self.vocab_size - 1}")
        # Nothing is claimed to be cached until the pass has succeeded.
        self.lengths[slots] = 0
        # One token a row is limited by reading the cache: with most slots involved, running all of them on
        # views is cheaper than gathering some. A longer block is limited by arithmetic: idle rows would cost.
        every = len(slots) == self.num_slots or (block.shape[1] == 1 and 2 * len(slots) >= self.num_slots)
        plan = np.column_stack([slots, starts, counts, block])
        if every:
            plan, involved = np.zeros((self.num_slots, plan.shape[1]), np.int64), plan
            plan[slots] = involved
        packed = torch.from_numpy(plan).to(self.hidden.device)
        rows, counts_ = packed[:, 0], packed[:, 2:3]
        longest = int((starts + counts).max())
        self._cache.reserve(longest)
        fused = self._fused_trunk()

        def forward(plan: Tensor) -> Tensor:
            return self._pass(plan, None if every else rows, longest, fused)

        if fused and every and block.shape[1] == 1 and packed.device.type in RECORDING_DEVICES:
            # Shapes depend on the width, addresses on the weights and on the cache, which grows by capacity.
            key = fused, self._cache.width(longest), self._cache.capacity
            new = self._recorded.run(key, forward, packed)
        else:
            new = forward(packed)
        # Not in place: a caller may hold `hidden`.
        if every:
            self.hidden = torch.where(counts_ > 0, new, self.hidden.to(new.dtype))
        else:
            self.hidden = self.hidden.to(new.dtype).index_copy(0, rows, new)
        columns = starts[:, None] + np.arange(block.shape[1])
        self.tokens[np.repeat(slots, counts), columns[real]] = block[real]
        self.lengths[slots] = starts + counts
        self.tokens_forwarded += int(counts.sum())

    def _pass(self, plan: Tensor, rows: Tensor | None, longest: int, fused: FusedTrunk | None) -> Tensor:
        """The device's part of `_forward`: hidden states (n, H) at each row's last new token.

        Args:
            plan: (n, 3 + T) int64: slot, tokens before, new tokens, and these, padded.
            rows: (n,) the slots; None: all, in order.
            longest: tokens of the longest row after this pass.
            fused: runs it, if there is one, else the model itself.
        """
        starts, counts, input_ids = plan[:, 1:2], plan[:, 2:3], plan[:, 3:]
        offsets = torch.arange(input_ids.shape[1], device=plan.device)
        positions = starts + offsets
        visible = self._cache.begin(rows, positions, offsets < counts, longest)[:, None]
        mask = torch.zeros(visible.shape, device=plan.device, dtype=self._dtype)
        mask.masked_fill_(~visible, torch.finfo(self._dtype).min)
        # What padding is given for a position does not matter, but a model has no more.
        positions.clamp_(max=self.context_length - 1)
        last = (counts[:, 0] - 1).clamp_(min=0)
        if fused:
            return fused.forward(input_ids, positions, mask, last, self._cache)
        with _evaluating(self._trunk):
            hidden = self._trunk(
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state
        return hidden[torch.arange(len(last), device=last.device), last]

    def _fused_trunk(self) -> FusedTrunk | None:
        """The fused forward pass, where there is one and nobody has changed what the model's modules do."""
        device = self.hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self._dtype
        if self._fused_dtype != dtype:
            self._fused, self._fused_dtype = fuse(self._trunk, self.context_length, dtype), dtype
        return self._fused if self._fused and untouched(self._modules) else None

    def _forget_broken(self, slots: np.ndarray) -> bool:
        """Empty those slots whose hidden state is not finite; True if there were any.

        A NaN that a slot wrote into its cache would reach its next context through positions that are masked
        (0 * NaN); it is in the hidden state of every later token, so it shows there.
        """
        broken = slots[~self._select(slots).isfinite().all(-1).cpu().numpy()]
        self._cache.erase(self._rows(broken))
        self.lengths[broken] = 0
        return len(broken) > 0

    def _rows(self, slots: np.ndarray) -> Tensor:
        return torch.from_numpy(slots).to(self.hidden.device)

    def _select(self, slots: np.ndarray) -> Tensor:
        if np.array_equal(slots, np.arange(self.num_slots)):
            return self.hidden  # never written in place
        return self.hidden[self._rows(slots)]

    def _check_slots(self, slots: ArrayLike | None) -> np.ndarray:
        if slots is None:
            return np.arange(self.num_slots)
        checked = np.asarray(slots)
        if checked.size == 0:
            return np.zeros(0, np.int64)
        if checked.ndim != 1 or checked.dtype.kind not in "iu":
            raise ValueError(f"slots must be a list of integers, got {slots!r}")
        if checked.min() < 0 or checked.max() >= self.num_slots or len(np.unique(checked)) < len(checked):
            raise ValueError(f"slots must be distinct, in 0 to {self.num_slots - 1}, got {checked.tolist()}")
        return checked.astype(np.int64)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a moment: without dropout and gradient checkpointing (it would drop the cache)."""
    training = [m for m in module.modules() if m.training] if module.training else []
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True
