"""Numbers between the host and a GPU, on ways that do not make the host wait for the device's queue."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device, in its queue: from pageable memory the host would wait for all of it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_device(numbers: Sequence[float] | Sequence[Sequence[float]], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Copy numbers to a device, in its queue."""
    return upload(torch.tensor(numbers, dtype=dtype), device)


def download(tensor: Tensor) -> Tensor:
    """Start a copy to the host, in the device's queue: it has arrived once a `HostCopy` that starts later has."""
    return tensor.to("cpu", non_blocking=tensor.is_cuda)


class HostCopy:
    """A tensor on its way to the host: the device goes on, and only `tolist` waits until the copy has arrived."""

    def __init__(self, values: Tensor) -> None:
        """Start the copy."""
        self._values = download(values)
        self._arrival = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None

    @property
    def has_arrived(self) -> bool:
        """Whether `tolist` returns at once."""
        return self._arrival is None or self._arrival.query()

    def tolist(self) -> list[Any]:
        """The values, once they have arrived."""
        if self._arrival:
            self._arrival.synchronize()
        values: list[Any] = self._values.tolist()
        return values
