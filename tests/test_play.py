"""Episodes of several turns: transcripts, sums of reward parts, and what `evaluate` shows of them."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from models import save_tiny
from tasks import Board, BoardState, Dialogue

from agents import report
from agents.evaluate import Evaluate
from agents.metrics import N_GRAM_METRICS
from agents.play import Episode, Sampling, choice_log_probs, play, play_script
from lm_envs.language_model import LanguageModel


def played(model: str, task: Any, **kwargs: Any) -> list[Episode]:
    language_model = LanguageModel.load(model)
    return play(
        language_model.decoder(8),
        language_model.decoder(8),
        "TextGen-v0",
        sampling=Sampling(temperature=2.0),
        seed=1,
        env_kwargs={"task": task, "model": model, "max_new_tokens": 5} | kwargs,
    )


def test_turns_of_a_task_that_appends(tiny_gpt2: str) -> None:
    episodes = played(tiny_gpt2, Dialogue())
    assert {len(episode.turns) for episode in episodes} == {1, 2, 3}
    for episode in episodes:
        (opening, _), *later = episode.turns
        assert opening == episode.prompt
        assert all(re.fullmatch(r" (river|fox|key|boat)\. ", read) for read, _ in later)
        letters = sum(written.count("e") for _, written in episode.turns)
        assert episode.reward == pytest.approx(0.1 * letters)
        assert episode.reward_parts == pytest.approx({"letters": 0.1 * letters})
        assert episode.completion == "\n".join(written for _, written in episode.turns)


def test_turns_of_a_task_that_replaces(tiny_gpt2: str) -> None:
    episodes = played(tiny_gpt2, Board())
    assert max(len(episode.turns) for episode in episodes) > 1
    for episode in episodes:
        assert all(re.fullmatch(r"counter \d!*", read) for read, _ in episode.turns)
        counters = [int(read[8]) for read, _ in episode.turns]
        assert all(1 <= before - after <= 3 for before, after in pairwise(counters))
        written = -sum(len(text) for _, text in episode.turns[:-1]) / 100
        assert episode.reward == pytest.approx(1.0 + written)
        assert episode.reward_parts.get("text", 0.0) == pytest.approx(written)
        assert episode.reward_parts["won"] == 1.0


def test_scripts_see_the_state_of_every_turn(tiny_gpt2: str) -> None:
    seen: list[BoardState] = []

    def player(state: BoardState) -> str:
        seen.append(state)
        return f" {state.counter}"

    env_kwargs = {"task": Board(), "model": tiny_gpt2, "max_new_tokens": 9}
    (episode,) = play_script(player, "TextGen-v0", 1, seed=3, env_kwargs=env_kwargs)
    assert [(state.prompt, f" {state.counter}") for state in seen] == episode.turns
    (cut,) = play_script(lambda state: "x" * 50, "TextGen-v0", 1, seed=3, env_kwargs=env_kwargs)
    assert cut.tokens == 9 * len(cut.turns)


def test_transcripts_show_turns_in_order_and_shorten_long_ones() -> None:
    turns = [(f"\nread {n} ", f" said {n}\n") for n in range(6)]
    episode = Episode("read 0", "", 0.5, 0.0, 9, "stop", {}, turns)
    text = report.transcript(episode)
    lines = ["said 0", *(f"read {n} said {n}" for n in range(1, 6)), "reward +0.50"]
    assert text.plain == "\n".join(lines)
    assert [text.plain[span.start : span.end] for span in text.spans] == [f"said {n}\n" for n in range(6)]
    short = report.transcript(episode, max_turns=2).plain
    assert short == "said 0\n[... 4 turns ...]\nread 5 said 5\nreward +0.50"


def test_evaluate_shows_whole_conversations(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    target = tmp_path / "evaluation.json"
    Evaluate(env="TextGen-Dialogue-v0", episodes=3, samples=2, out=target)()
    shown = capsys.readouterr().out
    assert shown.count("reward ") >= 2
    episodes = json.loads(target.read_text())["episodes"]["model"]
    assert all(1 <= len(episode["turns"]) <= 6 for episode in episodes)  # 3 that annoy, 3 that do not
    assert max(len(episode["turns"]) for episode in episodes) > 1


def test_evaluate_shows_two_models_side_by_side(
    tiny_gpt2: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny(tmp_path, "gpt2", seed=1)
    kwargs = {"prompts": ["a b", "c d"], "max_new_tokens": 8, "model": tiny_gpt2}
    Evaluate(model=other, reference=tiny_gpt2, env_kwargs=json.dumps(kwargs), episodes=4)()
    shown = capsys.readouterr().out
    assert "model - reference, same prompts" in shown
    assert "before" in shown
    assert shown.count("reward") > 2 * 4


def test_n_gram_metrics_are_for_prose_only(tiny_gpt2: str, tmp_path: Any) -> None:
    for tokens, shown in ((1, False), (40, True)):
        target = tmp_path / f"{tokens}.json"
        kwargs = {"prompts": ["a b", "c d"], "max_new_tokens": tokens, "model": tiny_gpt2}
        Evaluate(
            model=tiny_gpt2, reference=tiny_gpt2, env_kwargs=json.dumps(kwargs), episodes=4, out=target
        )()
        assert set(N_GRAM_METRICS).issubset(json.loads(target.read_text())["model"]) == shown


def test_choices_have_the_log_probs_of_their_tokens(tiny_gpt2: str) -> None:
    """Beside a full forward pass of each context with each choice; contexts of unequal lengths."""
    language_model = LanguageModel.load(tiny_gpt2)
    rng = np.random.default_rng(0)
    lengths = np.array([3, 7, 5])
    contexts = rng.integers(1, language_model.vocab_size, size=(3, 9))
    choices = [[5, 6, 7], [5, 6, 8], [5, 9], [4], [6, 5, 5, 5]]
    found = choice_log_probs(language_model.decoder(3), contexts, lengths, choices)
    for row, length in enumerate(lengths):
        for number, choice in enumerate(choices):
            ids = torch.tensor([[*contexts[row, :length], *choice]])
            log_probs = language_model.model(ids).logits[0, length - 1 : -1].log_softmax(-1)
            expected = log_probs[range(len(choice)), choice].sum().item()
            assert found[row, number].item() == pytest.approx(expected, abs=1e-4)
