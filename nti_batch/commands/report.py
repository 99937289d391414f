"""`nti-batch report`."""

from pathlib import Path

from nti_batch.commands.flags import InputFlags
from nti_batch.exit_codes import DONE
from nti_batch.files import atomic_write, check_new_file
from nti_batch.jobs.parser import silence_warnings
from nti_batch.plans.open_plan import open_plan
from nti_batch.report.run_page import run_page
from nti_batch.terminal import print_line


def report(out: str, output: Path | None = None, images: int = 2, data: InputFlags = InputFlags()) -> int:
    """Write a page about a run: numbers, charts, failures, images. The page is one file that fetches nothing.

    Args:
        out: Output folder of the run, which may still be running, or its address in an object store.
        output: File to write; the default is OUT/report.html.
        images: Number of the worst, the median and the best images that the model reconstructs; 0 needs no model.
        data: Present place of the input.
    """
    silence_warnings()
    if images < 0:
        raise ValueError(f"--images is {images}, allowed: at least 0")
    plan = open_plan(out, data.addresses(), data.allow_pipe)
    path = output or plan.run.out / "report.html"
    check_new_file("--output", path)
    page = run_page(plan, images)
    try:
        atomic_write(path, page.html())
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}; give another --output") from error
    if output is None:
        plan.run.files.publish(path)
    print_line(plan.run.files.shown(str(path)))
    return DONE
