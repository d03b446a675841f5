"""`python -m agents train`: a learner on an environment, and a report to check.

On texts stock SB3 PPO or A2C trains a transformer; the toys have learners of their own, see `agents.toy.run`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from tqdm import TqdmExperimentalWarning

from agents import report
from agents.metrics import story_auditor
from agents.monitor import TextMonitor
from agents.options import (
    check_counts,
    check_folder,
    check_positive,
    check_share,
    option,
    parse_env_kwargs,
)
from agents.play import Episode, play, token_env
from agents.toy.learners import TOYS
from agents.toy.run import train_toy
from lm_envs.decoding import Decoder
from lm_envs.language_model import LanguageModel
from lm_envs.sb3 import (
    EpisodeRolloutBuffer,
    KLCallback,
    TransformerPolicy,
    load_checkpoint,
    save_checkpoint,
)

TEXT_ALGORITHMS = ("ppo", "a2c")
PPO_ONLY = ("batch_size", "n_epochs", "clip_range")

COMMON = {"env", "algo", "total_timesteps", "env_kwargs", "seed", "out", "overwrite"}  # settings of all runs


@dataclass(frozen=True)
class TextSettings:
    """Settings of a run on texts, with the values that hold where none is given; see `Train`."""

    env: str = "TextGen-v0"
    algo: str = "ppo"
    model: str | None = None
    total_timesteps: int = 50_000
    n_envs: int = 64
    n_steps: int = 64
    batch_size: int = 1024
    n_epochs: int = 2
    learning_rate: float = 1e-4
    clip_range: float = 0.2
    gae_lambda: float = 0.95
    ent_coef: float = 0.0
    kl_coef: float = 0.1
    kl_target: float | None = None
    freeze_layers: int = 0
    lora_rank: int | None = None
    env_kwargs: str = "{}"
    eval_kwargs: str | None = None
    seed: int = 0
    out: Path = Path("runs/textgen")
    overwrite: bool = False
    resume: bool = False
    checkpoint_every: int = 5
    eval_episodes: int = 128
    stop_on_alarm: bool = False
    wandb: bool = False


@dataclass(frozen=True)
class Train:
    """Train a learner: a transformer on texts with stable-baselines3, or one of three families on a toy."""

    env: str = "TextGen-v0"
    """Registered id of the environment: one on texts, or a toy (TextGen-Toy...)."""
    algo: Literal["ppo", "a2c", "dqn", "q_learning"] = "ppo"
    """On texts: ppo, a2c. On a toy: q_learning (tabular), dqn (MLP), ppo (small transformer from scratch)."""
    total_timesteps: int | None = None
    """Environment steps (tokens) to train for, in this call. This and the hyperparameters below: None is the
    algorithm's own value for this environment (README and agents/toy/learners.py; on texts as stated here),
    50,000 on texts."""
    n_envs: int | None = None
    """Slots of the vector environment; on texts 64."""
    batch_size: int | None = None
    """Transitions of a minibatch (not q_learning, a2c); whole episodes are packed up to about that many; on
    texts 1024."""
    n_epochs: int | None = None
    """Passes over each rollout (PPO); on texts 2."""
    learning_rate: float | None = None
    """On texts 1e-4, constant; on toys it falls."""
    clip_range: float | None = None
    """PPO's clip range; on texts 0.2."""
    gae_lambda: float | None = None
    """PPO, A2C; on texts 0.95."""
    ent_coef: float | None = None
    """PPO, A2C; on texts 0, constant; on toys it falls to 0."""
    model: str | None = None
    """Texts only: folder or hub id of the causal language model; None: the bundled one."""
    n_steps: int | None = None
    """Texts only: steps of each slot in a rollout; None: 64."""
    kl_coef: float | None = None
    """Texts only: coefficient of the per-token KL penalty against the untrained model, in reward per nat;
    None: 0.1."""
    kl_target: float | None = None
    """Texts only: nats per episode that an adaptive coefficient steers to; None: the coefficient is fixed."""
    freeze_layers: int | None = None
    """Texts only: lowest transformer layers that are not trained; None: 0."""
    lora_rank: int | None = None
    """Texts only: train LoRA adapters of this rank instead of all weights."""
    env_kwargs: str = "{}"
    """Arguments of the environment, as JSON: '{"max_new_tokens": 32}'."""
    eval_kwargs: str | None = None
    """Texts only: arguments that differ in evaluation, as JSON, such as '{"prompts": "held_out.txt"}'.
    None: the test split; with prompts of your own, those same prompts."""
    seed: int = 0
    out: Path | None = None
    """Folder of the run; None: runs/textgen. For a toy, the folder of its runs, each in a folder called as
    the algorithm; None: runs/ and the id."""
    overwrite: bool = False
    """Replace an existing run in `out`."""
    resume: bool = False
    """Texts only: continue the run in `out`: its own settings hold, `total_timesteps` more."""
    checkpoint_every: int | None = None
    """Texts only: rollouts between two checkpoints; None: 5. Ctrl-C writes one, too."""
    eval_episodes: int | None = None
    """Texts only: held-out prompts played before and after; None: 128."""
    stop_on_alarm: bool = False
    """Texts only: stop, rather than warn, when the texts leave the base model's range (see
    agents/monitor.py)."""
    wandb: bool = False
    """Texts only: log to Weights & Biases as well."""

    def __call__(self) -> None:
        """Trains, and writes the run folder; on texts evaluates before and after, on held-out prompts."""
        self._check()
        given = self._given()
        env_id = self.env.removeprefix("lm_envs:")
        if env_id in TOYS:
            train_toy(
                env_id,
                self.algo,
                env_kwargs=parse_env_kwargs(self.env_kwargs),
                changes={name: value for name, value in given.items() if name not in COMMON},
                total_timesteps=self.total_timesteps,
                seed=self.seed,
                out=self.out,
                overwrite=self.overwrite,
            )
            return
        if self.algo not in TEXT_ALGORITHMS:
            raise ValueError(
                f"--algo {self.algo} does not learn on {self.env}: choose {', '.join(TEXT_ALGORITHMS)}; "
                f"{self.algo} learns on {', '.join(TOYS)}"
            )
        if self.algo == "a2c":
            for name in PPO_ONLY:
                if name in given:
                    raise ValueError(f"{option(name)} is no option of a2c")
        if self.wandb and find_spec("wandb") is None:
            raise ImportError("--wandb needs the package wandb: pip install 'lm-envs[wandb]'")
        run = Run.resume(given) if self.resume else Run.start(TextSettings(**given))
        try:
            run.train()
        except KeyboardInterrupt:
            if (run.settings.out / "checkpoint" / "checkpoint.json").exists():
                sys.exit(f"interrupted: goes on with --resume --out {run.settings.out}")
            raise

    def _check(self) -> None:
        """ValueError unless every number is in its range."""
        check_counts(
            total_timesteps=self.total_timesteps,
            n_envs=self.n_envs,
            batch_size=self.batch_size,
            n_epochs=self.n_epochs,
            n_steps=self.n_steps,
            lora_rank=self.lora_rank,
            checkpoint_every=self.checkpoint_every,
            eval_episodes=self.eval_episodes,
        )
        check_counts(0, seed=self.seed, freeze_layers=self.freeze_layers)
        check_positive(learning_rate=self.learning_rate, clip_range=self.clip_range)
        check_share(gae_lambda=self.gae_lambda)

    def _given(self) -> dict[str, Any]:
        """The settings that are not their defaults, by name."""
        values = {
            field.name: (getattr(self, field.name), field.default) for field in dataclasses.fields(self)
        }
        return {name: value for name, (value, default) in values.items() if value != default}


