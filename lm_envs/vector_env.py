"""`TextGenVectorEnv`: many episodes of `TextGenEnv` in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from lm_envs.core import ClonedState, EnvCore, draw_keys
from lm_envs.episodes import Step
from lm_envs.options import check_options, check_reset_mask
from lm_envs.rendering import Renderer
from lm_envs.replay import pack_generator, unpack_generator
from lm_envs.rewards.base import whole_number
from lm_envs.spaces import MaskedDiscrete, MaskedMultiDiscrete
from lm_envs.tasks import Task

if TYPE_CHECKING:
    from lm_envs.language_model import LanguageModel


_NONE = np.zeros(0, np.int64)


class TextGenVectorEnv(VectorEnv):
    """`num_envs` independent episodes of `TextGenEnv`, stepped, rewarded and embedded in one batch.

    Slot i does what a single environment seeded alike does, whatever its neighbours do: observations, rewards
    and infos are those of `gymnasium.vector.SyncVectorEnv` over single environments, in all three autoreset
    modes. Numbers from the language model ("embedding") agree up to rounding.

    Made by `gymnasium.make_vec("TextGen-v0", num_envs=8, ...)`.

    Args:
        num_envs: B, the number of slots.
        task: as in `TextGenEnv`.
        model: as in `TextGenEnv`.
        autoreset_mode: `AutoresetMode.NEXT_STEP` (default), `SAME_STEP` or `DISABLED`, or their values as
            str.
        max_episode_steps: steps after which an episode is truncated, as by Gymnasium's `TimeLimit`; None: no
            limit.
        render_mode: None, "ansi" or "rgb_array"; frames come as a tuple, one per slot.
        settings: the other arguments of `TextGenEnv`.

    Raises:
        ValueError, TypeError: as `TextGenEnv`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        task: str | Task = "continuation",
        model: str | None = None,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        make_core = partial(EnvCore.for_text, task=task, model=model, **settings)
        self._adopt(make_core, num_envs, autoreset_mode, max_episode_steps, render_mode)

    def _adopt(
        self,
        make_core: Callable[[int], EnvCore],
        num_envs: int,
        autoreset_mode: AutoresetMode | str,
        max_episode_steps: int | None,
        render_mode: str | None,
    ) -> None:
        """What every constructor does: checks the arguments and makes the core for so many slots."""
        self.num_envs = num_envs = whole_number("num_envs", num_envs, 1)
        if max_episode_steps is not None:
            max_episode_steps = whole_number("max_episode_steps", max_episode_steps, 1)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.max_episode_steps = max_episode_steps
        self._core = make_core(num_envs)
        self.single_observation_space = self._core.view.observation_space
        self.single_action_space = self._core.view.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        if isinstance(self.single_action_space, MaskedDiscrete):
            self.action_space = MaskedMultiDiscrete([int(self.single_action_space.n)] * num_envs)
        self.render_mode = render_mode
        self._renderer = Renderer(self._core, render_mode, self.metadata["render_modes"])

    @property
    def task(self) -> Task:
        """The text task that prompts, answers and scores."""
        return self._core.task

    @property
    def language_model(self) -> LanguageModel:
        """The frozen language model behind the environment; its weights are loaded when first needed."""
        return self._core.language_model

    @property
    def action_masks(self) -> Callable[[], np.ndarray]:
        """Only where the task masks actions: a method that gives the masks, (B, N) bool; see `TextGenEnv`."""
        return self._core.mask

    @property
    def max_new_tokens(self) -> int:
        """Tokens that a turn may have."""
        return self._core.episodes.max_new_tokens

    @property
    def context_length(self) -> int:
        """L, the tokens that the context window holds."""
        return self._core.episodes.context_length

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Begins new episodes.

        Args:
            seed: slot i gets `seed + i`, or item i of a sequence; None goes on with the slot's present seed.
            options: those of `TextGenEnv.reset`, the same for every slot, and `"reset_mask"`: (B,) bool
                array, reset these slots only.

        Returns:
            Observations of all slots, and infos in Gymnasium's vector format.

        Raises:
            ValueError, TypeError: bad options, seeds or prompts. Nothing is reset then.
        """
        options = dict(options or {})
        slots = self._core.episodes.all_slots
        if "reset_mask" in options:
            slots = check_reset_mask(options.pop("reset_mask"), self.num_envs)
        checked = check_options(options)
        seeds = self._seeds(seed)
        episodes = self._core.episodes
        with episodes.atomic():
            for slot in slots[[seeds[slot] is not None for slot in slots]]:
                rng, _ = seeding.np_random(seeds[slot])
                episodes.seed(slot, draw_keys(rng, 1)[0])
            fresh = slots[(episodes.arrays.episodes[slots] < 0) & [seeds[slot] is None for slot in slots]]
            episodes.seed(fresh, draw_keys(self.np_random, len(fresh)))
            episodes.begin(slots, checked)
            if (episodes.arrays.episodes < 0).any():
                raise ValueError("options['reset_mask'] must select every slot in the first reset")
            observation, offers = self._core.view.look(episodes.all_slots)
        # Slots without a seed draw theirs here: it must not be seeded as the first slot is.
        super().reset(seed=None if None in seeds else seeds[0])
        infos: dict[str, Any] = {}
        self._offer(infos, offers, slots)
        return observation, infos

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Writes one token, or one turn, in every slot. An error leaves all slots as they were.

        Args:
            actions: (B,) integers. In NEXT_STEP mode the actions of slots that are being reset are not read.

        Returns:
            Observations; rewards (B,) float64; terminations and truncations (B,) bool; infos in Gymnasium's
            vector format, with `final_obs` and `final_info` in SAME_STEP mode.

        Raises:
            InvalidAction, ResetNeeded, RewardError, FloatingPointError: as `TextGenEnv.step`, naming the
            slot.
        """
        episodes = self._core.episodes
        mode = self.autoreset_mode
        resets = np.zeros(self.num_envs, bool)
        if mode == AutoresetMode.NEXT_STEP:
            resets = ~episodes.arrays.running & (episodes.arrays.episodes >= 0)
        chosen = self._core.tokens(actions, ~resets)
        infos: dict[str, Any] = {}
        with episodes.guarded():
            stepped = episodes.select(episodes.all_slots, ~resets)
            result = self._core.step(chosen if stepped is episodes.all_slots else chosen[stepped], stepped)
            rewards, terminated, truncated = self._spread(result, stepped)
            ended = episodes.select(episodes.all_slots, terminated | truncated)
            if self.max_episode_steps is not None:
                episodes.halt(ended)
            again = ended
            if mode != AutoresetMode.SAME_STEP:
                again, ended = episodes.select(episodes.all_slots, resets), _NONE
            if len(ended):
                self._finish(infos, ended, result)
            if len(again):
                episodes.begin(again)
            observation, offers = self._core.view.look(episodes.all_slots)
        self._inform(infos, ended, result)
        self._offer(infos, offers, episodes.all_slots)
        return observation, rewards, terminated, truncated, infos

    def render(self) -> tuple[Any, ...]:
        """One frame per slot, as `TextGenEnv.render` gives it."""
        return tuple(self._renderer.render(slot) for slot in range(self.num_envs))

    def clone_state(self, include_rng: bool = False) -> ClonedState:
        """The present state of all slots; see `TextGenEnv.clone_state`."""
        return self._core.clone_state(include_rng)

    def restore_state(self, state: ClonedState) -> None:
        """Goes back to what `clone_state` returned; see `TextGenEnv.restore_state`."""
        self._core.restore_state(state)
        self._show_mask()

    def get_state(self) -> dict[str, np.ndarray]:
        """The resumable state of all slots in plain arrays; see `TextGenEnv.get_state`."""
        return {**self._core.get_state(), "np_random": pack_generator(self.np_random)}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Brings an environment made alike to what `get_state` returned; see `TextGenEnv.set_state`."""
        self._core.set_state(state)
        unpack_generator(self.np_random, state["np_random"])
        self._show_mask()

    def close_extras(self, **kwargs: Any) -> None:
        """Closes what the task holds, if it has a method `close`."""
        getattr(self.task, "close", lambda: None)()

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + slot for slot in range(self.num_envs)]
        if not isinstance(seed, Sequence | np.ndarray):
            raise TypeError(f"seed must be None, an integer or a sequence of {self.num_envs}, got {seed!r}")
        if len(seed) != self.num_envs:
            raise ValueError(f"seed must have one entry per slot ({self.num_envs}), got {len(seed)}")
        return [
            None if value is None else whole_number(f"seed[{slot}]", value, 0)
            for slot, value in enumerate(seed)
        ]

    def _spread(self, result: Step, stepped: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rewards, terminations and truncations of all slots; 0 and False where a slot was not stepped."""
        episodes = self._core.episodes
        truncated = result.truncated
        if self.max_episode_steps is not None:
            truncated = truncated | (self._core.steps(stepped) >= self.max_episode_steps)
        if stepped is episodes.all_slots:
            return result.rewards, result.terminated, truncated
        spread = np.zeros(self.num_envs), np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        for array, values in zip(spread, (result.rewards, result.terminated, truncated), strict=True):
            array[stepped] = values
        return spread

    def _finish(self, infos: dict[str, Any], ended: np.ndarray, result: Step) -> None:
        """Adds `final_obs` and `final_info` of slots that are reset in this step."""
        observations, offers = self._core.view.look(ended)
        for row, slot in enumerate(ended.tolist()):
            final_info = dict(result.infos.get(slot, {}))
            final_info.update({key: values[row] for key, values in (offers or {}).items()})
            if isinstance(observations, dict):
                final_obs: Any = {key: value[row] for key, value in observations.items()}
            else:
                final_obs = observations[row]
            self._add_info(infos, {"final_obs": final_obs, "final_info": final_info}, slot)

    def _inform(self, infos: dict[str, Any], finished: np.ndarray, result: Step) -> None:
        """Adds the infos of the other slots whose turn is over."""
        if result.infos:
            for slot in sorted(result.infos.keys() - set(finished.tolist())):
                self._add_info(infos, result.infos[slot], slot)

    def _offer(self, infos: dict[str, Any], offers: dict[str, np.ndarray] | None, slots: np.ndarray) -> None:
        """Makes the offers of all slots the current ones, and adds those of `slots` to the infos."""
        if not offers:
            return
        self._core.offers = offers
        self._show_mask()
        for key, values in offers.items():
            infos[key] = np.zeros_like(values)
            infos[key][slots] = values[slots]
            infos[f"_{key}"] = np.isin(self._core.episodes.all_slots, slots)

    def _show_mask(self) -> None:
        """Lets `action_space.sample()` keep to what is allowed now."""
        if isinstance(self.action_space, MaskedMultiDiscrete):
            self.action_space.mask = self._core.offers["action_mask"].copy()
