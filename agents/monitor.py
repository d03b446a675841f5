"""A callback that watches what the policy writes: text metrics, samples, and alarms."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat

from agents.metrics import Auditor, common_ngram, text_metrics


def limits(base: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The accepted range of each logged value, given the untrained model's summary."""
    ranges = {
        "kl/per_episode": (float("-inf"), 20.0),  # nats
        "text/common_4gram": (0.0, 0.3),
        "text/distinct_2": (0.95 * base["distinct_2"], 1.0),
        # only good endings, of good and bad ones, are a fifth less varied in the stories themselves
        "text/distinct_2_together": (0.6 * base["distinct_2_together"], 1.0),
        "text/repetition_3": (0.0, base["repetition_3"] + 0.05),
    }
    if "auditor_perplexity" in base:
        ranges["text/auditor_perplexity"] = (0.0, 1.5 * base["auditor_perplexity"])
    return ranges


class TextMonitor(BaseCallback):
    """Logs `text/*` of the newest completions after every rollout; warns, or stops, out of range.

    Logged: the metrics of `agents.metrics.text_metrics`; every `sample_every` rollouts the auditor's
    perplexity, and sample texts to TensorBoard. Watched: these and `kl/per_episode`, see `limits`.

    Args:
        base: the untrained model's summary (`agents.report.summarize`), which the ranges refer to.
        auditor: judges the language; None: no perplexity.
        window: how many of the newest completions are looked at.
        sample_every: rollouts between two samples of text.
        stop_on_alarm: end the training at the first alarm (default: warn, once for each value).

    Attributes:
        alarms: what left its range, by name.
    """

    def __init__(
        self,
        base: Mapping[str, Any],
        auditor: Auditor | None = None,
        *,
        window: int = 128,
        sample_every: int = 10,
        stop_on_alarm: bool = False,
    ) -> None:
        super().__init__()
        self.limits = limits(base)
        self.auditor = auditor
        self.sample_every = sample_every
        self.stop_on_alarm = stop_on_alarm
        self.alarms: dict[str, str] = {}
        self._newest: deque[tuple[str, str, float]] = deque(maxlen=window)
        self._rollouts = 0

    def _on_step(self) -> bool:
        for done, info in zip(self.locals["dones"], self.locals["infos"], strict=True):
            if done and "completion" in info:
                self._newest.append((info["prompt"], info["completion"], info["episode"]["r"]))
        return not (self.alarms and self.stop_on_alarm)

    def _on_rollout_end(self) -> None:
        self._rollouts += 1
        if not self._newest:
            return
        prompts, completions, _ = zip(*self._newest, strict=True)
        values = {f"text/{name}": value for name, value in text_metrics(completions).items()}
        if self._rollouts % self.sample_every == 0:
            if self.auditor is not None:
                values["text/auditor_perplexity"] = self.auditor.perplexity(prompts, completions)
            self._write_samples()
        for name, value in values.items():
            self.logger.record(name, value)
        if len(self._newest) == self._newest.maxlen:  # fewer texts make the shares jump
            self._watch(values | {"kl/per_episode": self.logger.name_to_value.get("kl/per_episode", 0.0)})

    def _watch(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            low, high = self.limits.get(name, (float("-inf"), float("inf")))
            if not low <= value <= high and name not in self.alarms:
                what = f"{name} is {value:.3g}, outside {low:.3g}..{high:.3g}, at step {self.num_timesteps}"
                if name == "text/common_4gram":
                    what += f" ({common_ngram([text for _, text, _ in self._newest])[0]!r})"
                self.alarms[name] = what
                warnings.warn(f"the policy may be collapsing: {what}", stacklevel=2)

    def _write_samples(self, count: int = 4) -> None:
        text = "\n\n".join(f"{p}**{c}**  _{r:+.2f}_" for p, c, r in list(self._newest)[-count:])
        for output in self.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat):
                output.writer.add_text("samples", text, self.num_timesteps)
