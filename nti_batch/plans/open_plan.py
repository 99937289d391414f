"""Opens the plan of an existing run of either kind."""

from pathlib import Path

from nti_batch.data.shards import Shards
from nti_batch.output.inversions import INVERT
from nti_batch.output.open_run import open_run
from nti_batch.plans.missing_edits import EditPlan
from nti_batch.plans.missing_images import ImagePlan


def open_plan(out: Path | str, shards: Shards | None = None, allow_pipe: bool = False) -> ImagePlan | EditPlan:
    """The plan of a run, from its recorded settings.

    Args:
        out: The output folder.
        shards: Present addresses of the input shards of an inversion run; None for those that it recorded.
        allow_pipe: Whether reading a shard may run a shell command.

    Raises:
        ValueError: If the folder is no run, or what it was made from is gone.
    """
    run = open_run(out)
    if run.kind.command == INVERT.command:
        return ImagePlan.of_run(run, shards, allow_pipe)
    if shards is not None:
        raise ValueError(
            f"{str(out)!r} has edits, which read the shards of their inversions: leave out --data.shards and "
            "--data.images"
        )
    return EditPlan.of_run(run, allow_pipe)
