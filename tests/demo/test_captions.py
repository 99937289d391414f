"""Captions leave out attributes and name wrong ones as often as they should, and know what each word names."""

import random
from dataclasses import replace

import pytest

from nti_batch.demo.captions import CaptionRates, random_words
from nti_batch.demo.scenes import Scene, Word, random_scene

OMITTED = ("size", "place", "colour", "background")
MISTAKEN = ("size", "colour", "shape")


def rates(share: float) -> CaptionRates:
    return CaptionRates(dict.fromkeys(OMITTED, share), dict.fromkeys(MISTAKEN, share))


TRUE = rates(0.0)
COUNT = 3000


def scenes(num_objects: int) -> list[Scene]:
    rng = random.Random(3)
    return [random_scene(rng, num_objects) for _ in range(COUNT)]


def captions(of: list[Scene], rates: CaptionRates) -> list[list[Word]]:
    rng = random.Random(4)
    return [random_words(scene, rates, rng) for scene in of]


def share(holds: list[bool]) -> float:
    return sum(holds) / len(holds)


def test_a_caption_without_faults_is_the_caption_of_the_scene():
    for num_objects in (1, 2):
        of = scenes(num_objects)[:50]
        texts = [" ".join(word.text for word in words) for words in captions(of, TRUE)]
        assert texts == [scene.caption for scene in of]


def test_words_of_colour_and_shape_name_their_object_and_the_last_words_name_the_background():
    for scene, words in zip(scenes(2)[:50], captions(scenes(2)[:50], TRUE), strict=True):
        named = {region: [w.text for w in words if w.region == region] for region in range(3)}
        first, second = scene.objects
        assert named[0] == [first.colour, first.shape] and named[1] == [second.colour, second.shape]
        assert named[2] == [scene.background, "background"]


# five standard errors of a share of 3,000 captions are below 5 %
@pytest.mark.parametrize("kind", ["size", "place", "colour", "background"])
def test_a_share_of_the_captions_leaves_out_an_attribute(kind: str):
    of = scenes(1)
    of_scenes = captions(of, replace(TRUE, omitted={**TRUE.omitted, kind: 0.25}))
    words = [scene.background if kind == "background" else getattr(scene.objects[0], kind) for scene in of]
    missing = [word not in [w.text for w in caption] for word, caption in zip(words, of_scenes, strict=True)]
    assert share(missing) == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("kind", MISTAKEN)
def test_a_share_of_the_captions_names_a_wrong_attribute(kind: str):
    of = scenes(1)
    of_scenes = captions(of, replace(TRUE, mistaken={**TRUE.mistaken, kind: 0.25}))
    wrong = [
        getattr(scene.objects[0], kind) not in [w.text for w in caption]
        for scene, caption in zip(of, of_scenes, strict=True)
    ]
    assert share(wrong) == pytest.approx(0.25, abs=0.05)


def test_a_caption_never_names_a_wrong_place_or_background():
    always = replace(TRUE, mistaken=dict.fromkeys(MISTAKEN, 1.0))
    for scene, words in zip(scenes(1)[:50], captions(scenes(1)[:50], always), strict=True):
        texts = [w.text for w in words]
        assert scene.objects[0].place in texts and texts[-2] == scene.background


def test_the_places_of_two_objects_are_always_told_and_right():
    for scene, words in zip(scenes(2)[:50], captions(scenes(2)[:50], rates(1.0)), strict=True):
        texts = [w.text for w in words]
        assert [t for t in texts if t in ("left", "right", "top", "bottom")] == [o.place for o in scene.objects]
