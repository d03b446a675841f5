"""The commands, end to end on a tiny model: train, resume, evaluate, generate, list."""

from __future__ import annotations

import io
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from agents import report
from agents.__main__ import main
from agents.evaluate import Evaluate
from agents.generate import Generate
from agents.metrics import Auditor
from agents.monitor import TextMonitor
from agents.play import Sampling, play
from agents.train import Train
from lm_envs.language_model import LanguageModel
from lm_envs.registration import ENVIRONMENTS

PROMPTS = ["Mira finds a", "The baker is"]


def settings(model: str, out: Path, **changes) -> Train:
    env_kwargs = {"prompts": PROMPTS, "max_new_tokens": 6}
    small = {"n_envs": 4, "n_steps": 12, "batch_size": 24, "total_timesteps": 96, "eval_episodes": 4}
    return Train(model=model, env_kwargs=json.dumps(env_kwargs), out=out, **(small | changes))


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_train_writes_a_complete_run(tiny_gpt2, tmp_path, algo, capsys):
    out = tmp_path / "run"
    settings(tiny_gpt2, out, algo=algo)()
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["steps"] == 96
    assert evaluation["before"]["kl"]["mean"] == pytest.approx(
        0.0, abs=1e-5
    )  # the untrained model is the reference
    assert (out / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert "before" in (out / "report.txt").read_text()
    assert "--resume" in capsys.readouterr().out
    trained, base = (AutoModelForCausalLM.from_pretrained(folder) for folder in (out / "model", tiny_gpt2))
    changed = [not torch.equal(a, b) for a, b in zip(trained.parameters(), base.parameters(), strict=True)]
    assert any(changed)


def test_resumed_run_equals_uninterrupted_one(tiny_llama, tmp_path):
    settings(tiny_llama, tmp_path / "whole")()
    settings(tiny_llama, tmp_path / "halves", total_timesteps=48)()
    Train(out=tmp_path / "halves", resume=True, total_timesteps=48)()
    whole, halves = (
        (tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "halves")
    )
    assert whole == halves
    assert json.loads((tmp_path / "halves" / "evaluation.json").read_text())["steps"] == 96
    with pytest.raises(SystemExit, match=r"--learning-rate 0\.1 cannot be set with --resume.* 0\.0001 here"):
        Train(out=tmp_path / "halves", resume=True, learning_rate=0.1)()
    with pytest.raises(SystemExit, match="--overwrite True cannot be set with --resume"):
        Train(out=tmp_path / "halves", resume=True, overwrite=True)()


def test_existing_run_is_not_overwritten(tiny_gpt2, tmp_path):
    with pytest.raises(SystemExit, match="--resume"):
        settings(tiny_gpt2, tmp_path)()
    with pytest.raises(SystemExit, match="nothing to resume"):
        Train(out=tmp_path, resume=True)()


def test_play_pairs_prompts_and_measures_kl_exactly(tiny_gpt2, tmp_path):
    """Two models meet the same prompts; the KL is the difference of the models' log-probs of the episode."""
    from models import save_tiny

    base, other = LanguageModel.load(tiny_gpt2), LanguageModel.load(save_tiny(tmp_path, "gpt2", seed=1))
    options = {"seed": 3, "env_kwargs": {"prompts": PROMPTS, "max_new_tokens": 5, "model": tiny_gpt2}}
    played = play(other.decoder(6), base.decoder(6), "TextGen-v0", **options)
    again = play(base.decoder(6), base.decoder(6), "TextGen-v0", **options)
    assert [e.prompt for e in played] == [e.prompt for e in again]
    assert np.abs([e.kl for e in again]).max() == 0.0
    greedy = play(other.decoder(6), base.decoder(6), "TextGen-v0", sampling=Sampling(greedy=True), **options)
    for episode in greedy:  # the greedy completion can be made again, so its KL can be worked out
        context = base.encode_prompt(episode.prompt)
        written: list[int] = []
        kl = 0.0
        for _ in range(episode.tokens):
            ids = torch.tensor([context + written])
            with torch.no_grad():
                mine, theirs = (m.model(ids).logits[0, -1].log_softmax(-1) for m in (other, base))
            written.append(int(mine.argmax()))
            kl += float(mine[written[-1]] - theirs[written[-1]])
        assert other.decode(written) == episode.completion
        assert episode.kl == pytest.approx(kl, abs=1e-4)


def test_evaluate_reports_model_and_reference(tiny_gpt2, tmp_path, capsys):
    env_kwargs = json.dumps({"prompts": PROMPTS, "max_new_tokens": 4, "model": tiny_gpt2})
    target = tmp_path / "evaluation.json"
    Evaluate(model=tiny_gpt2, reference=tiny_gpt2, env_kwargs=env_kwargs, episodes=4, out=target)()
    written = json.loads(target.read_text())
    assert written["model"] == written["reference"]
    assert written["paired_differences"]["reward"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert "4 prompts" in capsys.readouterr().out


def test_generate_equals_hugging_face(tiny_llama, capsys):
    Generate(prompts=tuple(PROMPTS), model=tiny_llama, max_new_tokens=8, sampling=Sampling(greedy=True))()
    lines = capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    lm = LanguageModel.load(tiny_llama)
    for prompt in PROMPTS:
        ids = torch.tensor([lm.encode_prompt(prompt)])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
        assert prompt + lm.decode(whole[0, ids.shape[1] :].tolist()) in lines


def test_generate_reads_files_and_refuses_nothing(tiny_llama, tmp_path, capsys, monkeypatch):
    file = tmp_path / "prompts.txt"
    file.write_text("Mira finds\n\nThe baker\n", encoding="utf-8")
    Generate(prompts_file=file, model=tiny_llama, max_new_tokens=2)()
    assert capsys.readouterr().out.count("\n\n") == 2
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(SystemExit, match="no prompt"):
        Generate(model=tiny_llama)()


def test_list_says_of_every_id_what_it_is(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["agents", "list"])
    monkeypatch.setattr(report, "console", lambda: Console(width=400))
    main()
    rows = capsys.readouterr().out.splitlines()
    descriptions = set()
    for env_id in ENVIRONMENTS:
        (row,) = (row for row in rows if f" {env_id} " in row)
        descriptions.add(row.split("│")[4].strip())
    assert len(descriptions) == len(ENVIRONMENTS)
    assert "Answer a question about a short text" in " ".join(descriptions)


def test_list_needs_no_extra(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["agents", "list"])
    monkeypatch.setattr(report, "console", lambda: Console(width=400))
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    main()
    assert "needs the package reasoning-gym" in capsys.readouterr().out


def test_env_kwargs_must_be_a_json_object(tiny_gpt2, tmp_path):
    for wrong in ("{'a': 1}", "[1]"):
        with pytest.raises(SystemExit, match="JSON object"):
            Train(model=tiny_gpt2, env_kwargs=wrong, out=tmp_path / "run")()
        assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_start_replaces_nothing(tiny_gpt2, tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(SystemExit, match="JSON object"):
        Train(model=tiny_gpt2, env_kwargs="[1]", out=tmp_path, overwrite=True)()
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        Train(model=tiny_gpt2, env_kwargs='{"prompts": "missing.txt"}', out=tmp_path, overwrite=True)()
    assert (tmp_path / "settings.json").exists()


class FakeLogger:
    output_formats = ()

    def __init__(self, recorded: dict[str, float]) -> None:
        self.name_to_value = recorded

    def record(self, name: str, value: float) -> None:
        self.name_to_value[name] = value


@pytest.mark.parametrize(
    ("texts", "kl", "alarm"),
    [
        (["they all went home and sang"] * 4, 1.0, "text/common_4gram"),
        (["joy joy joy joy joy joy", "so so so so so so", "a b c d", "e f g h"], 1.0, "text/repetition_3"),
        (["luck party", "best prize luck", "sun moon and", "the cup"], 1.0, "text/auditor_perplexity"),
        (["the cat sat", "a dog ran", "no one came", "we sang it"], 21.0, "kl/per_episode"),
        (["the cat sat", "a dog ran", "no one came", "we sang it"], 1.0, None),
    ],
)
def test_monitor_raises_the_alarm(texts, kl, alarm):
    class Learner:
        logger = FakeLogger({"kl/per_episode": kl})
        num_timesteps = 0

    auditor = Auditor(["the cat sat", "a dog ran", "no one came", "we sang it"])
    base = {"distinct_2": 0.0, "distinct_2_together": 0.0, "repetition_3": 0.01, "auditor_perplexity": 4.0}
    monitor = TextMonitor(base, auditor, window=4, sample_every=1, stop_on_alarm=True)
    monitor.model = Learner()  # type: ignore[assignment]
    infos = [{"prompt": "", "completion": text, "episode": {"r": 1.0}} for text in texts]
    monitor.locals = {"dones": [True] * 4, "infos": infos}
    assert monitor._on_step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor._on_rollout_end()
    if alarm is None:
        assert not monitor.alarms
        assert not caught
        assert monitor._on_step()
    else:
        assert alarm in monitor.alarms
        assert "collapsing" in str(caught[0].message)
        assert not monitor._on_step()
