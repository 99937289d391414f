"""Edits of drawn scenes are judged right, since the true result can be drawn."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
import torch

from nti_batch.demo.edits import (
    KINDS,
    EditVerdict,
    Kind,
    blend_words,
    edit_mask,
    judge_edit,
    random_edit,
)
from nti_batch.demo.scenes import COLOURS, PLACES, SIZES, Scene, clear_scene, draw, object_masks
from nti_batch.demo.shapes import SHAPES

COUNT = 100


def edits(kind: Kind, count: int = COUNT, num_objects: int | None = None) -> Iterator[tuple[Scene, Scene]]:
    """Make random scenes and their edits, equal in every run."""
    rng = random.Random(f"edits {kind}")
    for _ in range(count):
        source = clear_scene(rng, 1 if kind == "place" else num_objects)
        yield source, random_edit(source, kind, rng)


def flags(verdict: EditVerdict) -> tuple[bool, bool, bool, bool]:
    return verdict.asked, verdict.object_kept, verdict.others_kept, verdict.background_kept


def changed_index(source: Scene, edited: Scene) -> int:
    return next(i for i, (a, b) in enumerate(zip(source.objects, edited.objects, strict=True)) if a != b)


@pytest.mark.parametrize("kind", KINDS)
def test_the_edited_scene_drawn_is_judged_right_in_everything(kind: Kind):
    verdicts = [judge_edit(draw(edited), source, edited) for source, edited in edits(kind)]
    assert sum(all(flags(v)) for v in verdicts) >= 0.99 * COUNT
    assert all(v.psnr_truth == 100 for v in verdicts)


@pytest.mark.parametrize("kind", KINDS)
def test_the_source_is_judged_unedited_with_everything_else_kept(kind: Kind):
    verdicts = [judge_edit(draw(source), source, edited) for source, edited in edits(kind)]
    assert sum(flags(v) == (False, True, True, True) for v in verdicts) >= 0.99 * COUNT
    assert not any(v.psnr_unedited < 100 for v in verdicts)
    assert all(v.psnr_truth < 40 for v in verdicts)


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_changes_one_word_to_another(kind: Kind):
    for source, edited in edits(kind):
        words = list(zip(source.caption.split(), edited.caption.split(), strict=True))
        changed = {pair for pair in words if pair[0] != pair[1]}
        grammar = {(a, b) for a in ("a", "an", "on", "at", "in") for b in ("a", "an", "on", "at", "in")}
        words_of: dict[str, Iterable[str]] = {"background": COLOURS, "colour": COLOURS, "shape": SHAPES, "size": SIZES}
        ((before, after),) = changed - grammar
        assert {before, after} <= set(words_of.get(kind, PLACES))


@pytest.mark.parametrize("kind", KINDS)
def test_blend_words_occur_once_in_their_captions(kind: Kind):
    for source, edited in edits(kind):
        before, after = blend_words(source, edited)
        assert (source.caption.split().count(before), edited.caption.split().count(after)) == (1, 1)
        assert (before != after) == (kind in ("colour", "background"))


@pytest.mark.parametrize("kind", KINDS)
def test_colours_stay_different(kind: Kind):
    for _, edited in edits(kind):
        colours = [edited.background, *(thing.colour for thing in edited.objects)]
        assert len(set(colours)) == len(colours)


@pytest.mark.parametrize("kind", KINDS)
def test_images_differ_only_inside_the_mask(kind: Kind):
    for source, edited in edits(kind):
        differs = (draw(source) != draw(edited)).any(dim=0)
        assert not (differs & ~edit_mask(source, edited)).any()


def test_the_mask_of_a_moved_object_covers_both_places():
    for source, edited in edits("place", 20):
        here, there = (object_masks(scene)[0] > 0 for scene in (source, edited))
        assert torch.equal(edit_mask(source, edited), here | there)


def test_edits_choose_both_objects():
    chosen = [changed_index(*pair) for pair in edits("colour", 40, num_objects=2)]
    assert set(chosen) == {0, 1}


def test_equal_states_give_equal_edits():
    scene = clear_scene(random.Random(0), 1)
    for kind in KINDS:
        assert random_edit(scene, kind, random.Random(1)) == random_edit(scene, kind, random.Random(1))


def test_one_of_two_objects_is_not_moved():
    with pytest.raises(ValueError, match="one of two objects cannot be moved"):
        random_edit(clear_scene(random.Random(0), 2), "place", random.Random(0))


def wrong_colour(edited: Scene, index: int, rng: random.Random) -> Scene:
    used = {edited.background, *(thing.colour for thing in edited.objects)}
    thing = replace(edited.objects[index], colour=rng.choice([c for c in COLOURS if c not in used]))
    return replace(edited, objects=(*edited.objects[:index], thing, *edited.objects[index + 1 :]))


def wrong_shape(edited: Scene, index: int, rng: random.Random) -> Scene:
    thing = edited.objects[index]
    thing = replace(thing, shape=rng.choice([s for s in SHAPES if s != thing.shape]))
    return replace(edited, objects=(*edited.objects[:index], thing, *edited.objects[index + 1 :]))


def moved(edited: Scene, index: int, rng: random.Random) -> Scene:
    thing = edited.objects[index]
    place = next(p for p in ("middle", "top", "left") if p != thing.place)
    return replace(edited, objects=(replace(thing, place=place),))


def wrong_background(edited: Scene, index: int, rng: random.Random) -> Scene:
    used = {edited.background, *(thing.colour for thing in edited.objects)}
    return replace(edited, background=rng.choice([c for c in COLOURS if c not in used]))


@pytest.mark.parametrize(
    ("mistake", "kind", "of_changed", "num_objects", "expected"),
    [
        (wrong_colour, "colour", True, None, (False, True, True, True)),
        (wrong_colour, "shape", True, None, (True, False, True, True)),
        (wrong_colour, "size", False, 2, (True, True, False, True)),
        (wrong_shape, "shape", True, None, (False, True, True, True)),
        (wrong_shape, "colour", True, None, (True, False, True, True)),
        (wrong_shape, "colour", False, 2, (True, True, False, True)),
        (moved, "colour", True, 1, (True, False, True, True)),
        (moved, "place", True, 1, (False, True, True, True)),
        (wrong_background, "colour", True, None, (True, True, True, False)),
        (wrong_background, "background", True, None, (False, True, True, True)),
    ],
)
def test_a_mistake_is_found_in_the_right_attribute(mistake, kind, of_changed, num_objects, expected):  # noqa: ANN001
    rng = random.Random("mistakes")
    exact = 0
    for source, edited in edits(kind, 60, num_objects):
        changed = 0 if kind == "background" else changed_index(source, edited)
        image = draw(mistake(edited, changed if of_changed else 1 - changed, rng))
        verdict = judge_edit(image, source, edited)
        exact += flags(verdict) == expected
        assert verdict.psnr_truth < 45
    assert exact >= 57


def test_pixels_inside_the_mask_do_not_count_as_unedited():
    for source, edited in edits("colour", 20):
        image = draw(source)
        image[:, edit_mask(source, edited)] = 0.5
        assert judge_edit(image, source, edited).psnr_unedited == 100
        image[:, 0, 0] += 0.5 if image[0, 0, 0] < 0.5 else -0.5
        assert judge_edit(image, source, edited).psnr_unedited < 60
