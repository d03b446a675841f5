"""Who plays the text environments: random choices, a language model, and the tasks' scripted players."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
import torch

from agents.play import Sampling, choice_log_probs, play
from lm_envs.decoding import Decoder
from lm_envs.language_model import LanguageModel
from lm_envs.registration import ENVIRONMENTS
from lm_envs.sb3 import TransformerPolicy, make_vec_env
from lm_envs.sb3.vec_env import GymVecEnv

TEXT_IDS = tuple(env_id for env_id in ENVIRONMENTS if "Toy" not in env_id)


def make(env_id: str, slots: int, seed: int, split: str = "test", **kwargs: Any) -> GymVecEnv:
    """The batched environment of an id; on choices it shows the task's own view, or the embedding."""
    mode = kwargs.get("actions", action_mode(env_id))
    if mode != "token" and "observation" not in kwargs:
        kwargs["observation"] = observation_mode(env_id)
    return make_vec_env(env_id, slots, seed=seed, split=split, **kwargs)


def task_of(env_id: str, model: str | None = None) -> Any:
    """The task of an id, as it is without arguments but the model."""
    env: Any = gymnasium.make(env_id, model=model).unwrapped
    return env.task


def scripts(env_id: str, model: str | None = None) -> dict[str, Callable[[Any], str]]:
    """The task's scripted players, and one that writes nothing."""
    task = task_of(env_id, model)
    return {"empty": lambda state: ""} | (task.players() if hasattr(task, "players") else {})


def action_mode(env_id: str) -> str:
    """What an action is by default: "token", or the name of the task's choices."""
    return str(ENVIRONMENTS[env_id][2].get("actions", "token"))


def observation_mode(env_id: str) -> str:
    """What learners of choices see: the task's own view if it has one, else the model's embedding."""
    return next(iter(getattr(task_of(env_id), "views", None) or ["embedding"]))


def is_masked(env: GymVecEnv) -> bool:
    """Whether some actions are forbidden."""
    return env.has_attr("action_masks")


def returns_of(env: GymVecEnv, act: Callable[[Any], np.ndarray]) -> tuple[list[float], list[int]]:
    """Returns and lengths, in actions, of the first episode of each slot."""
    observation: Any = env.reset()
    episodes: dict[int, Mapping[str, Any]] = {}
    while len(episodes) < env.num_envs:
        observation, _, dones, infos = env.step(act(observation))
        for slot in np.flatnonzero(dones).tolist():
            episodes.setdefault(slot, infos[slot]["episode"])
    env.close()
    ordered = [episodes[slot] for slot in range(env.num_envs)]
    return [episode["r"] for episode in ordered], [episode["l"] for episode in ordered]


def play_randomly(
    env_id: str, episodes: int, seed: int, model: str | None = None
) -> tuple[list[float], list[int]]:
    """Uniform draws among the actions that are allowed; `model` is the environment's."""
    env = make(env_id, episodes, seed, model=model)
    rng = np.random.default_rng(seed)

    def act(observation: Any) -> np.ndarray:
        size = (episodes, int(env.action_space.n))  # type: ignore[attr-defined]
        if not is_masked(env):
            return rng.integers(size[1], size=episodes)
        return np.where(np.stack(env.env_method("action_masks")), rng.random(size), -1.0).argmax(axis=1)

    return returns_of(env, act)


def play_model(
    env_id: str,
    episodes: int,
    seed: int,
    sampling: Sampling,
    decoder: Decoder | None = None,
    *,
    model: str | None = None,
) -> tuple[list[float], list[int]]:
    """The environment's model (None: the bundled one), or the one behind `decoder`.

    It plays token by token; where an action is a choice, by the log-probs of all that are allowed.
    """
    player = decoder or LanguageModel.load(model).decoder(episodes)
    mode = action_mode(env_id)
    if mode != "token":
        env = make(env_id, episodes, seed, observation="tokens", model=model)
        choices = env.env.unwrapped._core.turns  # type: ignore[attr-defined]
        generator = torch.Generator().manual_seed(seed)

        def act(observation: Mapping[str, np.ndarray]) -> np.ndarray:
            lengths = observation["attention_mask"].sum(axis=1, dtype=np.int64)
            scores = choice_log_probs(player, observation["input_ids"], lengths, choices)
            allowed = torch.from_numpy(np.stack(env.env_method("action_masks"))) if is_masked(env) else None
            return sampling.draw(scores, generator, allowed)[0].numpy()

        return returns_of(env, act)
    played = play(
        player,
        player,  # nobody asks for the KL, and a decoder that is there already costs nothing
        env_id,
        sampling=sampling,
        seed=seed,
        env_kwargs={"split": "test", "model": model},
    )
    return [episode.reward for episode in played], [episode.tokens for episode in played]


def policy_decoder(policy: TransformerPolicy, slots: int) -> Decoder:
    """Decodes with the weights of a trained policy."""
    bundled = LanguageModel.load()
    return Decoder(policy.model, slots, vocab_size=bundled.vocab_size, context_length=bundled.context_length)
