"""Runs a job to its end: one rank from its first work unit to its exit code."""

import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import Callback, Trainer

from nti_batch.exit_codes import DONE, ERROR, SOME_FAILED, STOPPED
from nti_batch.files import OutputError
from nti_batch.jobs.courtesy import courtesy
from nti_batch.jobs.datamodule import JobDataModule
from nti_batch.jobs.dry_run import DryRun
from nti_batch.jobs.failure_limit import FailureLimit, TooManyFailuresError
from nti_batch.jobs.flags import OutputFlags, SharedDataFlags
from nti_batch.jobs.job_module import JobModule
from nti_batch.jobs.log import job_log, rank_prefix
from nti_batch.jobs.meter import JobMeter, RankTallies
from nti_batch.jobs.metrics import MetricsServer
from nti_batch.jobs.networks import LoadError
from nti_batch.jobs.parser import build_trainer, silence_warnings
from nti_batch.jobs.progress import JobProgress
from nti_batch.jobs.rank_numbers import RankNumbers
from nti_batch.jobs.ranks import JobPart, started_ranks
from nti_batch.jobs.signals import SignalCallback, StopSignals
from nti_batch.jobs.writer import RecordWriter
from nti_batch.lock import UnitInUseError
from nti_batch.output.run_folder import AnyRun
from nti_batch.output.serialization import StoredSize
from nti_batch.output.throughput import Throughput
from nti_batch.plans.plan import AnyPlan
from nti_batch.terminal import print_error, print_lines, print_outcome, usage_error

logger = logging.getLogger(__name__)
PREVIEW_SECONDS = 300.0
"""Longest time that drawing the preview takes; on a processor, large images would take hours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job that is ready to run."""

    trainer: Trainer
    module: JobModule
    data: JobDataModule
    plan: AnyPlan
    part: JobPart
    writer: RecordWriter
    progress: JobProgress
    metrics: MetricsServer
    stop: StopSignals
    is_dry_run: bool
    draw_preview: Callable[[], Path | None]
    new_size: StoredSize | None
    """Size of a record on disk before there is one; None if it is unknown."""


def record_writer(run: AnyRun, data: SharedDataFlags, output: OutputFlags) -> RecordWriter:
    """The writer of a job.

    Raises:
        ValueError: If the limit of failures is wrong.
    """
    limit = None if data.max_failures is None else FailureLimit.parse(str(data.max_failures))
    return RecordWriter(run, output.part_images, output.part_minutes, limit)


def build_job(
    flags: Namespace,
    plan: AnyPlan,
    module: JobModule,
    writer: RecordWriter,
    stop: StopSignals,
    draw_preview: Callable[[], Path | None],
    new_size: StoredSize | None = None,
) -> Job:
    """Connect the parts of a job.

    Args:
        flags: Parsed flags of the job.
        plan: Work of the run.
        module: Computes the records.
        writer: Writes the records.
        stop: Stop signals.
        draw_preview: Draws the preview and returns its path; None if there is nothing to show.
        new_size: Size of a record on disk before there is one.

    Raises:
        ValueError: If a Trainer flag is wrong, or an estimate finds damage.
    """
    data_flags: SharedDataFlags = flags.data
    output: OutputFlags = flags.output
    part, trainer = JobPart.parse(data_flags.part), build_trainer(flags.trainer)
    data = JobDataModule(plan, part, stop)
    numbers = RankNumbers(module, data, writer)
    progress = JobProgress(_meter(plan, part, trainer, writer, flags.dry_run), numbers)
    callbacks: list[Callback] = [writer, SignalCallback(stop, output.stop_after), progress]
    # they need the rank, which the Trainer finds
    trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
    return Job(
        trainer=trainer,
        module=module,
        data=data,
        plan=plan,
        part=part,
        writer=writer,
        progress=progress,
        metrics=MetricsServer(flags.metrics, trainer, numbers),
        stop=stop,
        is_dry_run=flags.dry_run,
        draw_preview=draw_preview,
        new_size=new_size,
    )


def _meter(plan: AnyPlan, part: JobPart, trainer: Trainer, writer: RecordWriter, dry_run: bool) -> JobMeter:
    rank, ranks = trainer.global_rank, trainer.world_size
    total, earlier = None, Throughput()
    # in an object store, reading all manifests takes long, and other jobs share the work
    if rank == 0 and not dry_run and not plan.run.files.is_shared:
        units = part.units(plan.units, 0, 1)
        total, earlier = plan.estimate([unit for unit in units if plan.is_waiting(unit)]), plan.throughput(units)
    tallies = RankTallies([part.file(plan.run.out, each, ".json") for each in range(ranks)])
    return JobMeter(writer, tallies, rank, total, earlier)


