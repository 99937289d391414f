"""What the prediction jobs have in common: settings, the run to its end, the exit code.

Exit codes: 0 every record is committed as done; 3 finished, but some are committed as failed; 75 stopped early by a
signal, run the same command again; 2 the settings are wrong; 1 anything else.
"""

import logging
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.cli import LightningCLI

    from nti_batch.jobs.datamodule import UnitDataModule
    from nti_batch.jobs.progress import JobProgress
    from nti_batch.jobs.signals import StopSignals
    from nti_batch.jobs.writer import PartsWriter
    from nti_batch.output.serialization import StoredSize

logger = logging.getLogger(__name__)
DONE, ERROR, WRONG_SETTINGS, SOME_FAILED, STOPPED = 0, 1, 2, 3, 75


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job that is ready to run."""

    trainer: "Trainer"
    module: "LightningModule"
    data: "UnitDataModule[Any]"
    writer: "PartsWriter"
    stop: "StopSignals"
    progress: "JobProgress"
    is_dry_run: bool
    draw_preview: Callable[[], Path | None]
    new_size: Callable[[], "StoredSize | None"]
    """Of a record on disk, as it is known before there is one."""


def usage_error(error: Exception) -> int:
    """Say in one line what is wrong with the settings."""
    print(f"nti-batch: {' '.join(str(error).split())}", file=sys.stderr)
    return WRONG_SETTINGS


def run_job(prepare: Callable[[Sequence[str], "StopSignals"], Job], argv: Sequence[str]) -> int:
    """Do what is not committed yet, or say what that is; return the exit code.

    Args:
        prepare: Everything that can be refused, before any weights are loaded; a ValueError tells the user.
        argv: Flags of the job.
    """
    from jsonargparse import ArgumentError
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from nti_batch.jobs.log import job_log, rank_file, rank_prefix
    from nti_batch.jobs.signals import StopSignals

    silence_warnings()
    with StopSignals() as stop:
        try:
            job = prepare(argv, stop)
            if job.is_dry_run:
                return print_plan(job)
        # a TypeError is what Lightning raises for a wrong value of --trainer.devices
        except (ValueError, TypeError, ArgumentError, MisconfigurationException) as error:
            return usage_error(error)
        rank, ranks, data = job.trainer.global_rank, job.trainer.world_size, job.data
        file = rank_file(job.writer.run.out, rank, data.part, data.parts, ".log")
        with job_log(file, rank_prefix(rank, ranks)):
            logger.info("started rank=%d/%d host=%s process=%d", rank, ranks, socket.gethostname(), os.getpid())
            code = conclude(job) if predict(job) else ERROR
            logger.info("ended exit_code=%d", code)
            return code


def print_plan(job: Job) -> int:
    """Print what the job would do.

    Raises:
        ValueError: If what is committed is damaged, or a shard cannot be read.
    """
    from nti_batch.jobs.dry_run import Plan

    if job.trainer.is_global_zero:
        ranks = job.trainer.num_devices * job.trainer.num_nodes
        print("\n".join(Plan.of(job.data, job.writer.run, job.writer.record_noun, ranks, job.new_size()).lines()))
    return DONE


def predict(job: Job) -> bool:
    """Run the job to its end, or until a stop is requested; return whether it did not break."""
    from nti_batch.files import OutputError
    from nti_batch.jobs.failure_limit import TooManyFailuresError
    from nti_batch.lock import UnitInUseError

    try:
        with job.progress:
            job.trainer.predict(job.module, job.data, return_predictions=False)
            job.progress.wait_for(children_of(job.trainer))
    except BaseException as error:
        for child in children_of(job.trainer):
            child.terminate()
            child.wait()
        if not isinstance(error, (UnitInUseError, OutputError, TooManyFailuresError)):
            logger.error("%s: %s", type(error).__name__, " ".join(str(error).split()))
            raise
        logger.error("%s", error)
        return False
    return True


def children_of(trainer: "Trainer") -> "list[subprocess.Popen[bytes]]":
    """The ranks that this process started."""
    return getattr(trainer.strategy.launcher, "procs", [])


def silence_warnings() -> None:
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


def read_settings(
    command: str,
    module: "type[LightningModule]",
    data: "type[UnitDataModule[Any]]",
    writer: "type[PartsWriter]",
    argv: Sequence[str],
    sections: Mapping[str, type] = {},
    trainer_defaults: Mapping[str, object] = {},
) -> "LightningCLI":
    """The settings of a job from its flags and YAML files: trainer, model, data and output, and further sections.

    Raises:
        ValueError: If the user's settings are wrong.
    """
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    class JobCLI(LightningCLI):
        """Lightning's command line with the key `output`."""

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_lightning_class_args(writer, "output")
            parser.add_argument(
                "--dry_run", action="store_true", help="say what the job would do, load no weights and write nothing"
            )
            # under Slurm Lightning loads any hpc_ckpt_*.ckpt that it finds in its root folder instead of the model
            parser.link_arguments("output.dir", "trainer.default_root_dir")
            for name, section in sections.items():
                parser.add_class_arguments(section, name)

    return JobCLI(
        module,
        data,
        args=list(argv),
        run=False,
        save_config_callback=None,
        seed_everything_default=False,
        parser_kwargs={"prog": f"nti-batch {command}", "exit_on_error": False},
        trainer_defaults={
            **trainer_defaults,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
        },
    )


