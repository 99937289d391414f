"""Shards in folders of tests, and the rows that reading them gives."""

from pathlib import Path

from nti_batch.data.samples import RawSample, Reading, read_unit
from nti_batch.data.shard_reader import count_images
from nti_batch.data.shards import name_shards, work_units
from nti_batch.records import Failure


def write_tar(folder: Path, content: bytes, name: str = "shard.tar") -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def read_rows(url: str, units_per_shard: int = 1, caption: str = "txt") -> list[RawSample | Failure]:
    units = work_units(name_shards([url]), units_per_shard)
    return [row for unit in units for row in read_unit(unit, caption, Reading(allow_pipe=True))]


def outcomes(rows: list[RawSample | Failure]) -> list[tuple[str, str]]:
    """Key, and 'ok' or the stage of the failure; checks that each whole sample has its own image and caption."""
    for row in rows:
        if isinstance(row, RawSample):
            assert (row.prompt, row.image) == (f"caption {row.key}", f"image {row.key}".encode())
    return [(row.key, row.stage if isinstance(row, Failure) else "ok") for row in rows]


def error_of(rows: list[RawSample | Failure], key: str) -> str:
    (error,) = (row.error for row in rows if isinstance(row, Failure) and row.key == key)
    return error


def check_outcomes(folder: Path, content: bytes, expected: list[tuple[str, str]]) -> list[RawSample | Failure]:
    """Check the rows from a file, which can be searched, from a pipe, which cannot, and over three work units."""
    url = write_tar(folder, content)
    rows = read_rows(url)
    assert outcomes(rows) == expected
    assert outcomes(read_rows(f"pipe:cat '{url}'")) == expected
    of_three_units = sorted(outcomes(read_rows(url, units_per_shard=3)))
    assert of_three_units == sorted(expected + 2 * [row for row in expected if not row[0]])
    keys = sum(1 for key, _ in expected if key)
    assert count_images(url) == keys
    assert count_images(f"pipe:cat '{url}'", allow_pipe=True) == keys
    return rows
