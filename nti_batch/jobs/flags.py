"""The flags of the jobs. Each is also a key of a YAML file: `--model.num_steps` is `num_steps` below `model`.

A class lists the flags of one section, with their defaults and checks. The inversion method's own flags and defaults
stand in `diffusion.settings`, those of edits in `diffusion.edit_settings`.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nti_batch.data.image_memory import MIB
from nti_batch.data.images import MAX_MEMORY
from nti_batch.data.samples import Reading
from nti_batch.data.shards import input_shards
from nti_batch.diffusion.rounding import Storage
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.files import STORE_ADDRESSES, refuse_url, store_address
from nti_batch.models.acceleration import Acceleration
from nti_batch.models.source import Lora, ModelSource, Precision
from nti_batch.phrases import check_text
from nti_batch.plans.plan import Redo
from nti_batch.records import Fit
from nti_batch.settings import MAX_STEPS

SAMPLES = Path(__file__).parents[1] / "demo" / "samples"

MIN_IMAGE_MEMORY = 128
"""Least `max_image_memory`; half of it is working memory."""

MOST_MINUTES = 1_000_000
"""Longest time limit, about two years; a timer cannot wait for centuries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InvertModelFlags(InversionSettings):
    """Model and method of `nti-batch invert`."""

    name: str = "demo"
    """A diffusers checkpoint folder, a hub id such as 'user/model', a single .safetensors file in Stable Diffusion's
    original layout, or 'demo' for the embedded model."""

    revision: str | None = None
    """Branch, tag or commit on the hub."""

    variant: str | None = None
    """Variant of the weights, such as 'fp16'."""

    config: str | None = None
    """Folder or hub id with the JSON files and tokenizers that a single .safetensors file lacks."""

    vae: str | None = None
    """Another VAE than the model's own: a folder or hub id of a VAE or of a whole model, or a .safetensors file."""

    vae_tiling: bool = False
    """Whether the VAE takes one image at a time, and an image above its own size in overlapping tiles, which saves
    memory and changes the image a little: diffusers' `enable_vae_slicing` and `enable_vae_tiling`."""

    loras: list[str] = field(default_factory=list)
    """LoRAs that are merged into the model, each a .safetensors file or a folder with one, as PATH or PATH=WEIGHT."""

    precision: Precision = "float32"
    """Precision of the UNet; latents, embeddings and losses are always float32."""

    num_steps: int = 50
    """Number of DDIM steps, T."""

    batch_size: int | Literal["auto"] = 8
    """Images in one UNet call; 'auto' measures the fastest size that fits."""

    compile: str | None = None
    """Backend of `torch.compile` for the UNet, such as 'inductor'; null does not compile it. Compiling takes minutes,
    and every call then has `batch_size` images."""

    cuda_graphs: bool = False
    """Whether the UNet's calls are captured in CUDA graphs and replayed, which saves the time of their launches; only
    on a GPU."""

    checkpointing: bool = False
    """Whether a backward pass computes the UNet's activations again instead of keeping them: a call with gradient takes
    less memory, and the time of another forward pass."""

    optimize_pooled: bool = False
    """Whether null-text optimization also updates Stable Diffusion XL's pooled embedding; other families have none."""

    def __post_init__(self) -> None:
        """Raise a ValueError for a value out of range."""
        # a slotted dataclass has no zero-argument super()
        InversionSettings.__post_init__(self)
        if self.batch_size != "auto" and self.batch_size < 1:
            raise ValueError(f"model.batch_size is {self.batch_size}, allowed: at least 1, or 'auto'")
        if not 1 <= self.num_steps <= MAX_STEPS:
            raise ValueError(f"model.num_steps is {self.num_steps}, allowed: 1 to {MAX_STEPS}")
        self.check_num_steps(self.num_steps)

    @property
    def source(self) -> ModelSource:
        """Place of the model."""
        loras = Lora.parse_all(self.loras)
        return ModelSource(self.name, self.revision, self.variant, self.config, self.vae, loras, self.vae_tiling)

    @property
    def acceleration(self) -> Acceleration:
        """Ways to make the UNet's calls faster or smaller."""
        return Acceleration(
            compile_backend=self.compile, cuda_graphs=self.cuda_graphs, checkpointing=self.checkpointing
        )

    @property
    def inversion(self) -> InversionSettings:
        """Settings of the inversion method."""
        return InversionSettings(
            method=self.method,
            guidance_scale=self.guidance_scale,
            num_inner_steps=self.num_inner_steps,
            solver=self.solver,
            null_init=self.null_init,
            learning_rate=self.learning_rate,
            early_stop_epsilon=self.early_stop_epsilon,
            early_stop_growth=self.early_stop_growth,
            noise_seed=self.noise_seed,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedDataFlags:
    """Input flags that both jobs have."""

    units_per_shard: int = 8
    """Work units of a shard, which the ranks share. A run keeps the number that it started with."""

    allow_pipe: bool = False
    """Allow 'pipe:COMMAND' shards; a shell runs COMMAND. A YAML file cannot allow them."""

    part: str | None = None
    """'K/N' for one of N jobs, K = 0 to N - 1, that share the work units of one output folder."""

    limit: int | None = None
    """Number of images, or of edits, from the beginning of the input, for a try; the same command without it does the
    rest."""

    max_failures: int | str | None = None
    """Failed records of a rank above which the job ends: a count, or a percentage such as '5%'. A percentage is judged
    from the hundredth record on; null never ends the job."""

    retry_failed: bool = False
    """Compute records again that earlier jobs committed as failed."""

    redo_changed: bool = False
    """Compute records again whose input has changed since they were committed; without it the job only names them."""

    redo: list[str] = field(default_factory=list)
    """Images whose committed records are computed again, each as SHARD/KEY; a folder of images is the shard
    'images'."""

    def __post_init__(self) -> None:
        """Raise a ValueError for a value out of range."""
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"data.limit is {self.limit}, allowed: at least 1; leave it out for all")

    @property
    def reading(self) -> Reading:
        """What of the input is read, and how."""
        return Reading(limit=self.limit, allow_pipe=self.allow_pipe)

    @property
    def redone(self) -> Redo:
        """Committed records that are computed again.

        Raises:
            ValueError: If an image is not given as SHARD/KEY.
        """
        ids = [name.partition("/") for name in self.redo]
        for shard, _, key in ids:
            if not (shard and key):
                raise ValueError(f"data.redo is {shard!r}, allowed: SHARD/KEY, for example '00000/cat'")
        return Redo(self.retry_failed, self.redo_changed, frozenset((shard, key) for shard, _, key in ids))


