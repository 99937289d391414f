"""Finds files of committed parts that have been removed."""

import re
from collections.abc import Iterable
from contextlib import suppress

from nti_batch.output.manifest import Manifest
from nti_batch.output.run_folder import AnyRun
from nti_batch.records import WorkUnit


def missing_parts(run: AnyRun, units: Iterable[WorkUnit]) -> list[str]:
    """Names of the files of committed parts that are not in the run's folder.

    A manifest without its tar is found, and a manifest that is missing before a later one.
    """
    present, names = {path.name for path in run.folder.iterdir()}, {unit.name for unit in units}
    missing = set[str]()
    for manifest in present:
        part = re.fullmatch(r"(.+)\.(\d{5,})\.jsonl", manifest)
        if part and part[1] in names:
            missing |= {f"{part[1]}.{number:05d}.jsonl" for number in range(int(part[2]))} - present
            tar = manifest.replace(".jsonl", ".tar")
            if tar not in present and _names_tar(run, manifest):
                missing.add(tar)
    return sorted(missing)


def _names_tar(run: AnyRun, manifest: str) -> bool:
    """Whether a manifest has finished records, which are in a tar."""
    with suppress(ValueError):  # damage is reported where its rows are read
        return Manifest.read(run.folder / manifest, run.kind.row_type).tar is not None
    return False
