"""Every image and every caption of the input has its row, in folders, tars and packs; other files are counted."""

import logging
import re
from pathlib import Path

import pytest
from helpers.image_files import encode, gradient
from helpers.jobs import arguments, ids, rows
from helpers.pack import members, pack
from helpers.tiny import png, write_shard

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.data import images
from nti_batch.data.images import decode_image

BARE = {
    "a.png": png(1),
    "a.json": b'{"caption": "an a"}',
    "mute.heic": b"\0\0\0\x1cftypheic",
    "words.json": b'{"caption": "x"}',
}
"""A good sample, an image without caption and a caption without image."""


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def job_of_folder(model: Path, folder: Path, out: Path, *more: str) -> list[str]:
    """Return the arguments of a quick job with captions in JSON."""
    job = [word for word in arguments(model, "", out) if not word.startswith("--data.shards")]
    return [*job, f"--data.images={folder}", "--data.caption=json:caption", *more]


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_an_image_without_caption_and_a_caption_without_image_are_failed_rows(
    tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        job = job_of_folder(tiny_model, write(tmp_path / "folder", BARE), out)
    else:
        job = arguments(tiny_model, write_shard(tmp_path / "s.tar", BARE), out, "--data.caption=json:caption")
    assert main(job) == 3
    found = rows(out)
    assert {key: row.stage for key, row in found.items()} == {"a": "", "mute": "caption", "words": "image"}
    assert found["mute"].error == (
        "there is no .json member beside .heic: add one, or give the caption with --data.default_caption"
    )
    assert found["words"].error.startswith("there is no image beside .json; images end in .jpg")
    assert main(["verify", str(out)]) == 0


@pytest.mark.parametrize("caption", ["txt", "json:caption"])
def test_a_default_caption_is_that_of_the_images_without_one_alone(
    tiny_model: Path, tmp_path: Path, caption: str
) -> None:
    ending = caption[:4].rstrip(":")
    own = b"my own" if caption == "txt" else b'{"caption": "my own"}'
    files = {"a.png": png(1), "b.png": png(2), f"b.{ending}": own, "c.png": png(3), f"c.{ending}": b"", "d.png": b"x"}
    shard, out = write_shard(tmp_path / "s.tar", files), tmp_path / "out"
    job = arguments(tiny_model, shard, out, f"--data.caption={caption}")
    assert main(job) == 3
    assert ids(out) == [("s", "b")]
    retry = [*job, "--data.default_caption=a photo of é", "--data.retry_failed=true"]
    assert main(retry) == 3
    assert {stored.key: stored.prompt for stored in read_inversions(out)} == {"a": "a photo of é", "b": "my own"}
    assert {key: row.stage for key, row in rows(out).items()} == {"a": "", "b": "", "c": "caption", "d": "image"}
    assert main(["verify", str(out), "--recompute=2"]) == 0, "the images without a caption file are read again"


def test_another_default_caption_is_a_changed_input(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard, out = write_shard(tmp_path / "s.tar", {"a.png": png(1)}), tmp_path / "out"
    job = arguments(tiny_model, shard, out)
    assert main([*job, "--data.default_caption=one"]) == 0
    shard.touch()
    assert main([*job, "--data.default_caption=two"]) == 0
    assert "the input of a has changed since it was committed" in caplog.text
    assert main([*job, "--data.default_caption=two", "--data.redo_changed=true"]) == 0
    (stored,) = read_inversions(out)
    assert stored.prompt == "two"


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_default_caption_is_refused(
    tiny_model: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_shard(tmp_path / "s.tar", {"a.png": png(1)})
    assert main(arguments(tiny_model, shard, tmp_path / "out", f"--data.default_caption={text}")) == 2
    assert "data.default_caption is empty" in capsys.readouterr().err


def test_files_of_other_kinds_are_counted_once(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("a.psd", "b.psd", "README", "notes.txt", ".hidden", "a.xmp")
    folder = write(
        tmp_path / "folder", {"a.png": png(1), "a.json": b'{"caption": "an a"}'} | dict.fromkeys(names, b"x")
    )
    with caplog.at_level(logging.WARNING):
        assert main(job_of_folder(tiny_model, folder, tmp_path / "out", "--data.units_per_shard=3")) == 0
    said = "images: 5 files are neither images nor captions: 2 with .psd, 1 with .txt, 1 with .xmp, 1 with no ending"
    assert caplog.text.count(said) == 1
    assert said in (tmp_path / "out" / "log" / "rank-0.log").read_text()


def test_pack_reports_what_it_does_not_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"a.png": png(1), "b.txt": b"words", "c.psd": b"x", "d.json": b"{}", "e.heic": b"image", "e.txt": b"an e"}
    folder = write(tmp_path / "folder", files)
    assert pack(folder, tmp_path / "out") == 3
    out, said = capsys.readouterr()
    assert "'a.png': caption: there is no .txt of its name\n" in said
    assert "'b.txt': image: there is no image of this name\n" in said
    assert "not packed: 2 files are neither images nor captions: 1 with .json, 1 with .psd\n" in out
    assert {name for name in members(tmp_path / "out") if name.endswith(".heic")} == {"00000/000000002.heic"}


def test_pack_takes_a_default_caption_for_folders_and_tables(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", {"a.png": png(1), "b.png": png(2), "b.txt": b"a b"})
    (folder / "list.jsonl").write_text('{"path": "a.png"}\n{"path": "b.png", "caption": "a b"}\n')
    for source in (folder, folder / "list.jsonl"):
        out = tmp_path / f"out {source.suffix}"
        assert pack(source, out, "--default_caption=an image") == 0
        assert [text for name, text in members(out).items() if name.endswith(".txt")] == [b"an image", b"a b"]
        assert pack(source, out, "--default_caption=another") == 2


def test_a_heic_file_names_the_extra_that_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "FORMATS", tuple(name for name in images.FORMATS if name != "HEIF"))
    for brand in (b"heic", b"mif1"):
        with pytest.raises(ValueError, match=re.escape("needs pillow-heif: pip install 'nti-batch[heic]'")):
            decode_image(b"\0\0\0\x1cftyp" + brand + bytes(40), 8, 8)


def test_a_heic_file_is_decoded_upright_with_the_extra() -> None:
    pytest.importorskip("pillow_heif")
    data = encode(gradient(), "HEIF", quality=95)
    assert (decode_image(data, 48, 64).int() - decode_image(encode(gradient()), 48, 64).int()).abs().float().mean() < 4
    with pytest.raises(ValueError, match=r"image of .* bytes is damaged"):
        decode_image(data[: len(data) // 2], 8, 8)
