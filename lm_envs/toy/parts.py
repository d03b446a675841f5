"""What single and vector toys give access to."""

from __future__ import annotations

from lm_envs.core import EnvCore
from lm_envs.toy.ngram import NGram
from lm_envs.toy.task import ToyTask
from lm_envs.toy.transitions import Transitions
from lm_envs.toy.view import ToyView


class ToyParts:
    """The parts of a toy, for the environments that have its core."""

    _core: EnvCore

    @property
    def task(self) -> ToyTask:
        """The toy in arrays."""
        return self._core.task

    @property
    def language_model(self) -> NGram:
        """The n-gram model of the toy's words: the reference for KL penalties."""
        return self._core.language_model

    @property
    def view(self) -> ToyView:
        """How states are shown."""
        return self._core.view  # type: ignore[return-value]

    @property
    def P(self) -> Transitions:
        """`P[state][action]` -> [(probability, next state, reward, terminated)]; see `Transitions`."""
        return Transitions(self.task)
