"""A dataset gives what `read_inversions` gives, in any order, each once, and with the image that was inverted."""

import dataclasses
import gzip
import io
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.forks import FORKS
from helpers.inversions import KEYS, ORIGIN, SETTINGS, inversion
from helpers.jobs import arguments
from helpers.runs import create_run
from helpers.tiny import captioned, png, write_shard
from torch.utils.data import ConcatDataset, DataLoader

from nti_batch import InversionBatch, InversionDataset, StoredInversion, read_inversions
from nti_batch.cli import main
from nti_batch.data import tar
from nti_batch.data.images import decode_image
from nti_batch.output import dataset
from nti_batch.records import Failure, WorkUnit


def write_run(out: Path, shards: tuple[str, ...] = ("a", "b"), parts: int = 2) -> Path:
    """Write a run with all of `KEYS` and a failure in each part of each shard; keys differ by part."""
    run = create_run(out, SETTINGS, [f"{shard}.tar" for shard in shards])
    for shard in shards:
        unit = WorkUnit(shard, f"{shard}.tar", 1, 3)
        for number in range(parts):
            part = run.new_part(unit, ORIGIN)
            part.add_failure(Failure(unit, f"bad {number}", "image", "it is HTML"))
            for key in KEYS:
                part.add(inversion(f"{number}{key}", unit))
            part.commit()
    return out


def same(one: StoredInversion, other: StoredInversion) -> bool:
    return (
        (one.shard, one.key, one.prompt, one.metadata) == (other.shard, other.key, other.prompt, other.metadata)
        and torch.equal(one.noise_latents, other.noise_latents)
        and torch.equal(one.null_embeddings, other.null_embeddings)
        and one.pivot is other.pivot is None
        and one.pixels is other.pixels is None
    )


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return write_run(tmp_path / "out")


