"""The command line: `nti-batch invert`, `nti-batch status`, `nti-batch verify`, `nti-batch bench`.

Exit codes: 0 every input image is committed as done; 3 finished, but some images are committed as failed; 75 stopped
early by a signal, run the same command again; 2 the settings are wrong; 1 anything else. `status --exit-code` has
the same: 0 done, 3 some have failed, 75 images are missing.
"""

import argparse
import dataclasses
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from nti_batch.datamodule import InversionDataModule
    from nti_batch.module import NullTextInversion
    from nti_batch.signals import StopSignals
    from nti_batch.writer import InversionWriter

    Job = tuple[Trainer, NullTextInversion, InversionDataModule, InversionWriter]

DONE, ERROR, WRONG_SETTINGS, SOME_FAILED, STOPPED = 0, 1, 2, 3, 75


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="nti-batch", description="Null-text inversion of image collections: real images become editable ones."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    invert_parser = commands.add_parser("invert", help="invert the images of WebDataset shards", add_help=False)
    invert_parser.set_defaults(run=lambda arguments, rest: invert(rest))
    a_run = argparse.ArgumentParser(add_help=False)
    a_run.add_argument("out", metavar="OUT", help="output folder of the run")
    a_run.add_argument(
        "--data.allow_pipe",
        dest="allow_pipe",
        choices=("true", "false"),
        default="false",
        help="allow shards that are the output of a shell command, as for invert",
    )
    status_parser = commands.add_parser("status", help="say how far a run is", parents=[a_run])
    status_parser.add_argument("--json", action="store_true", help="print one JSON object")
    status_parser.add_argument(
        "--exit-code", action="store_true", help="exit with 75 if images are missing, with 3 if some have failed"
    )
    status_parser.set_defaults(
        run=lambda arguments, rest: status(
            arguments.out, arguments.json, arguments.exit_code, arguments.allow_pipe == "true"
        )
    )

    bench_parser = commands.add_parser("bench", help="compare the job with the authors' loop", add_help=False)
    bench_parser.set_defaults(run=lambda arguments, rest: bench(rest))

    verify_parser = commands.add_parser(
        "verify", help="check a run: checksums, shapes, one commit an image, nothing lost", parents=[a_run]
    )
    verify_parser.add_argument(
        "--data.shards", dest="shards", help="the input, if it is elsewhere than the run read it"
    )
    verify_parser.add_argument(
        "--recompute", type=int, default=0, metavar="N", help="inversions to replay and compare with their PSNR"
    )
    verify_parser.add_argument("--json", action="store_true", help="print one JSON list")
    verify_parser.set_defaults(
        run=lambda arguments, rest: verify(
            arguments.out, arguments.shards, arguments.recompute, arguments.json, arguments.allow_pipe == "true"
        )
    )

    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command in ("status", "verify"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    code: int = arguments.run(arguments, rest)
    return code


def bench(argv: Sequence[str]) -> int:
    """Print the comparison of the job with the authors' loop."""
    import torch
    from jsonargparse import ArgumentError, ArgumentParser

    from nti_batch.benchmarks.job_loop import load_images
    from nti_batch.benchmarks.side_by_side import Setup, compare
    from nti_batch.datamodule import InversionDataModule
    from nti_batch.diffusion.rounding import Storage
    from nti_batch.module import NullTextInversion
    from nti_batch.stable_diffusion import ModelDescription

    quiet()
    parser = ArgumentParser(
        prog="nti-batch bench",
        description="Invert the same images by the job and by the authors' loop (one image at a time, weights not "
        "frozen, float32, their constants), in turns, and compare speed, UNet work, quality, memory and bytes.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file as for invert, such as configs/fast.yaml")
    parser.add_class_arguments(NullTextInversion, "model")
    parser.add_argument("--data.shards", type=str, default="demo", help="as for invert")
    parser.add_argument("--data.caption", type=str, default="txt", help="as for invert")
    parser.add_argument("--output.storage", type=Storage, default="float32", help="of the job, as for invert")
    parser.add_argument("--images", type=int, default=16, help="number of images")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side, which take a share of the images")
    parser.add_argument("--device", type=str, default=None, help="such as 'cuda'; a GPU if there is one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    try:
        arguments = parser.parse_args(list(argv))
        module = NullTextInversion(**arguments.model)
        data = InversionDataModule(arguments.data.shards, arguments.data.caption, slices=1)
        setup = Setup(
            source=module.source,
            device=arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            precision=module.precision,
            compile_backend=module.compile_backend,
            num_steps=module.num_steps,
            settings=module.null_text,
            slots=module.slots,
            storage=arguments.output.storage,
        )
        images = load_images(data, ModelDescription.of(module.source).size, arguments.images)
        comparison = compare(setup, images, arguments.rounds)
    except (ValueError, ArgumentError) as error:
        return refuse(error)
    print(json.dumps(comparison.as_json()) if arguments.json else "\n".join(comparison.lines()))
    return DONE


def refuse(error: Exception) -> int:
    """Say in one line what is wrong with the settings."""
    print(f"nti-batch: {' '.join(str(error).split())}", file=sys.stderr)
    return WRONG_SETTINGS


def status(out: str, as_json: bool, tell: bool, allow_pipe: bool) -> int:
    """Print how far a run is, and tell it by the exit code if that is asked for."""
    from nti_batch.inversions import InversionRun
    from nti_batch.status import run_status, units_of

    try:
        run = InversionRun(Path(out))
        report = run_status(run, units_of(run, allow_pipe=allow_pipe))
    except ValueError as error:
        return refuse(error)
    print(json.dumps(report.as_json()) if as_json else "\n".join(report.lines()))
    if tell and report.missing:
        return STOPPED
    return SOME_FAILED if tell and report.has_failures else DONE


def verify(out: str, shards: str | None, recompute: int, as_json: bool, allow_pipe: bool) -> int:
    """Print what is wrong with a run, a line for each finding."""
    from nti_batch.inversions import InversionRun
    from nti_batch.status import units_of
    from nti_batch.stream import expand_shards
    from nti_batch.verify import verify_run

    found = []
    try:
        run = InversionRun(Path(out))
        units = units_of(run, expand_shards(shards, allow_pipe) if shards else None, allow_pipe)
        for finding in verify_run(run, units, recompute):
            found.append(finding)
            if not as_json:
                print(f"{finding.where}: {finding.what}")
    except ValueError as error:
        return refuse(error)
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found]))
    else:
        print(f"{len(found)} findings" if found else "all is well")
    return ERROR if found else DONE


