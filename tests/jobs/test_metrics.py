"""`--metrics.port`: a job serves its numbers as OpenMetrics, and sends them to Lightning's loggers."""

import csv
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.jobs import arguments, expect_one_sentence, rows, run_console
from helpers.tiny import captioned, write_mixed_shard, write_shard

from nti_batch.cli import main
from nti_batch.output.edits import open_edits

parser = pytest.importorskip("prometheus_client.openmetrics.parser")

LOOPBACK = "127.0.0.1"
TESTS = str(Path(__file__).parents[1])
DEVICE_STAGES = {"encode", "invert", "decode"}


def free_ports(count: int = 1) -> int:
    """The first of some consecutive ports that nobody uses."""
    for port in range(20000, 30000, count):
        try:
            for each in range(port, port + count):
                socket.create_server((LOOPBACK, each)).close()
        except OSError:
            continue
        return port
    raise RuntimeError("no port is free")


def scraping(folder: Path, port: int) -> list[str]:
    """Flags of a job that asks itself for its metrics."""
    return [
        f"--metrics.port={port}",
        "--trainer.callbacks+=helpers.scrape.Scrape",
        f"--trainer.callbacks.folder={folder}",
        f"--trainer.callbacks.port={port}",
    ]


def read(file: Path) -> dict[str, dict[str, float]]:
    """Samples by name and by the value of their label; the parser refuses what is not OpenMetrics."""
    found: dict[str, dict[str, float]] = {}
    for family in parser.text_string_to_metric_families(file.read_text()):
        assert family.name.startswith("nti_batch_")
        for sample in family.samples:
            label = "" if family.type == "info" else next(iter(sample.labels.values()), "")
            found.setdefault(sample.name, {})[label] = sample.value
    return found


def test_the_counters_are_those_of_the_manifest(tiny_model: Path, tmp_path: Path):
    flags = scraping(tmp_path, free_ports())
    csv_logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'csv'}"]
    job = arguments(tiny_model, write_mixed_shard(tmp_path / "s.tar"), tmp_path / "out", *flags, *csv_logger)
    assert main(job) == 3
    statuses = [row.status for row in rows(tmp_path / "out").values()]
    end = read(tmp_path / "end-0")
    assert end["nti_batch_images_total"] == {"done": statuses.count("done"), "failed": statuses.count("failed")}
    assert end["nti_batch_stage_seconds_total"].keys() == {"read", *DEVICE_STAGES, "write"}
    assert all(seconds > 0 for seconds in end["nti_batch_stage_seconds_total"].values())
    assert 0 < end["nti_batch_device_busy_ratio"][""] <= 1
    assert end["nti_batch_queue_length"] == dict.fromkeys(
        ("read_ahead", "encode", "admit", "pool", "decode", "write"), 0
    )
    assert end["nti_batch_host_memory_bytes"][""] > 1e6
    assert end["nti_batch_job_info"] == {"": 1}
    running = read(tmp_path / "running-0")
    assert running.keys() <= end.keys()
    for name in ("nti_batch_images_total", "nti_batch_stage_seconds_total"):
        assert all(value <= end[name][label] for label, value in running[name].items())
    check_logged(tmp_path / "csv", end)


def check_logged(folder: Path, end: dict[str, dict[str, float]]) -> None:
    """The last line of CSVLogger has the same numbers, of which the seconds are those of an image."""
    (path,) = folder.rglob("metrics.csv")
    with path.open() as file:
        last = {name: float(value) for name, value in list(csv.DictReader(file))[-1].items()}
    images = end["nti_batch_images_total"]
    assert (last["done"], last["failed"]) == (images["done"], images["failed"])
    for stage, seconds in end["nti_batch_stage_seconds_total"].items():
        assert last[f"{stage}_seconds"] == pytest.approx(seconds / 4)
    for queue, length in end["nti_batch_queue_length"].items():
        assert last[f"{queue}_queue"] == length
    assert 0 < last["device_busy_ratio"] <= 1 and last["host_memory_bytes"] > 1e6


