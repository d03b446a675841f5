"""`FromGymnasium`: turn-level environments of others as tasks, to be played token by token."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Space, Text

from lm_envs.spaces import UnicodeText
from lm_envs.tasks.base import Append, Completion, Feedback, Replace

MAX_SEED = 2**31  # foreign environments may keep seeds in 32 bits


@dataclass(frozen=True)
class ForeignState:
    """An episode of a foreign environment.

    Attributes:
        prompt: the latest observation.
        seed: what its `reset` was given.
        actions: what its `step` was given since then.
    """

    prompt: str
    seed: int
    actions: tuple[str, ...] = ()


class FromGymnasium:
    """Makes a task of any Gymnasium environment whose observations and actions are text.

    ```python
    task = FromGymnasium("their/Game-v0")
    env = gymnasium.make("TextGen-v0", task=task, stop="\\n", max_new_tokens=8)
    ```

    One step of the foreign environment is one turn: the agent reads the observation and writes the action,
    token by token. The action is the completion without blanks around it. Its reward is the turn's reward,
    its info is `info["env_info"]`. The episode is terminated or truncated when the foreign one is. A
    completion that is not in the foreign action space is not passed on: it ends the episode with
    `invalid_reward`.

    An episode is known by its seed and its actions, so the foreign environment must be deterministic given
    these. Running ones are kept; where a clone goes another way, or one is missing, it is replayed from its
    seed.

    Args:
        env: an id for `gymnasium.make`, or a function that makes one (a picklable one, for subprocesses).
        append: whether observations are appended to the context; otherwise each one replaces it.
        invalid_reward: of a completion outside the action space.
        max_live: how many running environments are kept; more slots than that replay in every turn.
        kwargs: arguments of `gymnasium.make` for an id.

    Raises:
        TypeError: a space that is not one of text.
        ValueError: max_live below 1.
    """

    def __init__(
        self,
        env: str | Callable[[], gymnasium.Env],
        *,
        append: bool = False,
        invalid_reward: float = 0.0,
        max_live: int = 256,
        **kwargs: Any,
    ) -> None:
        if max_live < 1:
            raise ValueError(f"max_live must be >= 1, got {max_live!r}")
        if kwargs and not isinstance(env, str):
            raise TypeError(f"arguments {sorted(kwargs)} are for an id, but env is {env!r:.60}")
        self.env, self.kwargs = env, kwargs
        self.append, self.invalid_reward, self.max_live = append, invalid_reward, max_live
        self._live: OrderedDict[tuple[int, tuple[str, ...]], gymnasium.Env] = OrderedDict()
        self._idle = [self._make()]
        for name in ("observation_space", "action_space"):
            space = getattr(self._idle[0], name)
            if not _is_text(space):
                raise TypeError(f"the {name} of {self._idle[0]} must be one of text, got {space}")

    def start(self, rng: np.random.Generator, options: Mapping[str, Any]) -> ForeignState:
        """Resets a foreign environment with a drawn seed, or with `task_index` as its seed.

        Raises:
            ValueError: a prompt is asked for: the environment's observations are its own.
        """
        if "prompt" in options:
            raise ValueError("options['prompt']: the prompts of a foreign environment are its observations")
        seed = options.get("task_index", int(rng.integers(MAX_SEED)))
        env, observation = self._opened(seed)
        self._keep((seed, ()), env)
        return ForeignState(observation, seed)

    def respond(
        self,
        states: Sequence[ForeignState],
        completions: Sequence[Completion],
        rngs: Sequence[np.random.Generator],
    ) -> list[Feedback]:
        """Steps the foreign environments; see `Task.respond`.

        Raises:
            RuntimeError: one of them raises (names the slot), or replays to another observation.
        """
        return [self._answer(*each) for each in zip(states, completions, strict=True)]

    def close(self) -> None:
        """Closes all foreign environments; they are made again when needed."""
        for env in [*self._live.values(), *self._idle]:
            env.close()
        self._live.clear()
        self._idle.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_live": OrderedDict(), "_idle": []}

    def _answer(self, state: ForeignState, completion: Completion) -> Feedback:
        action = completion.text.strip()
        env = self._env_in(state)
        if not env.action_space.contains(action):
            self._keep((state.seed, state.actions), env)
            return Feedback(self.invalid_reward, True, info={"env_info": {}, "finish_reason": "task"})
        try:
            observation, reward, terminated, truncated, env_info = env.step(action)
        except Exception as error:  # whatever it may be, the environment is in no known state now
            env.close()
            raise RuntimeError(
                f"{env} of slot {completion.slot} failed at action {action!r}, after "
                f"{len(state.actions)} others from seed {state.seed}: {type(error).__name__}: {error}"
            ) from error
        following = ForeignState(_text(observation), state.seed, (*state.actions, action))
        info = {"env_info": env_info}
        if terminated or truncated:
            self._idle.append(env)
            return Feedback(
                reward,  # type: ignore[arg-type]
                bool(terminated),
                following,
                {**info, "finish_reason": "task"},
                truncated=bool(truncated and not terminated),
            )
        self._keep((following.seed, following.actions), env)
        context = Append(following.prompt) if self.append else Replace(following.prompt)
        return Feedback(reward, False, following, info, context)  # type: ignore[arg-type]

    def _env_in(self, state: ForeignState) -> gymnasium.Env:
        """A live environment in this state, which is the caller's from now on."""
        env = self._live.pop((state.seed, state.actions), None)
        if env is not None:
            return env
        env, observation = self._opened(state.seed)
        for action in state.actions:
            observation = env.step(action)[0]
        if observation != state.prompt:
            raise RuntimeError(
                f"{env} is not deterministic: seed {state.seed} and {len(state.actions)} actions led to "
                f"{state.prompt!r:.60}, and now to {observation!r:.60}"
            )
        return env

    def _opened(self, seed: int) -> tuple[gymnasium.Env, str]:
        env = self._idle.pop() if self._idle else self._make()
        return env, _text(env.reset(seed=seed)[0])

    def _keep(self, key: tuple[int, tuple[str, ...]], env: gymnasium.Env) -> None:
        """Keeps a live environment; the one that has waited longest makes room."""
        if key in self._live:
            self._idle.append(self._live.pop(key))
        self._live[key] = env
        if len(self._live) > self.max_live:
            self._idle.append(self._live.popitem(last=False)[1])

    def _make(self) -> gymnasium.Env:
        return gymnasium.make(self.env, **self.kwargs) if isinstance(self.env, str) else self.env()


def _is_text(space: Space) -> bool:
    return isinstance(space, Text | UnicodeText) or isinstance(space.sample(), str)


def _text(observation: Any) -> str:
    if not isinstance(observation, str):
        raise TypeError(f"observations of a foreign environment must be str, got {observation!r:.60}")
    return observation
