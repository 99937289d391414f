"""Runs made by hand or by a job, opened for a look inside."""

from collections.abc import Sequence
from pathlib import Path

from nti_batch.output.inversions import INVERT, InversionRun
from nti_batch.output.run_folder import OutputRun
from nti_batch.plans.missing_images import ImagePlan
from nti_batch.records import WorkUnit
from nti_batch.settings import InversionRunSettings


def create_run(out: Path, settings: InversionRunSettings, shards: Sequence[str]) -> InversionRun:
    """A run without records."""
    return OutputRun.create(INVERT, out, settings, shards)


def plan_of(run: InversionRun, shards: Sequence[str] | None = None) -> ImagePlan:
    """The plan of a run, in its own shards or in others."""
    return ImagePlan.of_run(run, shards, allow_pipe=True)


def units_of(run: InversionRun, shards: Sequence[str] | None = None) -> list[WorkUnit]:
    """All work units of a run, in its own shards or in others."""
    return plan_of(run, shards).units
