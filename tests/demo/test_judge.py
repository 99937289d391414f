"""The judge is right about drawn scenes, whose attributes are known."""

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nti_batch.demo.judge import ObjectVerdict, Verdict, fit_background, judge, name_colour, recognise
from nti_batch.demo.scenes import COLOURS, PLACES, SIZES, Scene, clear_scene, draw
from nti_batch.demo.shapes import SHAPES

ATTRIBUTES = ("colour", "shape", "place", "size")
RIGHT = ObjectVerdict(colour=True, shape=True, place=True, size=True)
WRONG = ObjectVerdict(colour=False, shape=False, place=False, size=False)


def scenes(count: int, seed: str, num_objects: int | None = None) -> list[Scene]:
    """Make random scenes; equal seeds give equal scenes."""
    rng = random.Random(seed)
    return [clear_scene(rng, num_objects) for _ in range(count)]


def shares_right(verdicts: list[Verdict]) -> dict[str, float]:
    """Compute the share of right verdicts for each attribute."""
    objects = [o for v in verdicts for o in v.objects]
    shares = {name: sum(getattr(o, name) for o in objects) / len(objects) for name in ATTRIBUTES}
    return shares | {"background": sum(v.background for v in verdicts) / len(verdicts)}


def blur(image: Tensor, width: int) -> Tensor:
    """Average over squares of an odd width."""
    return F.avg_pool2d(F.pad(image[None], [width // 2] * 4, mode="replicate"), width, stride=1)[0]


def soften(image: Tensor, seed: int) -> Tensor:
    """Blur, saturate the colours and add noise, like a small diffusion model."""
    blurred = blur(image, 3)
    grey = blurred.mean(0, keepdim=True)
    noise = 0.03 * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return (grey + 1.15 * (blurred - grey) + noise).clamp(0, 1)


def other(rng: random.Random, words: Iterable[str], *used: str) -> str:
    """Choose a random word that is not used."""
    return rng.choice([word for word in words if word not in used])


def change(scene: Scene, attribute: str, rng: random.Random) -> Scene:
    """Change one attribute of the first object, or the background."""
    colours = (scene.background, *(o.colour for o in scene.objects))
    if attribute == "background":
        return replace(scene, background=other(rng, COLOURS, *colours))
    thing, *rest = scene.objects
    words = {"colour": COLOURS, "shape": SHAPES, "place": PLACES, "size": SIZES}[attribute]
    used = colours if attribute == "colour" else (getattr(thing, attribute),)
    changed: dict[str, Any] = {attribute: other(rng, words, *used)}
    return replace(scene, objects=(replace(thing, **changed), *rest))


def test_drawn_scenes_are_judged_right() -> None:
    shares = shares_right([judge(draw(scene), scene) for scene in scenes(100, "drawn")])
    assert min(shares.values()) >= 0.99, shares


def test_softened_scenes_are_judged_right() -> None:
    shares = shares_right([judge(soften(draw(s), i), s) for i, s in enumerate(scenes(50, "softened"))])
    assert min(shares.values()) >= 0.95, shares


@pytest.mark.parametrize("attribute", ["background", *ATTRIBUTES])
def test_one_changed_attribute_is_the_only_one_judged_wrong(attribute: str) -> None:
    rng = random.Random(attribute)
    originals = scenes(20, f"changed {attribute}", 1 if attribute == "place" else None)
    exact = 0
    for scene in originals:
        right = Verdict(True, (RIGHT,) * len(scene.objects))
        first = RIGHT if attribute == "background" else replace(RIGHT, **{attribute: False})
        expected = replace(right, background=attribute != "background", objects=(first, *right.objects[1:]))
        exact += judge(draw(change(scene, attribute, rng)), scene) == expected
    assert exact >= 0.97 * len(originals)


@pytest.mark.parametrize("num_objects", [1, 2])
def test_a_plain_background_shows_no_object(num_objects: int) -> None:
    for i, scene in enumerate(scenes(12, "plain", num_objects)):
        dot = replace(scene.objects[0], stretch=1e-3)
        plain = draw(replace(scene, objects=(dot,)))
        for image in (plain, soften(plain, i)):
            assert judge(image, scene) == Verdict(True, (WRONG,) * num_objects)


def test_a_missing_second_object_is_wrong_and_the_first_one_right() -> None:
    for scene in scenes(15, "missing", 2):
        image = draw(replace(scene, objects=scene.objects[:1]))
        assert judge(image, scene) == Verdict(True, (RIGHT, WRONG))


def test_exchanged_objects_are_wrong_in_their_different_attributes() -> None:
    for scene in scenes(15, "exchanged", 2):
        a, b = scene.objects
        same = ObjectVerdict(colour=False, shape=a.shape == b.shape, place=True, size=a.size == b.size)
        swapped = replace(scene, objects=(replace(a, place=b.place), replace(b, place=a.place)))
        assert judge(draw(swapped), scene) == Verdict(True, (same, same))


def test_an_object_between_the_places_has_no_place() -> None:
    scene = scenes(1, "between", 1)[0]
    thing = replace(scene.objects[0], place="middle", offset=(13.0, 13.0))
    finding = recognise(draw(replace(scene, objects=(thing,))), "middle", ("middle",))
    assert finding is not None and (finding.colour, finding.shape, finding.place) == (thing.colour, thing.shape, None)


def test_a_line_has_no_shape() -> None:
    image = torch.full((3, 64, 64), 0.95)
    image[:, 31:33, 4:60] = torch.tensor(COLOURS["red"])[:, None, None]
    finding = recognise(image, "middle", ("middle",))
    assert finding is not None and (finding.colour, finding.shape) == ("red", None)


def test_a_small_speck_does_not_change_the_verdict() -> None:
    for scene in scenes(6, "speck"):
        image = draw(scene)
        image[:, 2:8, 2:8] = 1 - image[:, 2:8, 2:8]
        assert judge(image, scene) == Verdict(True, (RIGHT,) * len(scene.objects))


def test_an_object_at_the_border_does_not_change_the_fitted_background() -> None:
    for scene in scenes(6, "border", 1):
        thing = replace(scene.objects[0], size="large", shape="square", place="left", offset=(-7.0, 0.0))
        # without texture, and not so bright that the image is clipped
        smooth = replace(scene, texture=(0.0,) * len(scene.texture), tone=(0.0, 0.0, 0.0), shade=0.04)
        empty, full = (draw(replace(smooth, objects=(replace(thing, stretch=s),))) for s in (1e-3, 1.0))
        assert torch.allclose(fit_background(full), fit_background(empty), atol=0.03)


def test_a_strong_blur_keeps_the_colours() -> None:
    originals = scenes(15, "blurred")
    assert shares_right([judge(blur(draw(scene), 5), scene) for scene in originals])["colour"] >= 0.97


@pytest.mark.parametrize("gain", [0.75, 1.1])
@pytest.mark.parametrize("saturation", [0.7, 1.3])
def test_a_dark_or_pale_colour_keeps_its_name(gain: float, saturation: float) -> None:
    for name, colour in COLOURS.items():
        seen = gain * torch.tensor(colour)
        assert name_colour((seen.mean() + saturation * (seen - seen.mean())).clamp(0, 1)) == name
