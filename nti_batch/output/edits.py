"""The output of an edit job, and reading it back. `parts` has what is common to all jobs.

OUT/edits/<shard>.<k>of<n>.<part>.tar      members <key>+<name>.png and <key>+<name>.json
"""

import dataclasses
import hashlib
import io
import time
from collections.abc import Collection, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nti_batch.data.images import to_image
from nti_batch.output.manifest import EditRow, Json, Manifest
from nti_batch.output.part import read_members
from nti_batch.output.run import OutputRun
from nti_batch.records import EditedImage, WorkUnit


class EditRun(OutputRun[EditedImage, EditRow]):
    """An output folder of `nti-batch edit`."""

    command, folder_name, ending, row_type = "edit", "edits", ".png", EditRow

    def pack(self, record: EditedImage) -> tuple[bytes, dict[str, Json]]:
        """A PNG and metadata."""
        stream = io.BytesIO()
        to_image(record.pixels).save(stream, "PNG")
        payload = stream.getvalue()
        kept = {field.name for field in dataclasses.fields(record)} - {"unit", "pixels"}
        metadata: dict[str, Json] = {"shard": record.unit.shard, "settings": self.settings()}
        metadata.update({name: getattr(record, name) for name in sorted(kept)})
        metadata.update(finished=time.time(), sha256=hashlib.sha256(payload).hexdigest())
        return payload, metadata

    def finish(self, unit: WorkUnit, records: int) -> None:
        """Leave no note: which edits there are is known without reading a shard, and more may be asked for."""

    def read(self, unit: WorkUnit, only: Collection[str]) -> Iterator[tuple[EditRow, Tensor]]:
        """The edits of a work unit with these ids: rows and pictures, uint8 [3, height, width].

        Raises:
            ValueError: If a part is not the one that its manifest names; the text names the file.
        """
        for path in self.manifests(unit):
            manifest = Manifest.read(path, EditRow)
            if any(row.id in only and row.status == "done" for row in manifest.rows):
                manifest.check_part(path.with_suffix(".tar"))
                for payload, metadata in read_members(path.with_suffix(".tar")):
                    row = EditRow.of_metadata(metadata)
                    if row.id in only:
                        picture = np.array(Image.open(io.BytesIO(payload)))
                        yield row, torch.from_numpy(picture).permute(2, 0, 1)