def run_job(build: Callable[[Sequence[str], StopSignals], Job], argv: Sequence[str]) -> int:
    """Build a job from its flags and run it, or print what it would do; return the exit code.

    Args:
        build: Builds the job and raises a ValueError for wrong settings, before any weights are loaded.
        argv: Flags of the job.
    """
    silence_warnings()
    with StopSignals() as stop, ExitStack() as serving:
        try:
            job = build(argv, stop)
            serving.enter_context(job.metrics)
            if job.is_dry_run:
                return print_plan(job)
        except (ValueError, ArgumentError) as error:
            return usage_error(error)
        except (UnitInUseError, OutputError) as error:
            print_error(str(error))
            return ERROR
        return run_rank(job)


def print_plan(job: Job) -> int:
    """Print what the job would do.

    Raises:
        ValueError: If a manifest is damaged, or a shard cannot be read.
    """
    if job.trainer.is_global_zero:
        print_lines(DryRun.of(job.plan, job.part, job.trainer, job.new_size).lines())
    return DONE


def run_rank(job: Job) -> int:
    """Run one rank from its first work unit to its exit code.

    Lightning's loop takes each item from `JobDataModule`, whose thread claims a work unit (`RankUnits`) and reads its
    missing records ahead (`read_units`). The module's `predict_step` computes results, and puts each into the thread of
    `RecordWriter`, which commits them in parts, and releases the work unit after its last record.
    """
    rank, ranks = job.trainer.global_rank, job.trainer.world_size
    with job_log(job.part.file(job.plan.run.out, rank, ".log"), rank_prefix(rank, ranks)):
        logger.info("started rank=%d/%d host=%s process=%d", rank, ranks, socket.gethostname(), os.getpid())
        code = finish(job) if predict(job) else ERROR
        logger.info("ended exit_code=%d", code)
        return code


def predict(job: Job) -> bool:
    """Run the prediction to its end, or until a stop is requested; return whether it succeeded."""
    try:
        with job.progress:
            try:
                job.trainer.predict(job.module, job.data, return_predictions=False)
            finally:
                job.data.close()
                job.plan.run.release_all()
            job.progress.wait_for(started_ranks(job.trainer))
    except (UnitInUseError, OutputError, TooManyFailuresError, LoadError, OSError) as error:
        _end_ranks(job.trainer)
        logger.error("%s", " ".join(str(error).split()))
        return False
    except BaseException as error:
        _end_ranks(job.trainer)
        logger.error("%s: %s", type(error).__name__, " ".join(str(error).split()))
        raise
    return True


def _end_ranks(trainer: Trainer) -> None:
    for process in started_ranks(trainer):
        process.terminate()
        process.wait()


def finish(job: Job) -> int:
    """Print the status, draw the preview, and find the exit code in what is committed.

    A rank that another program has started beside others (srun, torchrun, this program) does not report the outcome:
    an exit code other than 0 would end the others.
    """
    job.stop.release_interrupt()
    trainer, plan = job.trainer, job.plan
    is_whole_job = trainer.world_size == 1 + len(started_ranks(trainer))
    if job.stop.requested:
        logger.warning("stopped early; run the same command again to resume %s", plan.run.files.address)
        return STOPPED if is_whole_job else DONE
    is_whole_run = is_whole_job and job.part.count == 1
    units = job.part.units(plan.units, 0, 1) if is_whole_job else job.data.units.mine()
    try:
        status = plan.status(plan.whole_run() if is_whole_run else units)
    except (ValueError, OSError, OutputError) as error:
        logger.error("the outcome cannot be read: %s", error)
        return ERROR
    if is_whole_job:
        print_outcome([*status.lines(), *status.failure_lines(plan.run.folder_address), *_limit_line(plan)])
    if trainer.is_global_zero and job.writer.tally.done and not job.stop.requested:
        _preview(job)
    if status.missing:
        logger.error("%d %s are not committed, though the job ended", status.missing, plan.run.kind.record_noun)
        return ERROR
    return SOME_FAILED if is_whole_job and status.has_failures else DONE


def _limit_line(plan: AnyPlan) -> list[str]:
    limit = plan.reading.limit
    return [] if limit is None else [f"data.limit is {limit}: the rest is not counted; run without it for the rest"]


def _preview(job: Job) -> None:
    with courtesy("the preview", PREVIEW_SECONDS):
        if path := job.draw_preview():
            files = job.plan.run.files
            files.publish(path)
            print_outcome([f"preview: {files.shown(str(path))}"])
