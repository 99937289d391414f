"""The images that a folder or a table lists, and the errors of its lines."""

import json
import sys
from pathlib import Path

import pytest
from helpers.pack import NAMES, failures, members, pack, refusal, shards, write_folder
from helpers.tables import TABLES, write_parquet


@pytest.mark.parametrize("ending", TABLES)
def test_a_table_gives_the_same_shards_as_the_folder(tmp_path: Path, ending: str):
    source = write_folder(tmp_path / "source")
    lines: list[dict[str, object]] = [
        {"n": n, "image": f"{name}.png", "text": f" image {n} of {name!r} é"} for n, name in enumerate(NAMES)
    ]
    TABLES[ending](source / f"list{ending}", lines)
    assert pack(source, tmp_path / "folder") == 0
    columns = ("--path_column=image", "--caption_column=text")
    assert pack(source / f"list{ending}", tmp_path / "table", *columns) == 0
    assert shards(tmp_path / "table") == shards(tmp_path / "folder")
    assert len(shards(tmp_path / "table")) == 2 * 3


def test_a_wrong_line_of_a_table_is_reported_by_its_number_or_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write_folder(tmp_path / "source", ("a", "b", "c"))
    lines = [
        '{"path": "a.png", "caption": "one"}',
        '{"path": "a.png", "caption": "the same image in other words"}',
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
    found = failures(capsys.readouterr().err)
    assert {path: reason[:40] for path, reason in found.items()} == {
        "nowhere.png": "image: it cannot be read: No such file or directory"[:40],
        "../source/c.png": "image: it leads out of the table's folder; write"[:40],
        "c.pdf": "image: images end in jpg, jpeg, jfif, jpe, png"[:40],
        "c.png": "caption: it has no caption",
        "line 8": "line: its path is 7, not a text",
        "line 9": "line: this is no JSON: Invalid control character"[:40],
        "./c.png": "caption: 'utf-8' codec can't encode chara"[:40],
    }
    captions = [content.decode() for name, content in members(tmp_path / "out").items() if name.endswith(".txt")]
    assert sorted(captions) == ["an absolute path", "one", "the same image in other words"]


@pytest.mark.parametrize(
    ("name", "flags", "text"),
    [
        ("nowhere", [], "is neither a folder nor a table that ends in .csv, .jsonl, .parquet"),
        ("list.txt", [], "is neither a folder nor a table"),
        ("empty", [], "lists no images; images end in jpg, jpeg, jfif"),
        ("list.csv", ["--path_column=file"], "has no column 'file' among ['caption', 'path']: give --path_column"),
        (
            "list.csv",
            ["--caption_column=text"],
            "has no column 'text' among ['caption', 'path']: give",
        ),
        ("latin.csv", [], "cannot be read: 'utf-8' codec can't decode"),
        ("list.csv", ["--shard_images=10001"], "--shard_images is 10001, allowed: 1 to 10000"),
        ("list.csv", ["--shard_bytes=0"], "--shard_bytes is 0, allowed: at least 1"),
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
    assert text in refusal(capsys)
    assert not (tmp_path / "out").exists()


def test_parquet_without_pyarrow_is_refused_with_the_way_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write_parquet(tmp_path / "list.parquet", [{"path": "a.png", "caption": "a"}])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert pack(tmp_path / "list.parquet", tmp_path / "out") == 2
    assert "pip install 'nti-batch[parquet]'" in refusal(capsys)
