"""`nti-batch pack` through the front door: what the shards hold, what is told, and what is left of a pack that died."""

import csv
import json
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.deaths import DIED, Death, Moment
from helpers.forks import FORKS
from helpers.jobs import arguments
from helpers.packing import NAMES, members, pack, write_folder
from helpers.tiny import captioned, png, write_shard

from nti_batch import files as parts
from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.data import image_list
from nti_batch.lock import UnitLock


def shards(out: Path) -> dict[str, bytes]:
    """All files of a pack."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.name != "pack.json"}


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
    assert found["00001/000010000.txt"].decode() == "picture 3 of 'd' é"
    told = json.loads(found["00001/000010000.json"])
    assert told == {"caption": "picture 3 of 'd' é", "key": "000010000", "path": "d.png"}
    stats = json.loads((tmp_path / "out" / "00000_stats.json").read_text())
    assert (stats["count"], stats["successes"]) == (3, 3)


def test_every_name_is_packed_in_the_order_of_paths_without_endings(tmp_path: Path):
    assert pack(write_folder(tmp_path / "source"), tmp_path / "out") == 0
    found = members(tmp_path / "out")
    told = [json.loads(content) for name, content in found.items() if name.endswith(".json")]
    assert [record["path"] for record in told] == [f"{name}.png" for name in sorted(NAMES)]
    for number, name in enumerate(NAMES):
        (record,) = (record for record in told if record["path"] == f"{name}.png")
        assert found[f"{record['key'][:5]}/{record['key']}.png"] == png(number)
        assert record["caption"] == f"picture {number} of {name!r} é"


def test_a_name_that_is_no_utf_8_is_packed_and_found_again_by_its_path(tmp_path: Path):
    folder = os.fsencode(write_folder(tmp_path / "source", ("a",)))
    for ending, content in ((b"png", png(5)), (b"txt", b"odd")):
        with open(folder + b"/\xff." + ending, "wb") as file:
            file.write(content)
    assert pack(tmp_path / "source", tmp_path / "out") == 0
    told = json.loads(members(tmp_path / "out")["00000/000000001.json"])
    assert os.fsencode(told["path"]) == b"\xff.png"


def test_a_shard_ends_where_its_bytes_would_be_too_many(tmp_path: Path):
    source = write_folder(tmp_path / "source", ("a", "b", "c", "d", "e"), ".jpg")
    for name, size in {"a": 60, "b": 40, "c": 500, "d": 1, "e": 99}.items():
        (source / f"{name}.jpg").write_bytes(bytes(size))
    assert main(["pack", str(source), str(tmp_path / "out"), "--shard-bytes=100"]) == 0
    images = [name for name in members(tmp_path / "out") if name.endswith(".jpg")]
    assert [name.removesuffix(".jpg") for name in images] == [
        *("00000/000000000", "00000/000000001"),
        "00001/000010000",
        *("00002/000020000", "00002/000020001"),
    ]


def write_csv(path: Path, lines: list[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, lines[0])
        rows.writeheader()
        rows.writerows(lines)


def write_jsonl(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_parquet(path: Path, lines: list[dict[str, object]]) -> None:
    # not in every process that is to die
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines), path)


TABLES: dict[str, Callable[[Path, list[dict[str, object]]], None]] = {
    ".csv": write_csv,
    ".jsonl": write_jsonl,
    ".parquet": write_parquet,
}


@pytest.mark.parametrize("ending", TABLES)
def test_a_table_gives_the_same_shards_as_the_folder(tmp_path: Path, ending: str):
    source = write_folder(tmp_path / "source")
    lines: list[dict[str, object]] = [
        {"n": n, "image": f"{name}.png", "text": f" picture {n} of {name!r} é"} for n, name in enumerate(NAMES)
    ]
    TABLES[ending](source / f"list{ending}", lines)
    assert pack(source, tmp_path / "folder") == 0
    columns = ("--path-column=image", "--caption-column=text")
    assert pack(source / f"list{ending}", tmp_path / "table", *columns) == 0
    assert shards(tmp_path / "table") == shards(tmp_path / "folder")
    assert len(shards(tmp_path / "table")) == 2 * 3


def test_the_number_of_workers_changes_no_byte(tmp_path: Path):
    source = write_folder(tmp_path / "source", tuple(str(n) for n in range(20)))
    (source / "7.txt").unlink()
    for workers in (1, 4):
        assert pack(source, tmp_path / str(workers), f"--workers={workers}") == 3
    assert shards(tmp_path / "1") == shards(tmp_path / "4")


def told(err: str) -> dict[str, str]:
    """'stage: reason' by the path, of the lines about images."""
    found = re.findall(r"^'(.+)': (\w+: .+)$", err, re.MULTILINE)
    assert len(found) == len(dict(found)) == err.count("\n")
    return dict(found)


def test_what_cannot_be_packed_is_told_with_the_reason_and_the_rest_is_packed(
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
        "both.png": "caption: captions of its name are both.TXT, both.txt",
        "stray.txt": "image: there is no image of this name",
        "link": "folder: it is a link to a folder, which is not followed",
    }
    assert told(err) == reasons
    summary = "1 of 10 images packed into", "4 failed at stage 'caption'", "1 failed at stage 'folder'"
    assert all(line in out for line in (*summary, "4 failed at stage 'image'"))
    assert [name.partition(".")[2] for name in members(tmp_path / "out")] == ["json", "png", "txt"]
    before = shards(tmp_path / "out")
    assert pack(source, tmp_path / "out") == 3, "a second run has nothing to do, and still tells"
    assert told(capsys.readouterr().err) == reasons
    assert shards(tmp_path / "out") == before


def test_what_a_table_says_wrong_is_told_by_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write_folder(tmp_path / "source", ("a", "b", "c"))
    lines = [
        '{"path": "a.png", "caption": "one"}',
        '{"path": "a.png", "caption": "the same picture in other words"}',
        json.dumps({"path": str(source / "b.png"), "caption": "an absolute path"}),
        '{"path": "nowhere.png", "caption": "x"}',
        '{"path": "../source/c.png", "caption": "x"}',
        '{"path": "c.pdf", "caption": "x"}',
        '{"path": "c.png", "caption": null}',
        '{"path": 7, "caption": "x"}',
        '{"path": "c.png", "capt',
        '{"path": "./c.png", "caption": "\\ud800"}',
    ]
    (source / "list.jsonl").write_text("\n".join(lines))
    assert pack(source / "list.jsonl", tmp_path / "out") == 3
    found = told(capsys.readouterr().err)
    assert {path: reason[:40] for path, reason in found.items()} == {
        "nowhere.png": "image: it cannot be read: No such file or directory"[:40],
        "../source/c.png": "image: it leads out of the table's folder; write"[:40],
        "c.pdf": "image: images end in jpg, jpeg, png, webp"[:40],
        "c.png": "caption: it has no caption",
        "line 8": "line: its path is 7, not a text",
        "line 9": "line: this is no JSON: Invalid control character"[:40],
        "./c.png": "caption: 'utf-8' codec can't encode chara"[:40],
    }
    captions = [content.decode() for name, content in members(tmp_path / "out").items() if name.endswith(".txt")]
    assert sorted(captions) == ["an absolute path", "one", "the same picture in other words"]


def test_a_shard_of_which_nothing_can_be_packed_is_no_empty_tar(tmp_path: Path):
    source = write_folder(tmp_path / "source", ("a", "b", "c", "d"))
    for name in "abc":
        (source / f"{name}.txt").unlink()
    assert pack(source, tmp_path / "out") == 3
    assert [path.name for path in sorted((tmp_path / "out").glob("*.tar"))] == ["00001.tar"]
    assert pack(source, tmp_path / "out") == 3


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that says why."""
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


