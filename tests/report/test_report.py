"""`nti-batch report` writes a complete page that loads nothing from elsewhere."""

import json
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from helpers.jobs import arguments, status_of
from helpers.pages import Element, facts, images, summaries, table
from helpers.reports import HOSTILE, HOSTILE_KEY, written
from helpers.runs import units_of
from helpers.tiny import captioned, write_shard

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.output.inversions import InversionRun
from nti_batch.output.run_file import RUN_FILE
from nti_batch.report import inversions as report
from nti_batch.settings import flatten


def test_the_page_shows_the_numbers_of_status(page: Element, finished: Path, capsys: pytest.CaptureFixture[str]):
    numbers, status = facts(page), status_of(finished / "out", capsys)
    assert (numbers["done"], numbers["failed"], numbers["missing"], numbers["damaged shards"]) == ("8", "3", "0", "1")
    for name in ("done", "failed", "missing"):
        assert numbers[name] == str(status[name])
    assert numbers["images an hour"] == f"{status['images_per_hour']:,.0f}"
    assert numbers["mean PSNR"] == f"{status['psnr']:.2f} dB"
    side = "above" if status["psnr"] > status["psnr_vae"] else "below"
    difference = abs(status["psnr_vae"] - status["psnr"])
    assert numbers[f"{side} the VAE bound of {status['psnr_vae']:.2f} dB"] == f"{difference:.2f} dB"
    shares = [span.attributes["style"] for span in page.all("div", "bar")[0].all("span")]
    assert shares == ["flex-grow: 8", "flex-grow: 3", "flex-grow: 0"]


def test_failures_are_grouped_by_stage_and_reason_with_an_example(page: Element):
    rows = table(page, "Failures")
    reasons = {(stage, int(count)): reason for stage, reason, count in rows}
    assert {stage: n for stage, n in reasons if n > 1} == {"image": 2}
    assert "a/bad0" in reasons["image", 2] and "<html>0<script>alert(4)" in reasons["image", 2]
    assert sorted(stage for stage, _, _ in rows) == ["image", "shard", "shard"], "a cut image, and its shard once"


def test_the_page_shows_the_settings_of_run_json(page: Element, finished: Path):
    run_json = json.loads((finished / "out" / "run.json").read_text())
    shown, settings = dict(table(page, "Settings")), flatten(run_json["settings"])
    assert shown.pop("shards") == f"2, from {finished}/a.tar to {finished}/b.tar"
    assert {name: v if isinstance(settings[name], str) else json.loads(v) for name, v in shown.items()} == settings


def test_hostile_captions_are_escaped(page: Element):
    assert f"a/{HOSTILE_KEY}" in [name.text for name in page.all("h4")]
    assert HOSTILE in [caption.text for article in page.all("article") for caption in article.all("p")]
    for element in page.elements():
        assert element.tag not in {"script", "iframe", "object", "embed", "link", "b", "form", "base"}
        assert not [name for name in element.attributes if name.startswith("on")]


