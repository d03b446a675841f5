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
from agents.generate import Generate, complete
from agents.metrics import Auditor
from agents.monitor import TextMonitor
from agents.play import Sampling, play
from agents.snake import TrainSnake
from agents.tabular.overestimation import Overestimation
from agents.toy.audit import Audit
from agents.train import Run, TextSettings, Train
from lm_envs.language_model import LanguageModel
from lm_envs.registration import ENVIRONMENTS

PROMPTS = ["Mira finds a", "The baker is"]


def settings(model: str, out: Path, **changes) -> Train:
    env_kwargs = {"prompts": PROMPTS, "max_new_tokens": 6}
    small = {"n_envs": 4, "n_steps": 12, "batch_size": 24, "total_timesteps": 96, "eval_episodes": 4}
    if changes.get("algo") == "a2c":
        del small["batch_size"]
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
    with pytest.raises(ValueError, match=r"--learning-rate 0\.1 cannot be set with --resume.* 0\.0001 here"):
        Train(out=tmp_path / "halves", resume=True, learning_rate=0.1)()
    with pytest.raises(ValueError, match="--overwrite True cannot be set with --resume"):
        Train(out=tmp_path / "halves", resume=True, overwrite=True)()


def stop_at(monkeypatch, step: int, error: type[BaseException]) -> None:
    """Lets training end in an error at a step."""

    def end(self: TextMonitor) -> bool:
        if self.num_timesteps >= step:
            raise error
        return True

    monkeypatch.setattr(TextMonitor, "_on_step", end)


def test_an_interrupted_run_goes_on(tiny_gpt2, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 60, KeyboardInterrupt)
        with pytest.raises(SystemExit, match=f"--resume --out {tmp_path / 'run'}"):
            settings(tiny_gpt2, tmp_path / "run")()
    first = json.loads((tmp_path / "run" / "history.json").read_text())
    Train(out=tmp_path / "run", resume=True, total_timesteps=48)()
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["steps"] == 60 + 48
    assert evaluation["minutes"] > first["minutes"] > 0


def test_a_killed_run_has_the_checkpoint_of_its_fifth_rollout(tiny_gpt2, tmp_path, monkeypatch):
    stop_at(monkeypatch, 5 * 48 + 4, RuntimeError)
    with pytest.raises(RuntimeError):
        settings(tiny_gpt2, tmp_path / "run", total_timesteps=480)()
    checkpoint = json.loads((tmp_path / "run" / "checkpoint" / "checkpoint.json").read_text())
    assert checkpoint["num_timesteps"] == 5 * 48


