"""The records that go through the job: what is read, what becomes of it.

CaptionedImage  ->  Inversion      done
                ->  Failure        failed, with the stage and the reason
EndOfUnit                           the end of a work unit

EditRequest  ->  EditedImage, Failure  asks for an edited picture of an inverted image
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from nti_batch.diffusion.edit_settings import EditSettings


@dataclass(frozen=True, slots=True, order=True)
class WorkUnit:
    """Slice `index` of `count` of an input shard: the images whose ordinal in the tar is `index` modulo `count`."""

    shard: str
    """Shard name: the file name of the tar without its ending. It names rows and output files."""

    url: str
    """Where the shard is read from: a path, or any address that `webdataset.gopen` opens."""

    index: int
    count: int

    @property
    def name(self) -> str:
        """Stem of the unit's output files, the same whatever the number of ranks."""
        return f"{self.shard}.{self.index}of{self.count}"


class Record(Protocol):
    """A finished record of a run."""

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


@dataclass(frozen=True, slots=True, eq=False)
class CaptionedImage:
    """One input image, decoded."""

    unit: WorkUnit
    key: str
    prompt: str
    pixels: Tensor
    """RGB, uint8, [3, height, width]."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An input that gave no inversion, or an edit that gave no picture, and why."""

    unit: WorkUnit
    key: str
    """Empty where the whole shard is damaged."""

    stage: str
    """Where it failed: 'shard', 'caption', 'image', 'inversion', 'reconstruction' or 'edit'."""

    error: str
    """The reason, for a person to read."""

    name: str = ""
    """Of the edit; empty for an inversion."""


@dataclass(frozen=True, slots=True, eq=False)
class Inversion:
    """Result of the inversion of one image. Tensors are float32 and on the CPU."""

    name: ClassVar[str] = ""

    unit: WorkUnit
    key: str
    prompt: str
    prompt_truncated: bool
    """Whether the prompt has more tokens than the text encoder reads, so that its end had no effect."""

    width: int
    height: int
    """Of the picture that was inverted, after crop and resize, in pixels."""

    noise_latents: Tensor
    """z_T, [channels, height / 8, width / 8] for Stable Diffusion's VAE."""

    start_embedding: Tensor
    """Where null_T started from, [tokens, dim], rounded as it is stored; with `pooled_dim` one row more."""

    null_embeddings: Tensor
    """[T, tokens, dim], rounded as they are stored; row 0 belongs to the noisiest timestep."""

    pivot: Tensor | None
    """z*_{T-1} ... z*_0 of direct inversion, [T, channels, height / 8, width / 8], rounded as they are stored; None
    with another method."""

    timesteps: list[int]
    """The network's timestep for each row of `null_embeddings`."""

    inner_steps: list[int]
    """Updates of the embedding taken at each timestep."""

    losses: list[float]
    """Mean squared distance to the pivot at each timestep of the guided step that was kept."""

    psnr_vae: float
    """VAE round trip against the input, in dB: what no inversion can exceed."""

    psnr: float
    """Reconstruction with guidance against the input, in dB."""

    forwards: int
    backwards: int
    """UNet evaluations of this image."""

    seconds: float
    """From admission to the last timestep; images in flight share a device."""

    pooled_dim: int = 0
    """Width of the pooled embedding, the last row of every embedding; 0 in families that have none."""

    def metrics(self) -> dict[str, float]:
        """PSNR of the reconstruction, its distance below the VAE bound, both in dB, and updates of the embedding."""
        return {
            "psnr": self.psnr,
            "psnr_below_vae": self.psnr_vae - self.psnr,
            "inner_steps": sum(self.inner_steps),
        }


@dataclass(frozen=True, slots=True)
class EndOfUnit:
    """The end of a work unit: `committed` records were there before, and `read` records followed."""

    unit: WorkUnit
    committed: int
    read: int


@dataclass(frozen=True, slots=True)
class Mask:
    """The part of a picture that an edit may change, on a grid of its own over the whole picture."""

    runs: tuple[int, ...]
    """start, length, start, length, ... of the pixels inside, in row-major order; PIE-Bench's form."""

    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EditRequest:
    """An edit that somebody asks for."""

    shard: str
    key: str
    name: str
    """Of the edit, once among those of its image; the output is called by it."""

    prompt: str | None
    """The source's prompt in the words of who asks; None is the inversion's. Another than the inversion's fails."""

    edit_prompt: str | None
    """None rebuilds the source."""

    settings: EditSettings
    mask: Mask | None = None
    """Where scores of the unedited part do not look."""


@dataclass(frozen=True, slots=True, eq=False)
class EditedImage:
    """The picture that an edit gave."""

    unit: WorkUnit
    key: str
    name: str
    """Of the edit."""

    edit_prompt: str | None
    """None where the source was rebuilt."""

    request_sha256: str
    """Of what was asked for, to notice when the name is given to something else."""

    pixels: Tensor
    """RGB, uint8, [3, height, width], on the CPU."""

    psnr_unedited: float | None
    """Outside the mask against the input, in dB; None without a mask or without the input."""

    ssim_unedited: float | None
    mse_unedited: float | None
    seconds: float
    """From the first timestep to the last; rows in one batch share a device."""

    def metrics(self) -> dict[str, float]:
        """PSNR of the unedited part in dB, if it is known."""
        return {} if self.psnr_unedited is None else {"psnr_unedited": self.psnr_unedited}


Outcome = Inversion | EditedImage | Failure | EndOfUnit
"""What a prediction step hands to the writer."""
