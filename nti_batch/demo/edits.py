"""Edits of drawn scenes, with the true result: the edited scene, drawn.

    scene -> random_edit -> edited scene -> blend words, mask, truth -> judge_edit

An edit changes one attribute: the background, or the colour, shape, size or place of one object.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nti_batch.demo.judge import judge
from nti_batch.demo.scenes import COLOURS, PLACES, SIZES, Scene, SceneObject, draw, is_clear, object_masks
from nti_batch.demo.shapes import SHAPES
from nti_batch.diffusion.edit_settings import EditSettings
from nti_batch.scores.metrics import psnr

Kind = Literal["colour", "shape", "size", "place", "background"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_OBJECT_KINDS = KINDS[:-1]
_WORDS: dict[Kind, Iterable[str]] = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "place": PLACES}

MARGIN = 2
"""Width in pixels of a band around the mask that does not count as unedited, since an object's edge is never exact."""


REPLACE_STEPS: dict[Kind, tuple[float, float]] = {
    "colour": (0.8, 1.0),
    "shape": (0.2, 0.0),
    "size": (0.4, 0.2),
    "place": (0.0, 0.0),
    "background": (0.8, 1.0),
}
"""`cross_replace_steps` and `self_replace_steps`: an edit that changes a form needs less attention of the source, and
one that changes a colour keeps all forms."""


@dataclass(frozen=True, slots=True)
class SceneEdit:
    """Edit of a scene, with the true result."""

    kind: Kind
    source: Scene
    edited: Scene

    @property
    def settings(self) -> EditSettings:
        """Settings of prompt-to-prompt with local blend. An edit of the background keeps out of the objects."""
        cross_replace_steps, self_replace_steps = REPLACE_STEPS[self.kind]
        colours = tuple(thing.colour for thing in self.source.objects)
        return EditSettings(
            kind="replace",
            cross_replace_steps=cross_replace_steps,
            self_replace_steps=self_replace_steps,
            blend_words=blend_words(self.source, self.edited),
            blend_threshold=0.5,
            subtract_words=(colours, colours) if self.kind == "background" else None,
        )


@dataclass(frozen=True, slots=True)
class EditVerdict:
    """Verdict of the judge on an edit."""

    asked: bool
    """Whether the image shows the requested attribute."""

    object_kept: bool
    """Whether the object keeps its other attributes; true if the edit changes the background."""

    others_kept: bool
    """Whether the other objects keep all attributes."""

    background_kept: bool
    """Whether the background keeps its colour; true if the edit changes it."""

    psnr_truth: float
    """PSNR against the edited scene, drawn, in dB."""

    psnr_unedited: float
    """PSNR of the unedited part against the source, in dB.

    nan if there is no such part, for a thin object on a background that changes."""


def random_edit(scene: Scene, kind: Kind, rng: random.Random) -> Scene:
    """Change one attribute of a random object, or of the background, to another word.

    The edited scene is clear, as its source must be. An object moves only if it is the only one: two objects leave no
    place free.

    Args:
        scene: Source of the edit.
        kind: Attribute to change.
        rng: Source of randomness; equal states give equal edits.

    Raises:
        ValueError: If the edit moves one of two objects.
    """
    if kind == "background":
        return _clear_choice(rng, [replace(scene, background=word) for word in COLOURS if word != scene.background])
    if kind == "place" and len(scene.objects) > 1:
        raise ValueError("one of two objects cannot be moved, since no place is free: choose a scene with one object")
    changed = rng.randrange(len(scene.objects))
    thing = scene.objects[changed]
    others = [word for word in _WORDS[kind] if word != getattr(thing, kind)]
    edited = [replace(thing, **{kind: word}) for word in others]  # type: ignore[arg-type]  # all are fields of type str
    return _clear_choice(
        rng, [replace(scene, objects=(*scene.objects[:changed], e, *scene.objects[changed + 1 :])) for e in edited]
    )


def _clear_choice(rng: random.Random, scenes: Iterable[Scene]) -> Scene:
    clear = [scene for scene in scenes if is_clear(scene)]
    assert clear, "the scene to edit is not clear"
    return rng.choice(clear)


def edits_of(scene: Scene, kinds: Sequence[Kind], rng: random.Random) -> list[SceneEdit]:
    """Make an edit of each kind; an object moves only if it is the only one."""
    possible = [kind for kind in kinds if kind != "place" or len(scene.objects) == 1]
    return [SceneEdit(kind, scene, random_edit(scene, kind, rng)) for kind in possible]


def blend_words(source: Scene, edited: Scene) -> tuple[str, str]:
    """Choose the words of local blend: one from the caption of the source, one from that of the edit.

    Both are colours, since only the colour of an object is unique in a caption.
    """
    if source.background != edited.background:
        return source.background, edited.background
    before, after = _changed_object(source, edited)
    return before.colour, after.colour


def _changed_object(source: Scene, edited: Scene) -> tuple[SceneObject, SceneObject]:
    ((before, after),) = (pair for pair in zip(source.objects, edited.objects, strict=True) if pair[0] != pair[1])
    return before, after


def edit_mask(source: Scene, edited: Scene) -> Tensor:
    """Compute the part of the image that an edit may change, bool [64, 64].

    The part is the object before and after the edit, or everything but the objects if the background changes.
    """
    before, after = object_masks(source), object_masks(edited)
    if source.background != edited.background:
        return before.amax(dim=0) < 1
    changed = torch.tensor([a != b for a, b in zip(source.objects, edited.objects, strict=True)])
    return torch.maximum(before, after)[changed].amax(dim=0) > 0


def judge_edit(image: Tensor, source: Scene, edited: Scene) -> EditVerdict:
    """Judge an edited image.

    Args:
        image: Edited image, [3, 64, 64] in [0, 1].
        source: Scene of the source.
        edited: Scene that the edit should show.
    """
    verdict = judge(image, edited)
    judged = [("asked" if source.background != edited.background else "background", verdict.background)]
    for before, after, right in zip(source.objects, edited.objects, verdict.objects, strict=True):
        for kind in _OBJECT_KINDS:
            changes = getattr(before, kind) != getattr(after, kind)
            part = "asked" if changes else "object" if before != after else "others"
            judged.append((part, getattr(right, kind)))
    changed = edit_mask(source, edited)
    unedited = F.max_pool2d(changed[None].float(), 2 * MARGIN + 1, 1, MARGIN) == 0
    return EditVerdict(
        asked=all(right for part, right in judged if part == "asked"),
        object_kept=all(right for part, right in judged if part == "object"),
        others_kept=all(right for part, right in judged if part == "others"),
        background_kept=all(right for part, right in judged if part == "background"),
        psnr_truth=psnr(image[None], draw(edited)[None]).item(),
        psnr_unedited=psnr(image[None], draw(source)[None], unedited).item(),
    )
