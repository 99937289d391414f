"""A run as a torch dataset: its inversions by index or by id, with their input images if asked for."""

import bisect
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from nti_batch.data.image_locations import ImagePlace, locate_images
from nti_batch.data.images import decode_image
from nti_batch.data.shards import expand_shards, name_shards, public_address
from nti_batch.data.tar import MemberPlace, locate_members
from nti_batch.output.inversions import INVERT, open_inversions
from nti_batch.output.manifest_rows import InversionRow, Metadata
from nti_batch.output.serialization import StoredInversion, decode_inversion
from nti_batch.output.stored_part import StoredPart
from nti_batch.phrases import hide_credentials

_MAX_CACHED_PARTS = 1024
"""Parts whose places are remembered; to read the headers of a part again takes milliseconds."""


_Id = tuple[str, str]
"""Shard and key."""


_RecordPlace = tuple[MemberPlace, MemberPlace]
"""Places of a record's tensors and of its `.json`."""


class InversionDataset(Dataset[StoredInversion]):
    """The committed inversions of a run, for a `DataLoader`.

    The index follows the order of the files, so that reading in order is streaming; `dataset[shard, key]` is an item
    by its id. The constructor reads the manifests alone. An item reads its own bytes, and checks them.

    Items may differ in shape: give the `DataLoader` `collate_fn=list`, or stack the tensors you need. Join several
    runs with `torch.utils.data.ConcatDataset`.
    """

    ids: list[_Id]
    """(shard, key) of each item."""

    def __init__(self, out: str | Path, pixels: bool = False, shards: str | None = None) -> None:
        """Read the manifests.

        Args:
            out: The run's output folder.
            pixels: Whether each item has its input image. The shards must be local, and not compressed.
            shards: Patterns of the input shards, as for `nti-batch invert`, if they are no longer where the run read
                them.

        Raises:
            ValueError: If the folder is no run, a manifest is damaged, or no shard is found.
        """
        self.run = open_inversions(out)
        self._urls: dict[str, str] | None = None
        if pixels:
            self._urls = self.run.shards if shards is None else name_shards(expand_shards(shards))
        elif shards is not None:
            raise ValueError(f"shards is {hide_credentials(shards)!r}, and no pixels are asked for: add pixels=True")
        self.ids = []
        self._of_index: list[StoredPart[InversionRow]] = []
        """Part of the items before each entry of `_ends`."""

        self._ends: list[int] = []
        """Index behind the last item of each part."""

        for part in self.run.all_parts():
            self.ids += [(row.shard, row.key) for row in part.read().rows if row.status == "done"]
            self._of_index.append(part)
            self._ends.append(len(self.ids))
        self._index = {id: index for index, id in enumerate(self.ids)}
        self._parts: dict[Path, tuple[Path, dict[_Id, _RecordPlace]]] = {}
        self._images: dict[str, dict[str, ImagePlace]] = {}

    def __len__(self) -> int:
        """Return the number of inversions."""
        return len(self.ids)

    def __iter__(self) -> Iterator[StoredInversion]:
        """Iterate over all inversions, in the order of the files."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int | tuple[str, str]) -> StoredInversion:
        """Read an inversion by its index or its id.

        Args:
            index: A number, negative ones from the end, or (shard, key).

        Raises:
            ValueError: If the run has no such id, or a file is damaged; the text names it.
            IndexError: If the number is out of range.
        """
        stored = self.inversion(index)
        return (
            stored if self._urls is None else dataclasses.replace(stored, pixels=self.pixels(stored.shard, stored.key))
        )

    def inversion(self, index: int | _Id) -> StoredInversion:
        """Read an inversion without its input image; arguments and errors as for an item."""
        tar, (payload, metadata) = self._place(index)
        return decode_inversion(payload.read(tar), json.loads(metadata.read(tar)))

    def metadata(self, index: int | _Id) -> Metadata:
        """Read the `.json` of an inversion, without its tensors; arguments and errors as for an item."""
        tar, (_, metadata) = self._place(index)
        read: Metadata = json.loads(metadata.read(tar))
        return read

    def _place(self, index: int | _Id) -> tuple[Path, _RecordPlace]:
        """Tar and place of an inversion."""
        if not isinstance(index, tuple):
            index = range(len(self))[index]
        elif index in self._index:
            index = self._index[index]
        else:
            shard, key = index
            raise ValueError(f"{str(self.run.out)!r} has no inversion of the key {key!r} in shard {shard!r}")
        tar, places = self._places(self._of_index[bisect.bisect(self._ends, index)])
        return tar, places[self.ids[index]]

    def _places(self, part: StoredPart[InversionRow]) -> tuple[Path, dict[_Id, _RecordPlace]]:
        """Tar of a part, and the places of its inversions."""
        if part.path not in self._parts:
            if len(self._parts) >= _MAX_CACHED_PARTS:
                self._parts.pop(next(iter(self._parts)))
            self._parts[part.path] = _locate_records(part)
        return self._parts[part.path]

    def pixels(self, shard: str, key: str) -> Tensor:
        """Read the input image of an inversion alone, uint8 [3, height, width]; the dataset has `pixels=True`.

        Raises:
            ValueError: If it cannot be read; the text names the shard.
        """
        assert self._urls is not None
        if shard not in self._urls:
            raise ValueError(f"the input shard {shard!r} is not among {', '.join(self._urls)}: give shards=... with it")
        url = self._urls[shard]
        shown = public_address(url)
        if shard not in self._images:
            self._images[shard] = locate_images(url)
        if key not in self._images[shard]:
            raise ValueError(f"shard {shown!r} has no whole image of the key {key!r}, which was inverted")
        settings = self.run.settings
        try:
            path, place = self._images[shard][key]
            return decode_image(place.read(path), settings.height, settings.width, max_memory=None)
        except ValueError as error:
            raise ValueError(f"shard {shown!r} is damaged at the key {key!r}, which was inverted: {error}") from error


def _locate_records(part: StoredPart[InversionRow]) -> tuple[Path, dict[_Id, _RecordPlace]]:
    """Return the tar of a part and the places of each of its inversions, with the checksums in its manifest.

    Raises:
        ValueError: If the manifest or the part is damaged; the text names the file.
    """
    manifest = part.read()
    assert manifest.tar is not None
    places, done = locate_members(manifest.tar), [row for row in manifest.rows if row.status == "done"]
    try:
        return manifest.tar, {
            (row.shard, row.key): (
                dataclasses.replace(places[f"{row.id}{INVERT.suffix}"], sha256=row.sha256),
                dataclasses.replace(places[f"{row.id}.json"], sha256=row.json_sha256),
            )
            for row in done
        }
    except KeyError as error:
        raise ValueError(f"{manifest.tar} is damaged: it lacks {error}, which its manifest names") from error
