"""What one visitor of the page looks at, and how it is shown."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from nti_batch.app.gallery import ImageId
from nti_batch.app.workbench import Attention, Edit, Source

MAX_KEPT = 8
"""Edits of a visitor that stay for comparison."""

SCORES = {"edit": 60, "image": 110, "prompt": 300, "PSNR": 80, "SSIM": 80, "PSNR inside": 110, "seconds": 90}
"""Columns of the table of scores, with their widths in pixels."""


@dataclass(slots=True, eq=False)
class Visit:
    """The state of one visitor."""

    found: Sequence[ImageId] = ()
    """Images of the last search, in their order."""

    source: Source | None = None
    edits: list[Edit] = field(default_factory=list)
    """The last edits, the newest last."""

    count: int = 0
    """Number of edits so far."""

    shown: Edit | None = None
    attention: Attention | None = None

    def start(self, source: Source) -> None:
        """Look at another image; the edits stay."""
        self.source, self.shown, self.attention = source, None, None

    def keep(self, edit: Edit) -> None:
        """Show a new edit, and keep it."""
        self.edits = [*self.edits, edit][-MAX_KEPT:]
        self.count += 1
        self.show(edit)

    def show(self, edit: Edit) -> None:
        """Show an edit that is kept."""
        self.shown, self.attention = edit, edit.attention

    def numbered(self) -> list[tuple[int, Edit]]:
        """The kept edits with their numbers, from 1."""
        return list(enumerate(self.edits, self.count - len(self.edits) + 1))

    def titles(self) -> list[str]:
        """Title of each kept edit."""
        return [f"{number}: {edit.request.edit_prompt}" for number, edit in self.numbered()]

    def scores(self) -> list[list[str]]:
        """Rows of the table of scores."""
        return [
            [
                str(number),
                edit.request.key,
                str(edit.request.edit_prompt),
                _number(edit.scores.psnr, 2),
                _number(edit.scores.ssim, 3),
                _number(edit.scores.psnr_edited, 2),
                _number(edit.seconds, 1),
            ]
            for number, edit in self.numbered()
        ]

    def current_source(self) -> Source:
        """The image that is looked at.

        Raises:
            ValueError: If there is none.
        """
        if self.source is None:
            raise ValueError("no image is chosen: choose one in the gallery")
        return self.source

    def current_edit(self, name: str, with_mask: bool) -> Edit:
        """The edit that is shown, with a name and, if it is asked for and there is one, its mask.

        Raises:
            ValueError: If there is none.
        """
        if self.shown is None:
            raise ValueError("no edit is shown: make one first")
        mask = self.shown.mask if with_mask else None
        return replace(self.shown, request=replace(self.shown.request, name=name.strip(), mask=mask))


def describe(source: Source) -> list[str]:
    """Labels of the input, the VAE bound and the reconstruction."""
    if source.psnr_vae is None or source.psnr is None:
        return ["Input", "VAE bound", "Reconstruction"]
    return ["Input", f"VAE bound: {source.psnr_vae:.2f} dB", f"Reconstruction: {source.psnr:.2f} dB"]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