def test_an_edit_job_counts_edits(tiny_model: Path, tmp_path: Path):
    inverted, out = tmp_path / "inverted", tmp_path / "edits"
    assert main(arguments(tiny_model, write_shard(tmp_path / "s.tar", captioned(3)), inverted)) == 0
    data = [f"--data.inversions={inverted}", "--data.edit_prompt=a blue cup", f"--output.dir={out}"]
    assert main(["edit", *data, "--trainer.accelerator=cpu", *scraping(tmp_path, free_ports())]) == 0
    end = read(tmp_path / "end-0")
    done = [row for part in open_edits(out).all_parts() for row in part.read().rows]
    assert end["nti_batch_edits_total"] == {"done": len(done), "failed": 0}
    assert end["nti_batch_stage_seconds_total"].keys() == {"read", "edit", "write"}
    assert end["nti_batch_queue_length"].keys() == {"read_ahead", "edit", "write"}


def test_each_rank_serves_its_own_images_on_a_port_of_its_own(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")]))
    flags = [*scraping(tmp_path, free_ports(2)), "--trainer.devices=2"]
    job = arguments(tiny_model, write_shard(tmp_path / "s.tar", captioned(5)), tmp_path / "out", *flags)
    ended = run_console(job, timeout=600)
    assert ended.returncode == 0, ended.stderr
    done = [read(tmp_path / f"end-{rank}")["nti_batch_images_total"]["done"] for rank in (0, 1)]
    assert sum(done) == len(rows(tmp_path / "out")) == 5
    assert min(done) > 0


@pytest.mark.parametrize("busy", [0, 1])
def test_a_port_in_use_is_named_before_the_job_starts(
    tiny_model: Path, tmp_path: Path, busy: int, capsys: pytest.CaptureFixture[str]
):
    port = free_ports(2)
    flags = [f"--metrics.port={port}", "--trainer.devices=2"]
    job = arguments(tiny_model, write_shard(tmp_path / "s.tar", captioned(1)), tmp_path / "out", *flags)
    with socket.create_server((LOOPBACK, port + busy)):
        for more in ([], ["--dry_run"]):
            assert main([*job, *more]) == 2
            expect_one_sentence(f"on port {port + busy}", "give another --metrics.port", capsys=capsys)
    assert not list((tmp_path / "out" / "inversions").glob("*"))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--metrics.port=0"], "metrics.port is 0, allowed: 1 to 65535"),
        (["--metrics.port=65536"], "metrics.port is 65536, allowed: 1 to 65535"),
        (["--metrics.port=65535", "--trainer.devices=2"], "on port 65536"),
        (["--metrics.port=9090", "--metrics.host=no.such.host.invalid"], "at no.such.host.invalid on port 9090"),
        (["--metrics.port=9090", "--metrics.host="], "metrics.host is empty"),
    ],
)
def test_a_wrong_address_is_refused(
    tiny_model: Path, tmp_path: Path, flags: list[str], text: str, capsys: pytest.CaptureFixture[str]
):
    shard = write_shard(tmp_path / "s.tar", captioned(1))
    assert main(arguments(tiny_model, shard, tmp_path / "out", *flags)) == 2
    expect_one_sentence(text, capsys=capsys)


def test_without_prometheus_client_the_extra_is_named(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    shard = write_shard(tmp_path / "s.tar", captioned(1))
    assert main(arguments(tiny_model, shard, tmp_path / "out", f"--metrics.port={free_ports()}")) == 2
    expect_one_sentence("pip install 'nti-batch[metrics]'", capsys=capsys)


def test_metrics_are_served_on_this_machine_alone(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import prometheus_client

    addresses, serve = [], prometheus_client.start_http_server

    def note(port: int, host: str, registry: Any) -> Any:
        addresses.append(host)
        return serve(port, host, registry)

    monkeypatch.setattr(prometheus_client, "start_http_server", note)
    shard = write_shard(tmp_path / "s.tar", captioned(1))
    flags = [f"--metrics.port={free_ports()}", "--dry_run"]
    assert main(arguments(tiny_model, shard, tmp_path / "out", *flags)) == 0
    assert addresses == [LOOPBACK]
