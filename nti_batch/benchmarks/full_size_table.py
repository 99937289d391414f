"""The table of `nti-batch bench --full-size`: the job at the size of a public model, with random weights."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from nti_batch.benchmarks import full_size_parts as parts
from nti_batch.benchmarks.full_size_parts import CAPTURED, COMPILED, COMPILED_AND_CAPTURED, EAGER
from nti_batch.benchmarks.full_size_setup import FullSize, Row
from nti_batch.benchmarks.update_counts import Method
from nti_batch.models.acceleration import Acceleration

BATCH_SIZES = (1, 4, 16, 64)
MORE_BATCH_SIZES = (2, 8, 32)
"""Batch sizes that are measured if there is time."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the benchmark."""

    name: str
    seconds: float
    """Estimate of its time on an H200; the part is skipped if less is left."""

    rows: Callable[[FullSize], Iterator[Row]]


def full_size_rows(bench: FullSize) -> Iterator[Row]:
    """Measure one part after the other; one that fails, or does not fit the memory, ends none of the others."""
    for part in plan(bench):
        if bench.seconds_left < part.seconds:
            left = f"it takes about {part.seconds:.0f} s, and {max(0, bench.seconds_left):.0f} s are left"
            yield Row(part.name, {"skipped": f"{left}; a larger --minutes measures it"})
            continue
        try:
            yield from part.rows(bench)
        except Exception as error:
            reason = " ".join(str(error).partition("\n")[0].split())
            yield Row(part.name, {"error": f"{type(error).__name__}: {reason}"})
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def plan(bench: FullSize) -> Iterator[Part]:
    """The parts, the most important first.

    A profiler slows later launches, so the kernels come after all calls that wait for launches.
    """
    size, precision, on_gpu = bench.batch_size, bench.precision, bench.device.type == "cuda"
    fastest = COMPILED_AND_CAPTURED if on_gpu else COMPILED
    yield Part("device", 0, parts.device)
    yield Part("checkpoint", 0, parts.checkpoint)
    for batch_size in dict.fromkeys((size, *BATCH_SIZES)):
        yield _calls(EAGER, batch_size, 4)
    yield _job(EAGER, "fast", 35)
    yield Part(f"reference loop, {precision}", 15, partial(parts.reference, precision=precision))
    if on_gpu:
        yield _calls(CAPTURED, 1, 6)
        yield _calls(CAPTURED, size, 6)
    yield _calls(COMPILED, size, 150)
    if on_gpu:
        yield _calls(COMPILED_AND_CAPTURED, size, 6)
    yield _job(fastest, "fast", 30)
    yield _job(fastest, "default", 45)
    if precision != "float32":
        yield Part("reference loop, float32", 15, partial(parts.reference, precision="float32"))
    for batch_size in MORE_BATCH_SIZES:
        yield _calls(EAGER, batch_size, 4)
    for acceleration in (EAGER, COMPILED):
        yield Part("kernels", 5, partial(parts.kernel_names, acceleration=acceleration))
    yield _job(EAGER, "default", 60)
    yield Part("comparison", 0, parts.comparison)
    for batch_size in (*BATCH_SIZES, *MORE_BATCH_SIZES):
        if batch_size != size:
            yield _calls(COMPILED, batch_size, 150)


def _calls(acceleration: Acceleration, batch_size: int, seconds: float) -> Part:
    name = f"{parts.WAYS[acceleration]}, batch size {batch_size}"
    return Part(name, seconds, partial(parts.calls, acceleration=acceleration, batch_size=batch_size))


def _job(acceleration: Acceleration, method: Method, seconds: float) -> Part:
    name = f"job, {parts.WAYS[acceleration]}, updates of {method}"
    return Part(name, seconds, partial(parts.job, acceleration=acceleration, method=method))
