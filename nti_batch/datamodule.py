"""Which work units this rank streams."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from nti_batch.failure_limit import FailureLimit
from nti_batch.folder import fingerprint, list_folder
from nti_batch.images import decode_image
from nti_batch.inversions import InversionRun
from nti_batch.manifest import Row
from nti_batch.parts import OutputRun
from nti_batch.records import CaptionedImage, Failure, UnitRead, WorkUnit
from nti_batch.status import RunStatus, Status, run_status, units_of
from nti_batch.stream import RawSample, caption_source, count_images, input_shards, read_unit, work_units

COUNTED_SHARDS = 16
SAMPLES = Path(__file__).parent / "demo" / "samples"
Run = TypeVar("Run", bound=OutputRun[Any, Any])


class UnitDataModule(LightningDataModule, ABC, Generic[Run]):
    """Work units, and what of them each rank reads."""

    units: list[WorkUnit]

    def __init__(
        self, part: str | None = None, max_failures: int | str | None = None, retry_failed: bool = False
    ) -> None:
        """Settings that all jobs have.

        Args:
            part: 'K/N' for one of N jobs, K = 0 to N - 1, that share the work units of one output folder.
            max_failures: The job ends when more of the images that a rank has taken in have failed: a count, or a
                share such as '5%', which is judged from the hundredth image on; null goes on whatever fails.
            retry_failed: Try again what earlier jobs committed as failed.
        """
        super().__init__()
        self.part, self.parts = _job_part(part)
        self.failure_limit = None if max_failures is None else FailureLimit.parse(str(max_failures))
        self.retry_failed = retry_failed
        self.run: Run | None = None
        self.stop_requested: Callable[[], bool] = lambda: False

    @abstractmethod
    def is_waiting(self, unit: WorkUnit) -> bool:
        """Whether there is something to do in a work unit."""

    @abstractmethod
    def read(self, unit: WorkUnit, rows: Sequence[Row]) -> Iterator[object]:
        """What is to be done in a work unit of which these rows are committed, closed by a `UnitRead`."""

    @abstractmethod
    def estimate(self, units: list[WorkUnit]) -> int | None:
        """About how many records these work units have before them; None if nobody knows."""

    @abstractmethod
    def status(self, units: Sequence[WorkUnit]) -> Status:
        """How far they are."""

    def units_of_run(self) -> list[WorkUnit]:
        """Those of all jobs on the output folder."""
        return self.units

    def units_of(self, rank: int, world_size: int) -> list[WorkUnit]:
        """The work units of a rank: every `world_size`-th of this job's part."""
        return self.units[self.part :: self.parts][rank::world_size]

    def claim(self, unit: WorkUnit) -> Sequence[Row]:
        """Make a work unit this process's own, with what a dead job left; return what is committed."""
        assert self.run is not None, "attach() comes first"
        self.run.lock(unit)
        self.run.salvage(unit)
        if self.retry_failed:
            self.run.forget_failures(unit)
        return self.run.rows(unit)

    def transfer_batch_to_device(self, batch: object, device: torch.device, dataloader_idx: int) -> object:
        """Leave the record as it is: only its tensors travel, and the networks fetch them."""
        return batch

    def predict_dataloader(self) -> "DataLoader[object]":
        """One item a batch: the modules make their own batches."""
        assert self.trainer is not None
        return DataLoader(ItemStream(self, self.units_of(self.trainer.global_rank, self.trainer.world_size)), None)


class ItemStream(IterableDataset[object]):
    """What is not committed yet of some work units."""

    def __init__(self, data: UnitDataModule[Any], units: list[WorkUnit]) -> None:
        """Remember what to read."""
        self.data, self.units = data, units

    def __iter__(self) -> Iterator[object]:
        """Read unit after unit, until the end or until a stop is requested."""
        for unit in self.units:
            if self.data.is_waiting(unit):
                for item in self.data.read(unit, self.data.claim(unit)):
                    if self.data.stop_requested():
                        return
                    yield item


