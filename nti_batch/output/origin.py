"""What made a part: the versions of the packages, and the device."""

from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Self

import torch

import nti_batch
from nti_batch.json_object import Json, JsonObject
from nti_batch.models.driver import nvidia_driver


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What made a part."""

    nti_batch: str
    torch: str
    diffusers: str
    device: str
    """Name of the device, such as 'NVIDIA H100' or 'cpu'."""

    driver: str | None
    """Version of NVIDIA's driver; None without one."""

    def to_json(self) -> dict[str, Json]:
        """The origin as the files hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: JsonObject) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: If a key is missing, or a value has the wrong type.
        """
        return cls(
            nti_batch=values.text("nti_batch"),
            torch=values.text("torch"),
            diffusers=values.text("diffusers"),
            device=values.text("device"),
            driver=values.optional_text("driver"),
        )


def origin_of(device: torch.device) -> Origin:
    """The packages and a device of this process."""
    is_cuda = device.type == "cuda"
    return Origin(
        nti_batch=nti_batch.__version__,
        torch=torch.__version__,
        diffusers=version("diffusers"),
        device=torch.cuda.get_device_name(device) if is_cuda else device.type,
        driver=nvidia_driver() if is_cuda else None,
    )