@pytest.mark.parametrize(
    ("name", "flags", "text"),
    [
        ("nowhere", [], "is neither a folder nor a table that ends in .csv, .jsonl, .parquet"),
        ("list.txt", [], "is neither a folder nor a table"),
        ("empty", [], "lists no images; images end in jpg, jpeg, png"),
        ("list.csv", ["--path-column=file"], "has no column 'file' among ['caption', 'path']: give --path-column"),
        (
            "list.csv",
            ["--caption-column=text"],
            "has no column 'text' among ['caption', 'path']: give",
        ),
        ("latin.csv", [], "cannot be read: 'utf-8' codec can't decode"),
        ("list.csv", ["--shard-images=10001"], "--shard-images is 10001, allowed: 1 to 10000"),
        ("list.csv", ["--shard-bytes=0"], "--shard-bytes is 0, allowed: at least 1"),
        ("list.csv", ["--workers=0"], "--workers is 0, allowed: at least 1"),
        ("broken.parquet", [], "broken.parquet' cannot be read: "),
    ],
)
def test_a_wrong_source_or_setting_is_refused_in_one_line(
    tmp_path: Path, name: str, flags: list[str], text: str, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("a.png")
    (tmp_path / "list.csv").write_text("path,caption\na.png,a\n")
    (tmp_path / "latin.csv").write_bytes(b"path,caption\na.png,caf\xe9\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    assert pack(tmp_path / name, tmp_path / "out", *flags) == 2
    assert text in refused(capsys)
    assert not (tmp_path / "out").exists()


def test_parquet_without_pyarrow_is_refused_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write_parquet(tmp_path / "list.parquet", [{"path": "a.png", "caption": "a"}])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert pack(tmp_path / "list.parquet", tmp_path / "out") == 2
    assert "pip install 'nti-batch[parquet]'" in refused(capsys)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: (s / "x.png").write_bytes(b"x"), "of 4 images there and 5 now: shard 00001 has 1 images, 'd.png'"),
        (lambda s: (s / "b.png").write_bytes(b"longer"), "shard 00000 has 3 images, 'a.png' to 'c.png', there"),
        (lambda s: (s / "d.txt").write_text("in other words"), "shard 00001 has 1 images, 'd.png' to 'd.png', there"),
        (lambda s: (s / "d.png").unlink() or (s / "d.txt").unlink(), "4 images there and 3 now"),
        (lambda s: os.utime(s / "d.png", (1, 1)), "with other paths, captions, sizes or times of change"),
    ],
)
def test_another_source_is_refused_with_the_first_difference(
    tmp_path: Path, change: Callable[[Path], object], text: str, capsys: pytest.CaptureFixture[str]
):
    source, out = write_folder(tmp_path / "source", ("a", "b", "c", "d")), tmp_path / "out"
    assert pack(source, out) == 0
    before = shards(out)
    change(source)
    capsys.readouterr()
    assert pack(source, out) == 2
    assert text in refused(capsys)
    assert shards(out) == before