def writer_of(cli: "LightningCLI") -> "PartsWriter":
    """The one among the trainer's callbacks."""
    from nti_batch.jobs.writer import PartsWriter

    callbacks = cli.trainer.callbacks  # type: ignore[attr-defined]
    return next(callback for callback in callbacks if isinstance(callback, PartsWriter))


def assemble(
    cli: "LightningCLI",
    stop: "StopSignals",
    draw_preview: Callable[[], Path | None],
    new_size: Callable[[], "StoredSize | None"],
) -> Job:
    """Connect the parts of a job of which the output folder has been created."""
    from nti_batch.jobs.failure_limit import StopOnFailures
    from nti_batch.jobs.log import RecordLog, rank_file
    from nti_batch.jobs.progress import JobProgress, RankTallies

    trainer, data, writer = cli.trainer, cli.datamodule, writer_of(cli)
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    data.stop_requested = lambda: stop.requested
    stop.children = lambda: children_of(trainer)
    rank, ranks = trainer.global_rank, trainer.world_size
    total = None
    if rank == 0 and not cli.config.dry_run:
        total = data.estimate([unit for unit in data.units_of(0, 1) if data.is_waiting(unit)])
    tallies = RankTallies([rank_file(writer.run.out, each, data.part, data.parts, ".json") for each in range(ranks)])
    progress = JobProgress(writer, tallies, rank, total)
    callbacks += [RecordLog(), progress]
    if data.failure_limit:
        callbacks.append(StopOnFailures(writer, data.failure_limit))
    return Job(
        trainer=trainer,
        module=cli.model,
        data=data,
        writer=writer,
        stop=stop,
        progress=progress,
        is_dry_run=cli.config.dry_run,
        draw_preview=draw_preview,
        new_size=new_size,
    )


def conclude(job: Job) -> int:
    """Draw the preview, print the summary and find the exit code in what is committed.

    One of several ranks that others have started (srun, torchrun, this program) does not tell the outcome: a code
    other than 0 would end the others.
    """
    job.stop.leave_interrupt()
    trainer, data, writer = job.trainer, job.data, job.writer
    rank, ranks = trainer.global_rank, trainer.world_size
    is_whole_job = ranks == 1 + len(children_of(trainer))
    if job.stop.requested:
        logger.warning("stopped early; run the same command again to continue %s", writer.run.out)
        return STOPPED if is_whole_job else DONE
    if is_whole_job:
        rank, ranks = 0, 1
    is_whole_run = is_whole_job and data.parts == 1
    report = data.status(data.units_of_run() if is_whole_run else data.units_of(rank, ranks))
    if trainer.is_global_zero and writer.tally.done and (preview := job.draw_preview()):
        print(f"preview: {preview}")
    if is_whole_job:
        print("\n".join(report.lines()))
    if report.missing:
        logger.error("%d images are not committed, though the job went to its end", report.missing)
        return ERROR
    return SOME_FAILED if is_whole_job and report.has_failures else DONE
