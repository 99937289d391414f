"""Shards are built here byte by byte, so that what must come out of each damage is known without any tar library."""

import bz2
import gzip
import lzma
import os
import re
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.tars import END, file, header, sample

from nti_batch.data import shard_reader
from nti_batch.data.samples import RawSample, caption_source, read_unit
from nti_batch.data.shard_reader import count_images
from nti_batch.data.shards import expand_shards, shard_name, work_units
from nti_batch.records import Failure, WorkUnit


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that fails is not tried again: it will fail again."""
    monkeypatch.setattr(shard_reader, "RETRY_DELAYS", ())


def write(folder: Path, content: bytes, name: str = "shard.tar") -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def read(
    url: str, units_per_shard: int = 1, caption: str = "txt", skip: tuple[str, ...] = ()
) -> list[RawSample | Failure]:
    return [row for unit in work_units([url], units_per_shard) for row in read_unit(unit, caption, skip)]


def told(rows: list[RawSample | Failure]) -> list[tuple[str, str]]:
    """(key, 'ok' or stage), once it is checked that a whole sample has its own picture and caption."""
    for row in rows:
        if isinstance(row, RawSample):
            assert (row.prompt, row.image) == (f"caption {row.key}", f"picture {row.key}".encode())
    return [(row.key, row.stage if isinstance(row, Failure) else "ok") for row in rows]


def error_of(rows: list[RawSample | Failure], key: str) -> str:
    (error,) = (row.error for row in rows if isinstance(row, Failure) and row.key == key)
    return error


def check_everywhere(folder: Path, content: bytes, expected: list[tuple[str, str]]) -> list[RawSample | Failure]:
    """Check the rows from a file, in which one can skip, from a pipe, in which one cannot, and over three units."""
    url = write(folder, content)
    rows = read(url)
    assert told(rows) == expected
    assert told(read(f"pipe:cat '{url}'")) == expected
    assert sorted(told(read(url, units_per_shard=3))) == sorted(expected + 2 * [row for row in expected if not row[0]])
    ids = sum(1 for key, _ in expected if key)
    assert count_images(url) == ids
    assert count_images(f"pipe:cat '{url}'") == ids
    return rows


# --- whole shards ---


def test_a_whole_shard_gives_its_samples_in_order_and_nothing_else(tmp_path: Path):
    content = file("b.png", b"picture b") + file("b.txt", b"  caption b\r\n") + sample("d/a") + sample("c") + END
    check_everywhere(tmp_path, content, [("b", "ok"), ("d/a", "ok"), ("c", "ok")])


@pytest.mark.parametrize("units_per_shard", [1, 2, 3, 5])
def test_all_units_of_a_shard_together_give_each_sample_once_whatever_their_number(
    tmp_path: Path, units_per_shard: int
):
    url = write(tmp_path, b"".join(sample(str(n)) for n in range(7)) + END)
    units = work_units([url], units_per_shard)
    keys = [[row.key for row in read_unit(unit, "txt", ())] for unit in units]
    assert keys == [[str(n) for n in range(7) if n % units_per_shard == index] for index in range(units_per_shard)]
    assert told(read(url, units_per_shard=units_per_shard, skip=("3", "5"))) == [
        (key, "ok") for unit_keys in keys for key in unit_keys if key not in ("3", "5")
    ]


def test_a_path_may_hold_what_means_something_in_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, sample("a") + END, "run:1#b?c.tar")
    assert told(read("run:1#b?c.tar")) == [("a", "ok")]


def test_memory_does_not_grow_with_the_number_of_members(tmp_path: Path):
    url = write(tmp_path, header("d", 0, b"5") * 4000 + sample("a") + END)
    tracemalloc.start()
    try:
        assert told(read(url)) == [("a", "ok")]
        assert tracemalloc.get_traced_memory()[1] < 2_500_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_shard_reads_as_the_plain_one(tmp_path: Path, compress: Callable[[bytes], bytes]):
    check_everywhere(tmp_path, compress(sample("a") + sample("b") + END), [("a", "ok"), ("b", "ok")])


def test_folders_and_meta_members_are_no_samples(tmp_path: Path):
    content = header("d", 0, b"5") + file("__meta__", b"x") + file("__about__/a.jpg", b"x") + sample("d/a") + END
    check_everywhere(tmp_path, content, [("d/a", "ok")])


def test_every_image_extension_is_found_in_any_case_and_other_members_are_let_be(tmp_path: Path):
    for extension in ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "JPG", "Png"):
        content = file(f"a.{extension}", b"picture a") + file("a.mask.png", b"x") + file("a.TXT", b"caption a") + END
        assert told(read(write(tmp_path, content))) == [("a", "ok")]


def test_a_name_longer_than_a_header_is_read_whole(tmp_path: Path):
    long = "d/" + "k" * 298
    records = b"".join(
        file("././@LongLink", f"{long}.{e}\0".encode()).replace(header("././@LongLink", 305), header("x", 305, b"L"))
        + file("cut." + e, data)
        for e, data in (("jpg", f"picture {long}".encode()), ("txt", f"caption {long}".encode()))
    )
    check_everywhere(tmp_path, records + END, [(long, "ok")])


def test_a_key_that_is_not_utf8_can_be_written_as_utf8(tmp_path: Path):
    rows = read(write(tmp_path, file(b"\xff\xe9.jpg", b"p") + file(b"\xff\xe9.txt", b"c") + END))
    assert [row.key for row in rows] == [r"\xff\xe9"]
    assert rows[0].key.encode().decode() == rows[0].key


# --- samples at fault ---


@pytest.mark.parametrize(
    ("members", "stage", "reason"),
    [
        (file("x.txt", b"c"), "image", "0 image members among .txt, not one"),
        (file("x.jpg", b"i") + file("x.png", b"i") + file("x.txt", b"c"), "image", "2 image members among .jpg, .png"),
        (file("x.jpg", b"i"), "caption", "no .txt member beside .jpg"),
        (file("x.jpg", b"i") + file("x.txt", b" \r\n\t"), "caption", "caption is empty"),
        (file("x.jpg", b"i") + file("x.txt", b""), "caption", "caption is empty"),
        (file("x.jpg", b"i") + file("x.txt", b"caf\xe9"), "caption", "utf-8"),
        (file("x.jpg", b"i") + file("x.jpg", b"j") + file("x.txt", b"c"), "shard", "two members are called 'x.jpg'"),
        (file("x.jpg", b"i") + file("x.txt", b"c") + file("x.TXT", b"c"), "shard", "two members are called 'x.TXT'"),
        (file("x.cls", b"1") + file("x.jpg", b"i") + file("x.cls", b"2"), "shard", "two members are called 'x.cls'"),
        (header("x.jpg", 0, b"2") + file("x.txt", b"c"), "shard", "'x.jpg' is no regular file.*--dereference"),
        (header("x.jpg", 0, b"1") + file("x.txt", b"c"), "shard", "'x.jpg' is no regular file.*--hard-dereference"),
        (file("x.jpg", b"i") + header("x.txt", 0, b"6"), "shard", "'x.txt' is no regular file"),
        (header("x.jpg", 0, b"S") + file("x.txt", b"c"), "shard", "'x.jpg' is no regular file"),
    ],
)
def test_a_sample_at_fault_gives_one_row_with_the_reason(tmp_path: Path, members: bytes, stage: str, reason: str):
    content = sample("a") + members + sample("b") + END
    rows = check_everywhere(tmp_path, content, [("a", "ok"), ("x", stage), ("b", "ok")])
    assert re.search(reason, error_of(rows, "x"))


def test_a_caption_comes_from_the_named_json_field(tmp_path: Path):
    record = b'\xef\xbb\xbf{"text": "wrong", "prompt": " caption \\u0061 "}'
    url = write(tmp_path, file("a.json", record) + file("a.jpg", b"picture a") + END)
    assert told(read(url, caption="json:prompt")) == [("a", "ok")]
    assert error_of(read(url, caption="json:title"), "a") == "the .json member has no field 'title' that is a string"


@pytest.mark.parametrize(
    "record", [b'{"c": 3}', b'{"c": null}', b'["c"]', b'{"c": "x"', b"[" * 100_000, b'{"c": "\\ud800"}', b'{"c": " "}']
)
def test_a_json_without_a_caption_that_can_be_stored_is_a_caption_failure(tmp_path: Path, record: bytes):
    url = write(tmp_path, file("x.jpg", b"i") + file("x.json", record) + END)
    assert told(read(url, caption="json:c")) == [("x", "caption")]


@pytest.mark.parametrize("caption", ["", "json", "json:", "txt:a", "csv:a", "TXT"])
def test_a_caption_setting_that_means_nothing_is_refused(caption: str):
    with pytest.raises(ValueError, match="allowed are 'txt' and 'json:FIELD'"):
        caption_source(caption)


# --- damaged shards ---


def test_a_shard_cut_between_members_says_so(tmp_path: Path):
    rows = check_everywhere(tmp_path, sample("a") + sample("b"), [("a", "ok"), ("b", "ok"), ("", "shard")])
    assert "byte 4096 has neither header nor end marker" in error_of(rows, "")
    check_everywhere(tmp_path, (sample("a") + sample("b"))[:3072], [("a", "ok"), ("b", "shard"), ("", "shard")])


@pytest.mark.parametrize("length", [2048 + 1, 2048 + 511])
def test_a_shard_cut_inside_a_header_keeps_what_came_before(tmp_path: Path, length: int):
    check_everywhere(tmp_path, (sample("a") + sample("b") + END)[:length], [("a", "ok"), ("", "shard")])


@pytest.mark.parametrize("length", [2048 + 512, 2048 + 515, 3072 + 512, 3072 + 514])
def test_a_sample_cut_inside_its_data_fails_by_name(tmp_path: Path, length: int):
    content = (sample("a") + sample("b") + END)[:length]
    rows = check_everywhere(tmp_path, content, [("a", "ok"), ("b", "shard"), ("", "shard")])
    assert "unexpected end of data" in error_of(rows, "b")
    assert "unexpected end of data" in error_of(rows, "")


def test_a_shard_cut_in_the_padding_keeps_the_sample_whose_data_is_whole(tmp_path: Path):
    check_everywhere(tmp_path, (sample("a") + sample("b"))[:-1], [("a", "ok"), ("b", "ok"), ("", "shard")])


@pytest.mark.parametrize("zeros", [1, 512, 1023])
def test_an_end_marker_of_less_than_two_blocks_is_a_cut(tmp_path: Path, zeros: int):
    check_everywhere(tmp_path, sample("a") + bytes(zeros), [("a", "ok"), ("", "shard")])


def test_an_end_marker_may_be_as_long_as_it_likes(tmp_path: Path):
    check_everywhere(tmp_path, sample("a") + bytes(10240 + 7), [("a", "ok")])


@pytest.mark.parametrize("block", [bytes(512), b"\xa5" * 512, header("c.jpg", 9)[:-1] + b"!"])
def test_a_header_that_was_wiped_or_forged_is_no_end(tmp_path: Path, block: bytes):
    content = bytearray(sample("a") + sample("b") + sample("c") + END)
    content[4096:4608] = block
    check_everywhere(tmp_path, bytes(content), [("a", "ok"), ("b", "ok"), ("", "shard")])
    content[3072:3584] = block
    check_everywhere(tmp_path, bytes(content), [("a", "ok"), ("b", "shard"), ("", "shard")])


def test_two_wiped_blocks_are_no_end_if_data_follows(tmp_path: Path):
    content = sample("a") + END + sample("b") + END
    rows = check_everywhere(tmp_path, content, [("a", "ok"), ("", "shard")])
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
def test_a_size_that_cannot_be_neither_hangs_nor_passes(tmp_path: Path, kind: bytes, size: bytes):
    forged = header("b.jpg", 0, kind, size.ljust(12, b"\0"))
    url = write(tmp_path, sample("a") + forged + sample("c") + END)
    for address in (url, f"pipe:cat '{url}'"):
        rows = told(read(address))
        assert (rows[0], rows[-1]) == (("a", "ok"), ("", "shard"))
        assert {key for key, _ in rows[1:-1]} <= {"b"}
        assert told(read(address, skip=("a", "b"))) == [("", "shard")]
        assert count_images(address) == len(rows) - 1


@pytest.mark.parametrize(
    "content", [b"", b"<html>Not found</html>", b"<html>" + b"x" * 5000, b"\x1f\x8b", bytes(10240)]
)
def test_a_file_that_is_no_archive_or_holds_nothing_gives_one_shard_row(tmp_path: Path, content: bytes):
    check_everywhere(tmp_path, content, [("", "shard")])


def test_a_shard_that_cannot_be_opened_gives_a_shard_row(tmp_path: Path):
    for url in (str(tmp_path / "none.tar"), str(tmp_path), "pipe:exit 3", f"file:{tmp_path}/none.tar"):
        assert told(read(url, units_per_shard=2)) == [("", "shard"), ("", "shard")]
        assert count_images(url) == 0
    assert "none.tar" in error_of(read(str(tmp_path / "none.tar")), "")
    assert "exit 3" in error_of(read("pipe:exit 3"), "")


def test_a_command_that_fails_after_its_last_byte_is_not_believed(tmp_path: Path):
    url = write(tmp_path, sample("a") + END)
    rows = read(f"pipe:cat '{url}'; exit 7")
    assert told(rows) == [("a", "ok"), ("", "shard")]
    assert "exit 7" in error_of(rows, "")


def test_a_command_that_fails_midway_tells_both_what_is_missing_and_why(tmp_path: Path):
    url = write(tmp_path, sample("a") + sample("b") + END)
    rows = read(f"pipe:head -c 2100 '{url}'; exit 18")
    assert told(rows) == [("a", "ok"), ("", "shard")]
    assert "exit 18" in error_of(rows, "")
    assert "byte 2048" in error_of(rows, "")


def test_a_reader_that_stops_early_leaves_without_noise(tmp_path: Path):
    url = write(tmp_path, sample("a") + b"".join(sample(f"b{n}") for n in range(200)) + END)
    for address in (url, f"pipe:cat '{url}' '{url}'; exit 9"):
        rows = read_unit(work_units([address], 1)[0], "txt", ())
        assert next(rows).key == "a"
        rows.close()  # type: ignore[attr-defined]


def test_a_command_stopped_by_damage_in_its_middle_is_not_blamed(tmp_path: Path):
    url = write(tmp_path, sample("a") + b"\xa5" * 1_000_000)
    assert "exit" not in error_of(read(f"pipe:cat '{url}'; exit 9"), "")


def test_a_damaged_gzip_keeps_what_came_before_and_says_so(tmp_path: Path):
    noise = os.urandom(200_000)
    plain = sample("a") + file("b.jpg", noise) + file("b.txt", b"caption b") + sample("c") + END
    packed = bytearray(gzip.compress(plain))
    expected = [("a", "ok"), ("b", "shard"), ("", "shard")]
    check_everywhere(tmp_path, bytes(packed[:150_000]), expected)
    wrong_sum = packed[:-8] + b"\0\0\0\0" + packed[-4:]
    url = write(tmp_path, bytes(wrong_sum))
    rows = read(url)
    assert [row.key for row in rows] == ["a", "b", "c", ""]
    assert "CRC" in error_of(rows, "")


def test_a_key_that_comes_again_gets_no_second_row_but_is_told(tmp_path: Path):
    content = file("a.jpg", b"i") + sample("b") + file("a.txt", b"c") + sample("b") + sample("c") + END
    rows = check_everywhere(tmp_path, content, [("a", "caption"), ("b", "ok"), ("c", "ok"), ("", "shard")])
    assert re.findall("key '(.)'", error_of(rows, "")) == ["a", "b"]


def test_a_member_that_belongs_to_no_sample_is_told_and_only_five_are_named(tmp_path: Path):
    content = sample("a") + b"".join(file(f"README{n}", b"x") for n in range(7)) + file("a.cls", b"1") + sample("b")
    rows = check_everywhere(tmp_path, content, [("a", "ok"), ("b", "ok"), ("", "shard")])
    error = error_of(rows, "")
    assert [f"README{n}" in error for n in range(7)] == [True] * 4 + [False] * 3
    assert error.startswith("byte ")
    assert error.endswith("; and 3 more")


def test_damage_is_told_by_every_unit_and_not_again_once_committed(tmp_path: Path):
    units = work_units([write(tmp_path, sample("a"))], 3)
    rows = [list(read_unit(unit, "txt", ())) for unit in units]
    assert [told(unit_rows) for unit_rows in rows] == [[("a", "ok"), ("", "shard")], [("", "shard")], [("", "shard")]]
    assert told(list(read_unit(units[0], "txt", ("a", "")))) == []


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


# --- addresses and units ---


def test_patterns_become_paths_once_each_and_sorted_within_a_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b2", "b5", "b1", "b6", "b4", "b3", "a0", "a1", "odd[1]:x"):
        (tmp_path / f"{name}.tar").touch()
    (tmp_path / "b7.tar").mkdir()
    expected = [f"{name}.tar" for name in ("b1", "b2", "b3", "b4", "b5", "b6", "a1", "a0", "odd[1]:x")]
    assert expand_shards("b*.tar::a{1..0}.tar::b1.tar::odd[1]:x.tar") == expected
    urls = ["pipe:cat x0.tar", "pipe:cat x1.tar", "https://h/a?b=*", "file:/none.tar"]
    assert expand_shards("pipe:cat x{0..1}.tar::https://h/a?b=*::file:/none.tar", allow_pipe=True) == urls


@pytest.mark.parametrize("pattern", ["none.tar", "none*.tar", "there{0..1}.tar", "folder", "", "there0.tar::"])
def test_a_pattern_without_a_file_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there0.tar").touch()
    (tmp_path / "folder").mkdir()
    missing = {"there{0..1}.tar": "there1.tar", "there0.tar::": ""}.get(pattern, pattern)
    with pytest.raises(ValueError, match="give tars as paths") as caught:
        expand_shards(pattern)
    assert f"no file matches {missing!r}" in str(caught.value)


def test_what_cannot_be_expanded_or_opened_is_refused_at_once():
    with pytest.raises(ValueError, match="'pipe:COMMAND'"):
        expand_shards("s3://bucket/a.tar")
    with pytest.raises(ValueError, match="braces and variables"):
        expand_shards("${NOT_SET_ANYWHERE}/a.tar")


def test_a_list_file_holds_a_pattern_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a0", "a1", "b", "@odd"):
        (tmp_path / f"{name}.tar").touch()
    (tmp_path / "list.txt").write_text("# mine\na{0..1}.tar\n\n  https://h/c.tar  \na1.tar\n")
    assert expand_shards("@list.txt::b.tar::./@odd.tar") == [
        "a0.tar",
        "a1.tar",
        "https://h/c.tar",
        "b.tar",
        "./@odd.tar",
    ]
    (tmp_path / "list.txt").write_text("pipe:cat a0.tar\n")
    with pytest.raises(ValueError, match="runs a command in a shell: add --data"):
        expand_shards("@list.txt")
    (tmp_path / "list.txt").write_text("# none\n")
    with pytest.raises(ValueError, match=r"'@list\.txt': the list is empty"):
        expand_shards("@list.txt")
    with pytest.raises(ValueError, match=r"'@none\.txt': the list cannot be read"):
        expand_shards("@none.txt")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/d/00001.tar", "00001"),
        ("a b#1?.tar", "a b#1?"),
        ("x.tar.gz", "x"),
        ("x.TGZ", "x"),
        ("v1.5.tar", "v1.5"),
        ("https://host/d/x.tar?key=y.tar#z", "x"),
        ("pipe:curl -s 'https://host/d/x.tar?key=1' | pv", "x"),
        ("pipe:zcat /d/x.tar.gz", "x"),
        ("pipe:cat /d/x", "x"),
        ("file:/d/x.tar", "x"),
    ],
)
def test_a_shard_is_called_by_its_file(url: str, name: str):
    assert shard_name(url) == name


def test_a_shard_without_a_name_is_refused():
    with pytest.raises(ValueError, match=r"'https://host/' has no file name"):
        shard_name("https://host/")


def test_units_of_one_shard_lie_together():
    assert work_units(["d/x.tar", "y.tar"], 2) == [
        WorkUnit("x", "d/x.tar", 0, 2),
        WorkUnit("x", "d/x.tar", 1, 2),
        WorkUnit("y", "y.tar", 0, 2),
        WorkUnit("y", "y.tar", 1, 2),
    ]


def test_two_shards_of_one_name_and_slices_below_one_are_refused():
    with pytest.raises(ValueError, match=r"'a/x.tar' and 'b/x.tar' are both called 'x'"):
        work_units(["a/x.tar", "y.tar", "b/x.tar"], 2)
    with pytest.raises(ValueError, match="units_per_shard is 0"):
        work_units(["x.tar"], 0)
