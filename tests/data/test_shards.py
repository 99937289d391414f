"""Addresses of shards, their names and their work units."""

from pathlib import Path

import pytest

from nti_batch.data.image_locations import locate_images
from nti_batch.data.shards import (
    expand_shards,
    input_shards,
    name_shards,
    public_address,
    shard_name,
    stored_address,
    work_units,
)
from nti_batch.records import WorkUnit


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


def test_a_pattern_that_cannot_be_expanded_or_opened_is_refused_at_once():
    with pytest.raises(ValueError, match="'pipe:COMMAND'"):
        expand_shards("ftps://host/a.tar")
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
def test_a_shard_is_named_after_its_file(url: str, name: str):
    assert shard_name(url) == name


@pytest.mark.parametrize("url", ["https://host/", "https://u:pw@host", "https://host/?pw", "pipe:get --key=pw -"])
def test_a_shard_without_a_name_is_refused(url: str):
    with pytest.raises(ValueError, match=r"has no file name") as caught:
        shard_name(url)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:pw@host:80/d/x.tar?token=t#f", "https://host:80/d/x.tar"),
        ("https://token@host/x.tar", "https://host/x.tar"),
        ("https://user:p@w@host/x.tar", "https://host/x.tar"),
        ("https://user:p/w@host/x.tar", "https://host/x.tar"),
        ("https://user:p?w#@host/x.tar?a=b@c", "https://c"),
        ("https://host:80/d@v1/x.tar?t", "https://host:80/d@v1/x.tar"),
        ("s3://key:secret@bucket/x.tar", "s3://bucket/x.tar"),
        ("HTTPS://user:pw@host/x.tar", "HTTPS://host/x.tar"),
        ("gs://bucket/x.tar?t", "gs://bucket/x.tar"),
        ("hf://datasets/a/b@main/x.tar", "hf://datasets/a/b@main/x.tar"),
        ("file:/d/x.tar", "file:/d/x.tar"),
        ("/d/user:pw@x?y#z.tar", "/d/user:pw@x?y#z.tar"),
        ("pipe:curl -H 'Key: pw' 'https://u:pw@host/d/x.tar?t=pw' | pv", "pipe:... x.tar"),
        ("pipe:curl 'https://host/x?t=pw'", "pipe:... x"),
        ("pipe:", "pipe:..."),
        ("pipe:curl https://host/x -u user:pw", "pipe:..."),
    ],
)
def test_credentials_of_an_address_are_not_shown(url: str, shown: str):
    assert public_address(url) == shown


@pytest.mark.parametrize(
    ("url", "stored"),
    [
        ("https://user:pw@host/d/x.tar?token=t", "https://host/d/x.tar"),
        ("pipe:curl 'https://u:pw@host/x.tar?t=pw#f' | pv # x?", "pipe:curl 'https://host/x.tar' | pv # x?"),
        ("/d/user:pw@x?y#z.tar", "/d/user:pw@x?y#z.tar"),
    ],
)
def test_an_address_is_stored_without_the_credentials_of_its_urls(url: str, stored: str):
    assert stored_address(url) == stored
    assert stored_address(stored) == stored


def test_no_message_about_an_address_shows_its_credentials(tmp_path: Path):
    secret = "https://user:PW@host/d/a.tar?token=PW"
    (tmp_path / "list.txt").write_text("pipe:curl -u user:PW https://host/a.tar\n")
    for failing in (
        lambda: expand_shards(f"{secret}::{{1..${{NOT_SET_ANYWHERE}}}}.tar"),
        lambda: input_shards(f"{secret}::pipe:get PW x.tar", "images"),
        lambda: expand_shards("s3://user:PW@host/a.tar?PW"),
        lambda: expand_shards(f"@{secret}"),
        lambda: expand_shards(f"@{tmp_path}/list.txt"),
        lambda: name_shards([secret, secret.replace("/d/", "/e/")]),
        lambda: locate_images(secret),
    ):
        with pytest.raises(ValueError, match=r"shard|'s3://host/a.tar'") as caught:
            failing()
        assert "PW" not in str(caught.value)


def test_the_units_of_a_shard_are_adjacent():
    assert work_units(name_shards(["d/x.tar", "y.tar"]), 2) == [
        WorkUnit("x", "d/x.tar", 0, 2),
        WorkUnit("x", "d/x.tar", 1, 2),
        WorkUnit("y", "y.tar", 0, 2),
        WorkUnit("y", "y.tar", 1, 2),
    ]


def test_two_shards_of_one_name_and_no_units_are_refused():
    with pytest.raises(ValueError, match=r"'a/x.tar' and 'b/x.tar' are both called 'x'"):
        name_shards(["a/x.tar", "y.tar", "b/x.tar"])
    with pytest.raises(ValueError, match="units_per_shard is 0"):
        work_units({"x": "x.tar"}, 0)


def test_a_glob_leaves_out_the_output_of_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "inversions").mkdir(parents=True)
    for name in ("a.tar", "out/inversions/a.0of1.00000.tar", "out/run.json", "out/own.tar"):
        (tmp_path / name).touch()
    assert expand_shards("**/*.tar") == ["a.tar", "out/own.tar"]
    assert expand_shards("out/inversions/a.0of1.00000.tar") == ["out/inversions/a.0of1.00000.tar"], "it is named"


def test_of_a_folder_and_of_a_glob_only_the_tars_are_taken(tmp_path: Path):
    (tmp_path / "more").mkdir()
    tars = [tmp_path / name for name in ("00000.tar", "00001.TAR.gz", "more/00002.tgz")]
    for path in (*tars, tmp_path / "00000.parquet", tmp_path / "00000_stats.json"):
        path.touch()
    assert expand_shards(str(tmp_path)) == [str(path) for path in tars]
    assert expand_shards(f"{tmp_path}/*") == [str(path) for path in tars[:2]]
    with pytest.raises(ValueError, match="no tar matches"):
        expand_shards(f"{tmp_path}/*.parquet")


def test_a_folder_of_tars_is_refused_as_a_folder_of_images(tmp_path: Path):
    (tmp_path / "00000.tar").touch()
    with pytest.raises(ValueError, match="give it with --data"):
        input_shards(None, str(tmp_path))
    (tmp_path / "cat.jpg").touch()
    assert input_shards(None, str(tmp_path)) == {"images": str(tmp_path)}
