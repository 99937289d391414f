"""Runs of inversions, and reading them back.

OUT/inversions/<shard>.<k>of<n>.<part>.tar      members <key>.safetensors and <key>.json
"""

from collections.abc import Collection, Iterator
from pathlib import Path

from nti_batch.output.manifest_rows import InversionRow
from nti_batch.output.part import read_members
from nti_batch.output.run_folder import OutputRun
from nti_batch.output.run_kind import RunKind
from nti_batch.output.serialization import StoredInversion, decode_inversion, encode_inversion
from nti_batch.output.stored_part import StoredPart
from nti_batch.records import Inversion
from nti_batch.settings import InversionRunSettings

INVERT: RunKind[Inversion, InversionRow, InversionRunSettings] = RunKind(
    command="invert",
    record_noun="images",
    folder="inversions",
    suffix=".safetensors",
    psnr="psnr",
    row_type=InversionRow,
    encode=encode_inversion,
    read_settings=InversionRunSettings.from_json,
)
InversionRun = OutputRun[Inversion, InversionRow, InversionRunSettings]


def open_inversions(out: str | Path, spool: str | None = None) -> InversionRun:
    """Open a run of `nti-batch invert`.

    Args:
        out: Output folder, or address in an object store.
        spool: Local folder for copies of what is in the store; None for that of the user.

    Raises:
        ValueError: If it is no such run.
    """
    return OutputRun.open(INVERT, out, spool)


def read_inversions(out: str | Path, only: Collection[tuple[str, str]] | None = None) -> Iterator[StoredInversion]:
    """Read the committed inversions of a run, in the order of the files.

    Args:
        out: Output folder of the run.
        only: Image ids (shard, key) to read; None reads all. Parts without any of them are not opened.

    Raises:
        ValueError: If the folder is no run, or a part is not the one that its manifest names; the text names the file.
    """
    run = open_inversions(out)
    run.files.snapshot()
    yield from read_run(run, only)


def read_run(run: InversionRun, only: Collection[tuple[str, str]] | None = None) -> Iterator[StoredInversion]:
    """Read the committed inversions of an open run, as `read_inversions` does."""
    for part in run.all_parts():
        yield from read_part(part, only)


def read_part(
    part: StoredPart[InversionRow], only: Collection[tuple[str, str]] | None = None
) -> Iterator[StoredInversion]:
    """Read the inversions of one part, as `read_inversions` does."""
    manifest = part.read()
    done = {(row.shard, row.key) for row in manifest.rows if row.status == "done"}
    wanted = done if only is None else {id for id in done if id in only}
    if not wanted:
        return
    # the whole part, before any of it is returned
    with part.tar(manifest) as tar:
        for payload, metadata in read_members(tar):
            if (metadata["shard"], metadata["key"]) in wanted:
                yield decode_inversion(payload, metadata)
