"""Records beside their sources, for the preview and the page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nti_batch.data.samples import read_inputs
from nti_batch.editing.reconstruct import reconstruct
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.edits import read_edited_images
from nti_batch.output.inversions import read_part, read_run
from nti_batch.output.manifest_rows import EditRow, Row
from nti_batch.output.serialization import StoredInversion
from nti_batch.output.stored_part import Located, StoredPart
from nti_batch.plans.missing_edits import EditPlan
from nti_batch.plans.missing_images import ImagePlan

BATCH_SIZE = 8
ImageId = tuple[str, str]
Images = dict[str, Tensor]
"""Images by title, [3, height, width] in [0, 1] on the CPU."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A record beside its source."""

    row: Row
    captions: Sequence[str]
    images: Images


def examples_of(
    plan: ImagePlan | EditPlan,
    located: Sequence[Located[Any]],
    networks: StableDiffusion | None,
    notes: list[str],
    with_ddim: bool = False,
) -> list[Example]:
    """Examples of some records, in their order; those that cannot be read are left out.

    Args:
        plan: Work of the run.
        located: Finished rows, each with its part.
        networks: The model of the run; None shows what needs no model.
        notes: Receives what cannot be shown, and why.
        with_ddim: Whether to reconstruct inversions by plain DDIM, too.
    """
    if isinstance(plan, ImagePlan):
        return _inversion_examples(plan, located, networks, notes, with_ddim)
    return _edit_examples(plan, located, networks, notes)


def _inversion_examples(
    plan: ImagePlan,
    located: Sequence[Located[Any]],
    networks: StableDiffusion | None,
    notes: list[str],
    with_ddim: bool,
) -> list[Example]:
    stored, settings = _read_stored(located, notes), plan.run.settings
    inputs = read_inputs(
        plan.units, settings.caption, settings.height, settings.width, stored, plan.reading.allow_pipe, settings.fit
    )
    if len(inputs) < len(stored):
        missing = len(stored) - len(inputs)
        notes.append(f"{missing} of {len(stored)} inputs cannot be read any more and are not shown.")
    columns: dict[str, Mapping[ImageId, Tensor]] = {"input": {id: image.pixels / 255 for id, image in inputs.items()}}
    if networks:
        columns["VAE"] = _round_trips(networks, columns["input"])
        if with_ddim:
            columns["DDIM"] = _reconstructions(networks, stored, guided=False)
        columns["reconstruction"] = _reconstructions(networks, stored, guided=True)
    return [
        Example(row, [stored[id].prompt], {title: column[id] for title, column in columns.items() if id in column})
        for row, id in ((row, (row.shard, row.key)) for _, row in located)
        if id in stored
    ]


def _read_stored(located: Iterable[Located[Any]], notes: list[str]) -> dict[ImageId, StoredInversion]:
    """The inversions of rows, by their ids."""
    ids: dict[StoredPart[Any], list[ImageId]] = {}
    for part, row in located:
        ids.setdefault(part, []).append((row.shard, row.key))
    stored: dict[ImageId, StoredInversion] = {}
    for part, wanted in ids.items():
        try:
            stored |= {(inversion.shard, inversion.key): inversion for inversion in read_part(part, wanted)}
        except ValueError as error:
            notes.append(str(error))
    return stored


@torch.no_grad()
def _round_trips(networks: StableDiffusion, inputs: Mapping[ImageId, Tensor]) -> dict[ImageId, Tensor]:
    """VAE round trips of images in [0, 1]."""
    pixels = {id: (image * 255).round().byte()[None].to(networks.device) for id, image in inputs.items()}
    return {id: networks.decode_latents(networks.encode_images(image))[0].cpu() for id, image in pixels.items()}


def _reconstructions(
    networks: StableDiffusion, stored: Mapping[ImageId, StoredInversion], guided: bool
) -> dict[ImageId, Tensor]:
    """Reconstructions of inversions, by their ids."""
    ids, images = list(stored), dict[ImageId, Tensor]()
    for first in range(0, len(ids), BATCH_SIZE):
        batch = ids[first : first + BATCH_SIZE]
        images |= zip(batch, reconstruct(networks, [stored[id] for id in batch], guided).cpu(), strict=True)
    return images


def _edit_examples(
    plan: EditPlan, located: Sequence[Located[Any]], networks: StableDiffusion | None, notes: list[str]
) -> list[Example]:
    rows = [row for _, row in located if isinstance(row, EditRow)]
    stored = _read_sources(plan, {(row.shard, row.key) for row in rows}, notes)
    sources = _reconstructions(networks, stored, guided=True) if networks else {}
    examples = []
    for row in rows:
        try:
            examples.append(_edit_example(plan, row, stored.get((row.shard, row.key)), sources))
        except ValueError as error:
            notes.append(str(error))
    return examples


def _read_sources(plan: EditPlan, ids: set[ImageId], notes: list[str]) -> dict[ImageId, StoredInversion]:
    try:
        found = list(read_run(plan.inversions, ids))
    except ValueError as error:
        notes.append(f"No source could be reconstructed: {error}")
        return {}
    return {(inversion.shard, inversion.key): inversion for inversion in found}


def _edit_example(
    plan: EditPlan, row: EditRow, stored: StoredInversion | None, sources: Mapping[ImageId, Tensor]
) -> Example:
    ((_, pixels),) = read_edited_images(plan.run, plan.unit_of(row.shard, row.key), [row.id])
    captions, images = [row.edit_prompt or "reconstruction"], {row.name: pixels / 255}
    if stored and (row.shard, row.key) in sources:
        return Example(row, [stored.prompt, *captions], {"source": sources[row.shard, row.key], **images})
    return Example(row, captions, images)
