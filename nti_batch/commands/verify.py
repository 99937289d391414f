"""`nti-batch verify`."""

from dataclasses import asdict

from nti_batch.commands.flags import InputFlags
from nti_batch.exit_codes import DONE, ERROR
from nti_batch.jobs.parser import silence_warnings
from nti_batch.plans.open_plan import open_plan
from nti_batch.report.integrity import Checked, verify_run
from nti_batch.terminal import print_json, print_line


def verify(out: str, json: bool = False, recompute: int = 0, data: InputFlags = InputFlags()) -> int:
    """Check a run: checksums, shapes, one commit for each record, nothing missing.

    Prints a line for each finding with what mends it, then what was checked. The exit code is 1 if there is a finding.

    Args:
        out: Output folder of the run, or its address in an object store.
        json: Print one JSON list.
        recompute: Number of inversions to reconstruct and compare with their recorded PSNR.
        data: Present place of the input.
    """
    silence_warnings()
    found, checked, plan = [], Checked(), open_plan(out, data.addresses(), data.allow_pipe)
    for finding in verify_run(plan, recompute, checked):
        found.append(finding)
        if not json:
            print_line(f"{finding.where}: {finding.what}; to mend it, {finding.mend}")
    if json:
        print_json([asdict(finding) for finding in found])
    else:
        print_line(checked.line(plan))
        print_line(f"{len(found)} findings" if found else "no findings: the run is intact")
    return ERROR if found else DONE
