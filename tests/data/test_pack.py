"""`nti-batch pack` through the front door: what its shards hold, and what it reports."""

import json
import os
from pathlib import Path

import pytest
from helpers.jobs import arguments
from helpers.pack import NAMES, failures, members, pack, refusal, shards, write_folder
from helpers.tables import write_parquet
from helpers.tiny import png, write_shard

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.lock import UnitLock


def test_shards_hold_the_images_as_they_are_under_the_names_that_img2dataset_gives(tmp_path: Path):
    source = write_folder(tmp_path / "source", ("c", "a", "b", "d"))
    (source / "a.png").rename(source / "a.JPG")
    assert pack(source, tmp_path / "out") == 0
    found = members(tmp_path / "out")
    assert list(found) == [
        *("00000/000000000.jpg", "00000/000000000.json", "00000/000000000.txt"),
        *("00000/000000001.json", "00000/000000001.png", "00000/000000001.txt"),
        *("00000/000000002.json", "00000/000000002.png", "00000/000000002.txt"),
        *("00001/000010000.json", "00001/000010000.png", "00001/000010000.txt"),
    ]
    assert found["00000/000000000.jpg"] == png(1)
    assert found["00001/000010000.png"] == png(3)
    assert found["00001/000010000.txt"].decode() == "image 3 of 'd' é"
    metadata = json.loads(found["00001/000010000.json"])
    assert metadata == {"caption": "image 3 of 'd' é", "key": "000010000", "path": "d.png"}
    stats = json.loads((tmp_path / "out" / "00000_stats.json").read_text())
    assert (stats["count"], stats["successes"]) == (3, 3)


def test_every_name_is_packed_in_the_order_of_paths_without_extensions(tmp_path: Path):
    assert pack(write_folder(tmp_path / "source"), tmp_path / "out") == 0
    found = members(tmp_path / "out")
    metadata = [json.loads(content) for name, content in found.items() if name.endswith(".json")]
    assert [record["path"] for record in metadata] == [f"{name}.png" for name in sorted(NAMES)]
    for number, name in enumerate(NAMES):
        (record,) = (record for record in metadata if record["path"] == f"{name}.png")
        assert found[f"{record['key'][:5]}/{record['key']}.png"] == png(number)
        assert record["caption"] == f"image {number} of {name!r} é"


def test_a_name_that_is_no_utf_8_is_packed_and_found_again_by_its_path(tmp_path: Path):
    folder = os.fsencode(write_folder(tmp_path / "source", ("a",)))
    for ending, content in ((b"png", png(5)), (b"txt", b"odd")):
        with open(folder + b"/\xff." + ending, "wb") as file:
            file.write(content)
    assert pack(tmp_path / "source", tmp_path / "out") == 0
    metadata = json.loads(members(tmp_path / "out")["00000/000000001.json"])
    assert os.fsencode(metadata["path"]) == b"\xff.png"


def test_the_number_of_workers_changes_no_byte(tmp_path: Path):
    source = write_folder(tmp_path / "source", tuple(str(n) for n in range(20)))
    (source / "7.txt").unlink()
    for workers in (1, 4):
        assert pack(source, tmp_path / str(workers), f"--workers={workers}") == 3
    assert shards(tmp_path / "1") == shards(tmp_path / "4")


def test_images_that_cannot_be_packed_are_reported_and_the_rest_is_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = write_folder(tmp_path / "source", ("good/a", "mute", "blank", "twin", "gone", "pipe", "latin", "both"))
    (source / "mute.txt").unlink()
    (source / "blank.txt").write_text(" \n")
    (source / "twin.jpg").write_bytes(png(9))
    (source / "gone.png").unlink()
    (source / "gone.png").symlink_to(source / "nowhere")
    (source / "pipe.png").unlink()
    os.mkfifo(source / "pipe.png")
    (source / "latin.txt").write_bytes(b"caf\xe9")
    (source / "both.TXT").write_text("another")
    (source / "stray.txt").write_text("of nothing")
    (source / "link").symlink_to(source / "good")
    for passed in (".hidden.png", "__MACOSX/x.png", "notes.pdf", "data.json"):
        (source / passed).parent.mkdir(exist_ok=True)
        (source / passed).write_bytes(b"x")
    assert pack(source, tmp_path / "out") == 3
    out, err = capsys.readouterr()
    reasons = {
        "mute.png": "caption: there is no .txt of its name",
        "blank.png": "caption: the caption is empty",
        "twin.jpg": "image: it shares its name with twin.png",
        "gone.png": "image: it cannot be read: No such file or directory",
        "pipe.png": "image: it is no regular file",
        "latin.png": "caption: 'utf-8' codec can't decode byte 0xe9 in position 3: unexpected end of data",
        "both.png": "caption: there are several captions of its name: both.TXT, both.txt",
        "stray.txt": "image: there is no image of this name",
        "link": "folder: it is a link to a folder, which is not followed",
    }
    assert failures(err) == reasons
    summary = "1 of 10 images packed into", "4 failed at stage 'caption'", "1 failed at stage 'folder'"
    assert all(line in out for line in (*summary, "4 failed at stage 'image'"))
    assert [name.partition(".")[2] for name in members(tmp_path / "out")] == ["json", "png", "txt"]
    before = shards(tmp_path / "out")
    assert pack(source, tmp_path / "out") == 3, "a second run has nothing to do, and still reports"
    assert failures(capsys.readouterr().err) == reasons
    assert shards(tmp_path / "out") == before


