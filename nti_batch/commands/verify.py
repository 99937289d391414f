"""`nti-batch verify`."""

from dataclasses import asdict

from nti_batch.commands.flags import InputFlags
from nti_batch.exit_codes import DONE, ERROR
from nti_batch.files import store_address
from nti_batch.jobs.parser import silence_warnings
from nti_batch.plans.open_plan import open_plan
from nti_batch.report.finding import Checked
from nti_batch.report.integrity import verify_run
from nti_batch.report.unexpected_files import UNNAMED
from nti_batch.terminal import print_json, print_line


def verify(
    out: str,
    json: bool = False,
    recompute: int = 0,
    remove_uncommitted: float | None = None,
    data: InputFlags = InputFlags(),
) -> int:
    """Check a run: checksums, shapes, one commit for each record, nothing missing.

    Prints a line for each finding with what mends it, then what was checked. The exit code is 1 if there is a finding.

    Args:
        out: Output folder of the run, or its address in an object store.
        json: Print one JSON list.
        recompute: Number of inversions to reconstruct and compare with their recorded PSNR.
        remove_uncommitted: Remove tars in an object store that no manifest names and that are older than this number
            of hours. No job may run meanwhile.
        data: Present place of the input.
    """
    silence_warnings()
    if remove_uncommitted is not None and (remove_uncommitted < 0 or store_address(out) is None):
        raise ValueError(
            f"--remove_uncommitted is {remove_uncommitted:g} for {out!r}, allowed: at least 0 hours, for a run in an "
            "object store"
        )
    found, checked, plan = [], Checked(), open_plan(out, data.addresses(), data.allow_pipe)
    for finding in verify_run(plan, recompute, checked):
        hours = remove_uncommitted if finding.mend == UNNAMED else None
        if hours is not None and plan.run.files.remove_older(finding.where, hours):
            continue
        found.append(finding)
        if not json:
            print_line(f"{finding.where}: {finding.what}; to mend it, {finding.mend}")
    if json:
        print_json([asdict(finding) for finding in found])
    else:
        print_line(checked.line(plan))
        print_line(f"{len(found)} findings" if found else "no findings: the run is intact")
    return ERROR if found else DONE
