"""Whole episodes of a language model on a registered environment, with the KL to a reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from tqdm import tqdm

from lm_envs.decoding import Decoder
from lm_envs.language_model import LanguageModel
from lm_envs.sampling import check_sampling_arguments, filter_logits, sample
from lm_envs.sb3 import make_vec_env
from lm_envs.sb3.vec_env import GymVecEnv


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: softmax temperature, top-k and top-p (nucleus) cuts, or greedily."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False

    def __post_init__(self) -> None:
        check_sampling_arguments(self.temperature, self.top_k, self.top_p)

    def draw(
        self, logits: torch.Tensor, generator: torch.Generator, action_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (B,) int64 and their log-probs (B,) under this distribution, from logits (B, V)."""
        return sample(
            logits,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            action_mask=action_mask,
            generator=generator,
            deterministic=self.greedy,
        )


@dataclass(frozen=True)
class Episode:
    """One finished episode: texts, what it was paid, and how far its tokens are from the reference's.

    Attributes:
        prompt: what the episode began with.
        completion: what the agent wrote; of several turns, one a line.
        turns: what the agent read since its last turn, and then wrote, turn by turn.
        reward_parts: summed over the turns.
        kl: sum over the agent's tokens of log pi - log reference, in nats; its mean over episodes estimates
            the KL divergence. pi is the model at temperature 1, whatever the sampling was.
    """

    prompt: str
    completion: str
    reward: float
    kl: float
    tokens: int
    finish_reason: str
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    turns: Sequence[tuple[str, str]] = ()


