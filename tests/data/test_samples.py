"""The samples of a work unit: each has its own image and caption, or a failure with the reason."""

import re
from hashlib import sha256
from pathlib import Path
from zlib import crc32

import pytest
from helpers.shards import check_outcomes, error_of, outcomes, read_rows, write_tar
from helpers.tars import END, file, header, sample

from nti_batch.data import shard_reader
from nti_batch.data.samples import caption_source, read_unit
from nti_batch.data.shards import work_units


@pytest.fixture(autouse=True)
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at once: the commands of these tests fail every time."""
    monkeypatch.setattr(shard_reader, "RETRY_DELAYS", ())


def test_every_image_extension_is_found_in_any_case_and_other_members_are_ignored(tmp_path: Path):
    for extension in (
        "jpg",
        "jpeg",
        "png",
        "webp",
        "bmp",
        "tif",
        "tiff",
        "gif",
        "avif",
        "jp2",
        "jfif",
        "jpe",
        "JPG",
        "Png",
    ):
        content = file(f"a.{extension}", b"image a") + file("a.mask.png", b"x") + file("a.TXT", b"caption a") + END
        assert outcomes(read_rows(write_tar(tmp_path, content))) == [("a", "ok")]


def test_a_key_that_is_not_utf8_can_be_written_as_utf8(tmp_path: Path):
    rows = read_rows(write_tar(tmp_path, file(b"\xff\xe9.jpg", b"p") + file(b"\xff\xe9.txt", b"c") + END))
    assert [row.key for row in rows] == [r"\xff\xe9"]
    assert rows[0].key.encode().decode() == rows[0].key


@pytest.mark.parametrize(
    ("members", "stage", "reason"),
    [
        (file("x.txt", b"c"), "image", "there is no image beside .txt"),
        (
            file("x.jpg", b"i") + file("x.png", b"i") + file("x.txt", b"c"),
            "image",
            "there are 2 images, .jpg, .png, of one key",
        ),
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
def test_a_sample_with_an_error_gives_one_row_with_the_reason(tmp_path: Path, members: bytes, stage: str, reason: str):
    content = sample("a") + members + sample("b") + END
    rows = check_outcomes(tmp_path, content, [("a", "ok"), ("x", stage), ("b", "ok")])
    assert re.search(reason, error_of(rows, "x"))


def test_a_caption_comes_from_the_named_json_field(tmp_path: Path):
    record = b'\xef\xbb\xbf{"text": "wrong", "prompt": " caption \\u0061 "}'
    url = write_tar(tmp_path, file("a.json", record) + file("a.jpg", b"image a") + END)
    assert outcomes(read_rows(url, caption="json:prompt")) == [("a", "ok")]
    assert (
        error_of(read_rows(url, caption="json:title"), "a") == "the .json member has no field 'title' that is a string"
    )


@pytest.mark.parametrize(
    "record", [b'{"c": 3}', b'{"c": null}', b'["c"]', b'{"c": "x"', b"[" * 100_000, b'{"c": "\\ud800"}', b'{"c": " "}']
)
def test_a_json_without_a_caption_that_can_be_stored_is_a_caption_failure(tmp_path: Path, record: bytes):
    url = write_tar(tmp_path, file("x.jpg", b"i") + file("x.json", record) + END)
    assert outcomes(read_rows(url, caption="json:c")) == [("x", "caption")]


@pytest.mark.parametrize("caption", ["", "json", "json:", "txt:a", "csv:a", "TXT"])
def test_a_caption_setting_of_another_form_is_refused(caption: str):
    with pytest.raises(ValueError, match="allowed are 'txt' and 'json:FIELD'"):
        caption_source(caption)


@pytest.mark.parametrize("units_per_shard", [1, 2, 3, 5])
def test_all_units_of_a_shard_together_give_each_sample_once_whatever_their_number(
    tmp_path: Path, units_per_shard: int
):
    url = write_tar(tmp_path, b"".join(sample(str(n)) for n in range(7)) + END)
    units = work_units({"shard": url}, units_per_shard)
    keys = [[row.key for row in read_unit(unit, "txt")] for unit in units]
    dealt = [[n for n in "0123456" if crc32(n.encode()) % units_per_shard == index] for index in range(units_per_shard)]
    assert keys == dealt
    assert outcomes(read_rows(url, units_per_shard=units_per_shard)) == [(key, "ok") for unit in keys for key in unit]


def test_damage_is_reported_by_every_unit(tmp_path: Path):
    units = work_units({"shard": write_tar(tmp_path, sample("a"))}, 3)
    rows = [list(read_unit(unit, "txt")) for unit in units]
    expected = [[("", "shard")], [("", "shard")], [("", "shard")]]
    expected[crc32(b"a") % 3].insert(0, ("a", "ok"))
    assert [outcomes(unit_rows) for unit_rows in rows] == expected


def test_a_sample_has_the_checksum_of_its_image_and_its_caption(tmp_path: Path):
    """As `cat a.jpg a.txt | sha256sum` gives it, for good samples and for bad ones."""
    (row,) = read_rows(write_tar(tmp_path, file("a.txt", b"caption a\n") + file("a.jpg", b"image a") + END))
    assert row.input_sha256 == sha256(b"image acaption a\n").hexdigest()
    (row,) = read_rows(write_tar(tmp_path, file("a.txt", b"c") + file("a.cls", b"1") + file("a.png", b"i") + END))
    assert row.input_sha256 == sha256(b"ic").hexdigest()
    (row,) = read_rows(write_tar(tmp_path, file("a.png", b"i") + file("a.txt", b"") + END))
    assert (row.input_sha256, error_of([row], "a")) == (sha256(b"i").hexdigest(), "the caption is empty")


def test_members_that_belong_to_no_sample_are_reported_and_five_are_named(tmp_path: Path):
    content = sample("a") + b"".join(file(f"README{n}", b"x") for n in range(7)) + file("a.cls", b"1") + sample("b")
    rows = check_outcomes(tmp_path, content, [("a", "ok"), ("b", "ok"), ("", "shard")])
    error = error_of(rows, "")
    assert [f"README{n}" in error for n in range(7)] == [True] * 4 + [False] * 3
    assert error.startswith("byte ")
    assert error.endswith("; and 3 more")