class Checkpointer(BaseCallback):
    """Saves every `every` rollouts, at a rollout boundary: resuming from such a checkpoint is exact."""

    def __init__(self, save: Callable[[], None], every: int) -> None:
        super().__init__()
        self.save, self.every, self._rollouts = save, every, 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self._rollouts and self._rollouts % self.every == 0:
            self.save()
        self._rollouts += 1


def task_kwargs(text: str, name: str) -> dict[str, Any]:
    """Arguments of the environment other than its model, from the JSON that was given as option `name`."""
    kwargs = parse_env_kwargs(text, name)
    if "model" in kwargs:
        raise ValueError(f"{name} cannot change the model: give it with --model")
    return kwargs


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass
class Run:
    """A training run and its folder.

    Attributes:
        settings: of the whole run.
        steps: to train for in this session.
        model: the learner.
        before: what the untrained model played.
        minutes: that earlier sessions trained, and this one once it is over.
        alarms: of earlier sessions, and of this one once it is over.
    """

    settings: TextSettings
    steps: int
    model: OnPolicyAlgorithm
    before: list[Episode] = field(default_factory=list)
    minutes: float = 0.0
    alarms: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._penalty = KLCallback(kl_coef=self.settings.kl_coef, target=self.settings.kl_target)

    @classmethod
    def start(cls, settings: TextSettings) -> Run:
        """A new run; its untrained model is evaluated first.

        Whatever can be wrong with the settings shows before a run in the same folder is replaced.
        """
        check_folder(settings.out, settings.overwrite, "settings.json", "continue it with --resume")
        env_kwargs = {"model": settings.model, **task_kwargs(settings.env_kwargs, "--env-kwargs")}
        env = token_env(settings.env, settings.n_envs, settings.seed, env_kwargs)
        policy_kwargs: dict[str, Any] = {"model": settings.model, "freeze_layers": settings.freeze_layers}
        if settings.lora_rank is not None:
            policy_kwargs["lora"] = {"r": settings.lora_rank}
        shared: dict[str, Any] = dict(
            n_steps=settings.n_steps,
            learning_rate=settings.learning_rate,
            gamma=1.0,
            gae_lambda=settings.gae_lambda,
            ent_coef=settings.ent_coef,
            normalize_advantage=False,  # the buffer whitens the whole rollout
            rollout_buffer_class=EpisodeRolloutBuffer,
            policy_kwargs=policy_kwargs,
            seed=settings.seed,
        )
        model: OnPolicyAlgorithm
        if settings.algo == "ppo":
            model = PPO(
                TransformerPolicy,
                env,
                batch_size=settings.batch_size,
                n_epochs=settings.n_epochs,
                clip_range=settings.clip_range,
                **shared,
            )
        else:
            model = A2C(TransformerPolicy, env, **shared)
        run = cls(settings, settings.total_timesteps, model)
        run.before = run.evaluate("evaluating the untrained model")
        if settings.out.exists():
            shutil.rmtree(settings.out)
        settings.out.mkdir(parents=True)
        report.write_json(
            settings.out / "settings.json", dataclasses.asdict(settings) | {"out": str(settings.out)}
        )
        report.write_json(settings.out / "before.json", [dataclasses.asdict(e) for e in run.before])
        return run

    @classmethod
    def resume(cls, given: dict[str, Any]) -> Run:
        """The run in `given["out"]`, at its newest checkpoint, for `given["total_timesteps"]` more.

        Raises:
            ValueError: other settings are given that are not the run's own: they would have no effect. Or
                there is no run, or a damaged one.
        """
        asked = TextSettings(**given)
        out = asked.out
        try:
            settings = TextSettings(**(read_json(out / "settings.json") | {"out": out}))
            before = [Episode(**episode) for episode in read_json(out / "before.json")]
            history = read_json(out / "history.json") if (out / "history.json").exists() else {}
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(f"nothing to resume in {out}: {error.filename} is missing") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"the run in {out} is damaged: {error}") from error
        for name in given.keys() - {"out", "total_timesteps", "resume"}:
            if given[name] != (stored := getattr(settings, name)):
                raise ValueError(
                    f"{option(name)} {given[name]} cannot be set with --resume: the run in {out} "
                    f"goes on with its own settings, {stored} here"
                )
        model = load_checkpoint(out / "checkpoint")
        return cls(settings, asked.total_timesteps, model, before, **history)

    def train(self) -> None:
        """Learns for `steps` more steps, then writes checkpoint, model, curve, samples and evaluation."""
        out, settings = self.settings.out, self.settings
        if settings.wandb:
            import wandb

            wandb.init(project="lm-envs", dir=out, config=dataclasses.asdict(settings), sync_tensorboard=True)
        self.model.set_logger(configure(str(out / f"log_{self.model.num_timesteps}"), ["csv", "tensorboard"]))
        auditor = story_auditor() if settings.env == "TextGen-v0" and settings.model is None else None
        base = report.summarize(self.before, auditor)
        monitor = TextMonitor(base, auditor, stop_on_alarm=settings.stop_on_alarm)
        minutes, alarms, started = self.minutes, self.alarms, time.perf_counter()

        def save() -> None:
            self.minutes = minutes + (time.perf_counter() - started) / 60
            self.alarms = alarms + list(monitor.alarms.values())
            save_checkpoint(self.model, out / "checkpoint")
            report.write_json(out / "history.json", {"minutes": self.minutes, "alarms": self.alarms})

        callbacks = CallbackList([self._penalty, monitor, Checkpointer(save, settings.checkpoint_every)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TqdmExperimentalWarning)  # SB3's progress bar
            try:
                self.model.learn(self.steps, callback=callbacks, reset_num_timesteps=False, progress_bar=True)
            except KeyboardInterrupt:
                if self.model.num_timesteps:
                    save()
                raise
        save()
        self.policy.save_pretrained(out / "model")
        after = self.evaluate("evaluating the trained model")
        columns = {"before": base, "after": report.summarize(after, auditor)}
        self._report(after, columns)

    @property
    def policy(self) -> TransformerPolicy:
        """The policy in training."""
        return self.model.policy  # type: ignore[return-value]

    def evaluate(self, label: str) -> list[Episode]:
        """One episode on each held-out prompt, sampled at temperature 1."""
        settings = self.settings
        env_kwargs = task_kwargs(settings.env_kwargs, "--env-kwargs")
        if settings.eval_kwargs is not None:
            env_kwargs |= task_kwargs(settings.eval_kwargs, "--eval-kwargs")
        elif "prompts" not in env_kwargs:
            env_kwargs["split"] = "test"
        base = LanguageModel.load(settings.model)
        size = {"vocab_size": base.vocab_size, "context_length": base.context_length}
        return play(
            Decoder(self.policy.model, settings.eval_episodes, **size),
            base.decoder(settings.eval_episodes),
            settings.env,
            seed=10_000,
            env_kwargs={"model": settings.model, **env_kwargs},
            progress=label,
        )

    def _report(self, after: list[Episode], columns: dict[str, dict[str, Any]]) -> None:
        out, settings, steps = self.settings.out, self.settings, self.model.num_timesteps
        minutes, alarms = self.minutes, self.alarms
        differences = report.paired_differences(self.before, after)
        run = {"paired_differences": differences, "steps": steps, "minutes": minutes, "alarms": alarms}
        report.write_json(out / "evaluation.json", columns | run)
        report.plot_learning_curve(
            sorted(out.glob("log_*/progress.csv")),
            out / "learning_curve.png",
            {0: columns["before"]["reward"], steps: columns["after"]["reward"]},
        )
        title = f"{settings.env}: {len(after)} prompts before and after {steps} steps ({minutes:.1f} minutes)"
        parts: list[Any] = [report.sample_table(self.before, after)]
        parts.append(report.summary_table(title, {**columns, "after - before": differences}))
        parts += [f"ALARM: {alarm}" for alarm in alarms]
        report.print_and_save(out / "report.txt", *parts)
        print(
            f"learning curve   {out / 'learning_curve.png'}\n"
            f"model            {out / 'model'}  (a Hugging Face folder)\n"
            f"checkpoint       {out / 'checkpoint'}\n"
            f"continue with    {os.path.relpath(sys.executable)} -m agents train --resume --out {out} "
            f"--total-timesteps {self.steps}"
        )
