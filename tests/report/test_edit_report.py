"""`nti-batch report` describes a run of edits."""

import json
from pathlib import Path

import pytest
from helpers.jobs import arguments
from helpers.pages import facts, images, summaries, table
from helpers.reports import written
from helpers.tiny import captioned, write_shard

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.data.shards import work_units
from nti_batch.output.edits import open_edits, read_edited_images

HOSTILE = 'a <script>alert(1)</script> & "blue" circle'


@pytest.fixture(scope="module")
def edited(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Edits of three images, two of which have masks, and one edit whose key does not exist."""
    folder = tmp_path_factory.mktemp("edit report")
    shard = write_shard(folder / "a.tar", captioned(3))
    assert main(arguments(tiny_model, shard, folder / "inverted")) == 0
    mask = {"mask": [0, 16], "mask_size": [8, 8]}
    edits = [
        {"key": "000", "name": "one", "edit_prompt": HOSTILE, **mask},
        {"key": "001", "name": "two", "edit_prompt": "a large red circle, number 1", **mask},
        {"key": "002", "name": "three", "edit_prompt": "a small green circle, number 2"},
        {"key": "<b>9</b>", "name": "four", "edit_prompt": "a star"},
    ]
    (folder / "edits.jsonl").write_text("".join(json.dumps(line) + "\n" for line in edits))
    job = ["edit", f"--data.inversions={folder}/inverted", f"--data.edits={folder}/edits.jsonl"]
    assert main([*job, f"--output.dir={folder}/out", "--trainer.accelerator=cpu"]) == 3
    return folder


def test_the_page_of_a_run_of_edits_shows_its_numbers_and_images(edited: Path, capsys: pytest.CaptureFixture[str]):
    page = written(edited / "out")
    capsys.readouterr()
    assert main(["status", str(edited / "out"), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    numbers = facts(page)
    assert (numbers["done"], numbers["failed"], numbers["missing"]) == ("3", "1", "0")
    assert numbers["mean PSNR of the unedited part of 2"] == f"{status['psnr_unedited']:.2f} dB"
    assert list(summaries(page)) == ["Throughput", "PSNR of the unedited part", "SSIM of the unedited part"]
    ((stage, reason, count),) = table(page, "Failures")
    assert (stage, count) == ("inversion", "1") and "a/<b>9</b>" in reason

    run = open_edits(edited / "out")
    units = work_units(run.shards, 8)
    done = [
        (row, pixels) for unit in units for row, pixels in read_edited_images(run, unit, {r.id for r in run.rows(unit)})
    ]
    scored = sorted(row.psnr_unedited for row, _ in done if row.psnr_unedited is not None)
    by_score = [article.all("p", "quiet")[0].text for article in page.all("article")]
    assert by_score == [f"unedited part: PSNR {score:.2f} dB" for score in scored]
    by_name = {row.name: pixels.permute(1, 2, 0).numpy() for row, pixels in done}
    prompts = {f"{s.shard}/{s.key}": s.prompt for s in read_inversions(edited / "inverted")}
    for article in page.all("article"):
        source, name = images(article)
        assert source == "source"
        assert (images(article)[name] == by_name[name]).all()
        assert article.all("p")[0].text == prompts[article.all("h4")[0].text]
    assert HOSTILE in [p.text for p in page.all("p")]
    marked = {article.all("h4")[0].text: [mark.text for mark in article.all("mark")] for article in page.all("article")}
    assert marked["a/001"] == ["large"]
    assert page.all("script") == []


def test_without_the_model_of_the_inversions_the_page_shows_only_the_edits(edited: Path):
    run_file = edited / "inverted" / "run.json"
    original = run_file.read_text()
    try:
        damaged = json.loads(original)
        damaged["settings"]["model"]["name"] = str(edited / "nowhere")
        run_file.write_text(json.dumps(damaged))
        page = written(edited / "out")
    finally:
        run_file.write_text(original)
    assert "No image could be reconstructed" in page.all("div", "notes")[0].text
    assert {tuple(images(article)) for article in page.all("article")} == {("one",), ("two",)}
