"""Opens a run of either kind."""

from pathlib import Path

from nti_batch.output.edits import open_edits
from nti_batch.output.inversions import open_inversions
from nti_batch.output.places import run_files
from nti_batch.output.run_file import read_run_file
from nti_batch.output.run_folder import AnyRun


def open_run(out: Path | str) -> AnyRun:
    """Open a run of `nti-batch invert` or of `nti-batch edit`.

    Raises:
        ValueError: If the folder is no run.
    """
    is_inversion = read_run_file(run_files(out)).choice("command", ("invert", "edit")) == "invert"
    return open_inversions(out) if is_inversion else open_edits(out)
