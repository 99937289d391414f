"""`nti-batch pie-bench`: the benchmark's images inverted by several methods, edited, scored, and one table."""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from nti_batch.commands.bench import BenchOutputFlags
from nti_batch.commands.env import environment
from nti_batch.commands.parser import CommandParser
from nti_batch.diffusion.settings import Method
from nti_batch.editing.pie_bench import special_cases, write_shard
from nti_batch.exit_codes import DONE, SOME_FAILED, STOPPED
from nti_batch.files import atomic_write, refuse_url
from nti_batch.jobs.flags import InvertModelFlags
from nti_batch.jobs.parser import ConfigFile, silence_warnings
from nti_batch.jobs.processes import Allocation, DeviceFlags, run_job_process, trainer_flags
from nti_batch.jobs.signals import StopSignals
from nti_batch.models.supported import ModelDescription
from nti_batch.output.inversions import open_inversions
from nti_batch.plans.missing_edits import EditPlan
from nti_batch.plans.missing_images import ImagePlan
from nti_batch.plans.open_plan import open_plan
from nti_batch.report.pie_bench import PUBLISHED, SOURCE, MethodRow, benchmark_table, describe_cases
from nti_batch.scores.learned import LearnedScores
from nti_batch.terminal import print_error, print_json, print_line, print_lines, usage_error

UNITS = 16
"""Work units of the benchmark's shard, and so the largest number of ranks with work."""

NOT_SETTINGS = (
    "name",
    "revision",
    "variant",
    "config",
    "vae",
    "vae_tiling",
    "loras",
    "precision",
    "batch_size",
    "compile",
    "cuda_graphs",
    "checkpointing",
)
"""Flags of the model that are no settings of the method."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeFlags:
    """Size of the images."""

    height: int | None = None
    """Height of the images in pixels, as for invert; null is the model's own. The benchmark's is 512."""

    width: int | None = None
    """Width of the images in pixels, as for `height`."""


class JobEndedError(Exception):
    """A job ended early or in an error; `code` is its exit code."""

    def __init__(self, code: int) -> None:
        """Keep the exit code."""
        super().__init__()
        self.code = code


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Folder of the runs, and what all their jobs share."""

    folder: Path
    out: Path
    model: InvertModelFlags
    size: SizeFlags
    storage: str
    devices: DeviceFlags
    allocation: Allocation | None
    stop: StopSignals

    @property
    def shard(self) -> Path:
        """Path of the shard of the benchmark's images."""
        return self.out / "pie-bench.tar"

    def row(self, method: Method, learned: LearnedScores) -> MethodRow:
        """Invert by a method, edit and score, or resume.

        Raises:
            JobEndedError: If a job ends early or in an error.
            ValueError: If a run is damaged.
        """
        inversions, edits = self.out / method / "inversions", self.out / method / "edits"
        inverted = self._run("invert", inversions, [f"--data.shards={self.shard}", *self._invert_flags(method)])
        rows = [] if self.model.batch_size == "auto" else [f"--model.batch_size={max(2, self.model.batch_size)}"]
        flags = [f"--data.inversions={inversions}", f"--data.edits={self.folder}", *rows]
        edited = self._run("edit", edits, flags)
        assert isinstance(inverted, ImagePlan) and isinstance(edited, EditPlan)
        print_line(f"score: {edits}", sys.stderr)
        return MethodRow.of(method, inverted, edited, learned)

    def _invert_flags(self, method: Method) -> Iterator[str]:
        yield f"--model.method={method}"
        yield f"--output.storage={self.storage}"
        for section, flags in (("model", changed_fields(self.model)), ("data", changed_fields(self.size))):
            for name, value in flags.items():
                yield f"--{section}.{name}={value if isinstance(value, str) else json.dumps(value)}"

    def _run(self, command: str, out: Path, flags: Sequence[str]) -> ImagePlan | EditPlan:
        """Run a job to its end; return the plan of its run."""
        if self.stop.requested:
            raise JobEndedError(STOPPED)
        print_line(f"{command}: {out}", sys.stderr)
        started = time.time()
        shared = [f"--output.dir={out}", f"--data.units_per_shard={UNITS}"]
        shared += trainer_flags(self.devices, self.allocation)
        code = run_job_process([command, *flags, *shared], self.allocation, self.stop)
        if code < 0 and self.stop.requested:
            # the signal came before the job handles it
            raise JobEndedError(STOPPED)
        if code not in (DONE, SOME_FAILED, STOPPED):
            raise JobEndedError(code)
        plan = open_plan(out)
        if any(row.finished >= started for unit in plan.units for row in plan.run.rows(unit)):
            self._record_machine()
        # a rank that Slurm has started ends in 0 wherever it stopped
        if code == STOPPED or self.stop.requested or plan.status(plan.units).missing:
            raise JobEndedError(STOPPED)
        return plan

    @property
    def _machines(self) -> Path:
        return self.out / "machines.txt"

    def machines(self) -> list[str]:
        """Machines and versions that have computed the results, a line each."""
        return self._machines.read_text().splitlines() if self._machines.exists() else []

    def _record_machine(self) -> None:
        lines = dict.fromkeys([*self.machines(), describe_machine(self.allocation)])
        atomic_write(self._machines, "".join(f"{line}\n" for line in lines))


