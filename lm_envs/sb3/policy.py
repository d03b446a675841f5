"""A stable-baselines3 policy that is the language model itself: its next-token distribution acts."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from lm_envs.decoding import Decoder
from lm_envs.language_model import LanguageModel
from lm_envs.model_loading import no_progress_bar
from lm_envs.sampling import check_sampling_arguments, filter_logits, sample
from lm_envs.sb3.segments import (
    Segments,
    action_mask,
    autocast,
    head_dtype,
    hidden_at_actions,
    score,
)
from lm_envs.sb3.trainable import adapter_state, trainable_copy
from lm_envs.scoring import head

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}

Observation = Mapping[str, Tensor]


class TransformerPolicy(ActorCriticPolicy):
    """Actor and critic on one transformer: LM head over the vocabulary, value head on the same hidden state.

    The value head sends no gradient into the transformer: where returns are large, its errors would move the
    text more than the rewards do, and a KL penalty could not hold it.

    The policy trains a copy of the model's weights, never the environment's own. It samples from the softmax
    of all logits divided by `temperature`; top-k and top-p are for evaluation only, since their support moves
    with the weights and an action's ratio could then be 0/0.

    `forward` (rollouts) decodes with a cache, one new token per row and step. `predict` does so with a cache
    of its own, so that evaluating on another environment in the middle of a rollout changes nothing.
    `predict_values` reads the rollout's cache, and takes single tokens further what goes on from there;
    `get_distribution` and `evaluate_actions` run whole contexts. Caches are dropped whenever the weights may
    have changed, and are neither copied nor pickled.

    All arguments are plain JSON values.

    Args (after SB3's observation_space, action_space and lr_schedule):
        model: path or hub id of a causal LM, the environment's; None is the bundled model.
        temperature: divides the logits wherever the policy acts or is evaluated.
        dtype: "float32"; "float64"; or "bfloat16": weights stay in float32, because an update below 2^-8 of a
            weight would be lost in bfloat16, and matrix products run in bfloat16 (autocast). The latter needs
            a `KLCallback`, through which the buffer recomputes the old log-probs as the update computes the
            new ones.
        freeze_layers: the lowest blocks, and the embeddings, that are not trained; 0 trains all.
        lora: arguments of `peft.LoraConfig`: train LoRA adapters in place of the weights.
        gradient_checkpointing: less memory for more time in updates.
        value_scale: the value is `value_scale * (w . h + b)` with w and b zero at first, which makes the
            value head learn so many times faster than the rest. SB3 keeps one learning rate for all
            parameters.
        optimizer_class: a `torch.optim` class, or its name.
        optimizer_kwargs: its further arguments; Adam and AdamW are fused unless they say otherwise.

    Raises:
        ValueError: the spaces are not those of a token environment with the model's vocabulary, or an
            argument is out of range.
        ModelError: the model cannot be loaded.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        model: str | None = None,
        *,
        temperature: float = 1.0,
        dtype: str = "float32",
        freeze_layers: int = 0,
        lora: Mapping[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        value_scale: float = 5.0,
        optimizer_class: type[torch.optim.Optimizer] | str = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
    ) -> None:
        check_sampling_arguments(temperature, None, None)
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        if not value_scale > 0:
            raise ValueError(f"value_scale must be > 0, got {value_scale!r}")
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            ortho_init=False,
            use_sde=use_sde,
            optimizer_class=_optimizer_class(optimizer_class),
            optimizer_kwargs=optimizer_kwargs,
        )
        self._arguments = {
            "model": model,
            "temperature": temperature,
            "dtype": dtype,
            "freeze_layers": freeze_layers,
            "lora": lora,
            "gradient_checkpointing": gradient_checkpointing,
            "value_scale": value_scale,
        }
        self.temperature, self.value_scale = temperature, value_scale
        self.mixed_precision = dtype == "bfloat16"

        language_model = LanguageModel.load(model, device="cpu", dtype=DTYPES[dtype])
        _check_spaces(observation_space, action_space, language_model)
        self.tokenizer = language_model.tokenizer
        self.vocab_size = language_model.vocab_size
        self.context_length = language_model.context_length
        self.model = trainable_copy(
            language_model,
            freeze_layers=freeze_layers,
            lora=lora,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.value_net = nn.Linear(language_model.hidden_size, 1, dtype=DTYPES[dtype])
        nn.init.zeros_(self.value_net.weight)
        nn.init.zeros_(self.value_net.bias)
        if issubclass(self.optimizer_class, torch.optim.Adam) and "foreach" not in self.optimizer_kwargs:
            # A quarter of the time on a CPU, where the default passes over the weights a dozen times.
            self.optimizer_kwargs = {"fused": True, **self.optimizer_kwargs}
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self.optimizer = self.optimizer_class(trained, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]
        self.optimizer.register_step_post_hook(self._weights_changed)
        self._caches: dict[str, Decoder] = {}
        self._cached_adapters: tuple[Any, ...] = ()

    def _build(self, lr_schedule: Schedule) -> None:
        """Build no MLP, and initialise nothing: the constructor goes on with the pretrained network."""

    def forward(self, obs: Observation, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Act in a rollout, without gradients to the model.

        Args:
            obs: `input_ids`, `attention_mask` (B, L), `action_mask` (B, V) if the environment has one.
            deterministic: take the most probable token.

        Returns:
            tokens (B,) int64, values (B, 1), log-probs (B,).
        """
        hidden, tokens, log_probs = self._decode("rollout", obs, deterministic)
        return tokens, self._values(hidden), log_probs

    def _predict(self, observation: Observation, deterministic: bool = False) -> Tensor:  # type: ignore[override]
        return self._decode("predict", observation, deterministic)[1]

    def evaluate_actions(self, obs: Observation | Segments, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Score actions with gradients.

        Args:
            obs: `EpisodeRolloutBuffer`'s segments with N actions, or plain observations of B = N rows.
            actions: (N,) int64.

        Returns:
            values (N, 1), log-probs (N,), entropies (N,), in float32 (float64 if the model is).

        Raises:
            RuntimeError: in an update in bfloat16, if the rollout's old log-probs come from decoding.
        """
        segments = obs if isinstance(obs, Segments) else Segments.from_observation(obs)
        if self.mixed_precision and self.training and not segments.rescored:
            raise RuntimeError(
                "in bfloat16 old log-probs must be recomputed before an update: construct the algorithm with "
                "rollout_buffer_class=EpisodeRolloutBuffer and pass a KLCallback to learn()"
            )
        hidden, log_probs, entropy = score(
            self.model,
            segments,
            actions.long().flatten(),
            vocab_size=self.vocab_size,
            temperature=self.temperature,
            mixed_precision=self.mixed_precision,
            with_entropy=True,
        )
        return self._values(hidden), log_probs, entropy  # type: ignore[return-value]

    def predict_values(self, obs: Observation) -> Tensor:  # type: ignore[override]
        """Values (B, 1) of observations.

        Without gradients, one token is forwarded for an observation that follows the rollout's last one (what
        SB3 bootstraps from: a rollout's end, a truncated episode), the whole context for any other.
        """
        ids, lengths = obs["input_ids"].cpu().numpy(), _lengths(obs)
        slots = self._slots_before(ids, lengths)
        follows = slots >= 0
        if torch.is_grad_enabled() or not follows.any():
            return self._values(self._hidden(obs))
        with autocast(self.device, self.mixed_precision):
            cached = self._caches["rollout"].advance(ids[follows], lengths[follows], slots[follows])
        hidden = cached.new_empty((len(ids), cached.shape[1]), dtype=head_dtype(self.model))
        rows = torch.from_numpy(follows).to(hidden.device)
        hidden[rows] = cached.to(hidden.dtype)
        if not follows.all():
            hidden[~rows] = self._hidden({key: values[~rows] for key, values in obs.items()})
        return self._values(hidden)

    def get_distribution(self, obs: Observation) -> Distribution:  # type: ignore[override]
        """The distribution that actions are drawn from, from whole contexts."""
        logits = self._logits(self._hidden(obs))
        logits = filter_logits(logits, temperature=self.temperature, action_mask=action_mask(obs))
        return self.action_dist.proba_distribution(action_logits=logits)  # type: ignore[call-arg]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model (LoRA merged, no value head) and its tokenizer as a plain Hugging Face folder."""
        model: Any = copy.deepcopy(self.model)
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as new, no_progress_bar():
            model.save_pretrained(new)
            self.tokenizer.save_pretrained(new)
            for file in Path(new).iterdir():  # an interrupted save leaves no half-written file behind
                os.replace(file, folder / file.name)

    def set_training_mode(self, mode: bool) -> None:
        """Switch train() and eval(); an update begins with True, so that drops the caches."""
        if mode:
            self._weights_changed()
        super().set_training_mode(mode)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights, as `torch.nn.Module.load_state_dict`."""
        self._weights_changed()
        return super().load_state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> TransformerPolicy:
        self._weights_changed()  # they move to another device or dtype
        return super()._apply(*args, **kwargs)

    @torch.no_grad()
    def _decode(self, purpose: str, obs: Observation, deterministic: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states (B, H), tokens (B,) and log-probs (B,), with the cache of this purpose."""
        ids = obs["input_ids"].cpu().numpy()
        decoder = self._decoder(purpose, len(ids))
        with autocast(self.device, self.mixed_precision):
            hidden = decoder.advance(ids, _lengths(obs))
        hidden = hidden.to(head_dtype(self.model))
        tokens, log_probs = sample(
            self._logits(hidden) if self.mixed_precision else decoder.logits(),
            temperature=self.temperature,
            action_mask=action_mask(obs),
            deterministic=deterministic,
        )
        return hidden, tokens, log_probs

    def _slots_before(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """(B,) slots of the rollout's cache that hold each row but for its last token; -1 where none does."""
        none = np.full(len(ids), -1)
        self._drop_stale_caches()
        decoder = self._caches.get("rollout")
        if decoder is None:
            return none
        slots = np.arange(decoder.num_slots)
        if len(ids) not in (1, len(slots)):
            return none
        before = np.arange(lengths.max()) < lengths[:, None] - 1
        same = (ids[:, : before.shape[1]] == decoder.tokens[:, : before.shape[1]]) | ~before
        same = same.all(1) & (decoder.lengths == lengths - 1)
        if len(ids) == len(slots):
            return np.where(same, slots, none)
        return slots[same][:1] if same.any() else none

    def _drop_stale_caches(self) -> None:
        adapters = adapter_state(self.model) if self._arguments["lora"] is not None else ()
        if adapters != self._cached_adapters:
            self._weights_changed()
            self._cached_adapters = adapters

    def _decoder(self, purpose: str, num_slots: int) -> Decoder:
        self._drop_stale_caches()
        decoder = self._caches.get(purpose)
        if decoder is None or decoder.num_slots != num_slots:
            decoder = self._caches[purpose] = Decoder(
                self.model, num_slots, vocab_size=self.vocab_size, context_length=self.context_length
            )
        return decoder

    def _hidden(self, obs: Observation) -> Tensor:
        """Hidden states (B, H) at each row's last token."""
        segments = Segments.from_observation(obs)
        return hidden_at_actions(self.model, segments, mixed_precision=self.mixed_precision)

    def _logits(self, hidden: Tensor) -> Tensor:
        return head(self.model)(hidden)[:, : self.vocab_size]

    def _values(self, hidden: Tensor) -> Tensor:
        return self.value_scale * self.value_net(hidden.detach())

    def _weights_changed(self, *_: Any) -> None:
        self._caches = {}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
            **self._arguments,
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_caches": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.optimizer.register_step_post_hook(self._weights_changed)  # an optimizer's copy has no hooks


def _lengths(obs: Observation) -> np.ndarray:
    """(B,) tokens of each observation; ValueError unless they come first, padding behind them."""
    if obs["input_ids"].is_floating_point():
        raise ValueError(
            f"input_ids must be token ids, got {obs['input_ids'].dtype}: a wrapper has changed them; with "
            "VecNormalize, set norm_obs=False"
        )
    mask = obs["attention_mask"].cpu().numpy()
    if (np.diff(mask.astype(np.int8), axis=1) > 0).any() or not mask[:, 0].all():
        raise ValueError(
            "an observation must begin with its tokens, padding behind them: wrappers that stack "
            "observations (VecFrameStack, say) are not for text"
        )
    return mask.sum(1, dtype=np.int64)


def _optimizer_class(class_or_name: type[torch.optim.Optimizer] | str) -> type[torch.optim.Optimizer]:
    if not isinstance(class_or_name, str):
        return class_or_name
    found = getattr(torch.optim, class_or_name, None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ValueError(f"optimizer_class must be a torch.optim class or its name, got {class_or_name!r}")
    return found


def _check_spaces(observation_space: spaces.Space, action_space: spaces.Space, model: LanguageModel) -> None:
    keys = set(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else set()
    if not {"input_ids", "attention_mask"} <= keys:
        raise ValueError(
            "TransformerPolicy reads input_ids and attention_mask: make the environment with "
            f'observation="tokens"; got {observation_space}'
        )
    if action_space != spaces.Discrete(model.vocab_size):
        raise ValueError(
            f"TransformerPolicy chooses among the {model.vocab_size} tokens of its model, {model.name!r}: "
            f'make the environment with the same model and actions="token"; got {action_space}'
        )
    length = observation_space["input_ids"].shape[0]  # type: ignore[index]
    if length > model.context_length:
        raise ValueError(
            f"observations hold up to {length} tokens, but model {model.name!r} reads {model.context_length}"
        )
