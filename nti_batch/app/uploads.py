"""A run whose input is a folder that the page fills, an image with its caption at a time.

OUT/images/KEY.jpg, KEY.txt    the files as they were uploaded: the input of the run
OUT/run.json, OUT/inversions   the run, which every command reads; `nti-batch invert` resumes it
"""

import hashlib
import itertools
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from nti_batch.app.gallery import ImageId
from nti_batch.app.workbench import OnProgress, check_prompt
from nti_batch.data.folder import IMAGE_EXTENSIONS, extension_of
from nti_batch.data.samples import RawSample, decode_sample
from nti_batch.data.shards import FOLDER_SHARD, work_units
from nti_batch.editing.inverter import invert_alone
from nti_batch.files import atomic_write, translate_os_errors
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.inversions import INVERT, InversionRun
from nti_batch.output.origin import origin_of
from nti_batch.output.run_folder import OutputRun
from nti_batch.records import CaptionedImage, Failure, Inversion
from nti_batch.settings import InversionRunSettings

MAX_KEY = 60
"""Characters of a file name that become the key."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An uploaded image with its caption."""

    name: str
    """Name of the file."""

    content: bytes
    caption: str


class Uploads:
    """The run of the uploaded images."""

    def __init__(self, out: Path, settings: InversionRunSettings) -> None:
        """Start the run, or resume it.

        Args:
            out: The output folder.
            settings: Settings of the run.

        Raises:
            ValueError: If the folder cannot be written, or holds a run with other settings.
        """
        self.folder = out.resolve() / "images"
        self.run: InversionRun = OutputRun.create(INVERT, out, settings, {FOLDER_SHARD: str(self.folder)})
        with translate_os_errors(self.folder):
            self.folder.mkdir(exist_ok=True)

    def invert(
        self, networks: StableDiffusion, upload: Upload, known: Collection[ImageId], on_progress: OnProgress
    ) -> ImageId:
        """Invert an image with the settings of the run, and commit it.

        Args:
            networks: Networks of the run.
            upload: The image.
            known: Ids of the images that the run has.
            on_progress: Called after each UNet call.

        Raises:
            ValueError: If the image cannot be decoded, the caption is empty, or the inversion fails.
            UnitInUseError: If a job works on the run.
            OutputError: If the run cannot be written.
        """
        image = self._decoded(upload, self._free_key(upload.name, {key for _, key in known}))
        self.run.claim(image.unit)
        try:
            self._commit(networks, upload, self._inverted(networks, image, on_progress))
        finally:
            self.run.release(image.unit)
        return image.unit.shard, image.key

    def _decoded(self, upload: Upload, key: str) -> CaptionedImage:
        settings, caption = self.run.settings, upload.caption.strip()
        check_prompt(caption)
        units = work_units(self.run.shards, settings.units_per_shard)
        unit = next(unit for unit in units if unit.holds(key))
        checksum = hashlib.sha256(upload.content + caption.encode()).hexdigest()
        sample = RawSample(unit, key, caption, upload.content, checksum)
        image = decode_sample(sample, settings.height, settings.width, fit=settings.fit)
        if isinstance(image, Failure):
            raise ValueError(f"{upload.name!r}: {image.error}")
        return image

    def _free_key(self, name: str, known: Collection[str]) -> str:
        """A key that no image has, after the name of a file."""
        stem = re.sub(r"[^\w-]+", "-", Path(name).stem).strip("-_")[:MAX_KEY] or "image"
        keys = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        return next(key for key in keys if key not in known and not (self.folder / f"{key}.txt").exists())

    def _inverted(self, networks: StableDiffusion, image: CaptionedImage, on_progress: OnProgress) -> Inversion:
        outcome = invert_alone(networks, image, self.run.settings, on_progress)
        if isinstance(outcome, Failure):
            raise ValueError(f"the inversion of {image.key!r} has failed: {outcome.error}")
        return outcome

    def _commit(self, networks: StableDiffusion, upload: Upload, inversion: Inversion) -> None:
        """Write the input files, then the part."""
        extension = extension_of(upload.name)
        stem = self.folder / inversion.key
        with translate_os_errors(self.folder):
            atomic_write(
                stem.with_name(f"{stem.name}.{extension if extension in IMAGE_EXTENSIONS else 'png'}"), upload.content
            )
            atomic_write(stem.with_name(f"{stem.name}.txt"), inversion.prompt)
        part = self.run.new_part(inversion.unit, origin_of(networks.device))
        part.add(inversion)
        part.commit()