def invert(argv: Sequence[str]) -> int:
    """Invert what is not committed yet: the main job."""
    from nti_batch.signals import StopSignals

    with StopSignals() as stop:
        job = predict(argv, stop)
        stop.leave_interrupt()
        return job if isinstance(job, int) else conclude(*job)


def predict(argv: Sequence[str], stop: "StopSignals") -> "Job | int":
    """Run the job to its end, or until a stop is requested; return what it was, or the exit code if it broke."""
    from jsonargparse import ArgumentError
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from nti_batch.failure_limit import TooManyFailuresError
    from nti_batch.inversions import OutputError
    from nti_batch.lock import UnitInUseError

    quiet()

    try:
        trainer, module, data, _ = job = prepare(argv, stop)
    # a TypeError is what Lightning raises for a wrong value of --trainer.devices
    except (ValueError, TypeError, ArgumentError, MisconfigurationException) as error:
        return refuse(error)
    try:
        trainer.predict(module, data, return_predictions=False)
        for child in children_of(trainer):
            child.wait()
    except BaseException as error:
        for child in children_of(trainer):
            child.terminate()
            child.wait()
        if not isinstance(error, (UnitInUseError, OutputError, TooManyFailuresError)):
            raise
        print(f"nti-batch: {error}", file=sys.stderr)
        return ERROR
    return job


def children_of(trainer: "Trainer") -> "list[subprocess.Popen[bytes]]":
    """The ranks that this process started."""
    return getattr(trainer.strategy.launcher, "procs", [])


