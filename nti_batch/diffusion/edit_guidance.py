"""Guidance of the sources and edits of one batch, each edit with settings of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nti_batch.diffusion.edit_settings import EditSettings
from nti_batch.diffusion.proximal import proximal_difference
from nti_batch.diffusion.rows import Rows

_SOURCE = EditSettings()


@dataclass(frozen=True, slots=True, eq=False)
class EditGuidance:
    """The guidance of one batch over all steps. Steps are counted from 0, the noisiest.

    As in `AttentionControl`, a share s of T steps selects int(s T) of them.
    """

    settings: Sequence[EditSettings]
    """Settings of each row; those of a source change nothing."""

    sources: list[int]
    """Source's row of each row, on the host."""

    scales: Tensor
    """w, [rows, 1, 1, 1]."""

    skipped: Tensor
    """Number of steps in which a row stays its source, [rows], on the CPU."""

    recon_steps: list[int]
    """First step of each row with inversion guidance."""

    first_step: int
    """First step in which any edit leaves its source; T without an edit."""

    is_guided: bool
    """Whether any row needs the prediction for its null embedding."""

    @classmethod
    def of(
        cls, guidance_scale: float, edits: Sequence[Sequence[EditSettings]], num_steps: int, device: torch.device
    ) -> "EditGuidance":
        """Stack the settings of the rows.

        Args:
            guidance_scale: w of the sources, and of the edits without their own.
            edits: Settings of the edits of each image.
            num_steps: T.
            device: The network's device.
        """
        settings = [row for of_image in edits for row in (_SOURCE, *of_image)]
        scales = [guidance_scale if row.guidance_scale is None else row.guidance_scale for row in settings]
        skipped = [int(row.skip_steps * num_steps) for row in settings]
        return cls(
            settings=settings,
            sources=Rows.of([len(of_image) for of_image in edits], torch.device("cpu")).source_of.tolist(),
            scales=torch.tensor(scales, device=device).view(-1, 1, 1, 1),
            skipped=torch.tensor(skipped),
            recon_steps=[int(row.recon_start * num_steps) for row in settings],
            first_step=min((int(row.skip_steps * num_steps) for of in edits for row in of), default=num_steps),
            is_guided=any(scale != 1 for scale in scales) or any(row.proximal for row in settings),
        )

    def skips(self, step: int) -> Tensor | None:
        """Whether each row stays its source in a step, [rows]; None if no row does."""
        skips = self.skipped > step
        return skips.to(self.scales.device) if skips.any() else None

    def guide(self, uncond: Tensor, cond: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
        """Guide the predictions of all rows.

        Args:
            uncond: Predictions for the null embeddings, [rows, channels, height, width].
            cond: Predictions for the prompts, likewise.
            step: The step.

        Returns:
            The guided predictions, and the share r (1 - m) by which inversion guidance corrects the latents after the
            step, in the same shape; None if it corrects no row.
        """
        difference = cond - uncond
        kept = list(difference)
        shares: list[Tensor] = [torch.zeros_like(row) for row in kept]
        corrects = False
        for row, settings in enumerate(self.settings):
            if settings.proximal:
                kept[row], unedited = proximal_difference(difference[row], difference[self.sources[row]], settings)
                if settings.recon_lr and step >= self.recon_steps[row]:
                    shares[row], corrects = settings.recon_lr * unedited, True
        return uncond + self.scales * torch.stack(kept), torch.stack(shares) if corrects else None
