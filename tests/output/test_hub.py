"""`nti-batch export --format hub`: a folder for `hf upload` that other libraries, and this one, read."""

import os
from pathlib import Path

import pytest
import webdataset as wds
import yaml
from helpers.crashes import fill_disk_at
from helpers.format_runs import EDIT_SETTINGS, edited
from helpers.inversions import KEYS, ORIGIN, SETTINGS, UNIT, inversion
from helpers.jobs import expect_one_sentence
from helpers.runs import create_run, write
from huggingface_hub import DatasetCard

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.output.edits import EDIT
from nti_batch.output.inversions import InversionRun
from nti_batch.output.run_folder import OutputRun
from nti_batch.records import Failure


@pytest.fixture
def run(tmp_path: Path) -> InversionRun:
    """Six images in two parts, and a failure."""
    run = create_run(tmp_path / "out", SETTINGS, ["shard[0].tar"])
    write(run, KEYS[:2])
    part = run.new_part(UNIT, ORIGIN)
    for key in KEYS[2:]:
        part.add(inversion(key))
    part.add_failure(Failure(UNIT, "bad", "image", "it is HTML"))
    part.commit()
    (run.folder / f"{UNIT.name}.00002.tar.tmp").write_bytes(b"the next part")
    (run.out / "log").mkdir()
    return run


def export(out: Path, folder: Path) -> int:
    return main(["export", str(out), "--format", "hub", "--output", str(folder)])


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_folder_has_the_committed_parts_the_table_and_the_card(
    run: InversionRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert export(run.out, tmp_path / "hub") == 0
    assert "2 parts written\n" in capsys.readouterr().out
    parts = {f"inversions/{UNIT.name}.0000{n}.{kind}" for n in (0, 1) for kind in ("tar", "jsonl")}
    assert files(tmp_path / "hub") == {"README.md", "run.json", "inversions.parquet", *parts}
    assert all((tmp_path / "hub" / name).samefile(run.out / name) for name in parts)
    assert export(run.out, tmp_path / "hub") == 0
    assert "0 parts written, 2 were there" in capsys.readouterr().out


def test_the_folder_is_a_run(run: InversionRun, tmp_path: Path):
    export(run.out, tmp_path / "hub")
    stored = {(s.shard, s.key): s for s in read_inversions(run.out)}
    for found in read_inversions(tmp_path / "hub"):
        assert found.noise_latents.equal(stored.pop((found.shard, found.key)).noise_latents)
    assert not stored


def test_the_card_says_what_made_it_and_leaves_the_licence_to_the_user(run: InversionRun, tmp_path: Path):
    export(run.out, tmp_path / "hub")
    card = DatasetCard.load(tmp_path / "hub" / "README.md")
    assert card.data.pretty_name == "out" and card.data.license is None
    assert card.data.size_categories == ["n<1K"]
    (config,) = card.data.configs
    assert config["data_files"] == [{"split": "train", "path": "inversions.parquet"}]
    assert "6 done, 1 failed" in card.text and '"num_steps": 2' in card.text
    assert f"nti-batch {ORIGIN.nti_batch}, torch {ORIGIN.torch}, diffusers {ORIGIN.diffusers}, on cpu: 6" in card.text
    assert "psnr | 30.25 (mean)" in card.text
    assert "license:" in (tmp_path / "hub" / "README.md").read_text() and "None is chosen" in card.text


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_webdataset_reads_the_shards(run: InversionRun, tmp_path: Path):
    export(run.out, tmp_path / "hub")
    shards = sorted(map(str, (tmp_path / "hub" / "inversions").glob("*.tar")))
    samples = list(wds.WebDataset(shards, shardshuffle=False, empty_check=False).decode())
    assert {sample["json"]["key"] for sample in samples} == set(KEYS)


def test_datasets_loads_the_rows_and_the_shards(run: InversionRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    export(run.out, tmp_path / "hub")
    cache = str(tmp_path / "cache")
    rows = datasets.load_dataset(str(tmp_path / "hub"), split="train", cache_dir=cache)
    assert {row["key"]: row["caption"] for row in rows}.items() >= {(key, f"a picture of {key}") for key in KEYS}
    shards = f"{tmp_path / 'hub'}/inversions/*.tar"
    stored = datasets.load_dataset("webdataset", data_files=shards, split="train", cache_dir=cache)
    assert {sample["json"]["key"] for sample in stored} == set(KEYS)


def test_edits_have_a_card_of_their_own(tmp_path: Path):
    run = OutputRun.create(EDIT, tmp_path / "edits", EDIT_SETTINGS, {UNIT.shard: "shard[0].tar"})
    part = run.new_part(UNIT, ORIGIN)
    part.add(edited("cup"))
    part.commit()
    assert export(run.out, tmp_path / "hub") == 0
    text = (tmp_path / "hub" / "README.md").read_text()
    assert "edits.parquet" in text and "KEY.png" in text and "Null-text inversions of captioned" not in text
    assert yaml.safe_load(text.split("---")[1])["pretty_name"] == "edits"


def test_a_file_system_without_links_gets_copies(run: InversionRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "link", _no_links)
    assert export(run.out, tmp_path / "hub") == 0
    for path in (tmp_path / "hub" / "inversions").iterdir():
        assert path.read_bytes() == (run.folder / path.name).read_bytes()
        assert not path.samefile(run.folder / path.name)


@pytest.mark.parametrize("call", range(6))
def test_an_export_that_fails_at_any_step_is_made_whole_by_the_next(
    run: InversionRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
):
    export(run.out, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", _no_links)
        fill_disk_at(patch, "replace", call)
        assert export(run.out, tmp_path / "hub") == 1
    assert export(run.out, tmp_path / "hub") == 0
    assert files(tmp_path / "hub") == files(tmp_path / "whole")
    for name in files(tmp_path / "whole"):
        assert (tmp_path / "hub" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def _no_links(*_: object) -> None:
    raise OSError("no links")


def test_another_run_in_the_folder_and_the_run_itself_are_refused(
    run: InversionRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = create_run(tmp_path / "other", SETTINGS, ["shard[0].tar"])
    write(other, KEYS[3:])
    export(run.out, tmp_path / "hub")
    capsys.readouterr()
    assert export(other.out, tmp_path / "hub") == 2
    expect_one_sentence("the folder holds another run", capsys=capsys)
    assert export(run.out, run.out) == 2
    expect_one_sentence("the run itself", capsys=capsys)
    more = ["--key", "000"]
    assert main(["export", str(run.out), "--format", "hub", "--output", str(tmp_path / "hub"), *more]) == 2
    expect_one_sentence("--shard and --key do not go with --format hub", capsys=capsys)


@pytest.mark.parametrize("suffix", [".jsonl", ".tar"])
def test_a_damaged_or_missing_part_is_named_and_the_others_are_there(
    run: InversionRun, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
):
    path = run.folder / f"{UNIT.name}.00000{suffix}"
    path.write_bytes(b"damaged") if suffix == ".jsonl" else path.unlink()
    assert export(run.out, tmp_path / "hub") == 1
    assert "00000" in capsys.readouterr().err
    assert {stored.key for stored in read_inversions(tmp_path / "hub")} == set(KEYS[2:])
