"""Whatever happens to the bytes of a file: an error in words or a right result, no crash, no hang, no wrong sample.

Some seconds in the suite; with other examples each time and for ten to twenty minutes by

    pytest tests/test_fuzz.py --hypothesis-profile=long
"""

import bz2
import gzip
import lzma
import re
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pytest
import torch
from helpers.image_files import encode, photograph
from helpers.inversions import SETTINGS, UNIT, inversion
from helpers.mutations import Mutation, mutate, mutations
from helpers.tars import END, header, sample
from hypothesis import given
from hypothesis import strategies as st

from nti_batch import read_inversions
from nti_batch.data.images import decode_image
from nti_batch.data.samples import RawSample, read_unit
from nti_batch.data.shard_reader import read_keys
from nti_batch.output.inversions import InversionRun
from nti_batch.output.manifest import Manifest, ManifestRow
from nti_batch.output.part import read_members
from nti_batch.output.serialization import StoredInversion
from nti_batch.output.status import units_of
from nti_batch.records import Failure, WorkUnit
from nti_batch.report.verify import verify_run

KEYS = ["a", "bb", "ccc", "dddd", "eeeee"]
SHARD = b"".join(map(sample, KEYS)) + END
Told = tuple[str, str]
"""Key, and 'ok' or the stage of the failure."""


@contextmanager
def bounded(seconds: float = 20, megabytes: int = 400) -> Iterator[None]:
    """Fail where the body hangs, or takes much memory."""

    def hangs(*_: object) -> None:
        raise AssertionError("this hangs")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < megabytes * 1024


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One folder for all examples."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def read(path: Path, content: bytes) -> list[RawSample | Failure]:
    """All rows of a shard with this content, once it is checked that its keys alone are read alike."""
    path.write_bytes(content)
    with bounded():
        rows = list(read_unit(WorkUnit("s", str(path), 0, 1), "txt", ()))
        keys, faults = read_keys(str(path))
    assert [row.key for row in rows if row.key] == keys
    assert len({row.key for row in rows}) == len(rows), "no id has two rows"
    assert bool(faults) == any(not row.key for row in rows)
    return rows


def told(row: RawSample | Failure) -> Told:
    return (row.key, row.stage if isinstance(row, Failure) else "ok")


# --- the reader against one that knows nothing but the tars that these tests write ---


@dataclass
class Walk:
    """What a plain tar certainly holds."""

    members: list[tuple[str, str, bytes]]
    """Key, extension, data."""

    end: str
    """'whole', 'damaged', or 'odd' where something comes that a tar may hold and these do not."""


def walk(content: bytes) -> Walk:
    """Read members up to the first block that is not exactly as these tests write it."""
    members: list[tuple[str, str, bytes]] = []
    start = 0
    while True:
        block, rest = content[start : start + 512], content[start:]
        if not block.strip(b"\0"):
            is_whole = len(rest) >= len(END) and not rest.strip(b"\0")
            return Walk(members, "whole" if is_whole else "damaged")
        name = re.match(rb"([a-z0-9]+)\.(jpg|txt)\0", block)
        size = re.fullmatch(rb"([0-7]{11})\0", block[124:136])
        if not (name and size and block == header(name[0][:-1], int(size[1], 8))):
            return Walk(members, "odd" if has_checksum(block) else "damaged")
        data = content[start + 512 :][: int(size[1], 8)]
        start += 512 + int(size[1], 8) + -int(size[1], 8) % 512
        if len(data) < int(size[1], 8):
            return Walk(members, "damaged")
        members.append((name[1].decode(), name[2].decode(), data))


def has_checksum(block: bytes) -> bool:
    """Whether a header's checksum is right, or of a form that only a tar reader can judge."""
    if len(block) < 512:
        return False
    if not re.fullmatch(rb"[0-7]{6}\0 ", block[148:156]):
        return True
    unsigned = sum(block[:148]) + 8 * 32 + sum(block[156:])
    signed = unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    return int(block[148:154], 8) in (unsigned, signed)


def expected_rows(members: list[tuple[str, str, bytes]]) -> list[tuple[str, str, bytes, str]]:
    """Key, 'ok' or stage, picture and caption of each group of members."""
    rows = []
    for key, group in groupby(members, itemgetter(0)):
        names = [(extension, data) for _, extension, data in group]
        data = dict(names)
        outcome = "ok"
        try:
            prompt = data["txt"].decode("utf-8-sig").strip()
        except (KeyError, UnicodeDecodeError):
            prompt = ""
        if not prompt:
            outcome = "caption"
        if "jpg" not in data:
            outcome = "image"
        if len(data) < len(names):
            outcome = "shard"
        rows.append((key, outcome, data.get("jpg", b""), prompt))
    return rows


