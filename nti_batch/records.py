"""Records that go through the job, from the input to the result.

CaptionedImage  ->  Inversion or Failure
EditRequest     ->  EditedImage or Failure

EndOfUnit follows the last record of a work unit.
"""

import zlib
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from nti_batch.diffusion.edit_settings import EditSettings

Fit = Literal["crop", "pad", "stretch"]
"""How an image becomes one of the size of a run: see `data.fit`."""


@dataclass(frozen=True, slots=True, order=True)
class WorkUnit:
    """Slice `index` of `count` of an input shard: the images for which crc32(key) modulo `count` is `index`.

    An image stays in its unit when others are added to the shard or removed from it.
    """

    shard: str
    """Name of the shard, its identity: the file name of the tar without its ending. It names rows and output files."""

    url: str
    """Present address of the shard: a path, a url or a command."""

    index: int
    count: int

    @property
    def name(self) -> str:
        """Stem of the unit's output files, the same whatever the number of ranks."""
        return f"{self.shard}.{self.index}of{self.count}"

    @staticmethod
    def index_of(key: str, count: int) -> int:
        """Index of the work unit of a key, if its shard has `count` units."""
        return zlib.crc32(key.encode()) % count

    def holds(self, key: str) -> bool:
        """Whether the image of a key of the shard belongs to this unit."""
        return self.index_of(key, self.count) == self.index


class Record(Protocol):
    """Finished record of a run."""

    @property
    def unit(self) -> WorkUnit:
        """Work unit of the record."""

    @property
    def key(self) -> str:
        """Key of the image."""

    @property
    def name(self) -> str:
        """Name of the edit; empty for an inversion."""

    @property
    def seconds(self) -> float:
        """Seconds from the start of the computation to its end."""

    def metrics(self) -> dict[str, float]:
        """Scores of the record by name, for progress, logs and loggers."""


@dataclass(frozen=True, slots=True)
class Original:
    """Size of an upright input image, in pixels, and how it became one of the run's size."""

    height: int
    width: int
    fit: Fit


@dataclass(frozen=True, slots=True, eq=False)
class CaptionedImage:
    """Decoded input image with its caption."""

    unit: WorkUnit
    key: str
    prompt: str
    pixels: Tensor
    """RGB, uint8, [3, height, width]."""

    input_sha256: str
    """SHA-256 of the bytes of the image file, followed by those of the caption file."""

    original: Original


@dataclass(frozen=True, slots=True)
class Failure:
    """Input image without an inversion, or edit without an image, and the reason."""

    unit: WorkUnit
    key: str
    """Key of the image; empty if the whole shard is damaged."""

    stage: str
    """Stage that failed: 'shard', 'caption', 'image', 'inversion', 'reconstruction' or 'edit'."""

    error: str
    """Reason, for a person to read."""

    name: str = ""
    """Name of the edit; empty for an inversion."""

    input_sha256: str = ""
    """As in `CaptionedImage` or `EditedImage`; empty if the input could not be read."""