@dataclass(frozen=True, kw_only=True, slots=True)
class InvertDataFlags(SharedDataFlags):
    """Input of `nti-batch invert`."""

    shards: str | None = None
    """WebDataset tars: folders, paths, globs, braces, urls, `::` lists, and '@FILE', a file with one of these a line.
    Of a folder or a glob only the tars are taken. 'demo' stands for the samples of the package,
    'demo:FILE' for one of them."""

    images: str | None = None
    """A folder of images with captions beside them, instead of shards. It is read as one shard with the name 'images'.
    Images may be added later, and the folder may move."""

    caption: str = "txt"
    """Place of the prompts: 'txt' or 'json:FIELD'."""

    default_caption: str | None = None
    """Caption of the images without a caption file; null makes them failed rows."""

    max_image_memory: int = MAX_MEMORY // MIB
    """Memory that decoding one image may take, in MiB; a larger image becomes a failed row."""

    height: int | None = None
    """Height of the inverted images in pixels; null is the model's own size."""

    width: int | None = None
    """Width in pixels, as for `height`."""

    fit: Fit = "crop"
    """How images get that size: 'crop' about the centre, 'pad' with black, or 'stretch'; each resizes."""

    def __post_init__(self) -> None:
        """Raise a ValueError for a value out of range."""
        SharedDataFlags.__post_init__(self)
        if self.default_caption is not None:
            check_text("data.default_caption", self.default_caption)
        if self.max_image_memory < MIN_IMAGE_MEMORY:
            raise ValueError(f"data.max_image_memory is {self.max_image_memory}, allowed: at least {MIN_IMAGE_MEMORY}")

    @property
    def reading(self) -> Reading:
        """What of the input is read, and how."""
        return Reading(self.limit, self.default_caption, MIB * self.max_image_memory, self.allow_pipe)

    def addresses(self) -> dict[str, str]:
        """Address of each input shard by its name.

        Raises:
            ValueError: If both or neither of `shards` and `images` are given, or nothing is found.
        """
        return shard_addresses(self.shards, self.images, self.allow_pipe)


def shard_addresses(shards: str | None, images: str | None = None, allow_pipe: bool = False) -> dict[str, str]:
    """Address of each input shard by its name, as the flags of the same names give them."""
    if shards is not None and (sample := re.fullmatch(r"demo(?::([\w.-]+))?", shards)):
        shards = str(SAMPLES / (sample[1] or "*.tar"))
    return input_shards(shards, images, allow_pipe)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFlags:
    """Output of a job."""

    dir: str = ""
    """The run's folder, or s3://bucket/run in a store."""

    part_images: int = 64
    """Maximum number of records in one output tar."""

    part_minutes: float = 10.0
    """Maximum time, in minutes, from the first record of a part to its commit."""

    stop_after: float | None = None
    """Time, in minutes, after which the job commits its finished records and ends with exit code 75."""

    spool: str | None = None
    """Local folder for what is not yet in the store."""

    def __post_init__(self) -> None:
        """Raise a ValueError for a value out of range."""
        if store_address(self.dir) is None:
            refuse_url("output.dir", self.dir, STORE_ADDRESSES)
            if self.spool is not None:
                raise ValueError(f"output.spool is {self.spool!r}, allowed: only with an --output.dir in a store")
        if self.spool is not None:
            refuse_url("output.spool", self.spool)
        if self.part_images < 1:
            raise ValueError(f"output.part_images is {self.part_images}, allowed: at least 1")
        if self.part_minutes < 0:
            raise ValueError(f"output.part_minutes is {self.part_minutes}, allowed: at least 0")
        if self.stop_after is not None and not 0 < self.stop_after <= MOST_MINUTES:
            raise ValueError(
                f"output.stop_after is {self.stop_after}, allowed: more than 0 and at most {MOST_MINUTES} minutes"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class InvertOutputFlags(OutputFlags):
    """Output of `nti-batch invert`."""

    storage: Storage = "float32"
    """Form of the null embeddings in the files: 'float32', 'float16' or 'compact', the smallest. The job rounds them
    as it finds them, so that a reconstruction from the file is the job's own."""
