"""Which work units this rank streams."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from nti_batch.failure_limit import FailureLimit
from nti_batch.images import decode_image
from nti_batch.inversions import InversionRun
from nti_batch.records import CaptionedImage, Failure, UnitRead, WorkUnit
from nti_batch.stream import RawSample, caption_source, count_images, expand_shards, read_unit, work_units

COUNTED_SHARDS = 16
SAMPLES = Path(__file__).parent / "demo" / "samples"
Item = CaptionedImage | Failure | UnitRead


class InversionDataModule(LightningDataModule):
    """Captioned images out of WebDataset shards, each rank its own work units."""

    def __init__(
        self,
        shards: str,
        caption: str = "txt",
        height: int | None = None,
        width: int | None = None,
        slices: int = 8,
        part: str | None = None,
        max_failures: int | str | None = None,
        retry_failed: bool = False,
        allow_pipe: bool = False,
    ) -> None:
        """Settings of the input.

        Args:
            shards: WebDataset tars: paths, globs, braces, urls, `::` lists, and '@FILE' for a file with one of these
                a line; 'demo' for the samples of the package.
            caption: Where prompts are: 'txt' or 'json:FIELD'.
            height: Pictures are cropped about their centre and resized to this many pixels; null is the model's own.
            width: Likewise.
            slices: Work units of a shard: what the ranks share out. Fixed for a run.
            part: 'K/N' for one of N jobs, K = 0 to N - 1, that share the work units of one output folder.
            max_failures: The job ends when more of the images that a rank has taken in have failed: a count, or a
                share such as '5%', which is judged from the hundredth image on; null goes on whatever fails.
            retry_failed: Try again what earlier jobs committed as failed.
            allow_pipe: Allow 'pipe:COMMAND' shards; COMMAND is run by a shell.
        """
        super().__init__()
        self.part, self.parts = _job_part(part)
        self.failure_limit = None if max_failures is None else FailureLimit.parse(str(max_failures))
        self.retry_failed = retry_failed
        self.urls = expand_shards(str(SAMPLES / "*.tar") if shards == "demo" else shards, allow_pipe)
        self.units = work_units(self.urls, slices)
        caption_source(caption)
        self.caption, self.height, self.width, self.slices = caption, height, width, slices
        self.run: InversionRun | None = None
        self.stop_requested: Callable[[], bool] = lambda: False

    def attach(self, run: InversionRun, size: int) -> None:
        """Tell what the output and the model decide.

        Args:
            run: What is committed there is not streamed again.
            size: The model's own height and width, for those left open.
        """
        self.run = run
        self.height, self.width = self.height or size, self.width or size

    @property
    def result_settings(self) -> dict[str, str | int | None]:
        """The settings that change results or names of files, for `run.json`."""
        return {
            "data.caption": self.caption,
            "data.height": self.height,
            "data.width": self.width,
            "data.slices": self.slices,
        }

    def units_of(self, rank: int, world_size: int) -> list[WorkUnit]:
        """The work units of a rank: every `world_size`-th of this job's part."""
        return self.units[self.part :: self.parts][rank::world_size]

    def is_waiting(self, unit: WorkUnit) -> bool:
        """Whether there is something to do in a work unit."""
        assert self.run is not None, "attach() comes first"
        return not self.run.is_complete(unit) or (self.retry_failed and self.run.has_failures(unit))

    def estimate(self, units: list[WorkUnit]) -> int | None:
        """About how many images these work units hold, by the headers of the first shards; None if those are remote."""
        urls = list(dict.fromkeys(unit.url for unit in units))[:COUNTED_SHARDS]
        if not all(Path(url).is_file() for url in urls):
            return None
        images = {url: count_images(url) for url in urls}
        counted = [unit for unit in units if unit.url in images]
        total = sum(len(range(unit.index, images[unit.url], unit.count)) for unit in counted)
        return round(total * len(units) / max(1, len(counted)))

    def decode(self, sample: RawSample) -> CaptionedImage | Failure:
        """A sample's picture in the run's size."""
        assert self.height is not None and self.width is not None, "attach() comes first"
        return decode_sample(sample, self.height, self.width)

    def transfer_batch_to_device(self, batch: Item, device: torch.device, dataloader_idx: int) -> Item:
        """Leave the record as it is: only its pixels travel, and the networks fetch them."""
        return batch

    def predict_dataloader(self) -> "DataLoader[Item]":
        """One item a batch: the pool makes its own batches."""
        assert self.trainer is not None
        return DataLoader(ItemStream(self, self.units_of(self.trainer.global_rank, self.trainer.world_size)), None)


def decode_sample(sample: RawSample, height: int, width: int) -> CaptionedImage | Failure:
    """A sample's picture in this size, or why it has none."""
    try:
        pixels = decode_image(sample.image, height, width)
    except ValueError as error:
        return Failure(sample.unit, sample.key, "image", str(error))
    return CaptionedImage(sample.unit, sample.key, sample.prompt, pixels)


def _job_part(part: str | None) -> tuple[int, int]:
    if part is None:
        return 0, 1
    index, slash, count = part.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"data.part is {part!r}, allowed: 'K/N' with K = 0 to N - 1, for example '0/4'")
    return int(index), int(count)


class ItemStream(IterableDataset[Item]):
    """Decoded images of some work units that are not committed yet, each unit closed by a `UnitRead`."""

    def __init__(self, data: InversionDataModule, units: list[WorkUnit]) -> None:
        """Remember what to read."""
        self.data, self.units = data, units

    def __iter__(self) -> Iterator[Item]:
        """Read unit after unit, until the end or until a stop is requested."""
        run = self.data.run
        assert run is not None, "attach() comes first"
        for unit in self.units:
            if not self.data.is_waiting(unit):
                continue
            run.lock(unit)
            run.salvage(unit)
            if self.data.retry_failed:
                run.forget_failures(unit)
            committed = {row.key for row in run.rows(unit)}
            read = 0
            for sample in read_unit(unit, self.data.caption, committed, self.data.stop_requested):
                if self.data.stop_requested():
                    return
                if sample.key not in committed:
                    read += 1
                    yield self.data.decode(sample) if isinstance(sample, RawSample) else sample
            yield UnitRead(unit, len(committed), read)
