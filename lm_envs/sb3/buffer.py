"""A rollout buffer for text: tokens are stored once, minibatches are whole segments of episodes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor, nn

from lm_envs.completion_scoring import forget, recall
from lm_envs.sb3.segments import Block, Segments, score
from lm_envs.scoring import passes

if TYPE_CHECKING:
    from lm_envs.sb3.policy import TransformerPolicy

# Lengths are blurred by up to this factor before minibatches are sorted by them: it bounds the padding, and
# lets chance, not length, decide which of the segments of similar length meet in a minibatch.
LENGTH_BLUR = 1.25
FEWEST_SEGMENTS = 8


class EpisodeRolloutBuffer(RolloutBuffer):
    """A `RolloutBuffer` whose unit is the segment (see `lm_envs.sb3.segments`).

    A segment goes on as long as each observation is the previous one with its action, and perhaps more,
    appended; an episode's start or a replaced context begins a new one. Memory is O(tokens) per episode, and
    an update runs one forward pass per segment in place of one per action, with the same gradients.

    Advantages are whitened once per rollout: construct the algorithm with `normalize_advantage=False`,
        because SB3's normalisation per minibatch subtracts an episode's own outcome where a minibatch holds
        few episodes.

    Attributes (all arrays are (n_steps, n_envs)):
        kl: log-prob minus the reference's log-prob of each action, nats; zeros without a reference.
        kl_coef: each reward is lowered by `kl_coef * kl`; None until a `KLCallback` sets it.
    """

    def __init__(  # noqa: PLR0917  (as the base class)
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        gae_lambda: float = 1.0,
        gamma: float = 1.0,
        n_envs: int = 1,
        whiten_advantages: bool = True,
    ) -> None:
        """Arguments as `RolloutBuffer`'s, and `whiten_advantages`: to mean 0 and deviation 1 per rollout.

        Raises:
            ValueError: observation_space has no token observations.
        """
        if not isinstance(observation_space, spaces.Dict) or "input_ids" not in observation_space.spaces:
            raise ValueError(f"observation_space must be of tokens (input_ids), got {observation_space}")
        self.whiten_advantages = whiten_advantages
        self.kl_coef: float | None = None
        self._policy: TransformerPolicy | None = None
        self._reference: nn.Module | None = None
        self._warned = False
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    def bind(self, policy: TransformerPolicy, reference: nn.Module | None) -> None:
        """Let the buffer score its actions: with the policy in mixed precision, with the reference for KL.

        Args:
            policy: its temperature and precision hold for both.
            reference: frozen causal LM with the policy's vocabulary; None: no KL.
        """
        self._policy, self._reference = policy, reference

    def reset(self) -> None:
        """Empty the buffer for a new rollout."""
        shape = self.buffer_size, self.n_envs
        self.actions = np.zeros(shape, np.int64)
        self.rewards, self.values, self.log_probs = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self.returns, self.advantages, self.kl = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self.episode_starts = np.zeros(shape, np.float32)
        self._segment_starts = np.zeros(shape, bool)
        self._lengths = np.zeros(shape, np.int64)  # tokens of each observation
        self._new_tokens = np.zeros(shape, np.int64)  # how many of them the segment did not have before
        self._tokens: list[np.ndarray] = []  # per step: the new tokens of all slots, one slot after the other
        self._last_ids = np.zeros((self.n_envs, 0), np.int64)
        self._action_masks: list[np.ndarray] = []
        self._rescored = False
        if self._reference is not None:
            forget(self._reference)  # a resumed run must not depend on what was scored before it
        super(RolloutBuffer, self).reset()

    def add(  # type: ignore[override]  # noqa: PLR0917
        self,
        obs: dict[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: Tensor,
        log_prob: Tensor,
    ) -> None:
        """Add one step of all slots; arguments as `RolloutBuffer.add`'s, `obs` with B rows."""
        step = self.pos
        lengths = obs["attention_mask"].sum(1, dtype=np.int64)
        # astype copies: the environment may reuse its arrays.
        ids = obs["input_ids"][:, : lengths.max()].astype(np.int64)
        known = self._continued(ids, lengths, episode_start)
        columns = np.arange(ids.shape[1])
        self._tokens.append(ids[(columns >= known[:, None]) & (columns < lengths[:, None])])
        self._lengths[step] = lengths
        self._new_tokens[step] = lengths - known
        self._segment_starts[step] = known == 0
        self._last_ids = ids
        if "action_mask" in obs:
            self._action_masks.append(obs["action_mask"].astype(bool))
        self.actions[step] = action.reshape(-1)
        self.rewards[step] = reward
        self.episode_starts[step] = episode_start
        self.values[step] = value.cpu().numpy().reshape(-1)
        self.log_probs[step] = log_prob.cpu().numpy()
        self._dtype = log_prob.dtype
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def _continued(self, ids: np.ndarray, lengths: np.ndarray, episode_start: np.ndarray) -> np.ndarray:
        """(B,) tokens of each observation that its segment holds already; 0 where a new segment begins."""
        if self.pos == 0:
            return np.zeros_like(lengths)
        previous = self._lengths[self.pos - 1]
        width = min(ids.shape[1], self._last_ids.shape[1])
        same = ids[:, :width] == self._last_ids[:, :width]
        goes_on = (same | (np.arange(width) >= previous[:, None])).all(1)
        goes_on &= (lengths > previous) & ~episode_start.astype(bool)
        next_token = ids[np.arange(self.n_envs), np.minimum(previous, ids.shape[1] - 1)]
        goes_on &= next_token == self.actions[self.pos - 1]
        return np.where(goes_on, previous, 0)

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """Subtract the KL penalty from the rewards, run SB3's GAE on them, whiten the advantages.

        Args:
            last_values: (B, 1) values of the observations after the last step.
            dones: (B,) whether the last step ended an episode.
        """
        self._lay_out_segments()
        if self._policy is not None and self._policy.mixed_precision:
            # Decoding and training round differently: without this the first epoch's ratios would not be 1.
            self.log_probs = self._score(self._policy.model, self._policy)
            self._rescored = True
        if self._policy is not None and self._reference is not None:
            self.kl = self.log_probs - self._score(self._reference, self._policy)
            self.rewards -= (self.kl_coef or 0.0) * self.kl
        super().compute_returns_and_advantage(last_values, dones)
        if self.whiten_advantages:
            self.advantages = (self.advantages - self.advantages.mean()) / (self.advantages.std() + 1e-8)

    def get(self, batch_size: int | None = None) -> Iterator[RolloutBufferSamples]:  # type: ignore[override]
        """Yield minibatches of whole segments, every action once.

        Args:
            batch_size: actions of a minibatch, met as nearly as whole segments allow; None: all in one.

        Raises:
            RuntimeError: the rollout is not complete.
        """
        if not self.full:
            raise RuntimeError(f"get() needs a full rollout, not {self.pos} of {self.buffer_size} steps")
        total = self.buffer_size * self.n_envs
        count = 1 if batch_size is None else max(1, round(total / batch_size))
        self._warn_if_few(count)
        blur = 1 + (LENGTH_BLUR - 1) * torch.rand(len(self._token_counts)).numpy()
        order = np.argsort(self._token_counts * blur)
        sizes = self._action_counts[order]
        # Each segment goes to the minibatch in which the middle of its actions falls.
        minibatch = ((np.cumsum(sizes) - sizes / 2) * count / total).astype(np.int64)
        for number in torch.randperm(count).tolist():
            chosen = order[minibatch == number]
            if len(chosen):
                yield self._samples(chosen)

    def _warn_if_few(self, minibatches: int) -> None:
        segments = len(self._token_counts) / minibatches
        if segments < FEWEST_SEGMENTS and not self._warned and minibatches > 1:
            self._warned = True
            warnings.warn(
                f"a minibatch holds {segments:.1f} segments of episodes; below {FEWEST_SEGMENTS} single "
                "episodes dominate its gradient: raise batch_size, or n_envs",
                stacklevel=3,
            )

    def _lay_out_segments(self) -> None:
        """Index the rollout by segment. Actions are numbered slot by slot: action = slot * n_steps + step."""
        counts = self._new_tokens
        step_major = np.cumsum(counts).reshape(counts.shape) - counts
        stream = np.concatenate(self._tokens)
        self._stream = stream[_ranges(step_major.T.ravel(), counts.T.ravel())]  # slot after slot
        first = np.flatnonzero(self._segment_starts.T)
        self._first_action = first
        self._action_counts = np.diff(first, append=counts.size)
        slot_major = np.cumsum(counts.T) - counts.T.ravel()
        self._first_token = slot_major[first]
        self._token_counts = np.diff(self._first_token, append=len(stream))

    def _samples(self, chosen: np.ndarray) -> RolloutBufferSamples:
        """The minibatch of these segments."""
        actions, segments = self._segments(chosen, self.device)

        def tensor(array: np.ndarray) -> Tensor:
            return torch.as_tensor(array.T.reshape(-1)[actions], dtype=self._dtype, device=self.device)

        return RolloutBufferSamples(
            observations=segments,  # type: ignore[arg-type]  # what SB3 hands on to `evaluate_actions`
            actions=self._chosen_tokens(actions, self.device),
            old_values=tensor(self.values),
            old_log_prob=tensor(self.log_probs),
            advantages=tensor(self.advantages),
            returns=tensor(self.returns),
        )

    def _segments(self, chosen: np.ndarray, device: torch.device) -> tuple[np.ndarray, Segments]:
        """The numbers (N,) of the actions in these segments, and what a model on a device reads for them."""
        chosen = chosen[np.argsort(self._token_counts[chosen], kind="stable")]
        blocks = tuple(self._block(chosen[run]) for run in passes(self._token_counts[chosen], device))
        actions = _ranges(self._first_action[chosen], self._action_counts[chosen])
        allowed = None
        if self._action_masks:
            slots, steps = np.divmod(actions, self.buffer_size)
            allowed = torch.from_numpy(np.stack(self._action_masks)[steps, slots])
        return actions, Segments(blocks, allowed, self._rescored).to(device)

    def _block(self, chosen: np.ndarray) -> Block:
        lengths = self._token_counts[chosen]
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = self._stream[_ranges(self._first_token[chosen], lengths)]
        actions = _ranges(self._first_action[chosen], self._action_counts[chosen])
        rows = np.repeat(np.arange(len(chosen)), self._action_counts[chosen])
        positions = rows * ids.shape[1] + self._lengths.T.reshape(-1)[actions] - 1
        return Block(torch.from_numpy(ids), torch.from_numpy(positions))

    def _chosen_tokens(self, actions: np.ndarray, device: torch.device) -> Tensor:
        return torch.as_tensor(self.actions.T.reshape(-1)[actions], device=device)

    @torch.no_grad()
    def _score(self, model: nn.Module, policy: TransformerPolicy) -> np.ndarray:
        """(n_steps, n_envs) log-probs of the rollout's actions under a model, as an update computes them."""
        scores = np.full(self.buffer_size * self.n_envs, np.nan)
        if policy.temperature == 1 and not policy.mixed_precision and not self._action_masks:
            self._recall(model, scores)
        missing = np.flatnonzero(np.isnan(scores[self._first_action]))
        if len(missing):
            device = next(model.parameters()).device
            actions, segments = self._segments(missing, device)
            scored = score(
                model,
                segments,
                self._chosen_tokens(actions, device),
                vocab_size=policy.vocab_size,
                temperature=policy.temperature,
                mixed_precision=policy.mixed_precision,
            )
            scores[actions] = scored.log_probs.cpu().numpy()
        return scores.reshape(self.n_envs, self.buffer_size).T.copy()

    def _recall(self, model: nn.Module, scores: np.ndarray) -> None:
        """Fill in the scores of those segments that a reward had the same model score when they ended."""
        chosen, lengths = self.actions.T.reshape(-1), self._lengths.T.reshape(-1)
        for segment, first in enumerate(self._first_action):
            end = first + self._action_counts[segment]
            if lengths[end - 1] - lengths[first] != end - 1 - first:
                continue  # there are tokens of others between its actions
            begin = self._first_token[segment]
            row = np.append(self._stream[begin : begin + self._token_counts[segment]], chosen[end - 1])
            log_probs = recall(model, row)
            if log_probs is not None and len(log_probs) >= end - first:
                scores[first:end] = log_probs[first - end :]


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """range(starts[i], starts[i] + counts[i]) for every i, one after the other."""
    ends = np.cumsum(counts)
    return np.repeat(starts - (ends - counts), counts) + np.arange(ends[-1] if len(ends) else 0)
