"""`TextGenEnv`: text generation as a Gymnasium environment, one token an action."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from lm_envs.core import ClonedState, EnvCore, draw_keys
from lm_envs.options import check_options
from lm_envs.rendering import Renderer
from lm_envs.replay import pack_generator, unpack_generator
from lm_envs.tasks import Task

if TYPE_CHECKING:
    from lm_envs.language_model import LanguageModel


class TextGenEnv(gymnasium.Env):
    """DOC"""

    metadata: dict[str, Any] = {"render_modes": ["ansi", "human", "rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        task: str | Task = "continuation",
        model: str | None = None,
        *,
        max_new_tokens: int = 48,
        stop: str | Sequence[str] = (),
        context_length: int | None = None,
        truncate_prompts: bool = False,
        observation: str = "tokens",
        actions: str = "token",
        top_k: int = 50,
        chat: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        render_mode: str | None = None,
        **task_kwargs: Any,
    ) -> None:
        self._core = EnvCore(
            1,
            task,
            model,
            max_new_tokens=max_new_tokens,
            stop=stop,
            context_length=context_length,
            truncate_prompts=truncate_prompts,
            observation=observation,
            actions=actions,
            top_k=top_k,
            chat=chat,
            device=device,
            dtype=dtype,
            **task_kwargs,
        )
        self._slots = self._core.episodes.all_slots
        self.observation_space = self._core.view.observation_space
        self.action_space = self._core.view.action_space
        self.render_mode = render_mode
        self._renderer = Renderer(self._core, render_mode)

    @property
    def task(self) -> Task:
        """The text task that prompts, answers and scores."""
        return self._core.task

    @property
    def language_model(self) -> LanguageModel:
        """The frozen language model behind the environment; its weights are loaded when first needed."""
        return self._core.language_model

    @property
    def max_new_tokens(self) -> int:
        """Tokens that a turn may have."""
        return self._core.episodes.max_new_tokens

    @property
    def context_length(self) -> int:
        """L, the tokens that the context window holds."""
        return self._core.episodes.context_length

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins a new episode.

        Args:
            seed: makes this episode and all that follow it reproducible. Without a seed, the next episode of the
                present seed begins.
            options: None, `{"prompt": str}` (use this text) or `{"task_index": int}` (use this item of the task).

        Returns:
            The observation and the info (`candidates` for "top_k" actions).

        Raises:
            ValueError: unknown options, or a prompt that is no text, empty (for a model without BOS) or too long.
        """
        checked = check_options(options)
        super().reset(seed=seed)
        episodes = self._core.episodes
        with episodes.atomic():
            if seed is not None or episodes.arrays.episodes[0] < 0:
                episodes.seed(self._slots, draw_keys(self.np_random, 1))
            episodes.begin(self._slots, checked)
            observation, info = self._look()
        self._show()
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Writes one token; see the class docstring. An error leaves the environment as it was.

        Args:
            action: int, numpy integer or 0-d integer array.

        Raises:
            InvalidAction: anything else, or an integer out of range.
            ResetNeeded: before the first reset, or after the episode's end.
            RewardError: the reward function failed.
            FloatingPointError: the language model gave NaN ("embedding" and "top_k" only).
        """
        episodes = self._core.episodes
        if not episodes.arrays.running[0]:
            raise ResetNeeded("call reset() first: the episode is over, or none has begun")
        token = self._core.token(action)
        with episodes.atomic():
            result = episodes.step(token)
            observation, info = self._look()
        info = {**result.infos.get(0, {}), **info}
        self._show()
        return (
            observation,
            float(result.rewards[0]),
            bool(result.terminated[0]),
            bool(result.truncated[0]),
            info,
        )

    def render(self) -> Any:
        """What `render_mode` asks for: "ansi" a str, "rgb_array" (H, W, 3) uint8; "human" prints by itself."""
        return None if self.render_mode == "human" else self._renderer.render(0)

    def clone_state(self, include_rng: bool = False) -> ClonedState:
        """The present state, for planners: cheap, opaque, only for this process (the LM cache comes along).

        Args:
            include_rng: whether a restore brings the random state back too. If not, each restore leads to new
                dice for what the task draws from then on, and episodes are counted on.
        """
        return self._core.clone_state(include_rng)

    def restore_state(self, state: ClonedState) -> None:
        """Goes back to what `clone_state` returned, here or in an environment made alike.

        Raises:
            ValueError: the state is of an environment with another window or other candidates.
        """
        self._core.restore_state(state)

    def get_state(self) -> dict[str, np.ndarray]:
        """The resumable state: plain arrays without pickles, for `numpy.savez` or safetensors. See `set_state`."""
        return {**self._core.get_state(), "np_random": pack_generator(self.np_random)}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Brings an environment made alike to what `get_state` returned, also in another process.

        Observations, rewards and infos go on exactly as they would have. What the language model computes
        ("embedding", "top_k") is the same up to rounding, because its cache is made anew.

        Raises:
            ValueError: the state does not fit this environment.
        """
        self._core.set_state(state)
        unpack_generator(self.np_random, state["np_random"])

    def _look(self) -> tuple[Any, dict[str, Any]]:
        batch, candidates = self._core.view.look(self._slots)
        info = {}
        if candidates is not None:
            self._core.candidates = candidates
            info["candidates"] = candidates[0].copy()
        observation = {key: value[0] for key, value in batch.items()} if isinstance(batch, dict) else batch[0]
        return observation, info

    def _show(self) -> None:
        if self.render_mode == "human":
            self._renderer.render(0)