def test_other_limits_and_the_tars_of_others_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, out = write_folder(tmp_path / "source", ("a", "b")), tmp_path / "out"
    assert pack(source, out) == 0
    capsys.readouterr()
    assert main(["pack", str(source), str(out), "--shard-images=2"]) == 2
    assert "at most 3 images and 1000000000 bytes, asked are 2 and 1000000000" in refused(capsys)
    write_shard(tmp_path / "00000.tar", captioned(1))
    assert pack(source, tmp_path) == 2
    assert "holds tars and no pack.json" in refused(capsys)
    (out / "pack.json").write_text("{}")
    assert pack(source, out) == 2
    assert "pack.json is damaged" in refused(capsys)
    assert pack(source, tmp_path / "00000.tar" / "out") == 2
    assert "cannot be written: Not a directory" in refused(capsys)


def test_two_at_a_time_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, out = write_folder(tmp_path / "source", ("a",)), tmp_path / "out"
    out.mkdir()
    lock = UnitLock(out / "pack.lock")
    assert pack(source, out) == 1
    assert f"output folder {str(out)!r} is in use by another job (host " in refused(capsys)
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


def die_packing(source: Path, out: Path, step: int, moment: Moment) -> None:
    """Pack until death comes."""
    death = Death(step, moment)
    parts.open = death.open  # type: ignore[attr-defined]
    # a process that dies loses nothing that the system has; a real sync of a busy disk takes long
    os.fsync, os.replace = death.lurks_in(lambda handle: None), death.lurks_in(os.replace)
    os._exit(pack(source, out, "--workers=1"))