@pytest.fixture(scope="module")
def inverted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the shards a and b, which share keys but not images, and their inversions in `out`."""
    folder = tmp_path_factory.mktemp("inverted")
    write_shard(folder / "a.tar", captioned(4))
    write_shard(folder / "b.tar", {name: png(9) if name == "001.png" else data for name, data in captioned(2).items()})
    size = ["--data.height=16", "--data.width=24"]
    assert main([*arguments(tiny_model, folder / "[ab].tar", folder / "out"), *size]) == 0
    return folder


def test_every_inversion_is_the_same_by_index_by_id_and_in_the_stream(out: Path):
    expected = list(read_inversions(out))
    opened = InversionDataset(out)
    assert len(opened) == len(expected) == 4 * len(KEYS)
    assert opened.ids == [(stored.shard, stored.key) for stored in expected]
    for index, (stored, streamed) in enumerate(zip(expected, opened, strict=True)):
        for found in (streamed, opened[index], opened[index - len(opened)], opened[stored.shard, stored.key]):
            assert same(found, stored)


def test_an_unknown_index_or_id_is_refused(out: Path):
    opened = InversionDataset(out)
    with pytest.raises(IndexError):
        opened[len(opened)]
    with pytest.raises(KeyError, match=r"has no inversion of the key 'bad 0' in shard 'a'"):
        opened["a", "bad 0"]


@pytest.mark.parametrize("shuffle", [False, True])
def test_two_new_workers_give_each_inversion_once(out: Path, shuffle: bool):
    opened = InversionDataset(out)
    loader = DataLoader(
        opened, batch_size=3, shuffle=shuffle, num_workers=2, collate_fn=list, multiprocessing_context=FORKS
    )
    found = [stored for batch in loader for stored in batch]
    assert Counter((stored.shard, stored.key) for stored in found) == dict.fromkeys(opened.ids, 1)
    assert all(same(stored, opened[stored.shard, stored.key]) for stored in found)


def test_several_runs_are_joined_by_concat_dataset(out: Path, tmp_path: Path):
    more = write_run(tmp_path / "more", shards=("c",), parts=1)
    both: ConcatDataset[StoredInversion] = ConcatDataset([InversionDataset(out), InversionDataset(more)])
    found = [(both[i].shard, both[i].key) for i in range(len(both))]
    assert found == [(s.shard, s.key) for run in (out, more) for s in read_inversions(run)]


def test_opening_reads_no_part_and_an_item_names_the_one_that_is_gone(out: Path):
    for part in (out / "inversions").glob("*.tar"):
        part.unlink()
    opened = InversionDataset(out)
    assert len(opened) == 4 * len(KEYS)
    with pytest.raises(ValueError, match=r"a\.1of3\.00000\.tar is damaged: .*No such file"):
        opened[0]


def test_an_item_reads_its_own_bytes_and_the_headers_of_its_part(out: Path, monkeypatch: pytest.MonkeyPatch):
    opened, expected = InversionDataset(out), list(read_inversions(out))[len(KEYS)]
    sizes = []

    class Counted(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            content = super().read(size)
            sizes.append(len(content))
            return content

    monkeypatch.setattr(tar, "open", Counted, raising=False)
    assert same(opened[len(KEYS)], expected)
    assert len(sizes) == 2
    assert sum(sizes) < (out / "inversions" / "a.1of3.00001.tar").stat().st_size / len(KEYS)


@pytest.mark.parametrize("place", [b"a picture of", b'"noise_latents"'])
def test_a_flipped_bit_in_an_item_raises_and_names_the_part_and_leaves_its_neighbour(out: Path, place: bytes):
    part = out / "inversions" / "a.1of3.00000.tar"
    neighbour, damaged = InversionDataset(out)[1], bytearray(part.read_bytes())
    damaged[damaged.index(place) + 5] ^= 1
    part.write_bytes(damaged)
    opened = InversionDataset(out)
    with pytest.raises(ValueError, match=r"a\.1of3\.00000\.tar is damaged: bytes \d+ to \d+ have changed"):
        opened[0]
    assert same(opened[1], neighbour)


def test_any_flipped_bit_raises_naming_the_part_or_changes_nothing(out: Path):
    part = out / "inversions" / "a.1of3.00000.tar"
    content, expected = part.read_bytes(), list(InversionDataset(out))[: len(KEYS)]
    for position in range(0, len(content), 97):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        part.write_bytes(damaged)
        opened = InversionDataset(out)
        for index in range(len(KEYS)):
            try:
                assert same(opened[index], expected[index])
            except ValueError as error:
                assert str(part) in str(error)


def test_few_parts_are_remembered(out: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dataset, "_MAX_CACHED_PARTS", 1)
    opened = InversionDataset(out)
    found = [opened[index] for index in (0, -1, 1)]
    assert [(stored.shard, stored.key) for stored in found] == [opened.ids[index] for index in (0, -1, 1)]
    assert len(opened._parts) == 1


# --- input images ---


def input_images(opened: InversionDataset) -> Iterator[tuple[tuple[str, str], torch.Tensor]]:
    for stored in pickle.loads(pickle.dumps(opened)):
        assert stored.pixels is not None
        yield (stored.shard, stored.key), stored.pixels


def expected_pixels(shard: str, key: str) -> torch.Tensor:
    seed = 9 if (shard, key) == ("b", "001") else int(key)
    return decode_image(png(seed), 16, 24)


def test_the_pixels_are_the_input_as_it_was_inverted(inverted: Path):
    found = dict(input_images(InversionDataset(inverted / "out", pixels=True)))
    assert len(found) == 6
    assert all(torch.equal(pixels, expected_pixels(*id)) for id, pixels in found.items())


def test_the_shards_may_have_moved(inverted: Path, tmp_path: Path):
    (tmp_path / "b.tar").write_bytes((inverted / "b.tar").read_bytes())
    opened = InversionDataset(inverted / "out", pixels=True, shards=str(tmp_path / "*.tar"))
    assert torch.equal(opened["b", "001"].pixels, expected_pixels("b", "001"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the input shard 'a' is not among b: give shards=\.\.\. with it"):
        opened["a", "001"]


def test_pixels_that_cannot_be_read_raise_the_reason(inverted: Path, tmp_path: Path):
    def ask(shards: str) -> None:
        InversionDataset(inverted / "out", pixels=True, shards=shards)["b", "001"]

    content = (inverted / "b.tar").read_bytes()
    damaged = tmp_path / "b.tar"
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=r"b\.tar\.gz' is compressed"):
        ask(str(tmp_path / "b.tar.gz"))
    with pytest.raises(ValueError, match=r"'https://host/b\.tar' is remote"):
        ask("https://host/b.tar")
    damaged.write_bytes(content[: content.index(b"001.png")])
    with pytest.raises(ValueError, match=r"b\.tar' has no whole image of the key '001'"):
        ask(str(damaged))
    damaged.write_bytes(content.replace(png(9), bytes(len(png(9)))))
    with pytest.raises(ValueError, match=r"b\.tar' is damaged at the key '001'"):
        ask(str(damaged))
    opened = InversionDataset(inverted / "out", pixels=True, shards=str(damaged))
    damaged.unlink()
    with pytest.raises(ValueError, match=r"b\.tar' cannot be read \(No such file or directory\): give shards="):
        opened["b", "001"]


def test_shards_without_pixels_are_refused(inverted: Path):
    with pytest.raises(ValueError, match="no pixels are asked for: add pixels=True"):
        InversionDataset(inverted / "out", shards="a.tar")


def test_the_images_of_a_folder_stand_beside_their_inversions(tiny_model: Path, tmp_path: Path):
    folder = tmp_path / "photos"
    (folder / "cats").mkdir(parents=True)
    for number, name in enumerate(("cats/tom", "dog")):
        (folder / f"{name}.png").write_bytes(png(number))
        (folder / f"{name}.txt").write_text("an animal")
    job = ["invert", f"--model.name={tiny_model}", f"--data.images={folder}", f"--output.dir={tmp_path / 'out'}"]
    assert main([*job, "--model.method=negative-prompt", "--model.num_steps=2", "--trainer.accelerator=cpu"]) == 0
    dataset = InversionDataset(tmp_path / "out", pixels=True)
    assert set(dataset.ids) == {("images", "cats/tom"), ("images", "dog")}
    for number, key in enumerate(("cats/tom", "dog")):
        pixels = dataset["images", key].pixels
        assert pixels is not None and torch.equal(pixels, decode_image(png(number), 16, 16))


def test_the_collate_function_stacks_batches(inverted: Path):
    run = inverted / "out"
    dataset = InversionDataset(run, pixels=True)
    batch: InversionBatch
    (batch,) = DataLoader(dataset, batch_size=len(dataset), collate_fn=dataset.collate_fn)
    items = list(dataset)
    assert batch.ids == dataset.ids and batch.prompts == [item.prompt for item in items]
    assert torch.equal(batch.noise_latents, torch.stack([item.noise_latents for item in items]))
    assert torch.equal(batch.null_embeddings, torch.stack([item.null_embeddings for item in items]))
    assert batch.pixels is not None and batch.pixels.dtype == torch.uint8 and len(batch.pixels) == len(items)
    assert batch.pivot is None
    assert InversionDataset.collate_fn(list(InversionDataset(run))).pixels is None
    other = dataclasses.replace(items[0], noise_latents=torch.zeros(4, 2, 2))
    with pytest.raises(ValueError, match=r"noise_latents of a batch have the shapes \(4, 2, 2\), .* collate_fn=list"):
        InversionDataset.collate_fn([items[0], other])


def test_a_dataset_names_its_run_and_counts_its_inversions(inverted: Path):
    run = inverted / "out"
    count = len(InversionDataset(run))
    assert repr(InversionDataset(run)) == f"InversionDataset({str(run)!r}): {count} inversions of 2 shards"
    assert "pixels=True" in repr(InversionDataset(run, pixels=True))