class InversionDataModule(UnitDataModule[InversionRun]):
    """Captioned images out of WebDataset shards, each rank its own work units."""

    def __init__(
        self,
        shards: str | None = None,
        caption: str = "txt",
        height: int | None = None,
        width: int | None = None,
        slices: int = 8,
        allow_pipe: bool = False,
        images: str | None = None,
        **job: Any,
    ) -> None:
        """Settings of the input.

        Args:
            shards: WebDataset tars: paths, globs, braces, urls, `::` lists, and '@FILE' for a file with one of these
                a line; 'demo' for the samples of the package.
            caption: Where prompts are: 'txt' or 'json:FIELD'.
            height: Pictures are cropped about their centre and resized to this many pixels; null is the model's own.
            width: Likewise.
            slices: Work units of a shard: what the ranks share out. Fixed for a run.
            allow_pipe: Allow 'pipe:COMMAND' shards; COMMAND is run by a shell.
            images: Instead of shards, a folder of images with captions beside them, read as one shard; it must keep
                its images for as long as the run goes on.
            **job: As for `UnitDataModule`.
        """
        super().__init__(**job)
        self.urls = input_shards(str(SAMPLES / "*.tar") if shards == "demo" else shards, images, allow_pipe)
        self.folder = images
        self.units = work_units(self.urls, slices)
        caption_source(caption)
        self.caption, self.height, self.width, self.slices = caption, height, width, slices

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
        settings: dict[str, str | int | None] = {
            "data.caption": self.caption,
            "data.height": self.height,
            "data.width": self.width,
            "data.slices": self.slices,
        }
        if self.folder is not None:
            # work units are slices by position: one image more, and others would be inverted twice or never
            samples, _ = list_folder(self.folder)
            settings["data.images"] = fingerprint(samples)
        return settings

    def is_waiting(self, unit: WorkUnit) -> bool:
        """Whether an image is missing, or is to be tried again."""
        assert self.run is not None, "attach() comes first"
        return not self.run.is_complete(unit) or (self.retry_failed and self.run.has_failures(unit))

    def estimate(self, units: list[WorkUnit]) -> int | None:
        """About how many images are before them, by the headers of the first shards; None if those are remote."""
        assert self.run is not None, "attach() comes first"
        urls = list(dict.fromkeys(unit.url for unit in units))[:COUNTED_SHARDS]
        if not all(Path(url).exists() for url in urls):
            return None
        images = {url: count_images(url) for url in urls}
        counted = [unit for unit in units if unit.url in images]
        total = sum(len(range(unit.index, images[unit.url], unit.count)) - self._kept(unit) for unit in counted)
        return round(max(0, total) * len(units) / max(1, len(counted)))

    def _kept(self, unit: WorkUnit) -> int:
        """The committed images that are not inverted again."""
        assert self.run is not None, "attach() comes first"
        rows = (row for row in self.run.rows(unit) if row.key)
        return sum(1 for row in rows if row.status == "done" or not self.retry_failed)

    def status(self, units: Sequence[WorkUnit]) -> RunStatus:
        """How far they are."""
        assert self.run is not None, "attach() comes first"
        return run_status(self.run, units)

    def units_of_run(self) -> list[WorkUnit]:
        """Those of all shards that the run has been given."""
        assert self.run is not None, "attach() comes first"
        return units_of(self.run, allow_pipe=True)

    def decode(self, sample: RawSample) -> CaptionedImage | Failure:
        """A sample's picture in the run's size."""
        assert self.height is not None and self.width is not None, "attach() comes first"
        return decode_sample(sample, self.height, self.width)

    def read(self, unit: WorkUnit, rows: Sequence[Row]) -> Iterator[CaptionedImage | Failure | UnitRead]:
        """Decoded images."""
        committed = {row.key for row in rows}
        read = 0
        for sample in read_unit(unit, self.caption, committed, self.stop_requested):
            if sample.key not in committed:
                read += 1
                yield self.decode(sample) if isinstance(sample, RawSample) else sample
        yield UnitRead(unit, len(committed), read)


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


def read_inputs(
    units: Iterable[WorkUnit], caption: str, height: int, width: int, ids: Collection[tuple[str, str]]
) -> dict[tuple[str, str], CaptionedImage]:
    """The input images of these ids, in this size."""
    found: dict[tuple[str, str], CaptionedImage] = {}
    for shard, url in dict.fromkeys((unit.shard, unit.url) for unit in units):
        wanted = {key for of, key in ids if of == shard}
        for sample in read_unit(WorkUnit(shard, url, 0, 1), caption, ()) if wanted else ():
            if isinstance(sample, RawSample) and sample.key in wanted:
                image = decode_sample(sample, height, width)
                assert isinstance(image, CaptionedImage)
                found[shard, sample.key] = image
                if len(wanted := wanted - {sample.key}) == 0:
                    break
    return found
