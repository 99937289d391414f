"""Loop of a training stage: AdamW with averaged weights, seeded, resumable, on a CPU or a GPU."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Batch = Mapping[str, Tensor]
WARM_UP = 100
"""Steps in which the learning rate rises to its maximum."""

SECONDS_PER_LINE = 15
SECONDS_PER_CHECKPOINT = 120


@dataclass(frozen=True, slots=True)
class Stage:
    """Training of some networks."""

    name: str
    networks: nn.Module
    make_batch: Callable[[torch.Generator], Batch]
    """Makes the batch of a step on the CPU. Only the generator is random, and each step has its own."""

    losses: Callable[[Batch], Mapping[str, Tensor]]
    """Computes the losses of a batch on the device of the networks; their sum is minimised."""

    steps: int
    learning_rate: float
    decay: Callable[[float], float]
    """Learning rate as a share of its maximum, for a share of the steps."""

    average_decay: float
    """Share of the averaged weights that a step keeps; 0 means no averaging."""

    seed: int


@dataclass(slots=True)
class _State:
    """Everything that a step changes: weights, their averages, and the moments of AdamW."""

    parameters: list[Tensor]
    optimizer: torch.optim.AdamW
    average_decay: float
    averages: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Start the averages with the weights, and the moments with zeros."""
        self.averages = [p.detach().clone() for p in self.parameters]
        for parameter in self.parameters:
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name; changing one in place changes the state."""
        named = {f"parameter.{i}": p.detach() for i, p in enumerate(self.parameters)}
        named |= {f"average.{i}": average for i, average in enumerate(self.averages)}
        for i, parameter in enumerate(self.parameters):
            named |= {f"{name}.{i}": value for name, value in self.optimizer.state[parameter].items()}
        return named

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors with the names of `tensors` into the state."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])

    def update(self, losses: Mapping[str, Tensor]) -> None:
        """Make a step that makes the sum of the losses smaller."""
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        torch._foreach_lerp_(self.averages, self.parameters, 1 - self.average_decay)


def run_stage(stage: Stage, checkpoint: Path, recipe: str) -> None:
    """Train the networks of a stage, which get their averaged weights at the end.

    Args:
        stage: Stage to run.
        checkpoint: File that keeps the state, from which a later call goes on.
        recipe: Text that a checkpoint must have been made with.

    Raises:
        ValueError: If the checkpoint is of another recipe.
    """
    parameters: list[Tensor] = list(stage.networks.parameters())
    device = parameters[0].device
    # a tensor, since a CUDA graph reads the learning rate from memory
    rate = torch.zeros((), device=device) if device.type == "cuda" else 0.0
    optimizer = torch.optim.AdamW(
        parameters, lr=rate, betas=(0.9, 0.98), weight_decay=1e-3, capturable=device.type == "cuda"
    )
    state = _State(parameters, optimizer, stage.average_decay)
    first = _load(checkpoint, recipe, state) if checkpoint.exists() else 0
    step_of_batch = _Step(stage, state)
    saved = time.monotonic()
    for step in _with_progress(stage, first, step_of_batch):
        generator = torch.Generator().manual_seed(stage.seed * 1_000_000 + step)
        step_of_batch(stage.make_batch(generator), stage.learning_rate * _share(stage, step))
        if step == stage.steps or time.monotonic() - saved > SECONDS_PER_CHECKPOINT:
            _save(checkpoint, recipe, state, step)
            saved = time.monotonic()
    with torch.no_grad():
        torch._foreach_copy_(parameters, state.averages)


def _share(stage: Stage, step: int) -> float:
    return min(1.0, step / WARM_UP) * stage.decay(step / stage.steps)


class _Step:
    """One step of training; on a GPU its kernels are recorded once as a CUDA graph, and replayed."""

    def __init__(self, stage: Stage, state: _State) -> None:
        self.stage, self.state = stage, state
        self.losses: Mapping[str, Tensor] = {}
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: dict[str, Tensor] = {}

    def __call__(self, batch: Batch, learning_rate: float) -> None:
        """Train on a batch."""
        (group,) = self.state.optimizer.param_groups
        if not isinstance(group["lr"], Tensor):
            group["lr"] = learning_rate
            self._run(batch)
            return
        graph = self.graph = self.graph or self._record(batch)
        group["lr"].fill_(learning_rate)
        for name, tensor in batch.items():
            self.inputs[name].copy_(tensor)
        graph.replay()

    def _run(self, batch: Batch) -> None:
        losses = self.stage.losses(batch)
        self.losses = {name: loss.detach() for name, loss in losses.items()}
        self.state.update(losses)

    def _record(self, batch: Batch) -> torch.cuda.CUDAGraph:
        """Record the kernels of a step; https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs."""
        self.inputs = {name: tensor.cuda() for name, tensor in batch.items()}
        before = {name: tensor.clone() for name, tensor in self.state.tensors().items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._run(self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.state.optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run(self.inputs)
        self.state.restore(before)
        return graph


def _with_progress(stage: Stage, first: int, step_of_batch: _Step) -> Iterator[int]:
    """Yield the steps that are left, and print a line with losses and remaining time now and then."""
    start = last = time.monotonic()
    for step in range(first + 1, stage.steps + 1):
        yield step
        now = time.monotonic()
        if now - last < SECONDS_PER_LINE and step < stage.steps:
            continue
        last = now
        left = (now - start) / (step - first) * (stage.steps - step) / 60
        values = ", ".join(f"{name} {value.item():.4f}" for name, value in step_of_batch.losses.items())
        print(f"{stage.name}: step {step} of {stage.steps}, {values}, {left:.0f} min left", flush=True)


def _save(path: Path, recipe: str, state: _State, step: int) -> None:
    partial = path.with_suffix(".partial")
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors().items()}
    save_file(tensors, partial, {"recipe": recipe, "step": str(step)})
    os.replace(partial, path)


def _load(path: Path, recipe: str, state: _State) -> int:
    """Restore a state; return its step."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        if metadata["recipe"] != recipe:
            raise ValueError(f"{str(path)!r} is of another recipe: remove it, or choose another folder")
    state.restore(load_file(path))
    return int(metadata["step"])
