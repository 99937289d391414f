"""Images of the check: photographs, or for models of drawn scenes some of the sample scenes, with colour edits."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nti_batch.data.images import decode_original
from nti_batch.data.samples import read_inputs
from nti_batch.diffusion.edit_settings import EditSettings
from nti_batch.jobs.flags import SAMPLES
from nti_batch.records import CaptionedImage, WorkUnit

PHOTOGRAPHS = Path(__file__).parent / "photographs"
SCENES = "scenes-000000"

EQUALIZER = 2.0
"""Equalizer of an edit's colour, as PIE-Bench has it."""

COLOURS: Mapping[str, tuple[float, float, float]] = {
    "white": (1.0, 1.0, 1.0),
    "red": (0.8, 0.1, 0.1),
    "orange": (1.0, 0.5, 0.1),
    "yellow": (0.9, 0.9, 0.1),
    "green": (0.1, 0.6, 0.2),
    "cyan": (0.1, 0.8, 0.9),
    "blue": (0.1, 0.2, 0.9),
    "purple": (0.5, 0.1, 0.6),
}
"""Approximate RGB values in [0, 1]."""


@dataclass(frozen=True, slots=True)
class ColourEdit:
    """An object gets another colour."""

    old: str
    new: str
    objects: tuple[str, ...]
    """Words of the object in the caption, which are the blend words."""

    box: tuple[float, float, float, float]
    """Box around the object: left, top, right, bottom as shares of the sides."""

    def prompt(self, caption: str) -> str:
        """Caption of the edited image."""
        return caption.replace(f"an {self.old}", f"a {self.new}").replace(self.old, self.new)

    @property
    def settings(self) -> EditSettings:
        """Settings of prompt-to-prompt: PIE-Bench's, with local blend around the object."""
        return EditSettings(blend_words=(self.objects, self.objects), equalizer={self.new: EQUALIZER})


_CAPTIONS = {
    "astronaut": "a smiling woman with short hair in an orange space suit",
    "coffee": "a red cup of espresso with a spoon on a red saucer on a wooden table",
    "cat": "a close-up of the face of a tabby cat with green eyes",
    "rocket": "a white rocket on its launch pad between steel towers at dusk",
}
"""Captions of the photographs."""

_PHOTOGRAPH_EDITS = {
    "astronaut": ColourEdit("orange", "green", ("suit",), (0.0, 0.3, 1.0, 1.0)),
    "coffee": ColourEdit("red", "blue", ("cup", "saucer"), (0.0, 0.0, 1.0, 1.0)),
}
_SCENE_EDITS = {
    "000003": ColourEdit("white", "red", ("heart",), (0.2, 0.0, 0.8, 0.6)),
    "000004": ColourEdit("purple", "orange", ("diamond",), (0.2, 0.4, 1.0, 1.0)),
    "000007": ColourEdit("white", "blue", ("circle",), (0.2, 0.0, 0.8, 0.6)),
    "000009": ColourEdit("cyan", "yellow", ("cross",), (0.2, 0.4, 0.8, 1.0)),
}


def load_photographs(height: int, width: int) -> dict[str, CaptionedImage]:
    """Decode the photographs at the size of a model, by their names."""
    unit = WorkUnit("photographs", str(PHOTOGRAPHS), 0, 1)
    images = {}
    for name, caption in _CAPTIONS.items():
        pixels, original = decode_original((PHOTOGRAPHS / f"{name}.jpg").read_bytes(), height, width)
        images[name] = CaptionedImage(unit, name, caption, pixels, "", original)
    return images


def load_scenes(height: int, width: int) -> dict[str, CaptionedImage]:
    """Decode some of the sample scenes at the size of a model, by their keys."""
    unit = WorkUnit(SCENES, str(SAMPLES / f"{SCENES}.tar"), 0, 1)
    found = read_inputs([unit], "txt", height, width, {(SCENES, key) for key in _SCENE_EDITS})
    return {key: image for (_, key), image in sorted(found.items())}


def edit_of(image: CaptionedImage) -> ColourEdit | None:
    """Colour edit of an image; None if it has none."""
    return {**_PHOTOGRAPH_EDITS, **_SCENE_EDITS}.get(image.key)