def changed_fields(flags: InvertModelFlags | SizeFlags) -> dict[str, object]:
    """Flags that differ from their defaults, by name."""
    values = {field.name: (getattr(flags, field.name), field.default) for field in dataclasses.fields(flags)}
    return {name: value for name, (value, default) in values.items() if value != default}


def describe_machine(allocation: Allocation | None) -> str:
    """Devices and versions of this machine, and the tasks of a job, in a line."""
    found = environment()
    devices = found["devices"]
    assert isinstance(devices, list)
    place = [str(found["processor"])] if devices == ["CPU alone"] else devices
    tasks = [f"{allocation.nodes} x {allocation.tasks_per_node} tasks of Slurm"] if allocation else []
    versions = [f"{name} {found[name]}" for name in ("nti-batch", "torch", "diffusers", "transformers")]
    return f"{', '.join([*place, *tasks])}; {', '.join(versions)}, {found['python']}"


def pie_bench(argv: Sequence[str]) -> int:
    """Run the benchmark, or resume it, and print its table."""
    silence_warnings()
    try:
        flags = (parser := pie_bench_parser()).instantiate(parser.parse_args(list(argv)))
        folder, out = Path(os.path.realpath(flags.folder)), Path(flags.out)
        refuse_url("out", flags.out)
        cases = special_cases(folder)
        ModelDescription.of(flags.model.source)
        allocation = Allocation.of_environment()
        learned = LearnedScores.load(flags.weights, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        with StopSignals() as stop:
            storage = flags.output.storage
            benchmark = Benchmark(folder, out, flags.model, flags.data, storage, flags.trainer, allocation, stop)
            out.mkdir(parents=True, exist_ok=True)
            write_shard(folder, benchmark.shard)
            rows = [benchmark.row(method, learned) for method in dict.fromkeys(flags.methods)]
    except (ValueError, ArgumentError) as error:
        return usage_error(error)
    except JobEndedError as error:
        if error.code == STOPPED:
            print_error(f"stopped early; run the same command again to resume {out}")
        return error.code
    about = describe_runs(benchmark, rows[0].method)
    remarks = [
        *(f"{name}: {value}" for name, value in about.items()),
        *describe_cases(cases),
        *(f"{row.method}: {note}" for row in rows for note in row.notes),
        *([learned.missing] if learned.missing else []),
        SOURCE,
    ]
    lines = [*benchmark_table(rows), "", *(f"- {remark}" for remark in remarks)]
    atomic_write(out / "pie-bench.md", "".join(f"{line}\n" for line in lines))
    if flags.json:
        print_json({**about, **dataclasses.asdict(cases), "rows": [row.to_json() for row in rows], "source": SOURCE})
    else:
        print_lines(lines)
    return SOME_FAILED if any(row.edits < cases.edits for row in rows) else DONE


def describe_runs(benchmark: Benchmark, method: Method) -> dict[str, str]:
    """Say what made the runs: model, precision, size, settings, machines and versions."""
    settings = open_inversions(benchmark.out / method / "inversions").settings
    changes = {name: value for name, value in changed_fields(benchmark.model).items() if name not in NOT_SETTINGS}
    changed = ", ".join(f"{name} = {value}" for name, value in changes.items())
    return {
        "model": f"{settings.source.name}, fingerprint {settings.fingerprint or 'unknown'}, "
        f"UNet in {settings.precision}, images of {settings.height} x {settings.width}",
        "settings": f"the benchmark's but for {changed}" if changed else "the benchmark's",
        "storage": settings.storage,
        "computed on": " | ".join(benchmark.machines()),
    }


def pie_bench_parser() -> ArgumentParser:
    """The parser of the command; it takes the YAML files of `nti-batch invert`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = CommandParser(
        prog="nti-batch pie-bench",
        description="Invert the images of PIE-Bench by several methods, edit them by prompt-to-prompt with the "
        "benchmark's settings, score the edits by its protocol, and print its table beside the published rows. The "
        "same command resumes.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=str, help="PIE-Bench's folder, with mapping_file.json and annotation_images")
    parser.add_argument("out", type=str, help="folder of the runs and of pie-bench.md, the table")
    parser.add_argument("--config", action=ConfigFile, help="a YAML file as for invert, such as configs/sd-1.4.yaml")
    parser.add_argument(
        "--methods", type=Method, nargs="+", default=list(PUBLISHED), help=f"inversions: {', '.join(get_args(Method))}"
    )
    parser.add_argument(
        "--weights", type=Path, default=None, help="folder with clip, dino and lpips, as for `nti-batch score`"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_class_arguments(InvertModelFlags, "model", skip={"method"})
    parser.add_class_arguments(SizeFlags, "data")
    parser.add_class_arguments(BenchOutputFlags, "output")
    parser.add_class_arguments(DeviceFlags, "trainer")
    return parser
