"""`TurnLevel`: a text environment turn by turn, for agents that write whole texts."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import InvalidAction
from gymnasium.utils import RecordConstructorArgs

from lm_envs.actions import Turn
from lm_envs.text_env import TextGenEnv
from lm_envs.view import View


class TurnLevel(RecordConstructorArgs, gymnasium.Wrapper):
    """One step is one turn: the action is a whole completion, the observation the text of the context.

    ```python
    env = TurnLevel(gymnasium.make("TextGen-v0"))
    text, info = env.reset(seed=0)
    text, reward, terminated, truncated, info = env.step(" and they all went home.")
    ```

    Rewards, endings and infos are what the environment gives for the completion's tokens, written one by one.
    As there, the turn ends with the first stop string, so that what follows it is not written; and after
    `max_new_tokens`, which cuts a longer text short (`info["finish_reason"]` is "length"). A text that does
    not end the turn by itself gets an EOS behind it; for models without EOS the turn is just over ("stop").
    The tokens are those that the tokenizer makes of the text.

    Wrappers inside count turns as steps: a `TimeLimit` of `gymnasium.make(id, max_episode_steps=n)` lasts n
    turns. The wrapped environment's own action and observation modes do not matter.

    Args:
        env: a single text environment, from `gymnasium.make`; toys, which write no turns, are refused.

    Raises:
        TypeError: env is something else.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        RecordConstructorArgs.__init__(self)
        gymnasium.Wrapper.__init__(self, env)
        core = env.unwrapped._core if isinstance(env.unwrapped, TextGenEnv) else None
        if core is None or not isinstance(core.view, View):
            raise TypeError(f"TurnLevel needs a single text environment of lm_envs and no toy, got {env}")
        self._view = core.view
        self.observation_space = self._view.text_space(core.episodes.context_length)
        self.action_space = self._view.text_space(core.episodes.max_new_tokens)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Begins a new episode; see `TextGenEnv.reset`."""
        _, info = self.env.reset(seed=seed, options=options)
        return self._text(), info

    def step(self, action: Any) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Writes one turn.

        Args:
            action: the completion, a str of any length.

        Raises:
            InvalidAction: not a str, or one that the tokenizer cannot encode.
            ResetNeeded, RewardError: as `TextGenEnv.step`. After an error everything is as it was.
        """
        if not isinstance(action, str):
            raise InvalidAction(f"action must be a str, got {action!r:.80} ({type(action).__name__})")
        _, reward, terminated, truncated, info = self.env.step(Turn(action))
        return self._text(), float(reward), terminated, truncated, info

    def _text(self) -> str:
        return self._view.texts(np.array([0]))[0]
