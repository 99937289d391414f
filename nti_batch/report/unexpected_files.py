"""Finds files of a run that belong to no work unit, or to no manifest."""

import re
from collections.abc import Iterator

from nti_batch.plans.plan import AnyPlan
from nti_batch.report.finding import AGAIN, Checked, Finding

FIRST = "mend the manifests of its work unit first"
STRANGE = "move it away, unless --data.shards has left its shard out"
UNNAMED = "run verify with --remove_uncommitted=HOURS"

_FILE_NAME = re.compile(
    r"(.+?)(?:\.\d{5,}\.(tar|jsonl)|\.[0-9a-f]{16}\.tar)?(?:\.(complete|lock|claim|salvage))?(\.tmp)?", re.DOTALL
)
"""A file of a work unit; a part has a number, and in an object store the beginning of its checksum."""


def unexpected_files(plan: AnyPlan, checked: Checked) -> Iterator[Finding]:
    """Files that belong to no work unit, and files that a killed job has left behind.

    Args:
        plan: Work of the run.
        checked: What was read of it.
    """
    names, folder = {unit.name for unit in plan.units}, plan.run.folder_address
    present = plan.run.files.names(plan.run.kind.folder)
    unread = {_unit_of(name) for name in present - checked.manifests if name.endswith(".jsonl")}
    for name in sorted(present):
        unit = _unit_of(name)
        is_left = name.endswith(".tar") and name not in checked.tars and name.replace(".tar", ".jsonl") not in present
        if unit not in names:
            yield Finding(f"{folder}/{name}", "belongs to no work unit of these shards", STRANGE)
        elif is_left and plan.run.files.is_shared and unit in unread:
            yield Finding(f"{folder}/{name}", "may belong to a manifest that cannot be read", FIRST)
        elif is_left and plan.run.files.is_shared:
            yield Finding(f"{folder}/{name}", "is named by no manifest: a worker puts one now, or died before", UNNAMED)
        elif is_left or name.endswith((".salvage", ".tar.tmp")):
            what = "is not committed: a job writes it, or was killed; run the job again"
            yield Finding(f"{folder}/{name}", what, AGAIN)


def _unit_of(name: str) -> str:
    """Name of the work unit of a file; empty if it has none."""
    found = _FILE_NAME.fullmatch(name)
    return found[1] if found else ""
