"""Images and pools for tests of the inversion."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from nti_batch.diffusion.guidance import Predictor
from nti_batch.diffusion.null_text import InvertedImage
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
) -> tuple[list[InvertedImage], InversionPool[int]]:
    """Run a pool as the job does: admit while there is room, advance, drain."""
    pool = InversionPool[int](predict, schedule, settings, empty, batch_size, storage)
    done = dict(pool.run((key, *image, key) for key, image in enumerate(inputs)))
    return [done[key] for key in range(len(inputs))], pool


class HostTraffic(TorchFunctionMode):
    """Counts calls that make the host wait for a GPU, and uploads of numbers by `to_device`, which do not."""

    READS = frozenset({"tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__"})
    reads = 0
    """Reads of values."""

    writes = 0
    """Tensors made on the device from numbers, and indexing with them."""

    uploads = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count a call of torch, and make it."""
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        self.reads += name in self.READS
        self.uploads += name == "tensor"
        self.writes += "device" in kwargs if name == "tensor" else name == "__getitem__" and isinstance(args[1], list)
        return func(*args, **kwargs)


class Operations(TorchDispatchMode):
    """Counts the operations that torch dispatches."""

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count an operation, and do it."""
        self.count += 1
        return func(*args, **kwargs or {})
