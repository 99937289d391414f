"""The commands about a run: `nti-batch status`, `report`, `verify`, `score` and `export`."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nti_batch.jobs.run import DONE, ERROR, SOME_FAILED, STOPPED, silence_warnings, usage_error

if TYPE_CHECKING:
    from nti_batch.output.inversions import InversionRun
    from nti_batch.records import WorkUnit
    from nti_batch.report.verify import Finding

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def _about_run(commands: "Commands", name: str, help: str) -> argparse.ArgumentParser:
    """A command about a run."""
    parser = commands.add_parser(name, help=help)
    parser.add_argument("out", metavar="OUT", help="output folder of the run")
    parser.add_argument(
        "--data.allow_pipe",
        dest="allow_pipe",
        choices=("true", "false"),
        default="false",
        help="allow shards that are the output of a shell command, as for invert",
    )
    parser.set_defaults(takes_rest=False)
    return parser


def _add_input(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data.shards", dest="shards", help="the input, if it is elsewhere than the run read it")
    parser.add_argument("--data.images", dest="images", help="the same, of a run on a folder of images")


def add_status(commands: "Commands") -> None:
    """Add `nti-batch status`."""
    parser = _about_run(commands, "status", "say how far a run is")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--exit-code", action="store_true", help="exit with 75 if images are missing, with 3 if some have failed"
    )
    parser.set_defaults(run=lambda a: status(a.out, a.json, a.exit_code, a.allow_pipe == "true"))


def add_report(commands: "Commands") -> None:
    """Add `nti-batch report`."""
    parser = _about_run(commands, "report", "write a page about a run: numbers, charts, failures, pictures")
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: OUT/report.html")
    parser.add_argument(
        "--pictures",
        metavar="N",
        type=int,
        default=2,
        help="of the worst, the median and the best, replayed by the model; 0 needs no model; default: 2",
    )
    _add_input(parser)
    parser.set_defaults(run=lambda a: report(a.out, a.output, a.pictures, a.shards, a.images, a.allow_pipe == "true"))


def add_verify(commands: "Commands") -> None:
    """Add `nti-batch verify`."""
    about = "check a run: checksums, shapes, one commit an image or edit, nothing lost"
    parser = _about_run(commands, "verify", about)
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    _add_input(parser)
    parser.add_argument(
        "--recompute", type=int, default=0, metavar="N", help="inversions to replay and compare with their PSNR"
    )
    parser.set_defaults(run=lambda a: verify(a.out, a.shards, a.images, a.recompute, a.json, a.allow_pipe == "true"))


def add_score(commands: "Commands") -> None:
    """Add `nti-batch score`."""
    parser = _about_run(commands, "score", "score a run of edits that have masks")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.add_argument(
        "--weights", metavar="FOLDER", type=Path, help="with clip, dino or lpips in it, for the scores that need them"
    )
    parser.set_defaults(run=lambda a: score(a.out, a.weights, a.json, a.allow_pipe == "true"))


def add_export(commands: "Commands") -> None:
    """Add `nti-batch export`."""
    parser = commands.add_parser("export", help="write inversions for other programs")
    parser.add_argument("out", metavar="OUT", help="output folder of `nti-batch invert`")
    parser.add_argument("--output", required=True, metavar="FOLDER", type=Path, help="the folder to write to")
    parser.add_argument(
        "--format", choices=("diffusers",), default="diffusers", help="of the files; default: diffusers"
    )
    parser.add_argument("--shard", nargs="+", help="of these shards; left out, of all")
    parser.add_argument("--key", nargs="+", help="the images of these keys; left out, all")
    parser.set_defaults(run=lambda a: export(a.out, a.output, a.shard, a.key), takes_rest=False)


def status(out: str, as_json: bool, tell: bool, allow_pipe: bool) -> int:
    """Print how far a run is, and tell it by the exit code if that is asked for."""
    from nti_batch.output.inversions import InversionRun
    from nti_batch.output.status import Status, run_status, units_of

    report: Status
    try:
        if _has_edits(Path(out)):
            from nti_batch.jobs.edit_datamodule import EditDataModule

            # no input is read
            data = EditDataModule.of_run(Path(out), allow_pipe=True)
            report = data.status(data.units)
        else:
            run = InversionRun(Path(out))
            report = run_status(run, units_of(run, allow_pipe=allow_pipe))
    except ValueError as error:
        return usage_error(error)
    print(json.dumps(report.as_json()) if as_json else "\n".join(report.lines()))
    if tell and report.missing:
        return STOPPED
    return SOME_FAILED if tell and report.has_failures else DONE


def report(
    out: str, output: Path | None, pictures: int, shards: str | None, images: str | None, allow_pipe: bool
) -> int:
    """Write the page about a run."""
    from nti_batch.files import atomic_write
    from nti_batch.output.inversions import InversionRun
    from nti_batch.report.edits import edit_page
    from nti_batch.report.inversions import inversion_page

    silence_warnings()
    path = output or Path(out) / "report.html"
    try:
        if pictures < 0:
            raise ValueError(f"--pictures is {pictures}, allowed: at least 0")
        if _has_edits(Path(out)):
            page = edit_page(Path(out), pictures, allow_pipe)
        else:
            run = InversionRun(Path(out))
            page = inversion_page(run, _units(run, shards, images, allow_pipe), pictures)
        atomic_write(path, page.html())
    except (ValueError, OSError) as error:
        return usage_error(error)
    print(path)
    return DONE


def score(out: str, weights: Path | None, as_json: bool, allow_pipe: bool) -> int:
    """Print the scores of a run of edits, as tables in PIE-Bench's layout or edit by edit."""
    import torch

    from nti_batch.jobs.edit_datamodule import EditDataModule
    from nti_batch.report.scores import score_run, tables
    from nti_batch.scores.learned import LearnedScores

    try:
        data = EditDataModule.of_run(Path(out), allow_pipe)
        learned = LearnedScores.load(weights, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        found = list(score_run(data, learned))
    except ValueError as error:
        return usage_error(error)
    if as_json:
        print(json.dumps([dataclasses.asdict(edit) for edit in found]))
    elif found:
        print("\n".join([*tables(data, found), learned.missing]))
    else:
        print("no edit has a mask and an input to be compared with")
    return DONE


def export(out: str, folder: Path, shards: list[str] | None, keys: list[str] | None) -> int:
    """Write inversions in diffusers' layout, and say what is left out."""
    from nti_batch.files import OutputError
    from nti_batch.output.export import choose_ids, export_run
    from nti_batch.output.inversions import InversionRun

    try:
        run = InversionRun(Path(out))
        exported = export_run(run, folder, choose_ids(run, shards, keys))
    except ValueError as error:
        return usage_error(error)
    except OutputError as error:
        print(f"nti-batch: {error}", file=sys.stderr)
        return ERROR
    there = f", {exported.existing} were there" if exported.existing else ""
    left_out = f", {exported.failed} left out, whose inversion has failed" if exported.failed else ""
    print(f"{folder}: {exported.written} inversions written{there}{left_out}")
    for damage in exported.damage:
        print(f"nti-batch: {damage}: its inversions are left out", file=sys.stderr)
    if exported.damage:
        return ERROR
    return SOME_FAILED if exported.failed else DONE


def verify(out: str, shards: str | None, images: str | None, recompute: int, as_json: bool, allow_pipe: bool) -> int:
    """Print what is wrong with a run, a line for each finding."""
    found = []
    try:
        for finding in _findings(Path(out), shards, images, recompute, allow_pipe):
            found.append(finding)
            if not as_json:
                print(f"{finding.where}: {finding.what}")
    except ValueError as error:
        return usage_error(error)
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found]))
    else:
        print(f"{len(found)} findings" if found else "all is well")
    return ERROR if found else DONE


