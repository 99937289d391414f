"""Captioned images out of WebDataset shards for the inversion job."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nti_batch.data.folder import fingerprint, list_folder
from nti_batch.data.samples import RawSample, caption_source, decode_sample, read_unit
from nti_batch.data.shard_reader import count_images
from nti_batch.data.shards import input_shards, work_units
from nti_batch.jobs.datamodule import UnitDataModule
from nti_batch.output.inversions import InversionRun
from nti_batch.output.manifest import Row
from nti_batch.output.status import RunStatus, run_status, units_of
from nti_batch.records import CaptionedImage, EndOfUnit, Failure, WorkUnit

COUNTED_SHARDS = 16


SAMPLES = Path(__file__).parents[1] / "demo" / "samples"


class InversionDataModule(UnitDataModule[InversionRun]):
    """Captioned images out of WebDataset shards, each rank its own work units."""

    def __init__(
        self,
        shards: str | None = None,
        caption: str = "txt",
        height: int | None = None,
        width: int | None = None,
        units_per_shard: int = 8,
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
            units_per_shard: Work units of a shard: what the ranks share out. Fixed for a run.
            allow_pipe: Allow 'pipe:COMMAND' shards; COMMAND is run by a shell.
            images: Instead of shards, a folder of images with captions beside them, read as one shard; it must keep
                its images for as long as the run goes on.
            **job: As for `UnitDataModule`.
        """
        super().__init__(**job)
        self.urls = input_shards(str(SAMPLES / "*.tar") if shards == "demo" else shards, images, allow_pipe)
        self.folder = images
        self.units = work_units(self.urls, units_per_shard)
        caption_source(caption)
        self.caption, self.height, self.width, self.units_per_shard = caption, height, width, units_per_shard

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
            "data.units_per_shard": self.units_per_shard,
        }
        if self.folder is not None:
            # work units are units_per_shard by position: one image more, and others would be inverted twice or never
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

    def read(self, unit: WorkUnit, rows: Sequence[Row]) -> Iterator[CaptionedImage | Failure | EndOfUnit]:
        """Decoded images."""
        committed = {row.key for row in rows}
        read = 0
        for sample in read_unit(unit, self.caption, committed, self.stop_requested):
            if sample.key not in committed:
                read += 1
                yield self.decode(sample) if isinstance(sample, RawSample) else sample
        yield EndOfUnit(unit, len(committed), read)