def test_a_shard_without_a_packed_image_has_no_tar(tmp_path: Path):
    source = write_folder(tmp_path / "source", ("a", "b", "c", "d"))
    for name in "abc":
        (source / f"{name}.txt").unlink()
    assert pack(source, tmp_path / "out") == 3
    assert [path.name for path in sorted((tmp_path / "out").glob("*.tar"))] == ["00001.tar"]
    assert pack(source, tmp_path / "out") == 3


def test_two_packs_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, out = write_folder(tmp_path / "source", ("a",)), tmp_path / "out"
    out.mkdir()
    lock = UnitLock(out / "pack.lock")
    assert pack(source, out) == 1
    assert f"output folder {str(out)!r} is in use by another job (host " in refusal(capsys)
    lock.release()
    assert pack(source, out) == 0
    assert not (out / "pack.lock").exists()


def test_a_finished_shard_is_not_packed_again_and_one_that_was_removed_is(tmp_path: Path):
    source, out = write_folder(tmp_path / "source"), tmp_path / "out"
    assert pack(source, out) == 0
    whole = shards(out)
    (out / "00001.tar").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert pack(source, out) == 0
    assert shards(out) == whole
    assert times.items() <= {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}.items()


def test_packed_images_are_inverted_with_their_captions(tiny_model: Path, tmp_path: Path):
    assert pack(write_folder(tmp_path / "source"), tmp_path / "shards") == 0
    paths = {
        metadata["key"]: metadata["path"]
        for metadata in (json.loads(c) for name, c in members(tmp_path / "shards").items() if name.endswith(".json"))
    }
    for caption in ("txt", "json:caption"):
        out = tmp_path / caption
        assert main(arguments(tiny_model, tmp_path / "shards" / "*.tar", out, f"--data.caption={caption}")) == 0
        prompts = {paths[stored.key]: stored.prompt for stored in read_inversions(out)}
        assert prompts == {f"{name}.png": f"image {n} of {name!r} é" for n, name in enumerate(NAMES)}


def test_the_shards_of_img2dataset_are_inverted_unchanged(tiny_model: Path, tmp_path: Path):
    """Its members in its order; what it could not download is in the parquet alone, and leaves a hole in the keys."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    for shard in range(2):
        files: dict[str, bytes] = {}
        for index in (2, 0):
            key = f"{shard:05d}{index:04d}"
            meta = {
                **{"url": f"https://example.org/{key}.png", "caption": f"of {key}", "key": key, "status": "success"},
                **{"error_message": None, "width": 16, "height": 16, "original_width": 16, "original_height": 16},
                **{"exif": "{}", "sha256": "0" * 64},
            }
            files |= {f"{key}.jpg": png(index), f"{key}.json": json.dumps(meta, indent=4).encode()}
            files[f"{key}.txt"] = f"of {key}".encode()
        write_shard(folder / f"{shard:05d}.tar", files)
        write_parquet(folder / f"{shard:05d}.parquet", [{"key": f"{shard:05d}0001", "status": "failed_to_download"}])
        (folder / f"{shard:05d}_stats.json").write_text('{"count": 3, "successes": 2, "failed_to_download": 1}')
    expected = {(f"{shard:05d}", f"{shard:05d}{index:04d}") for shard in range(2) for index in (0, 2)}
    for name, pattern, caption in (("a", "*.tar", "txt"), ("b", "{00000..00001}.tar", "json:caption")):
        assert main(arguments(tiny_model, folder / pattern, tmp_path / name, f"--data.caption={caption}")) == 0
        found = {(stored.shard, stored.key): stored.prompt for stored in read_inversions(tmp_path / name)}
        assert found == {image: f"of {image[1]}" for image in expected}
