"""Parts with right checksums and forged contents: `verify` names them, `export` leaves them out, memory is bounded."""

import hashlib
import io
import json
import re
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from helpers.edits import edit
from helpers.fuzz import bounded
from helpers.jobs import arguments
from helpers.tiny import captioned, write_shard
from safetensors.torch import load, save

from nti_batch.cli import main

Forgery = Callable[[bytes, dict[str, Any]], tuple[bytes, dict[str, Any]]]


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a run of one compact inversion and a run of its reconstruction."""
    folder = tmp_path_factory.mktemp("forged")
    write_shard(folder / "s.tar", captioned(1))
    more = ["--output.storage=compact", "--data.units_per_shard=1"]
    assert main(arguments(tiny_model, folder / "s.tar", folder / "run", *more)) == 0
    assert main(edit(folder / "run", folder / "edits")) == 0
    return folder


def members(part: Path) -> list[tuple[str, bytes]]:
    """Names and contents of the members of a part."""
    with tarfile.open(part) as tar:
        files = [(member.name, tar.extractfile(member)) for member in tar]
        return [(name, file.read()) for name, file in files if file]


def rewrite(run: Path, forgery: Forgery, sparse: bool = False) -> None:
    """Forge the only part of a run, and make all checksums right."""
    (manifest,) = run.glob("*/*.jsonl")
    part = next(run.glob("*/*.tar"))
    (name, payload), (json_name, text) = members(part)
    payload, metadata = forgery(payload, json.loads(text))
    metadata["sha256"] = hashlib.sha256(payload).hexdigest()
    text = json.dumps(metadata).encode()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for member, content in ((name, payload), (json_name, text)):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    content = file.getvalue()
    if sparse:
        content = sparse_header(name, 1 << 40) + content
    part.write_bytes(content)
    row, footer, _ = map(json.loads, manifest.read_text().splitlines())
    row |= {"sha256": metadata["sha256"], "json_sha256": hashlib.sha256(text).hexdigest()}
    footer["tar_sha256"] = hashlib.sha256(content).hexdigest()
    lines = f"{json.dumps(row)}\n{json.dumps(footer)}"
    manifest.write_text(f"{lines}\n{json.dumps({'sha256': hashlib.sha256(lines.encode()).hexdigest()})}\n")


def sparse_header(name: str, size: int) -> bytes:
    """A header of GNU tar for a sparse file of a size, without any data."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[386:410] = b"00000000000\0" * 2
    header[483:495] = b"%011o\0" % min(size, 8**11 - 1)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def with_header(payload: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Change the header of safetensors bytes."""
    size = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload[8 + size :]


def with_levels(levels: bytes, layout: str = "compact-2") -> Forgery:
    """Give a compact inversion other levels."""

    def forge(payload: bytes, metadata: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        tensors = {**load(payload), "levels": torch.frombuffer(bytearray(levels), dtype=torch.uint8)}
        return save(tensors, metadata={"layout": layout}), metadata

    return forge


def bomb(compressor: Any) -> bytes:
    """A stream of 1 GiB."""
    return b"".join([*(compressor.compress(bytes(1 << 20)) for _ in range(1 << 10)), compressor.flush()])


def frame_that_lies(payload: bytes, metadata: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Levels of 1 MiB whose zstd header tells the size that they should have."""
    tensors = load(payload)
    frame = bytearray(zstandard.ZstdCompressor().compress(bytes(1 << 20)))
    frame[5:9] = (len(tensors["moved"]) * tensors["start"].numel()).to_bytes(4, "little")
    assert zstandard.frame_content_size(bytes(frame)) == len(tensors["moved"]) * tensors["start"].numel()
    return with_levels(bytes(frame))(payload, metadata)


def more_rows_than_timesteps(payload: bytes, metadata: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """A GiB of levels, and as many rows as it takes."""
    tensors = load(payload)
    size = tensors["start"].numel() * -(-(1 << 30) // tensors["start"].numel())
    compressor = zstandard.ZstdCompressor().compressobj(size=size)
    pieces = [compressor.compress(bytes(min(1 << 20, size - done))) for done in range(0, size, 1 << 20)]
    levels = torch.frombuffer(bytearray(b"".join([*pieces, compressor.flush()])), dtype=torch.uint8)
    moved = torch.zeros(size // tensors["start"].numel(), dtype=torch.int64)
    return save({**tensors, "levels": levels, "moved": moved}, metadata={"layout": "compact-2"}), metadata


def huge_shape(header: dict[str, Any]) -> None:
    header["noise_latents"]["shape"] = [10**6, 10**6]


FORGERIES: dict[str, Forgery] = {
    "garbage": lambda payload, metadata: (b"garbage!" * 9, metadata),
    "empty": lambda payload, metadata: (b"", metadata),
    "a shape of 1e12": lambda payload, metadata: (with_header(payload, huge_shape), metadata),
    "a tensor less": lambda payload, metadata: (with_header(payload, lambda h: h.pop("start")), metadata),
    "no timesteps": lambda payload, metadata: (payload, {**metadata, "timesteps": []}),
    "a million timesteps": lambda payload, metadata: (payload, {**metadata, "timesteps": [1] * 10**6}),
    "a text for timesteps": lambda payload, metadata: (payload, {**metadata, "timesteps": "abc"}),
    "no settings": lambda payload, metadata: (payload, {**metadata, "settings": None}),
    "no pooled_dim": lambda payload, metadata: (payload, {**metadata, "pooled_dim": "x"}),
    "levels that are no frame": with_levels(b"x" * 7),
    "levels of another length": with_levels(zstandard.compress(b"x")),
    "levels of a GiB": with_levels(bomb(zstandard.ZstdCompressor().compressobj(size=1 << 30))),
    "levels without end": with_levels(bomb(zstandard.ZstdCompressor().compressobj())),
    "levels that are longer than their header tells": frame_that_lies,
    "levels of more rows than timesteps": more_rows_than_timesteps,
    "levels that are cut": with_levels(zstandard.compress(bytes(1 << 20))[:20]),
    "zlib levels that are no stream": with_levels(b"x" * 7, "compact-1"),
    "zlib levels of another length": with_levels(zlib.compress(b"x"), "compact-1"),
    "zlib levels without end": with_levels(bomb(zlib.compressobj(9)), "compact-1"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_inversion_is_a_finding_and_not_exported(
    name: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = Path(shutil.copytree(runs / "run", tmp_path / "run"))
    rewrite(run, FORGERIES[name])
    with bounded(60, megabytes=400):
        assert main(["verify", str(run)]) == 1
        assert main(["export", str(run), str(tmp_path / "out")]) in (1, 2)
        assert main(["status", str(run)]) in (0, 2)
    assert not list((tmp_path / "out").rglob("*.json"))
    assert re.search("s/000|s.0of1.00000", capsys.readouterr().out)


def test_a_sparse_member_is_a_finding(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = Path(shutil.copytree(runs / "run", tmp_path / "run"))
    rewrite(run, lambda payload, metadata: (payload, metadata), sparse=True)
    with bounded(60, megabytes=400):
        assert main(["verify", str(run)]) == 1
        assert main(["export", str(run), str(tmp_path / "out")]) == 1
    assert "s.0of1.00000.tar is damaged" in capsys.readouterr().out


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("payload", [b"", b"<html>", png_of(60_000, 60_000), png_of(9_000, 9_000), png_of(3, 3)])
def test_a_forged_edit_is_a_finding(payload: bytes, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = Path(shutil.copytree(runs / "edits", tmp_path / "edits"))
    rewrite(run, lambda _, metadata: (payload, metadata))
    with bounded(60, megabytes=400):
        assert main(["verify", str(run)]) == 1
    out = capsys.readouterr().out
    assert "is no image" in out or "is an image of the height and width (3, 3)" in out