def test_nothing_to_resume_is_promised_before_there_is_a_checkpoint(tmp_path, monkeypatch):
    def interrupt(run: Run) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "evaluate", lambda *_: [])
    monkeypatch.setattr(Run, "train", interrupt)
    monkeypatch.setattr("sys.argv", ["agents", "train", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == "interrupted"


def test_a_resumed_run_remembers_its_alarms(tiny_gpt2, tmp_path, monkeypatch):
    for number, resume in enumerate((False, True)):
        alarms = {"text/words": f"alarm {number}"}
        monkeypatch.setattr(
            TextMonitor, "_on_training_start", lambda self, alarms=alarms: self.alarms.update(alarms)
        )
        if resume:
            Train(out=tmp_path / "run", resume=True, total_timesteps=48)()
        else:
            settings(tiny_gpt2, tmp_path / "run")()
        evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
        assert evaluation["alarms"] == ["alarm 0", "alarm 1"][: number + 1]
    assert "ALARM: alarm 0\nALARM: alarm 1\n" in (tmp_path / "run" / "report.txt").read_text()


@pytest.mark.parametrize(
    ("file", "text"),
    [("settings.json", "{"), ("settings.json", '{"new": 1}'), ("before.json", "[{}]"), ("history.json", "[")],
)
def test_a_damaged_run_is_not_resumed(tmp_path, file, text):
    for name, whole in (("settings.json", "{}"), ("before.json", "[]"), (file, text)):
        (tmp_path / name).write_text(whole)
    with pytest.raises(ValueError, match=r"the run in .* is damaged"):
        Train(out=tmp_path, resume=True)()


def test_existing_run_is_not_overwritten(tiny_gpt2, tmp_path):
    with pytest.raises(ValueError, match="--resume"):
        settings(tiny_gpt2, tmp_path)()
    with pytest.raises(ValueError, match="nothing to resume"):
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


def test_evaluate_plays_in_the_references_environment(tiny_llama, tmp_path):
    """The environment writes and reads with the reference's tokenizer, as in training."""
    env_kwargs = json.dumps({"prompts": PROMPTS, "max_new_tokens": 6})
    greedy, target = Sampling(greedy=True), tmp_path / "evaluation.json"
    Evaluate(tiny_llama, tiny_llama, env_kwargs=env_kwargs, episodes=4, sampling=greedy, out=target)()
    episodes = json.loads(target.read_text())["episodes"]["model"]
    written = complete(LanguageModel.load(tiny_llama), PROMPTS, Generate(max_new_tokens=6, sampling=greedy))
    expected = dict(zip(PROMPTS, written, strict=True))
    assert [e["completion"].strip() for e in episodes] == [expected[e["prompt"]].strip() for e in episodes]
    with pytest.raises(ValueError, match="--model and --reference have different tokenizers"):
        Evaluate(model=tiny_llama, env_kwargs=env_kwargs, episodes=4)()
    with pytest.raises(ValueError, match="TextGen-ToyCopy-v0 is a toy"):
        Evaluate(env="TextGen-ToyCopy-v0", env_kwargs="{}")()


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
    with pytest.raises(ValueError, match="no prompt"):
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
        with pytest.raises(ValueError, match="JSON object"):
            Train(model=tiny_gpt2, env_kwargs=wrong, out=tmp_path / "run")()
        assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_start_replaces_nothing(tiny_gpt2, tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match="JSON object"):
        Train(model=tiny_gpt2, env_kwargs="[1]", out=tmp_path, overwrite=True)()
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        Train(model=tiny_gpt2, env_kwargs='{"prompts": "missing.txt"}', out=tmp_path, overwrite=True)()
    assert (tmp_path / "settings.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_kwargs": "[1]"}, "--eval-kwargs must be a JSON object"),
        ({"eval_kwargs": '{"foo": 1}'}, "foo"),
        ({"eval_kwargs": '{"model": "x"}'}, "--eval-kwargs cannot change the model"),
        ({"env_kwargs": '{"model": "x"}'}, "--env-kwargs cannot change the model"),
        ({"env_kwargs": '{"foo": 1}'}, "foo"),
        ({"env_kwargs": '{"actions": "top_k"}'}, "tokens"),
        ({"env": "CartPole-v1"}, "CartPole-v1"),
        ({"eval_episodes": 0}, "--eval-episodes must be .* 1, got 0"),
        ({"kl_coef": -1.0}, "kl_coef"),
        ({"n_steps": 0}, "--n-steps"),
        ({"n_envs": 0}, "--n-envs"),
        ({"n_epochs": 0}, "--n-epochs"),
        ({"batch_size": 0}, "--batch-size"),
        ({"total_timesteps": 0}, "--total-timesteps"),
        ({"checkpoint_every": 0}, "--checkpoint-every"),
        ({"learning_rate": -1.0}, "--learning-rate must be .* got -1.0"),
        ({"clip_range": float("nan")}, "--clip-range"),
        ({"gae_lambda": 2.0}, r"--gae-lambda must be in 0\.\.1"),
        ({"freeze_layers": 99}, "freeze_layers"),
        ({"lora_rank": 0}, "--lora-rank"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_wrong_settings_replace_nothing(tiny_gpt2, tmp_path, changes, message):
    kwargs = {"env_kwargs": json.dumps({"prompts": PROMPTS, "max_new_tokens": 6})} | changes
    small = {"n_envs": 2, "n_steps": 12, "total_timesteps": 24, "eval_episodes": 2} | kwargs
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        Train(model=tiny_gpt2, out=tmp_path, overwrite=True, **small)()
    assert (tmp_path / "settings.json").exists()


def test_a2c_takes_none_of_ppos_options(tmp_path):
    for changes in ({"batch_size": 7}, {"n_epochs": 9}, {"clip_range": 0.9}):
        with pytest.raises(ValueError, match="is no option of a2c"):
            Train(algo="a2c", out=tmp_path / "run", **changes)()


def test_tokens_are_the_actions_of_every_id_in_training(tmp_path):
    """TextGen-Edit-v0 has others by default."""
    run = Run.start(TextSettings(env="TextGen-Edit-v0", n_envs=2, eval_episodes=2, out=tmp_path / "run"))
    assert run.model.action_space.n == LanguageModel.load(lazy=True).vocab_size


MISTAKES = [
    ["train", "--env", "Nothing-v0"],
    ["train", "--out", "FILE/run"],
    ["train", "--resume", "--out", "FILE"],
    ["train", "--env-kwargs", '{"prompts": "missing.txt"}', "--out", "FOLDER/run"],
    ["evaluate", "--episodes", "0"],
    ["evaluate", "--samples", "-1"],
    ["evaluate", "--seed", "-1"],
    ["evaluate", "--sampling.temperature", "0"],
    ["evaluate", "--sampling.top-k", "0"],
    ["evaluate", "--sampling.top-p", "2"],
    ["evaluate", "--env-kwargs", '{"foo": 1}'],
    ["evaluate", "--env-kwargs", '{"observation": "text"}'],
    ["evaluate", "--env", "CartPole-v1"],
    ["evaluate", "--out", "FILE/x.json"],
    ["evaluate", "--out", "FOLDER"],
    ["generate", "--prompts-file", "FOLDER/missing.txt"],
    ["generate", "--prompts-file", "FOLDER/latin.txt"],
    ["generate", "x", "--prompts-file", "FOLDER/latin.txt"],
    ["generate", "x", "--chat"],
    ["generate", "x", "--sampling.temperature", "-1"],
    ["generate", "x", "--max-new-tokens", "-3"],
    ["generate", "long " * 600],
    ["generate", "x", "--model", "FOLDER/missing"],
    ["tabular", "--total-timesteps", "0"],
    ["tabular", "--n-envs", "0"],
    ["tabular", "--points", "0"],
    ["tabular", "--gamma", "5"],
    ["tabular", "--learning-rate", "-1"],
    ["tabular", "--explore", "2", "3"],
    ["tabular", "--env-kwargs", '{"length": 0}'],
    ["tabular", "--env-kwargs", '{"foo": 1}'],
    ["tabular", "--env", "CartPole-v1"],
    ["tabular", "--seed", "-1"],
    ["train", "--env", "TextGen-ToyCopy-v0", "--algo", "dqn", "--batch-size", "0"],
    ["train", "--env", "TextGen-ToyCopy-v0", "--algo", "a2c"],
]


@pytest.mark.parametrize("arguments", MISTAKES, ids=lambda arguments: " ".join(arguments)[:60])
def test_mistakes_end_with_a_message(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = {"FILE": tmp_path / "file", "FOLDER": tmp_path / "folder"}
    places["FILE"].write_text("")
    places["FOLDER"].mkdir()
    (places["FOLDER"] / "latin.txt").write_bytes(b"caf\xe9\n")
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    monkeypatch.setattr("sys.argv", ["agents", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err.strip()
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "folder", "latin.txt"}


def test_evaluate_makes_the_folder_of_its_file(tiny_gpt2, tmp_path):
    env_kwargs = json.dumps({"prompts": PROMPTS, "max_new_tokens": 2})
    out = tmp_path / "new" / "evaluation.json"
    Evaluate(tiny_gpt2, tiny_gpt2, env_kwargs=env_kwargs, episodes=2, out=out)()
    assert out.exists()


def test_a_prompt_that_is_too_long_is_named(tiny_gpt2):
    with pytest.raises(ValueError, match=r"prompt 'fox fox.* tokens"):
        Generate(prompts=("fox " * 100,), model=tiny_gpt2)()


def test_files_are_written_whole_or_not_at_all(tmp_path):
    class Half:
        def savefig(self, path: Path, **_: object) -> None:
            path.write_bytes(b"half")
            raise OSError("no space left")

        def __rich_console__(self, *_: object):
            yield "half"
            raise OSError("no space left")

    path = tmp_path / "file"
    path.write_text("whole")
    for write in (lambda: report.save_figure(Half(), path), lambda: report.print_and_save(path, Half())):
        with pytest.raises(OSError, match="no space"):
            write()
        assert path.read_text() == "whole"


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


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (TrainSnake(games=0), "--games must be an integer >= 1, got 0"),
        (TrainSnake(steps=10), "--steps must be an integer >= 64, got 10"),
        (Audit(rollouts=0), "--rollouts must be an integer >= 1, got 0"),
        (Audit(kl_coefs=(0.1, 0.0)), "--kl-coefs must be a finite number > 0, got 0.0"),
        (Overestimation(seeds=0), "--seeds must be an integer >= 1, got 0"),
    ],
)
def test_counts_are_checked_before_the_work(command, message):
    with pytest.raises(ValueError, match=message):
        command()
