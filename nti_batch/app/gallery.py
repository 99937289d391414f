"""The images of a run, and the search among them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from nti_batch.diffusion.alignment import compose
from nti_batch.output.dataset import InversionDataset

MAX_SHOWN = 60
"""Images that a search finds at most."""

ImageId = tuple[str, str]
"""Shard and key."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An image of a run."""

    shard: str
    key: str
    prompt: str

    @property
    def title(self) -> str:
        """Key and caption."""
        return f"{self.key}: {self.prompt}"


class Gallery:
    """The finished images of a run. Captions are read when a search needs them, and kept."""

    def __init__(self, dataset: InversionDataset) -> None:
        """Read nothing yet.

        Args:
            dataset: The run, with pixels.
        """
        self.dataset = dataset
        self._prompts: dict[ImageId, str] = {}

    def search(self, text: str, most: int = MAX_SHOWN) -> list[Entry]:
        """Find images by a part of their key or caption, whatever the case of its letters.

        Args:
            text: The text; an empty one finds every image.
            most: Number of images after which the search ends.
        """
        wanted, found = _folded(text.strip()), list[Entry]()
        for shard, key in self.dataset.ids:
            if len(found) == most:
                break
            entry = Entry(shard, key, self._prompt((shard, key)))
            if wanted in _folded(entry.key) or wanted in _folded(entry.prompt):
                found.append(entry)
        return found

    def pixels(self, shard: str, key: str) -> tuple[Tensor | None, str]:
        """The input image, uint8 [3, height, width], or None and the reason."""
        try:
            return self.dataset.pixels(shard, key), ""
        except ValueError as error:
            return None, str(error)

    def _prompt(self, id: ImageId) -> str:
        """Caption of an image; of one whose file is damaged, the reason."""
        if id not in self._prompts:
            try:
                self._prompts[id] = str(self.dataset.metadata(id)["prompt"])
            except ValueError as error:
                self._prompts[id] = f"cannot be read: {error}"
        return self._prompts[id]


def _folded(text: str) -> str:
    return compose(text).casefold()


def describe(found: Sequence[Entry], total: int) -> str:
    """Say how many images a search has found."""
    if len(found) == MAX_SHOWN < total:
        return f"The first {MAX_SHOWN} images that fit, of {total:,}. Search for a part of a key or a caption."
    return f"{len(found)} of {total:,} images"
