"""A run as a torch dataset: inversions in any order, with their input images if these are asked for."""

import bisect
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from nti_batch.data.images import decode_image
from nti_batch.data.shard_reader import locate_images
from nti_batch.data.shards import expand_shards, work_units
from nti_batch.output.inversions import INVERT, open_inversions
from nti_batch.output.manifest import InversionRow, Manifest
from nti_batch.output.part import locate_members
from nti_batch.output.serialization import StoredInversion, decode_inversion

_KEPT_PARTS = 1024
"""Parts whose members' places are remembered; to find those of another one again takes milliseconds."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a member lies in its tar, and what it must be."""

    offset: int
    size: int
    sha256: str

    def read(self, part: Path) -> bytes:
        content = _read(part, self.offset, self.size)
        if self.sha256 and hashlib.sha256(content).hexdigest() != self.sha256:
            raise ValueError(f"{part} is damaged: bytes {self.offset} to {self.offset + self.size} have changed")
        return content


class InversionDataset(Dataset[StoredInversion]):
    """The committed inversions of a run, for a `DataLoader`.

    By index they are in the order of the files, so that reading one after the other is streaming; by id they are
    `dataset[shard, key]`. Opening reads the manifests alone, and an item its own bytes, which are checked. The sampler
    of a `DataLoader` gives each inversion to one worker; items may differ in shape, so say `collate_fn=list`, or stack
    what you need. Several runs are a `torch.utils.data.ConcatDataset`.
    """

    ids: list[tuple[str, str]]
    """(shard, key) of each item."""

    def __init__(self, out: str | Path, pixels: bool = False, shards: str | None = None) -> None:
        """Read the manifests.

        Args:
            out: The run's output folder.
            pixels: Join each inversion with its input image. The shards must be local tars that are not compressed.
            shards: Where the inputs are now, if it is elsewhere than the run read them; as for `nti-batch invert`.

        Raises:
            ValueError: If it is no run, a manifest is damaged, or no shard is found.
        """
        self.run = open_inversions(out)
        self._urls: dict[str, str] | None = None
        if pixels:
            urls = self.run.shards if shards is None else expand_shards(shards)
            self._urls = {unit.shard: unit.url for unit in work_units(urls, 1)}
        elif shards is not None:
            raise ValueError(f"shards is {shards!r}, and no pixels are asked for: add pixels=True")
        self.ids = []
        self._manifests: list[Path] = []
        self._ends: list[int] = []
        """One behind the last item of each part."""

        for path in self.run.all_manifests():
            rows = Manifest.read(path, InversionRow).rows
            self.ids += [(row.shard, row.key) for row in rows if row.status == "done"]
            self._manifests.append(path)
            self._ends.append(len(self.ids))
        self._index = {id: index for index, id in enumerate(self.ids)}
        self._parts: dict[Path, dict[tuple[str, str], tuple[_Place, _Place]]] = {}
        self._images: dict[str, dict[str, tuple[int, int]]] = {}

    def __len__(self) -> int:
        """Number of inversions."""
        return len(self.ids)

    def __iter__(self) -> Iterator[StoredInversion]:
        """All of them, in the order of the files."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int | tuple[str, str]) -> StoredInversion:
        """An inversion by its index or its id.

        Args:
            index: 0 to len - 1, or (shard, key).

        Raises:
            ValueError: If the run has no such id, or what is stored is damaged, naming the file.
            IndexError: If there are fewer.
        """
        if not isinstance(index, tuple):
            index = range(len(self))[index]
        elif index in self._index:
            index = self._index[index]
        else:
            shard, key = index
            raise ValueError(f"{str(self.run.out)!r} has no inversion of the key {key!r} in shard {shard!r}")
        manifest, (shard, key) = self._manifests[bisect.bisect(self._ends, index)], self.ids[index]
        part, (payload, metadata) = manifest.with_suffix(".tar"), self._places(manifest)[shard, key]
        stored = decode_inversion(payload.read(part), json.loads(metadata.read(part)))
        return stored if self._urls is None else dataclasses.replace(stored, pixels=self._pixels(shard, key))

    def _places(self, manifest_path: Path) -> dict[tuple[str, str], tuple[_Place, _Place]]:
        """Where the two members of each inversion of a part are."""
        if manifest_path not in self._parts:
            if len(self._parts) >= _KEPT_PARTS:
                self._parts.pop(next(iter(self._parts)))
            self._parts[manifest_path] = _locate(manifest_path)
        return self._parts[manifest_path]

    def _pixels(self, shard: str, key: str) -> Tensor:
        """The input of an inversion, uint8 [3, height, width]."""
        assert self._urls is not None
        if shard not in self._urls:
            raise ValueError(f"the input shard {shard!r} is not among {', '.join(self._urls)}: give shards=... with it")
        url = self._urls[shard]
        if shard not in self._images:
            self._images[shard] = locate_images(url)
        if key not in self._images[shard]:
            raise ValueError(f"shard {url!r} has no whole image of the key {key!r}, which was inverted")
        settings = self.run.settings
        try:
            return decode_image(_read(Path(url), *self._images[shard][key]), settings.height, settings.width)
        except ValueError as error:
            raise ValueError(f"shard {url!r} is damaged at the key {key!r}, which was inverted: {error}") from error


def _locate(manifest_path: Path) -> dict[tuple[str, str], tuple[_Place, _Place]]:
    manifest, part = Manifest.read(manifest_path, InversionRow), manifest_path.with_suffix(".tar")
    members, done = locate_members(part), [row for row in manifest.rows if row.status == "done"]
    try:
        return {
            (row.shard, row.key): (
                _Place(*members[f"{row.id}{INVERT.suffix}"], row.sha256),
                _Place(*members[f"{row.id}.json"], row.json_sha256),
            )
            for row in done
        }
    except KeyError as error:
        raise ValueError(f"{part} is damaged: it lacks {error}, which its manifest names") from error


def _read(path: Path, offset: int, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
