"""LightningModule of the edit job: puts sources and their edits into batches for the UNet."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from nti_batch.data.fit import without_padding
from nti_batch.data.images import to_bytes
from nti_batch.diffusion.alignment import compose
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.editing.editor import ControlledEdit, StopRequestedError, edit_images
from nti_batch.editing.masks import mask_pixels
from nti_batch.editing.requests import ImageEdits, request_sha256
from nti_batch.jobs.job_module import JobModule
from nti_batch.jobs.networks import load_networks
from nti_batch.jobs.signals import StopSignals
from nti_batch.models.source import ModelSource, Precision
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.records import EditedImage, EditRequest, EndOfUnit, Failure, Outcome, Pause
from nti_batch.scores.metrics import mse, psnr, ssim


@dataclass(frozen=True, slots=True, eq=False)
class _ValidRequest:
    """Valid request."""

    request: EditRequest
    edit: ControlledEdit | None
    """Edit of the source; None reconstructs the source."""

    outside: Tensor | None
    """Pixels outside the mask, without padding, bool [height, width]; None without a mask or the input image."""

    prompt_truncated: bool
    """Whether the text encoder reads only the beginning of the edit's prompt."""


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Image in a batch: a row for the source, and one for each edit."""

    image: ImageEdits
    rebuilt: list[_ValidRequest]
    """Requests for the reconstructed source, which share its row."""

    edited: list[_ValidRequest]
    """Requests for edits, each with a row."""


class EditModule(JobModule):
    """Edits images as their inversions arrive; several images share a batch."""

    networks: StableDiffusion

    def __init__(
        self,
        source: ModelSource,
        precision: Precision,
        inversion: InversionSettings,
        batch_size: int,
        stop: StopSignals,
        emit: Callable[[Outcome], None],
    ) -> None:
        """Store the settings; `setup` loads the weights.

        Args:
            source: Place of the model.
            precision: Precision of the UNet, the same as in the run of the inversions.
            inversion: Settings of the inversions.
            batch_size: Maximum number of images in one UNet call, sources included.
            stop: Stop signals; no UNet call follows a request to stop.
            emit: Takes each outcome as soon as there is one.
        """
        super().__init__()
        self.source, self.precision, self.inversion = source, precision, inversion
        self.batch_size, self.stop, self.emit = batch_size, stop, emit
        self._waiting: list[_Group] = []

    def setup(self, stage: str) -> None:
        """Load the networks, once."""
        if not hasattr(self, "networks"):
            self.networks = load_networks(self.source, self.precision)

    def on_predict_start(self) -> None:
        """Start the clocks."""
        self.start_clocks()

    def queue_lengths(self) -> dict[str, int]:
        """Images, sources included, that wait for a batch to be full."""
        return {"edit": self._rows_waiting}

    def predict_step(self, batch: ImageEdits | Failure | EndOfUnit | Pause, batch_idx: int) -> int:
        """Add an image to the batch, after editing the previous batch if the image does not fit into it.

        The last call edits all.

        Returns:
            Number of rows in the batch.
        """
        if isinstance(batch, ImageEdits):
            for group in self._groups(batch):
                if self._rows_waiting + 1 + len(group.edited) > self.batch_size:
                    self._edit_waiting()
                self._waiting.append(group)
        elif not isinstance(batch, Pause):
            self.emit(batch)
        is_last: bool = self.trainer.predict_loop.batch_progress.is_last_batch  # type: ignore[attr-defined]
        if is_last or isinstance(batch, Pause):
            self._edit_waiting()
        return self._rows_waiting

    @property
    def _rows_waiting(self) -> int:
        return sum(1 + len(group.edited) for group in list(self._waiting))

    def _groups(self, image: ImageEdits) -> list[_Group]:
        """Divide the edits of an image into groups that fit into a batch; emit a failure for each invalid request."""
        valid = []
        for request in image.requests:
            try:
                valid.append(self._check(image, request))
            except ValueError as error:
                self.emit(_failure(image, request, str(error)))
        rebuilt, edited = [v for v in valid if v.edit is None], [v for v in valid if v.edit is not None]
        size = self.batch_size - 1
        groups = [_Group(image, [], edited[i : i + size]) for i in range(0, len(edited), size)]
        if rebuilt:
            groups = [_Group(image, rebuilt, edited[:size]), *groups[1:]]
        return groups

    def _check(self, image: ImageEdits, request: EditRequest) -> _ValidRequest:
        """Check the prompt, the words and the mask of a request.

        Raises:
            ValueError: If one of them does not fit the image.
        """
        stored = image.stored
        if request.prompt is not None and compose(request.prompt) != compose(stored.prompt):
            raise ValueError(
                f"the edit is for the prompt {request.prompt!r}, but the image was inverted with {stored.prompt!r}: "
                "leave the prompt out, or invert the image with the edit's prompt"
            )
        edit = None
        if request.edit_prompt is not None:
            edit = ControlledEdit.of(self.networks, stored.prompt, request.edit_prompt, request.settings)
        outside = None
        if request.mask and image.original:
            source = image.original.original
            shown = without_padding(image.original.pixels, source)
            outside = ~mask_pixels(request.mask, shown.shape[1], shown.shape[2], source.fit)
        return _ValidRequest(request, edit, outside, self.networks.truncates(request.edit_prompt or ""))

    def _edit_waiting(self) -> None:
        """Edit the batch that waits; after a request to stop, leave it to a later job."""
        groups, self._waiting = self._waiting, []
        if not groups:
            return
        started = time.monotonic()
        edits = [(group.image.stored, [v.edit for v in group.edited if v.edit]) for group in groups]
        try:
            with self.clock("edit").running():
                results = edit_images(self.networks, edits, self.inversion, lambda: self.stop.requested)
        except StopRequestedError:
            return
        seconds = time.monotonic() - started
        for group, (source, *edited) in zip(groups, results, strict=True):
            for valid, result in [*((v, source) for v in group.rebuilt), *zip(group.edited, edited, strict=True)]:
                self.emit(_outcome(group.image, valid, result, seconds))


def _failure(image: ImageEdits, request: EditRequest, error: str) -> Failure:
    input_sha256 = str(image.stored.metadata["sha256"])
    return Failure(image.unit, request.key, "edit", error, request.name, input_sha256)


def _outcome(image: ImageEdits, valid: _ValidRequest, result: Tensor, seconds: float) -> Outcome:
    """Round an edited image to bytes, and compare its part outside the mask with the input."""
    request = valid.request
    if not result.isfinite().all():
        return _failure(image, request, "the edited image is not finite")
    pixels = to_bytes(result)
    scores: list[float | None] = [None, None, None]
    if image.original and valid.outside is not None and valid.outside.any():
        edited, source = (
            without_padding(each, image.original.original)[None] / 255 for each in (pixels, image.original.pixels)
        )
        scores = [measure(edited, source, valid.outside[None]).item() for measure in (psnr, ssim, mse)]
    return EditedImage(
        unit=image.unit,
        key=request.key,
        name=request.name,
        edit_prompt=request.edit_prompt,
        request_sha256=request_sha256(request),
        input_sha256=str(image.stored.metadata["sha256"]),
        pixels=pixels,
        psnr_unedited=scores[0],
        ssim_unedited=scores[1],
        mse_unedited=scores[2],
        seconds=seconds,
        original=image.stored.original,
        prompt_truncated=valid.prompt_truncated,
    )
