"""Nothing that a shard holds makes its reader wait, or take memory, without bound; a stop signal ends every read."""

import bz2
import gzip
import lzma
import os
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.jobs import arguments
from helpers.shards import error_of, outcomes, read_rows, write_tar
from helpers.tars import END, file, forge, header, record, sample

from nti_batch.cli import main
from nti_batch.data import shard_reader, tar, transfer
from nti_batch.data.samples import Reading, read_unit
from nti_batch.data.shard_reader import read_keys
from nti_batch.data.shards import work_units


@pytest.fixture(autouse=True)
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at once: the commands of these tests fail every time."""
    monkeypatch.setattr(shard_reader, "RETRY_DELAYS", ())


def stopped_after(calls: int) -> Callable[[], bool]:
    """Return a stop flag that is set after so many looks at it."""
    remaining = iter(range(calls))
    return lambda: next(remaining, None) is None


def read_until_stopped(url: str, calls: int) -> list[str]:
    """Read a unit that a stop signal ends; its reader must end without a failure of the shard."""
    rows = list(read_unit(work_units({"s": url}, 1)[0], "txt", Reading(allow_pipe=True), stopped_after(calls)))
    assert all(key for key, _ in outcomes(rows))
    return [row.key for row in rows]


@pytest.mark.parametrize("address", ["{}", "file:{}"])
def test_a_named_pipe_is_no_shard(tmp_path: Path, address: str) -> None:
    os.mkfifo(tmp_path / "s.tar")
    rows = read_rows(address.format(tmp_path / "s.tar"))
    assert outcomes(rows) == [("", "shard")]
    assert "s.tar' is no regular file" in error_of(rows, "")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/full"])
def test_a_device_is_no_shard(path: str) -> None:
    assert "is no regular file" in error_of(read_rows(path), "")


def test_a_named_pipe_is_no_list_of_shards(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "list")
    assert main(arguments(tiny_model, f"@{tmp_path}/list", tmp_path / "out")) == 2
    assert "the list cannot be read: it is no regular file" in capsys.readouterr().err


def test_zeros_without_end_behind_the_archive_are_an_error(tmp_path: Path) -> None:
    url = write_tar(tmp_path, sample("a") + END)
    rows = read_rows(f"pipe:cat '{url}' /dev/zero")
    assert outcomes(rows) == [("a", "ok"), ("", "shard")]
    assert "more than 16777216 zeros follow the last member" in error_of(rows, "")


def test_a_stop_ends_the_read_of_a_source_that_never_ends(tmp_path: Path) -> None:
    url = write_tar(tmp_path, sample("a") + header("b.png", 1 << 32))
    assert read_until_stopped(f"pipe:cat '{url}' /dev/zero", 5) == ["a"]
    assert read_until_stopped(f"pipe:cat '{url}'; while sleep 0.01; do printf x; done", 5) == []


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_stop_ends_the_unpacking_of_a_large_member(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    """A small file, read at once, whose member takes thousands of reads to unpack."""
    size = 1 << 26
    url = write_tar(tmp_path, compress(sample("a") + header("b.bin", size) + bytes(size) + sample("c") + END))
    assert read_until_stopped(url, 100) == ["a"]


def test_a_stop_does_not_wait_for_a_command_that_writes_no_more(tmp_path: Path) -> None:
    url = write_tar(tmp_path, sample("a") + END)
    assert read_until_stopped(f"pipe:cat '{url}'; exec >&-; sleep 3600", 8) == ["a"]


def test_a_damaged_shard_does_not_wait_for_the_command_that_sends_it(tmp_path: Path) -> None:
    url = write_tar(tmp_path, sample("a") + b"\xa5" * 100_000)
    rows = read_rows(f"pipe:cat '{url}'; sleep 3600")
    assert outcomes(rows) == [("a", "ok"), ("", "shard")]
    assert "neither header nor end marker" in error_of(rows, "")


def test_a_command_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "READ_TIMEOUT", 1.0)
    url = write_tar(tmp_path, sample("a") + END)
    rows = read_rows(f"pipe:cat '{url}'; exec >&-; sleep 3600")
    assert outcomes(rows) == [("a", "ok"), ("", "shard")]
    assert "wrote nothing for 1 seconds" in error_of(rows, "")


def test_a_stop_ends_the_read_of_a_plain_file(tmp_path: Path) -> None:
    url = write_tar(tmp_path, b"".join(sample(f"k{number:04}") for number in range(500)) + END)
    assert 0 < len(read_until_stopped(url, 50)) < 500


def test_a_stop_ends_the_search_for_keys(tmp_path: Path) -> None:
    url = write_tar(tmp_path, gzip.compress(sample("a") + header("b.bin", 1 << 26) + bytes(1 << 26) + END))
    assert read_keys(url, "txt", stopped_after(100)) == (["a"], [])


def peak_of(function: Callable[[], object]) -> int:
    """Return the bytes that Python's objects take at most."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_sparse_member_is_refused_without_its_map(tmp_path: Path) -> None:
    blocks = 4000
    extension = b"1".rjust(12, b"0") * 42 + b"\1" + bytes(7)
    gnu = forge(header("b.png", 9, b"S"), (257, b"ustar  \0"), (482, b"\1"), (483, b"%011o\0" % 9))
    content = gnu + extension * blocks + bytes(512) + b"x".ljust(512, b"\0") + file("b.txt", b"caption b")
    url = write_tar(tmp_path, sample("a") + content + sample("c") + END)
    rows = read_rows(url)
    assert outcomes(rows) == [("a", "ok"), ("b", "shard"), ("c", "ok")]
    assert "is no regular file" in error_of(rows, "b")
    assert peak_of(lambda: read_rows(url)) < 1 << 21


