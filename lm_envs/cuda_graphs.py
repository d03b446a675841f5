"""CUDA graphs: a pass of static shapes is recorded once, then replayed without Python between its kernels."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

# A function of one tensor that waits for no device and depends on nothing else that changes.
Pass = Callable[[Tensor], Tensor]


class RecordedPasses:
    """Passes by key, each recorded when it is met first.

    A recording holds the addresses of all tensors that its pass reads or writes: they have to stay where they
    are, so whatever replaces them (a larger cache, another dtype) belongs to the key.
    """

    def __init__(self) -> None:
        self._recorded: dict[Hashable, Pass] = {}

    def run(self, key: Hashable, forward: Pass, inputs: Tensor) -> Tensor:
        """`forward(inputs)`, replayed if this key was met before; the next replay overwrites the result."""
        if key not in self._recorded:
            self._recorded[key] = record(forward, inputs)
        return self._recorded[key](inputs)


def record(forward: Pass, inputs: Tensor) -> Pass:
    """A CUDA graph of `forward` for inputs of this shape.

    The pass runs once before it is recorded, as CUDA demands (libraries set themselves up), so it must do no
    harm when it is run twice.
    """
    static = inputs.clone()
    # The tensors' device need not be the current one, whose stream would record nothing of them.
    current, stream = torch.cuda.current_stream(inputs.device), torch.cuda.Stream(inputs.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        forward(static)
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        output = forward(static)

    def replay(inputs: Tensor) -> Tensor:
        static.copy_(inputs)
        graph.replay()
        return output

    return replay
