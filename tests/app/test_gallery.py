"""The images of a run are found by their key and their caption."""

import shutil
from pathlib import Path

import pytest
import torch

from nti_batch import InversionDataset, read_inversions
from nti_batch.app.gallery import MAX_SHOWN, Entry, Gallery, describe


@pytest.fixture
def gallery(app_run: Path) -> Gallery:
    return Gallery(InversionDataset(app_run, pixels=True))


def test_a_search_finds_a_part_of_a_key_or_of_a_caption_in_any_case(gallery: Gallery, app_run: Path):
    prompts = {stored.key: stored.prompt for stored in read_inversions(app_run)}
    everything = gallery.search("")
    assert {entry.key: entry.prompt for entry in everything} == prompts
    for text in ("Small", " ring ", "000001", "background"):
        found = {entry.key for entry in gallery.search(text)}
        wanted = text.strip().lower()
        assert found == {key for key, prompt in prompts.items() if wanted in key or wanted in prompt}
    assert gallery.search("no such word") == []


def test_a_search_ends_at_its_limit_and_reads_no_further_caption(gallery: Gallery, monkeypatch: pytest.MonkeyPatch):
    real, read = InversionDataset.metadata, []

    def counted(dataset: InversionDataset, index: tuple[str, str]) -> object:
        read.append(index)
        return real(dataset, index)

    monkeypatch.setattr(InversionDataset, "metadata", counted)
    assert len(gallery.search("", most=1)) == len(read) == 1
    gallery.search("", most=2)
    assert len(read) == 2


def test_an_image_that_cannot_be_read_any_more_has_a_reason(app_run: Path, gallery: Gallery):
    shard, key = gallery.dataset.ids[0]
    dataset = gallery.dataset[shard, key]
    assert dataset.pixels is not None
    pixels, reason = gallery.pixels(shard, key)
    assert pixels is not None and torch.equal(pixels, dataset.pixels) and reason == ""
    pixels, reason = gallery.pixels("elsewhere", key)
    assert pixels is None and "'elsewhere' is not among" in reason


def test_a_damaged_part_is_named_in_the_place_of_its_captions(app_run: Path, tmp_path: Path):
    shutil.copytree(app_run, tmp_path / "run")
    part = next(tar for tar in (tmp_path / "run" / "inversions").glob("*.tar"))
    gallery = Gallery(InversionDataset(tmp_path / "run", pixels=True))
    part.write_bytes(part.read_bytes()[:1000])
    assert any("cannot be read: " in entry.prompt for entry in gallery.search(""))


def test_the_page_says_how_many_images_it_shows():
    entries = [Entry("a", str(n), "") for n in range(MAX_SHOWN)]
    assert describe(entries[:2], 12) == "2 of 12 images"
    assert describe(entries, 1234).startswith(f"The first {MAX_SHOWN} images that fit, of 1,234.")
