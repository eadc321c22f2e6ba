"""Forward and backward pass of a step as one CUDA graph.

At the batches of a small store a step is some thousand short kernels: a GPU computes them in a
quarter of the time that Python takes to launch them one by one. Captured once, they are launched
together (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). The same kernels run on
the same numbers; what changes between steps (images, noise, β, which levels are open, σ) lies in
tensors that the graph reads.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.training.objective import Objective

# Passes before the capture, in which libraries choose their kernels and allocate their workspace.
WARM_UP = 3

# (images, noise, β) -> the loss (), and means to report.
Forward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


class CapturedPass:
    """A forward and backward pass that is captured when it is first called, and again whenever the
    batch's shape or the phase of the training changes.

    Gradients stay in the graph's own memory: they are overwritten by every call, and must not be
    set to None between two of them.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._key: Any = None
        self._graph: Any = None

    def __call__(
        self, forward: Forward, images: Tensor, noise: Tensor, beta: float, phase: bool
    ) -> dict[str, Tensor]:
        """Put the gradients of `forward`'s loss into the parameters; returns its means.

        forward: the same function for the same phase. Raises RuntimeError where it can't be
        captured.
        """
        key = (phase, images.shape)
        if key != self._key:
            self._capture(forward, images, noise)
            self._key = key
        self._images.copy_(images)
        self._noise.copy_(noise)
        self._beta.fill_(beta)
        self._graph.replay()
        return self._means

    def _capture(self, forward: Forward, images: Tensor, noise: Tensor) -> None:
        self._key = self._graph = None
        self._images, self._noise = images.clone(), noise.clone()
        self._beta = torch.ones((), device=images.device)
        before = [buffer.clone() for buffer in self._objective.buffers()]  # σ moves in each pass
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._objective.zero_grad(set_to_none=True)
                loss, _ = forward(self._images, self._noise, self._beta)
                loss.backward()
        current.wait_stream(side)
        self._objective.zero_grad(set_to_none=True)
        del loss
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss, self._means = forward(self._images, self._noise, self._beta)
            loss.backward()
        for buffer, old in zip(self._objective.buffers(), before, strict=True):
            buffer.copy_(old)
        self._graph = graph