@dataclass(frozen=True, slots=True, eq=False)
class Inversion:
    """Result of the inversion of one image. Tensors are float32, and on the device: packing copies them to the host."""

    name: ClassVar[str] = ""

    unit: WorkUnit
    key: str
    prompt: str
    prompt_truncated: bool
    """Whether the prompt has more tokens than the text encoder reads, so that its end has no effect."""

    width: int
    height: int
    """Size of the inverted image, after it was fitted, in pixels."""

    noise_latents: Tensor
    """z_T, [channels, height / 8, width / 8] for Stable Diffusion's VAE."""

    start_embedding: Tensor
    """Initial value of null_T, [tokens, dim], rounded to the stored precision; with `pooled_dim` one row more."""

    null_embeddings: Tensor
    """[T, tokens, dim], rounded to the stored precision; row 0 belongs to the noisiest timestep."""

    pivot: Tensor | None
    """z*_{T-1} ... z*_0 where the method keeps the pivot, [T, channels, height / 8, width / 8], rounded to the stored
    precision; None with another method."""

    timesteps: list[int]
    """Timestep of the network for each row of `null_embeddings`."""

    inner_steps: list[int]
    """Number of accepted updates of the embedding at each timestep."""

    losses: list[float]
    """Mean squared error of the accepted guided step against the pivot, at each timestep."""

    psnr_vae: float
    """PSNR of the VAE round trip against the input, in dB: the upper bound of an inversion."""

    psnr: float
    """PSNR of the reconstruction with guidance against the input, in dB."""

    forwards: int
    backwards: int
    """Number of forward and backward passes of the UNet for this image."""

    seconds: float
    """Seconds from admission to the last timestep; images in flight share a device."""

    input_sha256: str
    """As in `CaptionedImage`."""

    pooled_dim: int = 0
    """Width of the pooled embedding, the last row of every embedding; 0 for families without one."""

    original: Original | None = None
    """The input image; None if it is not known."""

    def metrics(self) -> dict[str, float]:
        """PSNR and PSNR below the VAE bound of the reconstruction, both in dB, and updates of the embedding."""
        return {
            "psnr": self.psnr,
            "psnr_below_vae": self.psnr_vae - self.psnr,
            "inner_steps": sum(self.inner_steps),
        }


@dataclass(frozen=True, slots=True)
class EndOfUnit:
    """End of a work unit, all of whose input this job has read."""

    unit: WorkUnit
    records: int
    """Number of the unit's records with a row, once those that this job read are written."""

    read: int
    """Number of records that this job read."""

    input_state: str | None = None
    """State of the input that all these records belong to; None if the input must be read again by the next job."""

    is_recovered: bool = False
    """Whether the shard, which an earlier job found damaged, has now been read to its end."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Pause of the input: what is in flight is finished before the next record."""


@dataclass(frozen=True, slots=True)
class Mask:
    """Part of an image that an edit may change, on a grid of its own over the whole image."""

    runs: tuple[int, ...]
    """start, length, start, length, ... of the pixels inside, in row-major order, like in PIE-Bench."""

    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EditRequest:
    """Edit that the user requests."""

    shard: str
    key: str
    name: str
    """Name of the edit, unique for its image; it also names the output."""

    prompt: str | None
    """Prompt of the source; None takes the prompt of the inversion. A different prompt makes the edit fail."""

    edit_prompt: str | None
    """Prompt of the edit; None reconstructs the source."""

    settings: EditSettings
    mask: Mask | None = None
    """Part that scores of the unedited part leave out."""


@dataclass(frozen=True, slots=True, eq=False)
class EditedImage:
    """Result of an edit."""

    unit: WorkUnit
    key: str
    name: str
    """Name of the edit."""

    edit_prompt: str | None
    """Prompt of the edit; None for the reconstructed source."""

    request_sha256: str
    """Checksum of the request, which shows whether a name now stands for another edit."""

    input_sha256: str
    """SHA-256 of the tensors of the inversion, which shows whether it has been computed again."""

    pixels: Tensor
    """RGB, uint8, [3, height, width], on the CPU."""

    psnr_unedited: float | None
    """PSNR outside the mask against the input, in dB; None without a mask or without the input image."""

    ssim_unedited: float | None
    mse_unedited: float | None
    seconds: float
    """Seconds from the first timestep to the last; rows in one batch share a device."""

    original: Original | None = None
    """The input image of the inversion; None if that did not record it."""

    prompt_truncated: bool = False
    """Whether the prompt of the edit has more tokens than the text encoder reads, so that its end has no effect."""

    def metrics(self) -> dict[str, float]:
        """PSNR of the unedited part in dB, if it is known."""
        return {} if self.psnr_unedited is None else {"psnr_unedited": self.psnr_unedited}


Outcome = Inversion | EditedImage | Failure | EndOfUnit
"""Record that a prediction step returns to the writer."""