def check_against_walk(rows: list[RawSample | Failure], content: bytes, changes: int) -> None:
    seen = walk(content)
    groups = expected_rows(seen.members)
    certain = groups if seen.end == "whole" else groups[:-1]
    first = {key: (outcome, picture, prompt) for key, outcome, picture, prompt in reversed(certain)}
    order = list(dict.fromkeys(key for key, *_ in certain))
    assert [told(row) for row in rows[: len(order)]] == [(key, first[key][0]) for key in order]
    for row in rows:
        if isinstance(row, RawSample) and row.key in first:
            assert (row.image, row.prompt) == first[row.key][1:]
        elif isinstance(row, RawSample):
            assert row.image in content and row.prompt.encode() in content
    has_fault = any(not row.key for row in rows)
    if seen.end == "whole":
        assert len(rows) == len(order) + has_fault
        assert has_fault == (len(order) < len(groups) or not groups)
    elif seen.end == "damaged":
        assert has_fault
    elif changes == 1:
        unharmed = [row for row in rows if row.key in KEYS and isinstance(row, RawSample)]
        assert len(unharmed) == len(KEYS) or any(isinstance(row, Failure) for row in rows), "nothing is lost in silence"


@given(changes=mutations(len(SHARD)))
def test_a_mutated_shard_gives_what_stands_before_the_damage_and_says_so(folder: Path, changes: list[Mutation]):
    content = mutate(SHARD, changes)
    rows = read(folder / "s.tar", content)
    check_against_walk(rows, content, len(changes))
    streamed = read(folder / "s.tar", gzip.compress(content, 1))
    assert [told(row) for row in streamed] == [told(row) for row in rows]
    assert [r.image for r in streamed if isinstance(r, RawSample)] == [
        r.image for r in rows if isinstance(r, RawSample)
    ]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@given(data=st.data())
def test_a_mutated_compressed_shard_is_read_as_it_was_or_says_so(
    folder: Path, compress: Callable[[bytes], bytes], data: st.DataObject
):
    packed = compress(SHARD)
    rows = read(folder / "s.tar", mutate(packed, data.draw(mutations(len(packed)))))
    if any(not row.key for row in rows):
        return
    assert [told(row) for row in rows] == [(key, "ok") for key in KEYS]
    for row in rows:
        assert isinstance(row, RawSample)
        assert (row.image, row.prompt) == (f"picture {row.key}".encode(), f"caption {row.key}")


# --- the output of a run ---


class StoredRun:
    """A committed run, whose files can be changed and given back."""

    def __init__(self, out: Path) -> None:
        """Write it, with the input shard that it says it comes from."""
        self.unit = WorkUnit("shard[0]", str(out / "shard[0].tar"), 0, 1)
        self.run = InversionRun(out)
        self.run.create({**SETTINGS, "data.units_per_shard": 1}, [self.unit.url])
        Path(self.unit.url).write_bytes(b"".join(map(sample, KEYS)) + END)
        part = self.run.new_part(self.unit)
        for key in KEYS[:-1]:
            part.add(inversion(key, self.unit))
        part.add_failure(Failure(self.unit, KEYS[-1], "image", "it is HTML"))
        part.commit()
        self.part, self.manifest = part.part, part.part.with_suffix(".jsonl")
        self.content = {path: path.read_bytes() for path in (self.part, self.manifest, self.run.run_file)}
        self.stored = list(read_inversions(out))


@pytest.fixture(scope="module")
def finished(folder: Path) -> StoredRun:
    """One for all examples."""
    return StoredRun(folder / "out")


def is_same(one: StoredInversion, other: StoredInversion) -> bool:
    return (
        (one.shard, one.key, one.prompt, one.metadata) == (other.shard, other.key, other.prompt, other.metadata)
        and torch.equal(one.noise_latents, other.noise_latents)
        and torch.equal(one.null_embeddings, other.null_embeddings)
    )


@pytest.mark.parametrize("which", range(3), ids=["part", "manifest", "run"])
@given(data=st.data())
def test_a_mutated_run_is_read_as_it_was_or_names_the_file(finished: StoredRun, which: int, data: st.DataObject):
    path, content = list(finished.content.items())[which]
    changed = mutate(content, data.draw(mutations(len(content))))
    path.write_bytes(changed)
    found: list[StoredInversion] = []
    try:
        with bounded():
            found.extend(read_inversions(finished.run.out))
    except ValueError as error:
        assert str(path if path.exists() else finished.run.out) in str(error) or str(finished.part) in str(error)
    else:
        assert len(found) == len(finished.stored)
    finally:
        path.write_bytes(content)
    assert all(map(is_same, found, finished.stored))


