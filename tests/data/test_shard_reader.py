"""Every sample of a shard is read once, wherever it comes from, and the errors of the shard are reported."""

import os
import re
import time
from pathlib import Path

import pytest
from helpers.shards import check_outcomes, error_of, outcomes, read_rows, write_tar
from helpers.tars import END, file, header, sample

from nti_batch.data import shard_reader
from nti_batch.data.samples import Reading, read_unit
from nti_batch.data.shard_reader import count_images
from nti_batch.data.shards import name_shards, work_units


@pytest.fixture(autouse=True)
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at once: the commands of these tests fail every time."""
    monkeypatch.setattr(shard_reader, "RETRY_DELAYS", ())


def test_a_whole_shard_gives_its_samples_in_order_and_nothing_else(tmp_path: Path):
    content = file("b.png", b"image b") + file("b.txt", b"  caption b\r\n") + sample("d/a") + sample("c") + END
    check_outcomes(tmp_path, content, [("b", "ok"), ("d/a", "ok"), ("c", "ok")])


def test_a_path_may_hold_the_special_characters_of_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path, sample("a") + END, "run:1#b?c.tar")
    assert outcomes(read_rows("run:1#b?c.tar")) == [("a", "ok")]


def test_folders_and_meta_members_are_no_samples(tmp_path: Path):
    content = header("d", 0, b"5") + file("__meta__", b"x") + file("__about__/a.jpg", b"x") + sample("d/a") + END
    check_outcomes(tmp_path, content, [("d/a", "ok")])


@pytest.mark.parametrize(
    "content", [b"", b"<html>Not found</html>", b"<html>" + b"x" * 5000, b"\x1f\x8b", bytes(10240)]
)
def test_a_file_that_is_no_archive_or_holds_nothing_gives_one_shard_row(tmp_path: Path, content: bytes):
    check_outcomes(tmp_path, content, [("", "shard")])


def test_a_shard_that_cannot_be_opened_gives_a_shard_row(tmp_path: Path):
    for url in (str(tmp_path / "none.tar"), str(tmp_path), "pipe:exit 3", f"file:{tmp_path}/none.tar"):
        assert outcomes(read_rows(url, units_per_shard=2)) == [("", "shard"), ("", "shard")]
        assert count_images(url, allow_pipe=True) == 0
    assert "none.tar" in error_of(read_rows(str(tmp_path / "none.tar")), "")
    assert error_of(read_rows("pipe:exit 3"), "").startswith("the command ended with exit code 3")


def test_a_command_that_fails_after_its_last_byte_fails_the_shard(tmp_path: Path):
    url = write_tar(tmp_path, sample("a") + END)
    rows = read_rows(f"pipe:cat '{url}'; exit 7")
    assert outcomes(rows) == [("a", "ok"), ("", "shard")]
    assert "exit code 7" in error_of(rows, "")


def test_a_command_that_fails_midway_reports_the_loss_and_its_cause(tmp_path: Path):
    url = write_tar(tmp_path, sample("a") + sample("b") + END)
    rows = read_rows(f"pipe:head -c 2100 '{url}'; exit 18")
    assert outcomes(rows) == [("a", "ok"), ("", "shard")]
    assert "exit code 18" in error_of(rows, "")
    assert "byte 2048" in error_of(rows, "")


def test_a_reader_that_stops_early_raises_nothing(tmp_path: Path):
    url = write_tar(tmp_path, sample("a") + b"".join(sample(f"b{n}") for n in range(200)) + END)
    for address in (url, f"pipe:cat '{url}' '{url}'; exit 9"):
        rows = read_unit(work_units(name_shards([address]), 1)[0], "txt", Reading(allow_pipe=True))
        assert next(rows).key == "a"
        rows.close()  # type: ignore[attr-defined]


def test_a_command_stopped_by_damage_in_its_middle_is_not_blamed(tmp_path: Path):
    url = write_tar(tmp_path, sample("a") + b"\xa5" * 1_000_000)
    assert "exit" not in error_of(read_rows(f"pipe:cat '{url}'; exit 9"), "")


def test_a_key_that_comes_again_is_reported_and_gets_no_second_row(tmp_path: Path):
    content = file("a.jpg", b"i") + sample("b") + file("a.txt", b"c") + sample("b") + sample("c") + END
    rows = check_outcomes(tmp_path, content, [("a", "caption"), ("b", "ok"), ("c", "ok"), ("", "shard")])
    assert re.findall("key '(.)'", error_of(rows, "")) == ["a", "b"]


def test_counting_does_not_read_the_data(tmp_path: Path):
    size = (1 << 33) - 512
    path = tmp_path / "shard.tar"
    with path.open("wb") as sparse:
        sparse.write(header("a.jpg", size))
        sparse.seek(size, os.SEEK_CUR)
        sparse.write(file("a.txt", b"c") + sample("b") + END)
    start = time.monotonic()
    assert count_images(str(path)) == 2
    assert time.monotonic() - start < 1
