"""`TextGenEnv`: text generation as a Gymnasium environment, one token an action."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding

from lm_envs.actions import Turn
from lm_envs.core import ClonedState, EnvCore, draw_keys
from lm_envs.options import check_options
from lm_envs.rendering import Renderer
from lm_envs.replay import pack_generator, unpack_generator
from lm_envs.spaces import MaskedDiscrete
from lm_envs.tasks import Task

if TYPE_CHECKING:
    from lm_envs.language_model import LanguageModel


class TextGenEnv(gymnasium.Env):
    """Text generation, one token an action.

    ## Description
    The environment shows a prompt; each action writes one token behind it. A turn is over at the
    end-of-sequence token (EOS), at a stop string or after `max_new_tokens`; then the task reads the
    completion, pays its reward and either ends the episode or answers, and the next turn begins. Tasks of one
    turn are the usual case.

    `TextGen-v0` is the task "continuation": continue a story opening so that the text turns out well and
    stays fluent. Its model, prompts and reward are arguments (see below).

    ## Observation space
    `observation="tokens"`, a `Dict` of arrays over the context window (L = `context_length`), right-padded:

    | Key               | Shape  | Dtype | Range  | Meaning                                          |
    |-------------------|--------|-------|--------|--------------------------------------------------|
    | `input_ids`       | `(L,)` | int64 | 0..V-1 | the context, behind it the model's pad token     |
    | `attention_mask`  | `(L,)` | int8  | 0, 1   | 1 for a token, 0 for padding                     |
    | `completion_mask` | `(L,)` | int8  | 0, 1   | 1 for the tokens that the agent wrote            |

    The first two are what a Hugging Face model takes; its next-token logits stand at the last attended
    position.

    `observation="embedding"`, a `Box` of shape `(H+1,)`, float32: the language model's hidden state at the
    last token, and the share of the turn's budget that is left (0..1). For MLP policies.

    `observation="text"`, a `lm_envs.spaces.UnicodeText`: the context, decoded without special tokens.

    A task may offer observations of its own, such as a game's board, under other names.

    ## Action space
    `actions="token"`: `Discrete(V)`, a token id of the model's tokenizer.

    `actions="top_k"`: `Discrete(top_k)`, one of the language model's most likely next tokens. They are in
    `info["candidates"]`, `(top_k,)` int64, most likely first, at reset and after each step.

    A task may offer choices of its own under other names: `Discrete(N)`, where an action writes a whole turn
    in one step, a text that the task names. Its tokens are in the context as if they had been written one by
    one. It ends with EOS, or with its stop string if it has one; for a model without EOS it just ends, with
    `finish_reason` "stop". If the task allows some choices only, the mask is in `info["action_mask"]`,
    `(N,)` int8, 1 for what is allowed, under the same key in a `Dict` observation, and in `action_masks()`;
    `action_space.sample()` keeps to it. Other actions raise `InvalidAction`.

    ## Rewards
    The task's reward, one finite float paid on the token that ends a turn; 0 on all other tokens. Unless
    `reward` is given, "continuation" pays
    `sentiment + fluency_weight * clip(typicality + fluency_slack, -1, 0)`: VADER's compound score of the
    completion (-1..1), and the mean over its tokens of log-probability plus entropy under the frozen model,
    in nats, which is 0 on average for text that the model itself writes. The parts are in
    `info["reward_parts"]`.

    When a turn is over, `info` holds `prompt`, `completion`, `finish_reason` ("eos", "stop", "length", or
    "task" where a task ends the episode for a reason of its own), `prompt_tokens` (the context before the
    turn), `completion_tokens`, `turns` (turns of this episode up to now) and what the task adds.

    ## Starting state
    A prompt drawn by the task. `reset(seed=s)` fixes this and all later episodes; `reset()` begins the seed's
    next episode. Every random draw is a hash of (seed, episode, step), so a slot of a vector environment goes
    the way of a single environment with its seed. `options={"prompt": str}` sets the prompt,
    `{"task_index": int}` picks it.

    ## Episode end
    Terminated when the task says so ("continuation": after one turn). Truncated when the context window is
    full: without a reward for the turn (and with `finish_reason` "length") when a token that does not end its
    turn fills it; with the reward for the turn when a multi-turn task's answer would leave no room for
    another token (that answer is not shown).

    ## Arguments
    | Name               | Type               | Default          | Meaning                                  |
    |--------------------|--------------------|------------------|------------------------------------------|
    | `task`             | str or `Task`      | `"continuation"` | the name of a task, or an own one        |
    | `model`            | str or None        | `None`           | folder or hub id; None: the bundled one  |
    | `max_new_tokens`   | int                | `64`             | tokens that a turn may have              |
    | `stop`             | str or list of str | `()`             | end a turn; cut off the completion       |
    | `context_length`   | int or None        | `None`           | L, tokens; None: the model's             |
    | `truncate_prompts` | bool               | `False`          | long prompts lose tokens at the front    |
    | `observation`      | str                | `"tokens"`       | "tokens", "embedding", "text", a task's  |
    | `actions`          | str                | `"token"`        | "token", "top_k", a task's choices       |
    | `top_k`            | int                | `50`             | number of candidates for "top_k"         |
    | `chat`             | bool               | `False`          | prompts go through the chat template     |
    | `device`           | str                | `"auto"`         | torch device of the language model       |
    | `dtype`            | str                | `"auto"`         | of its weights, e.g. "float64"           |
    | `render_mode`      | str or None        | `None`           | "ansi", "human" or "rgb_array"           |
    | `**task_kwargs`    |                    |                  | arguments of the named task              |

    Arguments of "continuation" (`lm_envs.tasks.continuation.Continuation`):

    | Name                | Type                | Default   | Meaning                                        |
    |---------------------|---------------------|-----------|------------------------------------------------|
    | `prompts`           | list, path or None  | `None`    | texts, .txt or .jsonl; None: generated stories |
    | `split`             | str                 | `"train"` | "train" or "test", of the generated stories    |
    | `reward`            | callable or None    | `None`    | `reward(prompts, completions, **columns)`      |
    | `fluency_weight`    | float               | `2.0`     | reward lost per nat per token beyond the slack |
    | `fluency_slack`     | float               | `0.1`     | nats per token, see Rewards                    |

    ## Vectorized use
    `gymnasium.make_vec("TextGen-v0", num_envs=8)` makes a `TextGenVectorEnv`: one batch, the same episodes.

    ## References
    - Hutto and Gilbert, "VADER: a parsimonious rule-based model for sentiment analysis of social media text",
      2014.
    - Meister et al., "Locally typical sampling", 2022 (typicality).
    - Ziegler et al., "Fine-tuning language models from human preferences", 2019.

    ## Version history
    - v0: initial version (lm-envs 0.1.0).
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["ansi", "human", "rgb_array"],
        "render_fps": 10,
    }

    def __init__(
        self,
        task: str | Task = "continuation",
        model: str | None = None,
        *,
        max_new_tokens: int = 64,
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
        core = EnvCore.for_text(
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
        self._adopt(core, render_mode)

    def _adopt(self, core: EnvCore, render_mode: str | None) -> None:
        """What every constructor ends with."""
        self._core = core
        self._slots = self._core.episodes.all_slots
        self._may_write_on = core.turns is None and not core.view.uses_model
        self.observation_space = self._core.view.observation_space
        self.action_space = self._core.view.action_space
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
        """Only where the task masks actions: a method that gives the mask, (N,) bool, as MaskablePPO asks it.

        Raises:
            AttributeError: no actions are masked, so that `hasattr` says so.
        """
        mask = self._core.mask
        return lambda: mask()[0]

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
            seed: makes this episode and all that follow it reproducible. Without a seed, the next episode of
                the present seed begins.
            options: None, `{"prompt": str}` (use this text) or `{"task_index": int}` (use this item of the
                task).

        Returns:
            The observation and the info (`candidates` for "top_k" actions, `action_mask` where a task masks).

        Raises:
            ValueError: unknown options, or a prompt that is no text, empty (for a model without BOS) or too
                long.
        """
        checked = check_options(options) if options else {}
        episodes = self._core.episodes
        with episodes.atomic() if checked else episodes.guarded():
            if seed is not None or episodes.arrays.episodes[0] < 0:
                rng = self.np_random if seed is None else seeding.np_random(seed)[0]
                episodes.seed(self._slots, draw_keys(rng, 1))
            episodes.begin(self._slots, checked)
            observation, info = self._look()
        super().reset(seed=seed)
        self._renderer.show(0)
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Writes one token, or one turn; see the class docstring. An error leaves the environment as it was.

        Args:
            action: int, numpy integer or 0-d integer array; or a `lm_envs.actions.Turn`, a text to be written
                as a whole turn, see `lm_envs.turn_level.TurnLevel`.

        Raises:
            InvalidAction: anything else, an integer out of range, or a masked action.
            ResetNeeded: before the first reset, or after the episode's end.
            RewardError: the reward function failed.
            FloatingPointError: the language model gave NaN ("embedding" and "top_k" only).
        """
        episodes = self._core.episodes
        if not episodes.arrays.running[0]:
            raise ResetNeeded("call reset() first: the episode is over, or none has begun")
        if isinstance(action, Turn):
            write = partial(episodes.write_turns, [self._core.turn(action)])
        else:
            token = self._core.token(action)
            if self._may_write_on and episodes.write_on(0, token):
                observation, info = self._look()
                self._renderer.show(0)
                return observation, 0.0, False, False, info
            write = partial(self._core.step, np.array([token]))
        with episodes.guarded():
            result = write()
            observation, info = self._look()
        columns = {key: values.item() for key, values in result.columns.items()}
        info = {**result.infos.get(0, columns), **info}
        self._renderer.show(0)
        return (
            observation,
            float(result.rewards[0]),
            bool(result.terminated[0]),
            bool(result.truncated[0]),
            info,
        )

    def render(self) -> Any:
        """A str for "ansi", a (400, 800, 3) uint8 array for "rgb_array"; "human" prints by itself."""
        return self._renderer.render(0)

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
        self._show_mask()

    def get_state(self) -> dict[str, np.ndarray]:
        """The resumable state: plain arrays, for `numpy.savez` without pickles. See `set_state`."""
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
        self._show_mask()

    def close(self) -> None:
        """Closes what the task holds, if it has a method `close`."""
        getattr(self.task, "close", lambda: None)()

    def _look(self) -> tuple[Any, dict[str, Any]]:
        batch, offers = self._core.view.look(self._slots)
        self._core.offers = offers or {}
        self._show_mask()
        info = {key: values[0].copy() for key, values in self._core.offers.items()}
        observation = {key: value[0] for key, value in batch.items()} if isinstance(batch, dict) else batch[0]
        return observation, info

    def _show_mask(self) -> None:
        """Lets `action_space.sample()` keep to what is allowed now."""
        if isinstance(self.action_space, MaskedDiscrete):
            self.action_space.mask = self._core.offers["action_mask"][0].copy()
