"""A callback that watches what the policy writes: text metrics, samples, and the collapse alarm."""

from __future__ import annotations

import warnings
from collections import deque

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat

from agents.metrics import COLLAPSE_THRESHOLD, common_ngram, text_metrics


class TextMonitor(BaseCallback):
    """Logs `text/*` of the newest completions after every rollout; warns, or stops, on collapse.

    Logged: `text/common_4gram` (share of completions that hold the most common 4-gram), `text/distinct_2`,
    `text/repetition_3`, `text/words`; sample texts go to TensorBoard as text.

    Args:
        window: how many of the newest completions are looked at.
        sample_every: rollouts between two samples of text in TensorBoard.
        stop_on_collapse: end the training when `text/common_4gram` exceeds 0.3 (default: warn once).
    """

    def __init__(self, window: int = 128, sample_every: int = 10, stop_on_collapse: bool = False) -> None:
        super().__init__()
        self.sample_every = sample_every
        self.stop_on_collapse = stop_on_collapse
        self.collapsed: str | None = None
        self._newest: deque[tuple[str, str, float]] = deque(maxlen=window)
        self._rollouts = 0

    def _on_step(self) -> bool:
        for done, info in zip(self.locals["dones"], self.locals["infos"], strict=True):
            if done and "completion" in info:
                self._newest.append((info["prompt"], info["completion"], info["episode"]["r"]))
        return not (self.collapsed and self.stop_on_collapse)

    def _on_rollout_end(self) -> None:
        self._rollouts += 1
        if not self._newest:
            return
        completions = [completion for _, completion, _ in self._newest]
        metrics = text_metrics(completions)
        for name, value in metrics.items():
            self.logger.record(f"text/{name}", value)
        full = len(self._newest) == self._newest.maxlen
        if full and metrics["common_4gram"] > COLLAPSE_THRESHOLD and not self.collapsed:
            gram, share = common_ngram(completions)
            self.collapsed = f"{share:.0%} of the newest {len(completions)} completions hold {gram!r}"
            warnings.warn(f"the policy is collapsing: {self.collapsed}", stacklevel=2)
        if self._rollouts % self.sample_every == 1:
            self._write_samples()

    def _write_samples(self, count: int = 4) -> None:
        text = "\n\n".join(f"{p}**{c}**  _{r:+.2f}_" for p, c, r in list(self._newest)[-count:])
        for output in self.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat):
                output.writer.add_text("samples", text, self.num_timesteps)
