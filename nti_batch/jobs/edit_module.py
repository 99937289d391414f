"""The LightningModule of the edit job: puts sources and their edits into batches for the UNet."""

import time
from dataclasses import dataclass

from lightning.pytorch import LightningModule
from torch import Tensor

from nti_batch.data.images import to_bytes
from nti_batch.editing.editor import ControlledEdit, StopRequestedError, edit_images
from nti_batch.editing.masks import mask_pixels
from nti_batch.editing.requests import ImageEdits, request_sha256
from nti_batch.jobs.signals import StopSignals
from nti_batch.models.source import ModelSource, Precision
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.records import EditedImage, EditRequest, EndOfUnit, Failure, Outcome
from nti_batch.scores.metrics import mse, psnr, ssim


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """A request in which nothing is wrong."""

    request: EditRequest
    edit: ControlledEdit | None
    """None rebuilds the source."""

    outside: Tensor | None
    """Pixels outside the mask, bool [height, width]; None without a mask or without the input."""


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """An image in a batch: a row for the source, which is what is rebuilt, and one for each edit."""

    image: ImageEdits
    rebuilt: list[_Wanted]
    edited: list[_Wanted]


class EditModule(LightningModule):
    """Edits images as their inversions arrive; several images share a batch."""

    networks: StableDiffusion

    def __init__(
        self,
        source: ModelSource,
        precision: Precision,
        guidance_scale: float,
        batch_size: int,
        stop: StopSignals,
    ) -> None:
        """Load no weights yet.

        Args:
            source: Place of the model.
            precision: Precision of the UNet, which is that of the inversions.
            guidance_scale: Guidance scale of the inversions.
            batch_size: Maximum number of images in one UNet call; sources count.
            stop: Stop signals: no UNet call follows a request.
        """
        super().__init__()
        self.source, self.precision, self.guidance_scale = source, precision, guidance_scale
        self.batch_size, self.stop = batch_size, stop
        self._waiting: list[_Group] = []

    def setup(self, stage: str) -> None:
        """Load the networks, once."""
        if not hasattr(self, "networks"):
            self.networks = StableDiffusion.load(self.source, self.precision)

    def predict_step(self, batch: ImageEdits | Failure | EndOfUnit, batch_idx: int) -> list[Outcome]:
        """Take one image in; return what was finished to make room for it, or all at the end."""
        outcomes: list[Outcome] = []
        if isinstance(batch, ImageEdits):
            for group in self._groups(batch, outcomes):
                if self._rows_waiting + 1 + len(group.edited) > self.batch_size:
                    outcomes += self._edit_waiting()
                self._waiting.append(group)
        else:
            outcomes.append(batch)
        is_last: bool = self.trainer.predict_loop.batch_progress.is_last_batch  # type: ignore[attr-defined]
        return outcomes + self._edit_waiting() if is_last else outcomes

    @property
    def _rows_waiting(self) -> int:
        return sum(1 + len(group.edited) for group in self._waiting)

    def _groups(self, image: ImageEdits, outcomes: list[Outcome]) -> list[_Group]:
        """The image with its edits, more than once if they are too many for a batch; what is wrong is an outcome."""
        wanted = []
        for request in image.requests:
            try:
                wanted.append(self._check(image, request))
            except ValueError as error:
                outcomes.append(Failure(image.unit, request.key, "edit", str(error), request.name))
        rebuilt, edited = [w for w in wanted if w.edit is None], [w for w in wanted if w.edit is not None]
        size = self.batch_size - 1
        groups = [_Group(image, [], edited[i : i + size]) for i in range(0, len(edited), size)]
        if rebuilt:
            groups = [_Group(image, rebuilt, edited[:size]), *groups[1:]]
        return groups

    def _check(self, image: ImageEdits, request: EditRequest) -> _Wanted:
        """Look up the words and the mask.

        Raises:
            ValueError: If something is wrong with them.
        """
        stored = image.stored
        if request.prompt not in (None, stored.prompt):
            raise ValueError(
                f"the edit is for the prompt {request.prompt!r}, and the image was inverted with {stored.prompt!r}: "
                "leave the prompt out, or invert the image with the other one"
            )
        edit = None
        if request.edit_prompt is not None:
            edit = ControlledEdit.of(self.networks, stored.prompt, request.edit_prompt, request.settings)
        outside = None
        if request.mask and image.original:
            outside = ~mask_pixels(request.mask, *image.original.pixels.shape[1:])
        return _Wanted(request, edit, outside)

    def _edit_waiting(self) -> list[Outcome]:
        """Make the batch that waits, unless a stop is requested: then a later job makes it."""
        groups, self._waiting = self._waiting, []
        if not groups:
            return []
        started = time.monotonic()
        edits = [(group.image.stored, [w.edit for w in group.edited if w.edit]) for group in groups]
        try:
            made = edit_images(self.networks, edits, self.guidance_scale, lambda: self.stop.requested)
        except StopRequestedError:
            return []
        seconds = time.monotonic() - started
        return [
            _conclude(group.image, wanted, picture, seconds)
            for group, (source, *pictures) in zip(groups, made, strict=True)
            for wanted, picture in [*((w, source) for w in group.rebuilt), *zip(group.edited, pictures, strict=True)]
        ]


def _conclude(image: ImageEdits, wanted: _Wanted, picture: Tensor, seconds: float) -> Outcome:
    """Compare the part that was not to be edited with the input."""
    request = wanted.request
    if not picture.isfinite().all():
        return Failure(image.unit, request.key, "edit", "the picture is not finite", request.name)
    pixels = to_bytes(picture)
    scores: list[float | None] = [None, None, None]
    if image.original and wanted.outside is not None and wanted.outside.any():
        pair = pixels[None] / 255, image.original.pixels[None] / 255
        scores = [measure(*pair, wanted.outside[None]).item() for measure in (psnr, ssim, mse)]
    return EditedImage(
        unit=image.unit,
        key=request.key,
        name=request.name,
        edit_prompt=request.edit_prompt,
        request_sha256=request_sha256(request),
        pixels=pixels,
        psnr_unedited=scores[0],
        ssim_unedited=scores[1],
        mse_unedited=scores[2],
        seconds=seconds,
    )