@pytest.mark.parametrize("moment", ["half", "after"])
def test_death_at_any_step_leaves_whole_shards_and_the_next_pack_ends_as_if_nothing_had_been(
    tmp_path: Path, moment: Moment, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    source = write_folder(tmp_path / "source", ("a", "b", "c", "d"))
    assert pack(source, tmp_path / "whole") == 0
    whole = shards(tmp_path / "whole")
    for step in range(100):
        out = tmp_path / f"out-{step}"
        process = FORKS.Process(target=die_packing, args=(source, out, step, moment))
        process.start()
        process.join()
        finished = {path.name: path.read_bytes() for path in out.glob("*.tar")}
        assert finished.items() <= whole.items()
        assert pack(source, out) == 0
        assert shards(out) == whole
        if process.exitcode == 0:
            break
        assert process.exitcode == DIED
    assert step > 20, "death never came"


def written(out: Path) -> int:
    """Bytes of all tars."""
    try:
        return sum(path.stat().st_size for path in out.glob("*.tar*"))
    except FileNotFoundError:  # renamed just now
        return written(out)


def test_killed_again_and_again_a_pack_ends_as_if_nothing_had_been(tmp_path: Path):
    source, out = write_folder(tmp_path / "source", tuple(f"{n:03}" for n in range(200))), tmp_path / "out"
    assert pack(source, tmp_path / "whole") == 0
    total, kills = written(tmp_path / "whole"), 0
    known: dict[str, int] = {}
    for share in (0.02, 0.3, 0.5, 0.8):
        process = FORKS.Process(target=pack, args=(source, out))
        process.start()
        while process.is_alive() and written(out) < share * total:
            time.sleep(0.001)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        now = {path.name: path.stat().st_mtime_ns for path in out.glob("*_stats.json")}
        assert known.items() <= now.items(), "a finished shard was packed again"
        known = now
    assert kills, "the kills came too late"
    assert pack(source, out) == 0
    assert shards(out) == shards(tmp_path / "whole")


def test_a_signal_stops_the_pack_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    source, out = write_folder(tmp_path / "source", tuple("abcdefgh")), tmp_path / "out"
    assert pack(source, tmp_path / "whole") == 0
    real = image_list.read_file

    def signalled(path: str, most: int) -> bytes:
        if path.endswith("e.png"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        return real(path, most)

    with monkeypatch.context() as patch:
        patch.setattr(image_list, "read_file", signalled)
        assert pack(source, out, "--workers=1") == 75
    assert "stopped early; run the same command again" in capsys.readouterr().err
    assert [path.name for path in sorted(out.glob("*.tar"))] == ["00000.tar"]
    assert pack(source, out) == 0
    assert shards(out) == shards(tmp_path / "whole")


def pack_on_a_full_disk(source: Path, out: Path, log: Path) -> None:
    """Pack where no file may be longer than 3,000 bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    with log.open("wb", buffering=0) as file:
        os.dup2(file.fileno(), 2)
        sys.exit(pack(source, out))


def test_a_full_disk_ends_the_pack_in_one_line_and_the_next_one_goes_on(tmp_path: Path):
    source, out, log = write_folder(tmp_path / "source", tuple("abcd")), tmp_path / "out", tmp_path / "log"
    process = FORKS.Process(target=pack_on_a_full_disk, args=(source, out, log))
    process.start()
    process.join()
    said = log.read_text()
    assert process.exitcode == 1, said
    assert re.fullmatch(r"nti-batch: .+00000\.tar cannot be written: File too large; .+ again\n", said)
    assert list(out.glob("*.tar")) == []
    assert pack(source, out) == 0
    assert pack(source, tmp_path / "whole") == 0
    assert shards(out) == shards(tmp_path / "whole")


def test_packed_images_are_inverted_with_their_captions(tiny_model: Path, tmp_path: Path):
    assert pack(write_folder(tmp_path / "source"), tmp_path / "shards") == 0
    paths = {
        told["key"]: told["path"]
        for told in (json.loads(c) for name, c in members(tmp_path / "shards").items() if name.endswith(".json"))
    }
    for caption in ("txt", "json:caption"):
        out = tmp_path / caption
        assert main(arguments(tiny_model, tmp_path / "shards" / "*.tar", out, f"--data.caption={caption}")) == 0
        prompts = {paths[stored.key]: stored.prompt for stored in read_inversions(out)}
        assert prompts == {f"{name}.png": f"picture {n} of {name!r} é" for n, name in enumerate(NAMES)}


def test_what_img2dataset_has_written_is_inverted_as_it_is(tiny_model: Path, tmp_path: Path):
    """Its members in its order; what it could not download is in the parquet alone, and leaves a gap in the keys."""
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
    for name, shards, caption in (("a", "*.tar", "txt"), ("b", "{00000..00001}.tar", "json:caption")):
        assert main(arguments(tiny_model, folder / shards, tmp_path / name, f"--data.caption={caption}")) == 0
        found = {(stored.shard, stored.key): stored.prompt for stored in read_inversions(tmp_path / name)}
        assert found == {image: f"of {image[1]}" for image in expected}
