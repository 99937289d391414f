"""Checks a run: manifests against parts, against the input or the requests, and against reconstructions."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from math import nan
from pathlib import Path
from typing import Any

from nti_batch.data.samples import read_inputs
from nti_batch.data.shard_reader import read_keys
from nti_batch.data.shards import public_address
from nti_batch.editing.reconstruct import reconstruct
from nti_batch.models.load import load_model
from nti_batch.output.inversions import read_run
from nti_batch.output.manifest import Manifest
from nti_batch.output.manifest_rows import Metadata, Row
from nti_batch.output.missing_parts import missing_parts
from nti_batch.output.part import read_members
from nti_batch.output.serialization import decode_inversion
from nti_batch.plans.missing_edits import EditPlan
from nti_batch.plans.missing_images import ImagePlan
from nti_batch.plans.plan import AnyPlan
from nti_batch.records import WorkUnit
from nti_batch.report.finding import AGAIN, Checked, Finding
from nti_batch.report.preview import choose_rows
from nti_batch.report.record_checks import check_inversion, check_png
from nti_batch.report.unexpected_files import unexpected_files
from nti_batch.scores.metrics import psnr

RECONSTRUCTION_TOLERANCE = 0.05
"""In dB. A reconstruction on the same kind of device is far closer."""

ELSEWHERE = "give the present place of the input with --data.shards or --data.images"

CheckRecord = Callable[[bytes, Metadata], Iterator[str]]
"""Yields what is wrong with a record, given its two members."""


def verify_run(plan: ImagePlan | EditPlan, recompute: int, checked: Checked | None = None) -> Iterator[Finding]:
    """Everything that is wrong with a run, as it is found.

    Args:
        plan: Work of the run, with the shards at their present addresses.
        recompute: Number of inversions to reconstruct and compare with their recorded PSNR.
        checked: Receives the counts of what is checked.

    Raises:
        ValueError: If `recompute` needs something that is not there.
    """
    if recompute and isinstance(plan, EditPlan):
        raise ValueError(f"{plan.run.files.address!r} has edits, and --recompute checks inversions: leave it out")
    plan.run.files.snapshot()
    for finding in _findings(plan, recompute, checked or Checked()):
        yield replace(finding, where=plan.run.files.shown(finding.where), what=plan.run.files.shown(finding.what))


def _findings(plan: ImagePlan | EditPlan, recompute: int, checked: Checked) -> Iterator[Finding]:
    for _, of_shard in groupby(plan.units, key=lambda unit: unit.shard):
        yield from _check_shard(plan, list(of_shard), checked)
    for name in missing_parts(plan.run, plan.units):
        if name.endswith(".jsonl"):
            mend = "restore it, or, while no job runs, remove all files of its work unit and run the job again"
            yield Finding(f"{plan.run.folder_address}/{name}", "is missing, and a later one is there", mend)
    yield from unexpected_files(plan, checked)
    if recompute and isinstance(plan, ImagePlan):
        yield from _compare_reconstructions(plan, recompute, checked)


def _with_mend(findings: Iterable[Finding], plan: AnyPlan, units: Sequence[WorkUnit]) -> Iterator[Finding]:
    """Findings about the files of work units, which a job computes again once all of a unit are gone."""
    names = units[0].name if len(units) == 1 else f"{units[0].shard}.*of{units[0].count}"
    folder = plan.run.folder_address
    mend = f"restore the file, or, while no job runs, remove all files {folder}/{names}.* and run the job again"
    return (replace(finding, mend=mend) for finding in findings)


def _check_shard(plan: ImagePlan | EditPlan, units: Sequence[WorkUnit], checked: Checked) -> Iterator[Finding]:
    """Check the work units of one shard."""
    committed: dict[WorkUnit, list[Row]] = {}
    for unit in units:
        committed[unit] = []
        for path in plan.run.manifests(unit):
            yield from _with_mend(_check_manifest(plan, unit, path, committed[unit], checked), plan, [unit])
            checked.parts += 1
        checked.units += 1
        checked.done += sum(row.status == "done" for row in committed[unit])
        checked.failed += sum(row.status == "failed" for row in committed[unit])
        yield from _with_mend(_check_mark(plan, unit, len({row.id for row in committed[unit]})), plan, [unit])
    counts = Counter((row.id, row.generation) for rows in committed.values() for row in rows if row.key)
    twice = [name for (name, _), number in counts.items() if number > 1]
    yield from _with_mend((Finding(f"{units[0].shard}/{name}", "is committed twice") for name in twice), plan, units)
    if isinstance(plan, ImagePlan):
        yield from _check_input(plan, units[0], {row.key for rows in committed.values() for row in rows}, checked)
    else:
        yield from _check_requests(plan, committed)


def _check_manifest(plan: AnyPlan, unit: WorkUnit, path: Path, rows: list[Row], checked: Checked) -> Iterator[Finding]:
    """Check a manifest and its part; append its rows, and count it."""
    try:
        manifest = Manifest.read(path, plan.run.kind.row_type)
    except ValueError as error:
        yield Finding(str(path), str(error))
        return
    rows += manifest.rows
    checked.manifests.add(path.name)
    checked.tars |= {manifest.tar.name} if manifest.tar else set()
    yield from _check_part(plan, manifest)
    for row in manifest.rows:
        if row.shard != unit.shard:
            yield Finding(f"{row.shard}/{row.id}", f"is in a manifest of shard {unit.shard!r}")
        elif row.key and not unit.holds(row.key):
            yield Finding(f"{row.shard}/{row.id}", f"does not belong to the work unit {unit.name!r}")


def _check_part(plan: AnyPlan, manifest: Manifest[Any]) -> Iterator[Finding]:
    done = {row.id: row for row in manifest.rows if row.status == "done"}
    if manifest.tar is None:
        yield from (Finding(f"{row.shard}/{row.id}", "is done, and its manifest names no tar") for row in done.values())
        return
    try:
        with plan.run.files.tar(manifest.tar) as tar:
            yield from _check_tar(replace(manifest, tar=tar), manifest.tar, done, _record_check(plan))
    except ValueError as error:
        yield Finding(str(manifest.tar), str(error))


def _check_tar(manifest: Manifest[Any], part: Path, done: dict[str, Row], check: CheckRecord) -> Iterator[Finding]:
    """Check the tar of a manifest against its rows.

    Args:
        manifest: The manifest, with the tar on the local disk.
        part: The tar in the run.
        done: Rows of the manifest that are done, by their ids.
        check: Check of a record.
    """
    assert manifest.tar is not None
    try:
        manifest.check_tar()
    except ValueError as error:
        yield Finding(str(part), str(error))
        if not manifest.tar.exists():
            return
    row_type = type(manifest.rows[0])
    try:
        for payload, metadata in read_members(manifest.tar):
            stored = row_type.of_metadata(metadata, "")
            row = done.pop(stored.id, None)
            if row is None or replace(stored, json_sha256=row.json_sha256) != row:
                yield Finding(str(part), f"holds {stored.id!r}, and its manifest does not describe it")
            for what in check(payload, metadata):
                yield Finding(f"{stored.shard}/{stored.id}", what)
    except (OSError, ValueError) as error:
        yield Finding(str(part), str(error))
    else:
        for missing in done:
            yield Finding(str(part), f"lacks {missing!r}, which its manifest names")


def _check_mark(plan: AnyPlan, unit: WorkUnit, rows: int) -> Iterator[Finding]:
    """Compare the mark of a complete work unit with its number of rows."""
    try:
        mark = plan.run.complete_mark(unit)
        if mark and mark.images != rows:
            yield Finding(unit.name, f"is marked complete, and its manifests hold {rows} images")
    except (OSError, ValueError) as error:
        yield Finding(unit.name, str(error))


def _check_input(plan: ImagePlan, unit: WorkUnit, committed: set[str], checked: Checked) -> Iterator[Finding]:
    """Compare the committed keys of a shard with the keys in its input."""
    keys, errors = read_keys(unit.url, plan.run.settings.caption, allow_pipe=plan.reading.allow_pipe)
    checked.inputs += len(keys)
    for key in keys:
        if key not in committed:
            yield Finding(f"{unit.shard}/{key}", "is in the input and not committed", AGAIN)
    if not errors:
        for key in sorted(committed - set(keys) - {""}):
            yield Finding(f"{unit.shard}/{key}", "is committed and not in the input", ELSEWHERE)
    elif "" not in committed:
        yield Finding(public_address(unit.url), f"cannot be read to its end: {errors[0]}", ELSEWHERE)


def _check_requests(plan: EditPlan, committed: Mapping[WorkUnit, Sequence[Row]]) -> Iterator[Finding]:
    """Report the requested edits of a shard that are not committed."""
    for unit, rows in committed.items():
        for request in plan.missing(unit, rows):
            yield Finding(f"{request.shard}/{request.key}", f"lacks the requested edit {request.name!r}", AGAIN)


def _record_check(plan: AnyPlan) -> CheckRecord:
    """The check of a record of the run's kind."""
    settings = plan.run.settings.to_json()
    inverted = plan.inversions.settings if isinstance(plan, EditPlan) else None

    def check_record(payload: bytes, metadata: Metadata) -> Iterator[str]:
        if metadata.get("settings") != settings:
            yield "was made with other settings than the run's"
        if inverted:
            yield from check_png(payload, inverted.height, inverted.width)
        else:
            yield from check_inversion(decode_inversion(payload, metadata))

    return check_record


