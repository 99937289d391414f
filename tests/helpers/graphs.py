"""Stands in for CUDA graphs where there is no GPU: the same buffers are read and written by every call."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def make_graphed_callables(function: Callable[..., Tensor], samples: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """Do what `torch.cuda.make_graphed_callables` does, by computing again instead of replaying."""
    inputs = tuple(sample.detach().clone().requires_grad_(sample.requires_grad) for sample in samples)
    state: dict[str, Tensor] = {}

    def replay() -> Tensor:
        state["live"] = function(*inputs)
        output = state.setdefault("output", torch.empty_like(state["live"]))
        output.detach().copy_(state["live"].detach())
        return output.detach()

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: Tensor) -> Tensor:
            for static, new in zip(inputs, given, strict=True):
                static.detach().copy_(new)
            with torch.set_grad_enabled(inputs[2].requires_grad):
                return replay()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
            found = torch.autograd.grad(state["live"], inputs[2], gradient)[0]
            return None, None, state.setdefault("gradient", torch.empty_like(found)).copy_(found)

    return Replay.apply