def quiet() -> None:
    """Silence what Lightning says to people who train networks."""
    # Lightning 2.6 calls jsonargparse in a way that newer versions deprecate
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for text in (
        # reading an image takes milliseconds, inverting it a minute
        ".*does not have many workers.*",
        # the arguments are those of the command line, without the command
        "LightningCLI's args parameter is intended to run from within Python.*",
        ".*GPU available but not used.*",
        # records carry shard and key themselves
        "Couldn't infer the batch indices.*",
        # Lightning 2.6 with torch 2.13
        ".*treespec, LeafSpec.*",
        # a job of one process is right where Slurm is installed, too
        "The `srun` command is available on your system but is not used.*",
    ):
        warnings.filterwarnings("ignore", text)


def prepare(argv: Sequence[str], stop: "StopSignals") -> "Job":
    """Everything that can be refused, before any weights are loaded.

    Raises:
        ValueError: If the user's settings are wrong.
    """
    from lightning.pytorch import Callback
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    from nti_batch.datamodule import InversionDataModule
    from nti_batch.failure_limit import StopOnFailures
    from nti_batch.module import NEEDS_GRADIENTS, NullTextInversion
    from nti_batch.progress import ProgressLine
    from nti_batch.stable_diffusion import ModelDescription
    from nti_batch.writer import InversionWriter

    class InvertCLI(LightningCLI):
        """Lightning's command line with the key `output`."""

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_lightning_class_args(InversionWriter, "output")
            # under Slurm Lightning loads any hpc_ckpt_*.ckpt that it finds in its root folder instead of the model
            parser.link_arguments("output.dir", "trainer.default_root_dir")

    cli = InvertCLI(
        NullTextInversion,
        InversionDataModule,
        args=list(argv),
        run=False,
        save_config_callback=None,
        seed_everything_default=False,
        parser_kwargs={"prog": "nti-batch invert", "exit_on_error": False},
        trainer_defaults={
            "inference_mode": False,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
        },
    )
    if cli.config.trainer.inference_mode:
        raise ValueError(NEEDS_GRADIENTS)
    module, data = cli.model, cli.datamodule
    callbacks: list[Callback] = cli.trainer.callbacks  # type: ignore[attr-defined]
    writer = next(callback for callback in callbacks if isinstance(callback, InversionWriter))
    description = ModelDescription.of(module.source)
    data.attach(writer.run, description.size)
    description.check_size(data.height, data.width)
    module.storage = writer.storage
    settings = {**module.result_settings, **data.result_settings, "output.storage": writer.storage}
    writer.run.create(settings, data.urls)
    module.stop = stop
    data.stop_requested = lambda: stop.requested
    stop.children = lambda: children_of(cli.trainer)
    waiting = [unit for unit in data.units_of(cli.trainer.global_rank, cli.trainer.world_size) if data.is_waiting(unit)]
    callbacks.append(ProgressLine(writer, data.estimate(waiting)))
    if data.failure_limit:
        callbacks.append(StopOnFailures(writer, data.failure_limit))
    return cli.trainer, module, data, writer


def conclude(
    trainer: "Trainer", module: "NullTextInversion", data: "InversionDataModule", writer: "InversionWriter"
) -> int:
    """Draw the preview, print the summary and find the exit code in what is committed.

    One of several ranks that others have started (srun, torchrun, this program) does not tell the outcome: a code
    other than 0 would end the others.
    """
    from nti_batch.preview import draw_preview
    from nti_batch.status import run_status, units_of

    rank, ranks = trainer.global_rank, trainer.world_size
    is_whole_job = ranks == 1 + len(children_of(trainer))
    if module.stop.requested:
        who = "" if is_whole_job else f"rank {rank} of {ranks} "
        print(f"{who}stopped early; run the same command again to continue {writer.run.out}", file=sys.stderr)
        return STOPPED if is_whole_job else DONE
    if is_whole_job:
        rank, ranks = 0, 1
    is_whole_run = is_whole_job and data.parts == 1
    units = units_of(writer.run, allow_pipe=True) if is_whole_run else data.units_of(rank, ranks)
    report = run_status(writer.run, units)
    if trainer.is_global_zero and writer.tally.done and (preview := draw_preview(writer.run, data, module.networks)):
        print(f"preview: {preview}")
    if is_whole_job:
        print("\n".join(report.lines()))
    if report.missing:
        print(f"{report.missing} images are not committed, though the job went to its end", file=sys.stderr)
        return ERROR
    return SOME_FAILED if is_whole_job and report.has_failures else DONE


if __name__ == "__main__":
    sys.exit(main())
