"""Runs of edits, and reading them back.

OUT/edits/<shard>.<k>of<n>.<part>.tar      members <key>+<name>.png and <key>+<name>.json
"""

import hashlib
import io
import struct
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nti_batch.data.images import to_image
from nti_batch.output.format_version import format_versions
from nti_batch.output.manifest_rows import EditRow, Metadata
from nti_batch.output.original import original_to_json
from nti_batch.output.part import read_members
from nti_batch.output.run_folder import OutputRun
from nti_batch.output.run_kind import RunKind
from nti_batch.records import EditedImage, WorkUnit
from nti_batch.settings import EditRunSettings

MAX_PIXELS = 1 << 26
"""Largest edited image, in pixels: it takes 192 MiB."""


def encode_edit(edit: EditedImage, settings: EditRunSettings) -> tuple[bytes, Metadata]:
    """The two members of an edit: a PNG, and metadata with its checksum and the run's settings."""
    stream = io.BytesIO()
    to_image(edit.pixels).save(stream, "PNG")
    payload = stream.getvalue()
    metadata: Metadata = {
        "shard": edit.unit.shard,
        "key": edit.key,
        "name": edit.name,
        "edit_prompt": edit.edit_prompt,
        "request_sha256": edit.request_sha256,
        "input_sha256": edit.input_sha256,
        "psnr_unedited": edit.psnr_unedited,
        "ssim_unedited": edit.ssim_unedited,
        "mse_unedited": edit.mse_unedited,
        # came later than the rest
        **({"prompt_truncated": True} if edit.prompt_truncated else {}),
        **original_to_json(edit.original),
        "seconds": edit.seconds,
        "settings": settings.to_json(),
        "finished": time.time(),
        "sha256": hashlib.sha256(payload).hexdigest(),
        **format_versions(),
    }
    return payload, metadata


EDIT: RunKind[EditedImage, EditRow, EditRunSettings] = RunKind(
    command="edit",
    record_noun="edits",
    folder="edits",
    suffix=".png",
    psnr="psnr_unedited",
    row_type=EditRow,
    encode=encode_edit,
    read_settings=EditRunSettings.from_json,
)
EditRun = OutputRun[EditedImage, EditRow, EditRunSettings]


def open_edits(out: str | Path) -> EditRun:
    """Open a run of `nti-batch edit`.

    Raises:
        ValueError: If the folder is no such run.
    """
    return OutputRun.open(EDIT, out)


def read_edited_images(run: EditRun, unit: WorkUnit, only: Collection[str]) -> Iterator[tuple[EditRow, Tensor]]:
    """Read the edits of a work unit.

    Args:
        run: The run.
        unit: Work unit of the edits.
        only: Ids of the rows to read.

    Returns:
        Rows with their images, uint8 [3, height, width].

    Raises:
        ValueError: If a part is not the one that its manifest names; the text names the file.
    """
    for part in run.parts(unit):
        manifest = part.read()
        rows = {row.id: row for row in manifest.rows if row.id in only and row.status == "done"}
        if not rows:
            continue
        with part.tar(manifest) as tar:
            for payload, metadata in read_members(tar):
                if row := rows.get(EditRow.of_metadata(metadata, "").id):
                    try:
                        pixels = decode_png(payload)
                    except ValueError as error:
                        raise ValueError(f"{tar} is damaged: {row.id!r} {error}") from error
                    yield row, pixels


def decode_png(payload: bytes) -> Tensor:
    """Decode what `encode_edit` wrote, uint8 [3, height, width].

    Raises:
        ValueError: If it is no such image.
    """
    try:
        width, height = struct.unpack(">II", payload[16:24])
        if width * height > MAX_PIXELS:
            raise ValueError(f"it has {width} x {height} pixels, allowed: {MAX_PIXELS:,} in all")
        image = Image.open(io.BytesIO(payload), formats=["PNG"])
        if image.mode != "RGB":
            raise ValueError(f"its mode is {image.mode!r}, not 'RGB'")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    except Exception as error:  # Pillow raises errors of many kinds for broken files
        raise ValueError(f"is no image: {error}") from error