@pytest.mark.parametrize("which", range(3), ids=["part", "manifest", "run"])
@given(data=st.data())
def test_verify_finds_every_mutation_of_a_part_or_a_manifest(finished: StoredRun, which: int, data: st.DataObject):
    path, content = list(finished.content.items())[which]
    changed = mutate(content, data.draw(mutations(len(content))))
    path.write_bytes(changed)
    try:
        with bounded():
            run = InversionRun(finished.run.out)
            findings = list(verify_run(run, units_of(run), 0))
    except ValueError as error:
        assert path == finished.run.run_file, error
    else:
        assert bool(findings) == (changed != content) or path == finished.run.run_file
    finally:
        path.write_bytes(content)


@given(data=st.data())
def test_a_mutated_manifest_is_read_as_it_was_or_is_named(finished: StoredRun, data: st.DataObject):
    content = finished.content[finished.manifest]
    path = finished.run.out / "mutated.jsonl"
    path.write_bytes(mutate(content, data.draw(mutations(len(content)))))
    try:
        manifest = Manifest.read(path, ManifestRow)
    except ValueError as error:
        assert str(error).startswith(f"{path} is damaged: ")
    else:
        assert manifest.rows == Manifest.read(finished.manifest, ManifestRow).rows


@given(data=st.data())
def test_the_members_of_a_mutated_part_have_the_right_tensors_until_it_is_named(
    finished: StoredRun, data: st.DataObject
):
    content = finished.content[finished.part]
    payloads = [payload for payload, _ in read_members(finished.part)]
    path = finished.run.out / "mutated.tar"
    path.write_bytes(mutate(content, data.draw(mutations(len(content)))))
    try:
        with bounded():
            for payload, metadata in read_members(path):
                assert payloads[KEYS.index(str(metadata["key"]))] == payload
    except ValueError as error:
        assert str(error).startswith(f"{path} is damaged: ")


def salvaged(folder: Path, finished: StoredRun, content: bytes) -> list[StoredInversion]:
    """What a job finds that continues a run whose job died with this unfinished part."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        run = InversionRun(Path(name))
        run.create({**SETTINGS, "data.units_per_shard": 1}, [])
        run._part(UNIT, 0).with_suffix(".tar.tmp").write_bytes(content)
        with bounded():
            assert run.salvage(UNIT) == len(run.rows(UNIT))
        found = list(read_inversions(run.out))
        assert [stored.key for stored in found] == [row.key for row in run.rows(UNIT)]
        assert len({stored.key for stored in found}) == len(found)
        return found


@given(data=st.data())
def test_what_a_dead_job_left_is_salvaged_up_to_what_was_not_written(
    folder: Path, finished: StoredRun, data: st.DataObject
):
    content = finished.content[finished.part]
    found = salvaged(folder, finished, mutate(content, data.draw(mutations(len(content), only_lost=True))))
    assert all(map(is_same, found, finished.stored))


@given(data=st.data())
def test_salvage_of_any_bytes_ends_with_right_tensors(folder: Path, finished: StoredRun, data: st.DataObject):
    content = finished.content[finished.part]
    stored = {stored.key: stored for stored in finished.stored}
    for found in salvaged(folder, finished, mutate(content, data.draw(mutations(len(content))))):
        assert torch.equal(found.noise_latents, stored[found.key].noise_latents)
        assert torch.equal(found.null_embeddings, stored[found.key].null_embeddings)


# --- pictures ---

SIDEWAYS = {"exif": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"}
PICTURES = {
    "JPEG": encode(photograph(), "JPEG", **SIDEWAYS),
    "PNG": encode(photograph().quantize(64), transparency=3),
    "WEBP": encode(photograph(), "WEBP"),
    "GIF": encode(photograph(), "GIF", save_all=True, append_images=[photograph().rotate(90)]),
    "BMP": encode(photograph(), "BMP"),
    "TIFF": encode(photograph(), "TIFF", compression="tiff_lzw"),
    "PPM": encode(photograph(), "PPM"),
    "JPEG2000": encode(photograph(), "JPEG2000"),
    "AVIF": encode(photograph(), "AVIF"),
}


@pytest.mark.parametrize("file_format", PICTURES)
@given(data=st.data())
def test_a_mutated_picture_gives_pixels_of_the_right_shape_or_a_reason(file_format: str, data: st.DataObject):
    content = PICTURES[file_format]
    changed = mutate(content, data.draw(mutations(len(content))))
    try:
        with bounded(megabytes=6000):
            assert decode_image(changed, 8, 12).shape == (3, 8, 12)
    except ValueError as error:
        assert str(error).startswith("image ")