def _findings(
    out: Path, shards: str | None, images: str | None, recompute: int, allow_pipe: bool
) -> "Iterator[Finding]":
    """What is wrong with a run of either job."""
    from nti_batch.jobs.edit_datamodule import EditDataModule
    from nti_batch.output.edits import EditRun
    from nti_batch.output.inversions import InversionRun
    from nti_batch.report.edit_verify import verify_edits
    from nti_batch.report.verify import verify_run

    if not _has_edits(out):
        run = InversionRun(out)
        yield from verify_run(run, _units(run, shards, images, allow_pipe), recompute)
        return
    if shards or images or recompute:
        raise ValueError(
            f"{str(out)!r} has edits: --data.shards, --data.images and --recompute are for that of their inversions"
        )
    yield from verify_edits(EditRun(out), EditDataModule.of_run(out, allow_pipe=True))


def _has_edits(out: Path) -> bool:
    """Whether a folder is a run of edits."""
    from nti_batch.output.edits import EditRun

    return EditRun(out).folder.exists()


def _units(run: "InversionRun", shards: str | None, images: str | None, allow_pipe: bool) -> "list[WorkUnit]":
    """Those of a run, in the input as it is to be had now."""
    from nti_batch.data.shards import input_shards
    from nti_batch.output.status import units_of

    return units_of(run, input_shards(shards, images, allow_pipe) if shards or images else None, allow_pipe)
