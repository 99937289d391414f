"""`nti-batch report` writes a complete page that loads nothing from elsewhere."""

import itertools
import json
import re
import shutil
import subprocess
from collections import Counter
from html import unescape
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from helpers.jobs import arguments
from helpers.pages import Element, facts, images, read_page, summaries, table
from helpers.runs import plan_of, units_of
from helpers.tiny import captioned, png, write_shard

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.output.inversions import InversionRun, open_inversions
from nti_batch.output.manifest_rows import InversionRow
from nti_batch.output.run_folder import RUN_FILE
from nti_batch.report import inversions as report
from nti_batch.report.statistics import (
    MAX_REASONS,
    Reasons,
    RunNumbers,
    by_timestep,
    extremes,
    histogram,
    read_sample,
    throughput,
)
from nti_batch.settings import flatten

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'caption' </figure><img src=//example.com/x onerror=alert(2)>"
HOSTILE_KEY = "<b onclick=alert(3)>&"


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with two shards, which have three damaged images and one hostile caption, and their run."""
    folder = tmp_path_factory.mktemp("report")
    hostile = {f"{HOSTILE_KEY}.png": png(90), f"{HOSTILE_KEY}.txt": HOSTILE.encode()}
    bad = {f"bad{i}.{e}": f"<html>{i}<script>alert(4)".encode() for i in range(2) for e in ("png", "txt")}
    write_shard(folder / "a.tar", captioned(5) | hostile | bad)
    whole = write_shard(folder / "b.tar", captioned(3)).read_bytes()
    (folder / "b.tar").write_bytes(whole[: whole.index(b"002.png") + 600])
    assert main(arguments(tiny_model, f"{folder}/*.tar", folder / "out")) == 3
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> InversionRun:
    """Copy of the run."""
    return open_inversions(Path(shutil.copytree(finished / "out", tmp_path / "out")))


def written(out: Path, *more: str) -> Element:
    """Write the page of a run, and read it."""
    assert main(["report", str(out), *more]) == 0
    return read_page(out / "report.html")


@pytest.fixture(scope="module")
def page(finished: Path) -> Element:
    """Page of the whole run with all its images."""
    return written(finished / "out", "--images=9")


def status_of(out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert main(["status", str(out), "--json"]) == 0
    status: dict[str, object] = json.loads(capsys.readouterr().out)
    return status


# --- the page ---


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


# --- its images ---


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
    run_json["shards"] = [str(tmp_path / "gone" / Path(url).name) for url in run_json["shards"]]
    (run.out / RUN_FILE).write_text(json.dumps(run_json))
    page = written(run.out)
    assert "6 of 6 inputs cannot be read any more" in page.all("div", "notes")[0].text
    assert {tuple(images(article)) for article in page.all("article")} == {("reconstruction",)}
    assert facts(page)["done"] == "8"


def test_a_flag_names_the_new_place_of_moved_inputs(run: InversionRun, finished: Path, tmp_path: Path):
    run_json = json.loads((run.out / RUN_FILE).read_text())
    run_json["shards"] = [str(tmp_path / "gone" / Path(url).name) for url in run_json["shards"]]
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


# --- runs in other states ---


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


def test_charts_of_one_image_with_losses_of_zero_are_drawn(tiny_model: Path, tmp_path: Path):
    shard = write_shard(tmp_path / "s.tar", captioned(1))
    assert main([*arguments(tiny_model, shard, tmp_path / "out"), "--model.method=direct"]) == 0
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


# --- its numbers ---


def numbers_of(run: InversionRun) -> RunNumbers[InversionRow]:
    numbers = RunNumbers(InversionRow, ("psnr", "psnr_vae", "inner_steps"))
    plan_of(run).status(units_of(run), numbers.add)
    return numbers


def test_columns_hold_the_numbers_of_the_inversions(run: InversionRun):
    numbers = numbers_of(run)
    stored = {(s.shard, s.key): s.metadata for s in read_inversions(run.out)}
    rows = [row for _, row in numbers.find(range(len(numbers)))]
    assert len(rows) == len(stored) == 8
    for i, row in enumerate(rows):
        metadata = stored[row.shard, row.key]
        assert [numbers[name][i] for name in ("psnr", "psnr_vae", "finished", "seconds")] == [
            metadata[name] for name in ("psnr", "psnr_vae", "finished", "seconds")
        ]
        assert numbers["inner_steps"][i] == sum(metadata["inner_steps"])  # type: ignore[arg-type]


def test_losses_by_timestep_are_the_median_and_the_outer_deciles_of_the_images(run: InversionRun):
    numbers = numbers_of(run)
    sample, stored = read_sample(numbers.find(numbers.sample(100)), num_steps=3), list(read_inversions(run.out))
    curve = by_timestep(sample.timesteps, sample.losses)
    assert sample.errors == [] and len(sample.losses) == 8
    assert curve.timesteps.tolist() == stored[0].metadata["timesteps"]
    steps = sorted(s.metadata["inner_steps"] for s in stored)
    assert sorted(sample.inner_steps.tolist()) == steps
    for i in range(3):
        losses = sorted(s.metadata["losses"][i] for s in stored)
        # the quantile 0.1 of 8 sorted values lies 0.7 of the way from the first to the second
        assert curve.low[i] == pytest.approx(losses[0] + 0.7 * (losses[1] - losses[0]))
        assert curve.median[i] == pytest.approx(median(losses))
        assert curve.high[i] == pytest.approx(losses[7] - 0.7 * (losses[7] - losses[6]))


def test_a_sample_has_different_images_and_is_reproducible(run: InversionRun):
    numbers = numbers_of(run)
    sample = numbers.sample(5)
    assert len(set(sample)) == 5 and sample == numbers_of(run).sample(5)
    assert numbers.sample(100) == list(range(8))


@pytest.mark.parametrize(
    "values", [[3.0], [2.5, 2.5, 2.5], [0.0] * 5, [1.0, 2.0, 40.0], list(np.geomspace(0.01, 9, 500))]
)
def test_a_histogram_counts_every_value_once(values: list[float]):
    bars = histogram(np.array(values))
    assert bars.counts.sum() == len(values)
    edges = bars.edges.copy()
    edges[[0, -1]] = -np.inf, np.inf
    by_hand = [sum(low <= v < high for v in values) for low, high in itertools.pairwise(edges)]
    # numpy closes its last bin on the right
    assert bars.counts.tolist() == by_hand


def test_outliers_do_not_widen_the_bins_of_a_histogram():
    values = np.append(np.linspace(29, 31, 999), -40.0)
    bars = histogram(values)
    assert bars.edges[0] > 28.9 and bars.counts.sum() == 1000


def test_bins_of_whole_numbers_have_whole_widths():
    bars = histogram(np.repeat(np.arange(100.0, 400.0), 7))
    (width,) = set(np.diff(bars.edges))
    assert width == int(width)
    assert set(bars.counts[1:-1]) == {7 * width}, "the outer bins include the values beyond them"


def test_throughput_counts_from_the_start_of_the_first_image():
    finished, seconds = np.array([1000.0, 1010, 1020, 1039.9]), np.array([np.nan, 20.0, 5, 5])
    bars = throughput(finished, seconds)
    assert bars.edges.tolist() == pytest.approx([990, 1014.95, 1039.9])
    assert bars.counts.tolist() == [2, 2]


def test_extremes_have_each_entry_once():
    assert extremes(np.array([5.0, 1, 4, 2, 3, 9, 7]), 2) == {"worst": [1, 3], "median": [4, 2], "best": [5, 6]}
    assert extremes(np.array([5.0, 1, 4]), 2) == {"worst": [1, 2], "best": [0]}
    assert extremes(np.array([5.0]), 2) == {"worst": [0]}


def failed(error: str, key: str = "k", shard: str = "s") -> InversionRow:
    return InversionRow(shard=shard, key=key, status="failed", stage="image", error=error, finished=0.0)


def test_failures_that_differ_only_in_names_and_numbers_have_one_reason():
    reasons = Reasons()
    for i in range(4):
        reasons.add(
            failed(f"the image's header says {i}.5 of {i}00 bytes of 'x{i}.jpg' in /tmp/{i}/a: 0x7f{i}e", f"k{i}")
        )
    reasons.add(failed("image is empty", "e"))
    first, second = reasons.sorted()
    assert (first.count, first.example, second.count) == (4, "s/k0", 1)
    assert first.reason == "the image's header says … of … bytes of … in … …"
    assert first.error == "the image's header says 0.5 of 000 bytes of 'x0.jpg' in /tmp/0/a: 0x7f0e"


def test_a_damaged_shard_counts_once_and_the_number_of_reasons_is_limited():
    reasons = Reasons()
    for _ in range(8):
        reasons.add(failed("cut", key=""))
    for i in range(3 * MAX_REASONS):
        reasons.add(failed("because " + "very " * i))
    groups = reasons.sorted()
    assert len(groups) == MAX_REASONS + 1
    assert sum(group.count for group in groups) == 1 + 3 * MAX_REASONS
    assert Counter(group.reason for group in groups)["other reasons"] == 1
    assert next(group for group in groups if group.reason == "cut").count == 1


# --- in a browser ---

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEASURE = """<!DOCTYPE html><iframe src="{page}" style="width: {width}px; height: 900px; border: 0"></iframe><script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  document.title = JSON.stringify({{
    scroll: root.scrollWidth,
    width: frame.contentWindow.innerWidth,
    shown: [...page.images].filter(image => image.naturalWidth > 0).length,
    fetched: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
    ground: getComputedStyle(page.body).backgroundColor,
    ink: getComputedStyle(page.querySelector("svg text")).fill,
  }});
}};
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome is installed")
@pytest.mark.parametrize(("width", "is_dark"), [(390, False), (1280, True)], ids=["phone, light", "desktop, dark"])
def test_a_browser_fits_the_page_to_its_width_and_loads_nothing(
    page: Element, finished: Path, tmp_path: Path, width: int, is_dark: bool
):
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(MEASURE.format(page=(finished / "out" / "report.html").as_uri(), width=width))
    assert BROWSER is not None
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if is_dark else 1}",
        "--window-size=1400,1000",
        "--dump-dom",
        wrapper.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search("<title>(.*)</title>", dom)
    assert title is not None, dom[:500]
    measured = json.loads(unescape(title[1]))
    assert measured["scroll"] <= measured["width"] == width
    assert measured["shown"] == len(page.all("img")) > 0
    assert [name for name in measured["fetched"] if not name.startswith("data:")] == []
    assert contrast(measured["ground"], measured["ink"]) > 7
    assert (luminance(measured["ground"]) < 0.5) is is_dark


def luminance(colour: str) -> float:
    """Compute the relative luminance of 'rgb(r, g, b)'.

    Web Content Accessibility Guidelines 2.2, https://www.w3.org/TR/WCAG22.
    """
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(first: str, second: str) -> float:
    """Compute the contrast ratio, from 1 to 21; the guidelines demand 4.5."""
    low, high = sorted(luminance(colour) for colour in (first, second))
    return (high + 0.05) / (low + 0.05)
