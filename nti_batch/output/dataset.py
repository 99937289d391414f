"""A run as a torch dataset: its inversions by index or by id, with their input images if asked for."""

import bisect
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nti_batch.data.image_locations import ImagePlace, locate_images
from nti_batch.data.images import decode_image
from nti_batch.data.shards import expand_shards, name_shards, public_address
from nti_batch.data.tar import MemberPlace, locate_members
from nti_batch.output.inversions import INVERT, open_inversions
from nti_batch.output.manifest_rows import InversionRow, Metadata
from nti_batch.output.run_files import shown_errors
from nti_batch.output.serialization import StoredInversion, decode_inversion
from nti_batch.output.stored_part import StoredPart
from nti_batch.phrases import hide_credentials

_MAX_CACHED_PARTS = 1024
"""Parts whose places are remembered; to read the headers of a part again takes milliseconds."""


_Id = tuple[str, str]
"""Shard and key."""


_RecordPlace = tuple[MemberPlace, MemberPlace]
"""Places of a record's tensors and of its `.json`."""


class InversionBatch(NamedTuple):
    """Inversions of one shape, as `InversionDataset.collate_fn` stacks them."""

    ids: list[_Id]
    """Shard and key of each inversion."""

    prompts: list[str]
    noise_latents: Tensor
    """z_T, [batch, channels, height, width] float32."""

    null_embeddings: Tensor
    """[batch, T, tokens, dim] float32; row 0 belongs to the noisiest timestep."""

    pivot: Tensor | None
    """[batch, T, channels, height, width] float32; None if the method keeps none."""

    pixels: Tensor | None
    """Input images, uint8 [batch, 3, height, width]; None without `pixels=True`."""


def _stack(name: str, tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors of one shape.

    Raises:
        ValueError: If they have several.
    """
    if len(shapes := {tuple(tensor.shape) for tensor in tensors}) > 1:
        raise ValueError(
            f"{name} of a batch have the shapes {', '.join(map(str, sorted(shapes)))}: join only runs of one model, "
            "size and number of steps, or give the DataLoader collate_fn=list"
        )
    return torch.stack(list(tensors))


def _stack_all(name: str, tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Stack tensors, if all items have one."""
    present = [tensor for tensor in tensors if tensor is not None]
    return _stack(name, present) if len(present) == len(tensors) else None


class InversionDataset(Dataset[StoredInversion]):
    """The committed inversions of a run, for a `DataLoader`.

    The index follows the order of the files, so that reading in order is streaming; `dataset[shard, key]` is an item
    by its id. The constructor reads the manifests alone. An item reads its own bytes, and checks them. Of a run in an
    object store, the first item of a part copies the part to the local disk, where it stays.

    Give the `DataLoader` `collate_fn=InversionDataset.collate_fn` for batches of tensors, or `collate_fn=list`. Join
    several runs with `torch.utils.data.ConcatDataset`.
    """

    ids: list[_Id]
    """(shard, key) of each item."""

    def __init__(self, out: str | Path, pixels: bool = False, shards: str | None = None) -> None:
        """Read the manifests.

        Args:
            out: The run's output folder, or its address in an object store.
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

    def __repr__(self) -> str:
        """Name the run, and count its inversions."""
        shards = len({shard for shard, _ in self.ids})
        pixels = "" if self._urls is None else ", pixels=True"
        return f"{type(self).__name__}({self.run.files.address!r}{pixels}): {len(self)} inversions of {shards} shards"

    @staticmethod
    def collate_fn(items: Sequence[StoredInversion]) -> "InversionBatch":
        """Stack the tensors of inversions; a `DataLoader` calls it.

        Raises:
            ValueError: If they have several shapes, as those of several runs may have.
        """
        return InversionBatch(
            ids=[(item.shard, item.key) for item in items],
            prompts=[item.prompt for item in items],
            noise_latents=_stack("noise_latents", [item.noise_latents for item in items]),
            null_embeddings=_stack("null_embeddings", [item.null_embeddings for item in items]),
            pivot=_stack_all("pivot", [item.pivot for item in items]),
            pixels=_stack_all("pixels", [item.pixels for item in items]),
        )

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
            ValueError: If a file is damaged; the text names it.
            KeyError: If the run has no such id.
            IndexError: If the number is out of range.
        """
        stored = self.inversion(index)
        return (
            stored if self._urls is None else dataclasses.replace(stored, pixels=self.pixels(stored.shard, stored.key))
        )

    def inversion(self, index: int | _Id) -> StoredInversion:
        """Read an inversion without its input image; arguments and errors as for an item."""
        with shown_errors(self.run.files.shown):
            tar, (payload, metadata) = self._place(index)
            return decode_inversion(payload.read(tar), json.loads(metadata.read(tar)))

    def metadata(self, index: int | _Id) -> Metadata:
        """Read the `.json` of an inversion, without its tensors; arguments and errors as for an item."""
        with shown_errors(self.run.files.shown):
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
            raise KeyError(f"{self.run.files.address!r} has no inversion of the key {key!r} in shard {shard!r}")
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
            return decode_image(place.read(path), settings.height, settings.width, None, settings.fit)
        except ValueError as error:
            raise ValueError(f"shard {shown!r} is damaged at the key {key!r}, which was inverted: {error}") from error


def _locate_records(part: StoredPart[InversionRow]) -> tuple[Path, dict[_Id, _RecordPlace]]:
    """Return the tar of a part and the places of each of its inversions, with the checksums in its manifest.

    Raises:
        ValueError: If the manifest or the part is damaged; the text names the file.
    """
    manifest = part.read()
    assert manifest.tar is not None
    part.files.keep_tar(manifest)
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
