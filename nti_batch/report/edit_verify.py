"""Whether a run of edits is what it says: manifests against parts, and against what was asked for."""

import io
from collections import Counter
from collections.abc import Iterator

from PIL import Image

from nti_batch.jobs.edit_datamodule import EditDataModule
from nti_batch.output.edits import EditRun
from nti_batch.output.manifest import Json
from nti_batch.report.verify import TWICE, Finding, check_parts, unexpected_files


def verify_edits(run: EditRun, data: EditDataModule) -> Iterator[Finding]:
    """Everything that is wrong with a run of edits, as it is found.

    Args:
        run: The output folder.
        data: What it was asked for.
    """
    for unit in data.units:
        rows = yield from check_parts(run, unit, lambda payload, metadata: _wrong(payload, metadata, run.settings()))
        for name, times in Counter(row.id for row in rows).items():
            if times > 1:
                yield Finding(f"{unit.shard}/{name}", TWICE)
        for request in data.missing(unit, rows):
            yield Finding(f"{request.shard}/{request.key}", f"is asked for the edit {request.name!r}, which is missing")
    yield from unexpected_files(run, data.units)


def _wrong(payload: bytes, metadata: dict[str, Json], settings: dict[str, Json]) -> Iterator[str]:
    if metadata.get("settings") != settings:
        yield "was made with other settings than the run's"
    try:
        Image.open(io.BytesIO(payload)).load()
    except (OSError, SyntaxError) as error:  # what Pillow raises for a broken PNG
        yield f"is no picture: {error}"
