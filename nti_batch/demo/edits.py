"""Edits of drawn scenes whose truth is known: the scene as asked, drawn anew.

    scene -> random_edit -> edited scene -> blend words, mask, truth -> judge_edit

An edit changes one attribute: colour, shape, size or place of one object, or the background.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nti_batch.demo.judge import judge
from nti_batch.demo.scenes import COLOURS, PLACES, SHAPES, SIZES, Scene, SceneObject, draw, object_masks
from nti_batch.scores.metrics import psnr

Kind = Literal["colour", "shape", "size", "place", "background"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_OBJECT_KINDS = KINDS[:-1]
_WORDS: dict[Kind, Iterable[str]] = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "place": PLACES}

MARGIN = 2
"""Pixels around what an edit may change that do not count as unedited either: an object's edge is never exact."""


@dataclass(frozen=True, slots=True)
class EditVerdict:
    """What became of an edit."""

    asked: bool
    """Whether what was asked for is seen."""

    object_kept: bool
    """Whether the object's other attributes are as they were; true if the edit is of the background."""

    others_kept: bool
    """Whether all attributes of the objects that the edit leaves alone are as they were."""

    background_kept: bool
    """Whether the background is as it was; true if the edit is of it."""

    psnr_truth: float
    """Against the scene drawn as asked, in dB."""

    psnr_unedited: float
    """Against the source where the edit may change nothing, in dB; nan where that is nowhere: a thin object on a
    background that changes."""


def random_edit(scene: Scene, kind: Kind, rng: random.Random) -> Scene:
    """Change one attribute of a random object, or of the background, to another word.

    Colours stay different from each other. Only an object that is alone is moved: beside another there is no free place
    that is not the other's or does not overlap with it.

    Args:
        scene: The source.
        kind: What to change.
        rng: Source of randomness; equal states give equal edits.

    Raises:
        ValueError: If one of two objects is to be moved.
    """
    used = {scene.background, *(thing.colour for thing in scene.objects)}
    if kind == "background":
        return replace(scene, background=_other(rng, COLOURS, used))
    if kind == "place" and len(scene.objects) > 1:
        raise ValueError("one of two objects cannot be moved, there is no place free: choose a scene of one object")
    changed = rng.randrange(len(scene.objects))
    thing = scene.objects[changed]
    word = _other(rng, _WORDS[kind], used if kind == "colour" else {getattr(thing, kind)})
    edited = replace(thing, **{kind: word})  # type: ignore[arg-type]  # the words of no kind are numbers
    return replace(scene, objects=(*scene.objects[:changed], edited, *scene.objects[changed + 1 :]))


def _other(rng: random.Random, words: Iterable[str], used: set[str]) -> str:
    return rng.choice([word for word in words if word not in used])


def blend_words(source: Scene, edited: Scene) -> tuple[str, str]:
    """The words that look at what changes, of the source's caption and of the edit's.

    They are colours, since no other word tells an object from its neighbour by itself.
    """
    if source.background != edited.background:
        return source.background, edited.background
    before, after = _changed_object(source, edited)
    return before.colour, after.colour


def _changed_object(source: Scene, edited: Scene) -> tuple[SceneObject, SceneObject]:
    ((before, after),) = (pair for pair in zip(source.objects, edited.objects, strict=True) if pair[0] != pair[1])
    return before, after


def edit_mask(source: Scene, edited: Scene) -> Tensor:
    """Where an edit may change the picture, bool [64, 64].

    That is where its object is or is asked to be, or for the background all that no object covers.
    """
    before, after = object_masks(source), object_masks(edited)
    if source.background != edited.background:
        return before.amax(dim=0) < 1
    changed = torch.tensor([a != b for a, b in zip(source.objects, edited.objects, strict=True)])
    return torch.maximum(before, after)[changed].amax(dim=0) > 0


def judge_edit(picture: Tensor, source: Scene, edited: Scene) -> EditVerdict:
    """Judge an edit of a source's picture.

    Args:
        picture: What the edit made, [3, 64, 64] in [0, 1].
        source: What its source shows.
        edited: What it was asked to show.
    """
    verdict = judge(picture, edited)
    found = [("asked" if source.background != edited.background else "background", verdict.background)]
    for before, after, right in zip(source.objects, edited.objects, verdict.objects, strict=True):
        for kind in _OBJECT_KINDS:
            asked = getattr(before, kind) != getattr(after, kind)
            part = "asked" if asked else "object" if before != after else "others"
            found.append((part, getattr(right, kind)))
    changed = edit_mask(source, edited)
    unedited = F.max_pool2d(changed[None].float(), 2 * MARGIN + 1, 1, MARGIN) == 0
    return EditVerdict(
        asked=all(right for part, right in found if part == "asked"),
        object_kept=all(right for part, right in found if part == "object"),
        others_kept=all(right for part, right in found if part == "others"),
        background_kept=all(right for part, right in found if part == "background"),
        psnr_truth=psnr(picture[None], draw(edited)[None]).item(),
        psnr_unedited=psnr(picture[None], draw(source)[None], unedited).item(),
    )