def test_the_page_loads_nothing_from_elsewhere(page: Element):
    (policy,) = (m for m in page.all("meta") if m.attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.attributes["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    for element in page.elements():
        for name, value in element.attributes.items():
            if name in {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}:
                assert value.startswith(("data:image/", "#")), f"{element.tag} {name}"
            elif not name.startswith("xmlns") and name not in {"alt", "aria-label"}:
                assert "//" not in (value or ""), f"{element.tag} {name}"
                assert "url(" not in (value or "").replace("url(#", ""), f"{element.tag} {name}"
    styles = "".join(style.text for style in page.all("style"))
    assert "url(" not in styles and "@import" not in styles


def test_ids_on_the_page_are_unique_and_references_are_valid(page: Element):
    ids = [element.attributes["id"] for element in page.elements() if "id" in element.attributes]
    assert len(set(ids)) == len(ids)
    used = [e.attributes["xlink:href"][1:] for e in page.elements() if "xlink:href" in e.attributes]
    assert used and set(used) <= set(ids)


def test_equal_files_give_equal_pages(page: Element, finished: Path, tmp_path: Path):
    again = tmp_path / "again.html"
    assert main(["report", str(finished / "out"), "--images=9", f"--output={again}"]) == 0
    assert again.read_bytes() == (finished / "out" / "report.html").read_bytes()


def test_charts_have_a_summary_for_screen_readers(page: Element, finished: Path):
    stored = list(read_inversions(finished / "out"))
    summary = summaries(page)
    assert f"Median {median(s.metadata['psnr'] for s in stored):.2f} dB" in summary["PSNR of the reconstruction"]
    assert "8 images" in summary["Throughput"] and "8 images," in summary["Loss by timestep"]
    for chart in page.all("figure", "card"):
        (drawing,) = chart.all("div")
        assert drawing.attributes["role"] == "img"
        assert summary[chart.all("h3")[0].text] in drawing.attributes["aria-label"]
    assert all(image.attributes["alt"] for image in page.all("img"))


def test_the_worst_median_and_best_are_shown_beside_their_inputs(run: InversionRun):
    below = {f"{s.shard}/{s.key}": s.metadata["psnr_vae"] - s.metadata["psnr"] for s in read_inversions(run.out)}
    order = sorted(below, key=lambda name: -below[name])
    page = written(run.out, "--images=2")
    assert [name.text for name in page.all("h4")] == [*order[:2], *order[3:5], order[-1], order[-2]]
    stored = {f"{s.shard}/{s.key}": s for s in read_inversions(run.out)}
    for article in page.all("article"):
        inversion = stored[article.all("h4")[0].text]
        shown = images(article)
        assert list(shown) == ["input", "VAE", "reconstruction"]
        for title, recorded in (("VAE", "psnr_vae"), ("reconstruction", "psnr")):
            error = np.square((shown[title].astype(float) - shown["input"]) / 255).mean()
            assert -10 * np.log10(error) == pytest.approx(inversion.metadata[recorded], abs=0.05)


def test_a_page_without_the_inputs_shows_the_reconstructions_and_a_note(run: InversionRun, tmp_path: Path):
    run_json = json.loads((run.out / RUN_FILE).read_text())
    run_json["shards"] = {name: str(tmp_path / "gone" / f"{name}.tar") for name in run_json["shards"]}
    (run.out / RUN_FILE).write_text(json.dumps(run_json))
    page = written(run.out)
    assert "6 of 6 inputs cannot be read any more" in page.all("div", "notes")[0].text
    assert {tuple(images(article)) for article in page.all("article")} == {("reconstruction",)}
    assert facts(page)["done"] == "8"


def test_a_flag_names_the_new_place_of_moved_inputs(run: InversionRun, finished: Path, tmp_path: Path):
    run_json = json.loads((run.out / RUN_FILE).read_text())
    run_json["shards"] = {name: str(tmp_path / "gone" / f"{name}.tar") for name in run_json["shards"]}
    (run.out / RUN_FILE).write_text(json.dumps(run_json))
    page = written(run.out, f"--data.shards={finished}/*.tar")
    assert {tuple(images(article)) for article in page.all("article")} == {("input", "VAE", "reconstruction")}


def test_a_page_without_the_model_shows_the_inputs_and_a_note(run: InversionRun):
    run_json = json.loads((run.out / RUN_FILE).read_text())
    run_json["settings"]["model"]["name"] = str(run.out / "nowhere")
    (run.out / RUN_FILE).write_text(json.dumps(run_json))
    page = written(run.out)
    assert "No image could be reconstructed" in page.all("div", "notes")[0].text
    assert {tuple(images(article)) for article in page.all("article")} == {("input",)}
    assert len(summaries(page)) == 6


def test_the_page_names_a_damaged_part_and_leaves_out_its_images(run: InversionRun):
    part = next(path for path in sorted(run.folder.glob("*.tar")) if path.name.startswith("b."))
    part.write_bytes(part.read_bytes()[:700])
    page = written(run.out, "--images=9")
    assert f"{part} is damaged" in page.all("div", "notes")[0].text
    assert facts(page)["done"] == "8"
    assert 0 < len(page.all("article")) < 8


@pytest.mark.parametrize("name", ["losses", "timesteps", "inner_steps"])
def test_the_page_names_a_part_with_a_member_that_lacks_a_list(run: InversionRun, name: str):
    part = next(path for path in sorted(run.folder.glob("*.tar")) if path.name.startswith("b."))
    part.write_bytes(part.read_bytes().replace(f'"{name}"'.encode(), f'"{name[::-1]}"'.encode()))
    page = written(run.out, "--images=0")
    assert f"{part} is damaged: KeyError('{name}')" in page.all("div", "notes")[0].text
    assert "images, drawn at random" in summaries(page)["Loss by timestep"]


def test_a_run_without_finished_records_has_a_page(run: InversionRun):
    for path in [*run.folder.glob("*.jsonl"), *run.folder.glob("*.complete")]:
        path.unlink()
    page = written(run.out)
    assert (facts(page)["done"], facts(page)["missing"]) == ("0", "11")
    assert summaries(page) == {} and page.all("article") == []


def test_an_unfinished_run_has_a_page(run: InversionRun, capsys: pytest.CaptureFixture[str]):
    unit = next(unit for unit in units_of(run) if unit.shard == "a")
    (manifest,) = run.manifests(unit)
    manifest.with_suffix(".tar").rename(manifest.with_suffix(".tar.tmp"))
    manifest.unlink()
    (run.folder / f"{unit.name}.complete").unlink()
    page, status = written(run.out, "--images=0"), status_of(run.out, capsys)
    assert status["missing"] == 4
    assert [facts(page)[name] for name in ("done", "failed", "missing")] == [
        str(status[name]) for name in ("done", "failed", "missing")
    ]
    assert "left at this rate" in facts(page)


@pytest.mark.parametrize("method", ["direct", "ddpm"])
def test_charts_of_one_image_with_losses_of_zero_are_drawn(tiny_model: Path, tmp_path: Path, method: str):
    shard = write_shard(tmp_path / "s.tar", captioned(1))
    assert main([*arguments(tiny_model, shard, tmp_path / "out"), f"--model.method={method}"]) == 0
    page = written(tmp_path / "out")
    assert "1 images" in summaries(page)["Loss by timestep"]
    assert [name.text for name in page.all("h4")] == ["s/000"]


def test_losses_are_read_from_a_sample_of_limited_size(run: InversionRun, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "SAMPLE", 3)
    assert "the median of 3 images, drawn at random" in summaries(written(run.out, "--images=0"))["Loss by timestep"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--images=-1"], "--images is -1, allowed: at least 0"),
        (["--images=0", "--output=/dev/null/page.html"], "/dev/null/page.html"),
        (["--data.shards=nowhere/*.tar"], "no file matches"),
    ],
)
def test_an_invalid_flag_is_refused_with_the_reason(
    run: InversionRun, more: list[str], reason: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["report", str(run.out), *more]) == 2
    assert reason in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(tmp_path)]) == 2
    assert "is no run" in capsys.readouterr().err
