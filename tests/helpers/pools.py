"""Images and pools for tests of the inversion."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nti_batch.diffusion.guidance import Predictor
from nti_batch.diffusion.null_text import InversionState
from nti_batch.diffusion.pool import InversionPool
from nti_batch.diffusion.rounding import Storage
from nti_batch.diffusion.schedule import DDIMSchedule
from nti_batch.diffusion.settings import InversionSettings

EMPTY = torch.zeros(4, 4)


NEVER: dict[str, Any] = {"early_stop_epsilon": 0.0, "early_stop_growth": 0.0}


def images(count: int) -> list[tuple[Tensor, Tensor]]:
    """Latents and prompt embeddings, easy and hard ones."""
    generator = torch.Generator().manual_seed(count)
    scale = torch.logspace(-3.5, -0.4, count)
    return [(torch.randn(4, 2, 2, generator=generator), s * torch.randn(4, 4, generator=generator)) for s in scale]


def invert(
    predict: Predictor,
    schedule: DDIMSchedule,
    settings: InversionSettings,
    inputs: list[tuple[Tensor, Tensor]],
    batch_size: int = 1,
    empty: Tensor = EMPTY,
    storage: Storage = "float32",
) -> tuple[list[InversionState], InversionPool[int]]:
    """Run a pool as the job does: admit while there is room, advance, drain."""
    pool = InversionPool[int](predict, schedule, settings, empty, batch_size, storage)
    done = dict(pool.run((key, *image, key) for key, image in enumerate(inputs)))
    return [done[key] for key in range(len(inputs))], pool


class HostTraffic(TorchFunctionMode):
    """Counts calls that make the host wait for a GPU: reads of values, and tensors made from Python's numbers."""

    READS = frozenset({"tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__"})
    reads = writes = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count a call of torch, and make it."""
        name = getattr(func, "__name__", "")
        listed = name == "__getitem__" and isinstance(args[1], list)
        self.reads += name in self.READS
        self.writes += name == "tensor" or listed
        return func(*args, **kwargs or {})