@pytest.mark.parametrize(
    "attributes",
    [
        {"GNU.sparse.map": ",".join(["1"] * 100_000), "GNU.sparse.size": "9"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"},
    ],
)
def test_a_sparse_member_of_pax_is_refused_without_its_map(tmp_path: Path, attributes: dict[str, str]) -> None:
    members = record(b"x", attributes) + file("b.png", b"999999999\n1\n1\n") + file("b.txt", b"caption b")
    rows = read_rows(write_tar(tmp_path, sample("a") + members + sample("c") + END))
    assert outcomes(rows) == [("a", "ok"), ("b", "shard"), ("c", "ok")]
    assert "is no regular file" in error_of(rows, "b")


def test_attributes_of_all_members_are_kept_up_to_a_bound(tmp_path: Path) -> None:
    records = b"".join(record(b"g", {f"comment.{number}": "x" * 500_000}) for number in range(8))
    rows = read_rows(write_tar(tmp_path, sample("a") + records + sample("b") + END))
    assert outcomes(rows) == [("a", "ok"), ("", "shard")]
    assert "attributes of all members" in error_of(rows, "")


def test_an_xz_file_may_not_ask_for_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 24}]
    url = write_tar(tmp_path, lzma.compress(sample("a") + END, filters=filters))
    assert outcomes(read_rows(url)) == [("a", "ok")]
    monkeypatch.setattr(tar, "_MAX_XZ_BYTES", 1 << 20)
    rows = read_rows(url)
    assert outcomes(rows) == [("", "shard")]
    assert "Memory usage limit" in error_of(rows, "")


def test_an_xz_file_may_have_several_streams_with_zeros_between_them(tmp_path: Path) -> None:
    content = sample("a") + sample("b") + END
    url = write_tar(tmp_path, lzma.compress(content[:3000]) + bytes(8) + lzma.compress(content[3000:]) + bytes(4))
    assert outcomes(read_rows(url)) == [("a", "ok"), ("b", "ok")]
    rows = read_rows(write_tar(tmp_path, lzma.compress(content)[:-20]))
    assert "the compressed data is cut" in error_of(rows, "")


def pieces_of_bomb(length: int) -> Iterator[bytes]:
    """A gzip of zeros behind an archive, in little memory."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    yield packer.compress(sample("a") + END)
    for _ in range(length >> 20):
        yield packer.compress(bytes(1 << 20))
    yield packer.flush()


def test_zeros_that_unpack_from_a_small_file_are_an_error(tmp_path: Path) -> None:
    url = write_tar(tmp_path, b"".join(pieces_of_bomb(1 << 26)))
    rows = read_rows(url)
    assert outcomes(rows) == [("a", "ok"), ("", "shard")]
    assert peak_of(lambda: read_rows(url)) < 1 << 22


def test_a_caption_that_unpacks_to_gigabytes_fails_alone(tmp_path: Path) -> None:
    size = 1 << 25
    large = file("b.jpg", b"image b") + header("b.txt", size) + bytes(size)
    url = write_tar(tmp_path, gzip.compress(sample("a") + large + sample("c") + END))
    rows = read_rows(url)
    assert outcomes(rows) == [("a", "ok"), ("b", "shard"), ("c", "ok")]
    assert "33554432 bytes, and at most 1048576 are read" in error_of(rows, "b")
    assert peak_of(lambda: read_rows(url)) < 1 << 22
