"""Tars written byte by byte, so that what each damage must give is known without any tar library."""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.shards import check_outcomes, error_of, outcomes, read_rows, write_tar
from helpers.tars import END, file, header, sample

from nti_batch.data import shard_reader
from nti_batch.data.shard_reader import count_images
from nti_batch.data.tar import MemberPlace, locate_members, write_samples


@pytest.fixture(autouse=True)
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at once: the commands of these tests fail every time."""
    monkeypatch.setattr(shard_reader, "RETRY_DELAYS", ())


def test_a_name_longer_than_a_header_is_read_whole(tmp_path: Path):
    long = "d/" + "k" * 298
    records = b"".join(
        file("././@LongLink", f"{long}.{e}\0".encode()).replace(header("././@LongLink", 305), header("x", 305, b"L"))
        + file("cut." + e, data)
        for e, data in (("jpg", f"image {long}".encode()), ("txt", f"caption {long}".encode()))
    )
    check_outcomes(tmp_path, records + END, [(long, "ok")])


def test_memory_does_not_grow_with_the_number_of_members(tmp_path: Path):
    url = write_tar(tmp_path, header("d", 0, b"5") * 4000 + sample("a") + END)
    tracemalloc.start()
    try:
        assert outcomes(read_rows(url)) == [("a", "ok")]
        assert tracemalloc.get_traced_memory()[1] < 2_500_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_shard_reads_as_the_plain_one(tmp_path: Path, compress: Callable[[bytes], bytes]):
    check_outcomes(tmp_path, compress(sample("a") + sample("b") + END), [("a", "ok"), ("b", "ok")])


def test_a_shard_cut_between_members_is_reported(tmp_path: Path):
    rows = check_outcomes(tmp_path, sample("a") + sample("b"), [("a", "ok"), ("b", "ok"), ("", "shard")])
    assert "byte 4096 has neither header nor end marker" in error_of(rows, "")
    check_outcomes(tmp_path, (sample("a") + sample("b"))[:3072], [("a", "ok"), ("b", "shard"), ("", "shard")])


@pytest.mark.parametrize("length", [2048 + 1, 2048 + 511])
def test_a_shard_cut_inside_a_header_keeps_what_came_before(tmp_path: Path, length: int):
    check_outcomes(tmp_path, (sample("a") + sample("b") + END)[:length], [("a", "ok"), ("", "shard")])


@pytest.mark.parametrize("length", [2048 + 512, 2048 + 515, 3072 + 512, 3072 + 514])
def test_a_sample_cut_inside_its_data_fails_by_name(tmp_path: Path, length: int):
    content = (sample("a") + sample("b") + END)[:length]
    rows = check_outcomes(tmp_path, content, [("a", "ok"), ("b", "shard"), ("", "shard")])
    assert "unexpected end of data" in error_of(rows, "b")
    assert "unexpected end of data" in error_of(rows, "")


def test_a_shard_cut_in_the_padding_keeps_the_sample_whose_data_is_whole(tmp_path: Path):
    check_outcomes(tmp_path, (sample("a") + sample("b"))[:-1], [("a", "ok"), ("b", "ok"), ("", "shard")])


@pytest.mark.parametrize("zeros", [1, 512, 1023])
def test_an_end_marker_of_less_than_two_blocks_is_a_cut(tmp_path: Path, zeros: int):
    check_outcomes(tmp_path, sample("a") + bytes(zeros), [("a", "ok"), ("", "shard")])


def test_an_end_marker_may_have_any_length(tmp_path: Path):
    check_outcomes(tmp_path, sample("a") + bytes(10240 + 7), [("a", "ok")])


@pytest.mark.parametrize("block", [bytes(512), b"\xa5" * 512, header("c.jpg", 9)[:-1] + b"!"])
def test_a_header_that_was_wiped_or_forged_is_no_end(tmp_path: Path, block: bytes):
    content = bytearray(sample("a") + sample("b") + sample("c") + END)
    content[4096:4608] = block
    check_outcomes(tmp_path, bytes(content), [("a", "ok"), ("b", "ok"), ("", "shard")])
    content[3072:3584] = block
    check_outcomes(tmp_path, bytes(content), [("a", "ok"), ("b", "shard"), ("", "shard")])


def test_two_wiped_blocks_are_no_end_if_data_follows(tmp_path: Path):
    content = sample("a") + END + sample("b") + END
    rows = check_outcomes(tmp_path, content, [("a", "ok"), ("", "shard")])
    assert "data follows the end marker at byte 2048" in error_of(rows, "")


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (b"0", b"\xff" * 12),
        (b"0", b"\xff" * 10 + b"\xfc\x00"),
        (b"S", b"\xff" * 10 + b"\xfc\x00"),
        (b"0", b"\x80" + b"\x7f" * 11),
        (b"S", b"\x80" + b"\x7f" * 11),
        (b"0", b"\x80" + bytes(5) + b"\xff" * 6),
        (b"0", b"00010000000"),
    ],
)
def test_an_impossible_size_neither_hangs_nor_passes(tmp_path: Path, kind: bytes, size: bytes):
    forged = header("b.jpg", 0, kind, size.ljust(12, b"\0"))
    url = write_tar(tmp_path, sample("a") + forged + sample("c") + END)
    for address in (url, f"pipe:cat '{url}'"):
        rows = outcomes(read_rows(address))
        assert (rows[0], rows[-1]) == (("a", "ok"), ("", "shard"))
        assert {key for key, _ in rows[1:-1]} <= {"b"}
        assert count_images(address, allow_pipe=True) == len(rows) - 1


def test_a_damaged_gzip_keeps_what_came_before_and_is_reported(tmp_path: Path):
    noise = os.urandom(200_000)
    plain = sample("a") + file("b.jpg", noise) + file("b.txt", b"caption b") + sample("c") + END
    packed = bytearray(gzip.compress(plain))
    expected = [("a", "ok"), ("b", "shard"), ("", "shard")]
    check_outcomes(tmp_path, bytes(packed[:150_000]), expected)
    wrong_sum = packed[:-8] + b"\0\0\0\0" + packed[-4:]
    url = write_tar(tmp_path, bytes(wrong_sum))
    rows = read_rows(url)
    assert [row.key for row in rows] == ["a", "b", "c", ""]
    assert "CRC" in error_of(rows, "")


# --- places and whole tars ---


def test_every_member_is_read_at_its_place(tmp_path: Path):
    contents = {"a.jpg": b"i" * 511, "a.txt": b"", "d/b.jpg": b"j" * 513, "k" * 150: b"a long name"}
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert {name: place.read(path) for name, place in locate_members(path).items()} == contents


def test_a_place_checks_its_content_and_names_the_tar(tmp_path: Path):
    path = tmp_path / "s.tar"
    path.write_bytes(b"before" + b"content" + b"behind")
    place = MemberPlace(6, 7, hashlib.sha256(b"content").hexdigest())
    assert place.read(path) == b"content"
    path.write_bytes(b"before" + b"CONTENT" + b"behind")
    with pytest.raises(ValueError, match=r"s\.tar is damaged: bytes 6 to 13 have changed"):
        place.read(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"s\.tar is damaged: .*No such file"):
        place.read(path)


def test_a_damaged_header_is_no_place(tmp_path: Path):
    (tmp_path / "s.tar").write_bytes(sample("a") + b"\xa5" * 512)
    with pytest.raises(ValueError, match=r"s\.tar is damaged: byte 2048 has neither header nor end marker"):
        locate_members(tmp_path / "s.tar")


SAMPLES: list[dict[str, str | bytes]] = [
    {"__key__": "a", "jpg": b"image a", "txt": b"caption a"},
    {"__key__": "d/b", "jpg": b"image d/b", "txt": b"caption d/b"},
]


def test_a_written_shard_holds_its_samples_and_its_bytes_depend_on_them_alone(tmp_path: Path):
    for name in ("one.tar", "two.tar"):
        write_samples(tmp_path / name, SAMPLES)
    assert outcomes(read_rows(str(tmp_path / "one.tar"))) == [("a", "ok"), ("d/b", "ok")]
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as archive:
        assert {member.mtime for member in archive} == {0}


def test_a_shard_that_fails_midway_does_not_appear_and_replaces_nothing(tmp_path: Path):
    def failing() -> Iterator[dict[str, str | bytes]]:
        yield from SAMPLES
        raise RuntimeError("no more")

    path = tmp_path / "s.tar"
    with pytest.raises(RuntimeError, match="no more"):
        write_samples(path, failing())
    assert not path.exists()
    write_samples(path, SAMPLES)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="no more"):
        write_samples(path, failing())
    assert path.read_bytes() == before


def test_a_shard_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []

    def noted(call: Callable[..., None], *arguments: Any) -> None:
        calls.append(call.__name__)
        call(*arguments)

    monkeypatch.setattr(os, "fsync", partial(noted, os.fsync))
    monkeypatch.setattr(os, "replace", partial(noted, os.replace))
    write_samples(tmp_path / "s.tar", SAMPLES)
    assert calls == ["fsync", "replace", "fsync"]


def test_no_samples_make_no_shard(tmp_path: Path):
    write_samples(tmp_path / "s.tar", [])
    assert list(tmp_path.iterdir()) == []