def play(
    decoder: Decoder,
    reference: Decoder,
    env_id: str,
    *,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    env_kwargs: Mapping[str, Any] | None = None,
    progress: str | None = None,
) -> list[Episode]:
    """Plays one episode in each of the decoder's slots.

    Slot i's prompt depends on `seed + i` alone, so two models that are played with the same seed meet the
    same prompts, row by row: their rewards can be compared in pairs.

    Args:
        decoder: of the model that acts, B slots.
        reference: of the model that the KL is measured against, B slots.
        env_id: a registered id with `observation="tokens"` and `actions="token"`.
        sampling: how tokens are drawn.
        seed: of prompts and of sampling.
        env_kwargs: arguments of the environment.
        progress: label of a progress bar over finished episodes; None shows none.

    Returns:
        B episodes, in slot order.
    """
    slots = decoder.num_slots
    generator = torch.Generator(decoder.hidden.device).manual_seed(seed)

    def act(observation: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        lengths = observation["attention_mask"].sum(axis=1, dtype=np.int64)
        mask = observation.get("action_mask")
        action_mask = None if mask is None else torch.as_tensor(mask, dtype=torch.bool)
        for player in (decoder, reference):
            player.advance(observation["input_ids"], lengths)
        logits = decoder.logits()
        actions, _ = sampling.draw(logits, generator, action_mask)
        kl = log_prob(logits, actions, action_mask) - log_prob(reference.logits(), actions, action_mask)
        return actions.cpu().numpy(), kl

    env = token_env(env_id, slots, seed, env_kwargs or {})
    return first_episodes(env, act, progress)


def play_script(
    player: Callable[[Any], str],
    env_id: str,
    episodes: int,
    *,
    seed: int = 0,
    env_kwargs: Mapping[str, Any] | None = None,
    progress: str | None = None,
) -> list[Episode]:
    """Plays a scripted player of a task (`task.players()`) on the prompts that `play` shows.

    Args:
        player: the task's state -> the completion of the turn; cut where the turn would end.
        env_id: a registered id of a text environment.
        episodes: how many.
        seed, env_kwargs, progress: see `play`.

    Returns:
        The episodes; their KL is 0.
    """
    env = token_env(env_id, episodes, seed, env_kwargs or {})
    dynamics = env.env.unwrapped._core.episodes  # type: ignore[attr-defined]
    turn_numbers = [(-1, -1)] * episodes
    queues: list[list[int]] = [[] for _ in range(episodes)]

    def act(observation: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        a = dynamics.arrays
        for slot, number in enumerate(zip(a.episodes.tolist(), a.turns.tolist(), strict=True)):
            if number != turn_numbers[slot]:
                turn_numbers[slot] = number
                queues[slot] = dynamics.task.turn(player(a.states[slot]))
        return np.array([queue.pop(0) for queue in queues]), np.zeros(episodes)

    return first_episodes(env, act, progress)


@torch.no_grad()
def choice_log_probs(
    decoder: Decoder, input_ids: np.ndarray, lengths: np.ndarray, choices: Sequence[Sequence[int]]
) -> torch.Tensor:
    """How likely a language model is to write each of some choices behind each context.

    What choices begin with in common is decoded once.

    Args:
        decoder: of the model, B slots; holds the contexts and some choice afterwards.
        input_ids: (B, L) token ids, right padded with anything.
        lengths: (B,) tokens of each context.
        choices: N lists of token ids, none the beginning of another one, as turns that end in EOS are.

    Returns:
        (B, N) log-probs in nats: of a choice the sum over its tokens.
    """
    rows = np.arange(len(lengths))
    longest = max(map(len, choices))
    contexts = np.concatenate([input_ids, np.zeros((len(rows), longest), np.int64)], axis=1, dtype=np.int64)
    scores = torch.zeros(len(rows), len(choices))

    def walk(depth: int, going: Sequence[int]) -> None:
        """Adds the log-probs of the tokens at this depth, and what comes behind them, to scores[:, going]."""
        decoder.advance(contexts, lengths + depth)
        log_probs = decoder.logits().log_softmax(-1).cpu()
        for token in dict.fromkeys(choices[i][depth] for i in going):
            same = [i for i in going if choices[i][depth] == token]
            scores[:, same] += log_probs[:, [token]]
            if longer := [i for i in same if len(choices[i]) > depth + 1]:
                contexts[rows, lengths + depth] = token
                walk(depth + 1, longer)

    walk(0, range(len(choices)))
    return scores


def token_env(env_id: str, slots: int, seed: int, env_kwargs: Mapping[str, Any]) -> GymVecEnv:
    """A vector environment whose actions and observations are tokens.

    Raises:
        gymnasium.error.Error: no such id.
        ValueError: arguments that it does not take, or other actions or observations.
    """
    kwargs = token_mode(env_id) | dict(env_kwargs)
    try:
        env = make_vec_env(env_id, slots, seed=seed, **kwargs)
    except TypeError as error:
        raise ValueError(f"{env_id} with {kwargs}: {error}") from error
    if "input_ids" not in getattr(env.observation_space, "spaces", {}):
        raise ValueError(f"{env_id} with {kwargs} shows no tokens, but {env.observation_space}")
    vocab_size = env.get_attr("language_model")[0].vocab_size
    if getattr(env.action_space, "n", None) != vocab_size:
        raise ValueError(f"actions of {env_id} with {kwargs} must be its {vocab_size} tokens")
    return env


def token_mode(env_id: str) -> dict[str, Any]:
    """Arguments that make an id's actions and observations tokens, if they are something else by default."""
    spec = gymnasium.spec(env_id)
    defaults = {"actions": "token", "observation": "tokens"}
    return {name: value for name, value in defaults.items() if name in spec.kwargs}


def first_episodes(
    env: GymVecEnv,
    act: Callable[[Mapping[str, np.ndarray]], tuple[np.ndarray, np.ndarray]],
    progress: str | None = None,
) -> list[Episode]:
    """Plays until each slot has finished an episode, and closes the environment.

    Args:
        env: with observations of tokens.
        act: observations of B slots -> actions (B,) and what they add to the KL, (B,) nats.
        progress: label of a progress bar over finished episodes; None shows none.
    """
    slots = env.num_envs
    episodes: dict[int, Episode] = {}
    kl = np.zeros(slots)
    observation: Any = env.reset()
    transcripts = Transcripts(env.get_attr("language_model")[0], observation)
    with tqdm(total=slots, desc=progress, disable=progress is None, leave=False) as bar:
        while len(episodes) < slots:
            actions, more = act(observation)
            kl += more
            observation, _, dones, infos = env.step(actions)
            transcripts.follow(actions.tolist(), observation, dones, infos)
            for slot in np.flatnonzero(dones).tolist():
                if slot not in episodes:
                    episodes[slot] = finished(infos[slot], kl[slot], *transcripts.episodes[slot])
                    bar.update()
            kl[dones] = 0.0
    env.close()
    return [episodes[slot] for slot in range(slots)]


class Transcripts:
    """What is read and written in each slot's first episode.

    Args:
        language_model: the environment's.
        observation: a batch of "tokens" observations after a reset.

    Attributes:
        episodes: for each slot its turns (read, written), and the sums of their reward parts.
    """

    def __init__(self, language_model: LanguageModel, observation: Mapping[str, np.ndarray]) -> None:
        self._decode = language_model.decode
        self._contexts = _contexts(observation)
        self._read = [self._decode(context) for context in self._contexts]
        self._over = np.zeros(len(self._contexts), bool)
        self.episodes: list[tuple[list[tuple[str, str]], Counter[str]]] = [
            ([], Counter()) for _ in self._contexts
        ]

    def follow(
        self,
        actions: Sequence[int],
        observation: Mapping[str, np.ndarray],
        dones: np.ndarray,
        infos: Sequence[Mapping[str, Any]],
    ) -> None:
        """Takes note of one step of the vector environment."""
        contexts = _contexts(observation)
        for slot in np.flatnonzero(~self._over).tolist():
            info, context = infos[slot], [*self._contexts[slot], actions[slot]]
            if "completion" not in info:
                continue
            turns, parts = self.episodes[slot]
            turns.append((self._read[slot], info["completion"]))
            parts.update({name: float(part) for name, part in info.get("reward_parts", {}).items()})
            # A reply follows on what was there; another context replaces it.
            shown = contexts[slot]
            is_reply = shown[: len(context)] == context
            self._read[slot] = self._decode(shown[len(context) :] if is_reply else shown)
        self._contexts = contexts
        self._over |= dones


def _contexts(observation: Mapping[str, np.ndarray]) -> list[list[int]]:
    """The token ids of each slot's context."""
    lengths = observation["attention_mask"].sum(axis=1, dtype=np.int64)
    rows = zip(observation["input_ids"].tolist(), lengths.tolist(), strict=True)
    return [row[:length] for row, length in rows]


def finished(
    info: Mapping[str, Any], kl: float, turns: Sequence[tuple[str, str]], reward_parts: Mapping[str, float]
) -> Episode:
    """The episode that the last step's info and the transcript tell of."""
    return Episode(
        prompt=info["prompt"],
        completion="\n".join(written for _, written in turns),
        reward=info["episode"]["r"],
        kl=float(kl),
        tokens=info["episode"]["l"],
        finish_reason=info["finish_reason"],
        reward_parts=dict(reward_parts),
        turns=list(turns),
    )


def log_prob(logits: torch.Tensor, tokens: torch.Tensor, action_mask: torch.Tensor | None) -> np.ndarray:
    """log-probs (B,) of `tokens` (B,) under the temperature-1 distribution of `logits` (B, V)."""
    logits = filter_logits(logits, action_mask=action_mask)
    return torch.log_softmax(logits, dim=-1).gather(1, tokens[:, None])[:, 0].double().cpu().numpy()
