"""Reads a list of requested edits: JSONL, or CSV with a line of column names.

    shard, key       the image; the shard may be left out if the inversions have only one
    name             name of the edit; the default is its number among the edits of its image, from 0
    prompt           prompt of the source, which must be the inversion's
    edit_prompt      prompt of the edit; without it the source is reconstructed
    mask, mask_size  pixels that the edit may change, as [start, length, ...] on a grid of [height, width]

Further columns are the fields of `EditSettings`; the default of each is the job's.
"""

import csv
import dataclasses
import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from nti_batch.data.tables import Cells, csv_lines, json_lines
from nti_batch.diffusion.edit_settings import EditSettings
from nti_batch.editing.columns import REQUEST_COLUMNS, SETTINGS_COLUMNS, read_cells
from nti_batch.editing.masks import check_grid, check_pairs
from nti_batch.json_object import Json
from nti_batch.output.manifest_rows import member_name
from nti_batch.output.serialization import StoredInversion
from nti_batch.phrases import and_more
from nti_batch.records import CaptionedImage, EditRequest, Mask, WorkUnit

MAX_REPORTED = 5


@dataclass(frozen=True, slots=True, eq=False)
class ImageEdits:
    """An inversion and the requested edits of its image."""

    unit: WorkUnit
    stored: StoredInversion
    requests: tuple[EditRequest, ...]
    original: CaptionedImage | None
    """The input image, if a request needs it and it can be read."""


def request_id(request: EditRequest) -> str:
    """Id of the request's row, and stem of its members in a part."""
    return member_name(request.key, request.name)


def request_sha256(request: EditRequest) -> str:
    """Checksum of everything in a request that changes the image or its scores."""
    mask = request.mask and {"runs": request.mask.runs, "height": request.mask.height, "width": request.mask.width}
    content = request.edit_prompt, request.settings.to_json(), mask
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_requests(path: Path, shards: list[str], defaults: EditSettings) -> list[EditRequest]:
    """Read a list of edits.

    Args:
        path: A `.csv`; any other file is JSONL.
        shards: Names of the shards of the inversions.
        defaults: Settings of edits that name none of their own.

    Raises:
        ValueError: If lines are wrong; the text names the first of them.
    """
    try:
        lines = list(csv_lines(path) if path.suffix.lower() == ".csv" else json_lines(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"edits {str(path)!r} cannot be read: {error}") from error
    requests: dict[tuple[str, str, str], EditRequest] = {}
    counts: Counter[tuple[str, str]] = Counter()
    wrong = []
    for number, cells in lines:
        try:
            if isinstance(cells, ValueError):
                raise cells
            request = _request(cells, shards, defaults, counts)
            identity = (request.shard, request.key, request.name)
            if identity in requests:
                raise ValueError(f"edit {request.name!r} of {request.key!r} is there already; give it another name")
            requests[identity] = request
        except ValueError as error:
            wrong.append(f"{path}:{number}: {error}")
    if wrong:
        raise ValueError(and_more(wrong, MAX_REPORTED))
    return list(requests.values())


def read_settings(cells: Cells, defaults: EditSettings) -> EditSettings:
    """The settings of an edit; those without a cell are the defaults.

    Raises:
        ValueError: If a cell has a wrong form, or a value is out of range.
    """
    given = read_cells(cells, SETTINGS_COLUMNS)
    return dataclasses.replace(defaults, **given) if given else defaults


def request_cells(request: EditRequest) -> dict[str, Json]:
    """The line of an edit in a list, without what it leaves to the defaults; `read_requests` reads it back."""
    mask = request.mask and {"mask": list(request.mask.runs), "mask_size": [request.mask.height, request.mask.width]}
    names = {name: getattr(request, name) for name in ("shard", "key", "name", "prompt", "edit_prompt")}
    cells = {**names, **request.settings.to_json(), **(mask or {})}
    return {name: value for name, value in cells.items() if value is not None}


def _request(cells: Cells, shards: list[str], defaults: EditSettings, counts: Counter[tuple[str, str]]) -> EditRequest:
    """One edit; `counts` has the number of edits of each image so far."""
    columns = [*REQUEST_COLUMNS, *SETTINGS_COLUMNS]
    if unknown := [name for name in cells if name not in columns]:
        raise ValueError(f"there is no column {', '.join(map(repr, unknown))}, allowed: {', '.join(columns)}")
    given = read_cells(cells, REQUEST_COLUMNS)
    if "key" not in given:
        raise ValueError("the key of the image is missing")
    shard = given.get("shard", shards[0] if len(shards) == 1 else None)
    if shard not in shards:
        problem = f"shard {shard!r} is unknown" if shard else "the shard of the image is missing"
        known = and_more(list(map(repr, shards)), MAX_REPORTED)
        raise ValueError(f"{problem}; the inversions have the shards {known}")
    if ("mask" in given) != ("mask_size" in given):
        missing = "mask_size" if "mask" in given else "mask"
        raise ValueError(f"mask and mask_size belong together, and {missing} is missing")
    image = (shard, given["key"])
    counts[image] += 1
    return EditRequest(
        shard=shard,
        key=given["key"],
        name=given.get("name", str(counts[image] - 1)),
        prompt=given.get("prompt"),
        edit_prompt=given.get("edit_prompt"),
        settings=read_settings(cells, defaults),
        mask=_mask(given["mask"], given["mask_size"]) if "mask" in given else None,
    )


def _mask(runs: tuple[int, ...], size: tuple[int, ...]) -> Mask:
    if len(size) != 2:
        raise ValueError(f"mask_size is {list(size)}, allowed: [height, width]")
    check_grid(*size)
    check_pairs(runs)
    return Mask(runs, *size)
