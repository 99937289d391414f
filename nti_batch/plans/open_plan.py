"""Opens the plan of an existing run of either kind."""

from pathlib import Path

from nti_batch.data.shards import Shards
from nti_batch.output.edits import open_edits
from nti_batch.output.inversions import open_inversions
from nti_batch.output.places import run_files
from nti_batch.output.run_file import read_run_file
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
    if read_run_file(run_files(out)).choice("command", ("invert", "edit")) == "invert":
        return ImagePlan.of_run(open_inversions(out), shards, allow_pipe)
    if shards is not None:
        raise ValueError(
            f"{str(out)!r} has edits, which read the shards of their inversions: leave out --data.shards and "
            "--data.images"
        )
    return EditPlan.of_run(open_edits(out), allow_pipe)
