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
    present, names = run.files.names(run.kind.folder), {unit.name for unit in units}
    missing = set[str]()
    for manifest in present:
        part = re.fullmatch(r"(.+)\.(\d{5,})\.jsonl", manifest)
        if part and part[1] in names:
            missing |= {f"{part[1]}.{number:05d}.jsonl" for number in range(int(part[2]))} - present
            if manifest.replace(".jsonl", ".tar") not in present:
                missing |= {tar for tar in _named_tar(run, manifest) if tar not in present}
    return sorted(missing)


def _named_tar(run: AnyRun, manifest: str) -> list[str]:
    """Name of the tar that a manifest names; none if it has no finished records."""
    with suppress(ValueError):  # damage is reported where its rows are read
        tar = Manifest.read(run.folder / manifest, run.kind.row_type).tar
        return [] if tar is None else [tar.name]
    return []
