"""The toys' vector environments: no loop over slots, infos as arrays."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import numpy as np
from gymnasium.vector import AutoresetMode

from lm_envs.episodes import Step
from lm_envs.toy import games
from lm_envs.toy.games import Game, make_core
from lm_envs.toy.parts import ToyParts
from lm_envs.toy.slot_rows import SlotRows
from lm_envs.vector_env import TextGenVectorEnv


class ToyVectorEnv(ToyParts, TextGenVectorEnv):  # type: ignore[misc]  # a toy in place of the text task
    """Many episodes of a toy environment in one batch: slot i does what a single one seeded alike does.

    Infos are arrays with the usual `_key` masks. In SAME_STEP mode `final_obs` is a sequence with an item per
    slot, as usual, but makes its items when asked for.

    Args:
        num_envs: B, the number of slots.
        autoreset_mode: `AutoresetMode.NEXT_STEP` (default), `SAME_STEP` or `DISABLED`, or their values as
            str.
        max_episode_steps: tokens after which an episode is truncated, as by Gymnasium's `TimeLimit`; None: no
            limit.
        render_mode: None, "ansi" or "rgb_array"; frames come as a tuple, one per slot.
        dials: the other arguments of the single environment.

    Raises:
        ValueError: impossible dials; names argument, value and range.
    """

    game: ClassVar[Game]

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **dials: Any,
    ) -> None:
        make = partial(make_core, game=self.game, **dials)
        self._adopt(make, num_envs, autoreset_mode, max_episode_steps, render_mode)

    def _finish(self, infos: dict[str, Any], ended: np.ndarray, result: Step) -> None:
        is_final = np.zeros(self.num_envs, bool)
        is_final[ended] = True
        observations, _ = self.view.look(ended)
        infos["final_obs"], infos["_final_obs"] = SlotRows(observations, ended, self.num_envs), is_final
        infos["final_info"], infos["_final_info"] = self._columns(result), is_final

    def _inform(self, infos: dict[str, Any], finished: np.ndarray, result: Step) -> None:
        if not len(finished):
            infos.update(self._columns(result))

    def _columns(self, result: Step) -> dict[str, Any]:
        """The infos of finished texts, spread over all slots."""
        if not result.columns:
            return {}
        ended = np.zeros(self.num_envs, bool)
        ended[result.info_slots] = True
        infos: dict[str, Any] = {}
        for key, values in result.columns.items():
            infos[key], infos[f"_{key}"] = values, ended
            if len(values) < self.num_envs:
                fill = None if values.dtype == object else 0
                infos[key] = np.full(self.num_envs, fill, values.dtype)
                infos[key][ended] = values
        return infos


class ToyCopyVectorEnv(ToyVectorEnv):
    """Many episodes of `ToyCopyEnv`."""

    game = games.COPY


class ToyReverseVectorEnv(ToyVectorEnv):
    """Many episodes of `ToyReverseEnv`."""

    game = games.REVERSE


class ToyBracketsVectorEnv(ToyVectorEnv):
    """Many episodes of `ToyBracketsEnv`."""

    game = games.BRACKETS


class ToyBigramVectorEnv(ToyVectorEnv):
    """Many episodes of `ToyBigramEnv`."""

    game = games.BIGRAM


class ToyTranslateVectorEnv(ToyVectorEnv):
    """Many episodes of `ToyTranslateEnv`."""

    game = games.TRANSLATE


class ToyKeyDoorVectorEnv(ToyVectorEnv):
    """Many episodes of `ToyKeyDoorEnv`."""

    game = games.KEY_DOOR
