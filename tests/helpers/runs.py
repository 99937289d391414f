"""Creates runs without a job, and opens their plans."""

from collections.abc import Sequence
from pathlib import Path

from helpers.inversions import ORIGIN, UNIT, inversion
from nti_batch.data.shards import name_shards
from nti_batch.output.inversions import INVERT, InversionRun
from nti_batch.output.run_folder import OutputRun
from nti_batch.plans.missing_images import ImagePlan
from nti_batch.records import WorkUnit
from nti_batch.settings import InversionRunSettings


def create_run(out: Path, settings: InversionRunSettings, shards: Sequence[str]) -> InversionRun:
    """Create a run without records."""
    return OutputRun.create(INVERT, out, settings, name_shards(shards))


def plan_of(run: InversionRun, shards: Sequence[str] | None = None) -> ImagePlan:
    """Open the plan of a run, for its own shards or for others."""
    return ImagePlan.of_run(run, None if shards is None else name_shards(shards), allow_pipe=True)


def units_of(run: InversionRun, shards: Sequence[str] | None = None) -> list[WorkUnit]:
    """List the work units of a run, for its own shards or for others."""
    return plan_of(run, shards).units


def write(run: InversionRun, keys: list[str], commit: bool = True) -> Path:
    """Write a part with these images, and return its path."""
    part = run.new_part(UNIT, ORIGIN)
    for key in keys:
        part.add(inversion(key))
    if commit:
        part.commit()
    else:
        part.close()
    return part.part