def _compare_reconstructions(plan: ImagePlan, count: int, checked: Checked) -> Iterator[Finding]:
    """Reconstruct some inversions and compare with their recorded PSNR."""
    settings = plan.run.settings
    networks = load_model(settings.source, settings.precision, settings.fingerprint)
    rows = [row for _, row in choose_rows(plan.run, plan.units, count)]
    recorded_psnr = {(row.shard, row.key): row.metrics().get("psnr", nan) for row in rows}
    ids = list(recorded_psnr)
    inputs = read_inputs(
        plan.units, settings.caption, settings.height, settings.width, ids, plan.reading.allow_pipe, settings.fit
    )
    for shard, key in sorted(set(ids) - set(inputs)):
        yield Finding(f"{shard}/{key}", "is committed, and its input cannot be read", ELSEWHERE)
    for stored in read_run(plan.run, inputs):
        checked.reconstructed += 1
        image = reconstruct(networks, [stored], guided=True).cpu()
        reached = psnr(image, inputs[stored.shard, stored.key].pixels[None] / 255).item()
        recorded = recorded_psnr[stored.shard, stored.key]
        if not abs(reached - recorded) <= RECONSTRUCTION_TOLERANCE:
            what = f"is reconstructed at {reached:.3f} dB, and {recorded:.3f} dB are recorded"
            mend = f"run the job again with --data.redo {stored.shard}/{stored.key}"
            yield Finding(f"{stored.shard}/{stored.key}", what, mend)
