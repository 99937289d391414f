"""`nti-batch report` on a run of inversions."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nti_batch.data.samples import read_inputs
from nti_batch.editing.reconstruct import replay
from nti_batch.models.load import load_model
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.inversions import InversionRun, read_part
from nti_batch.output.manifest import Json, ManifestRow
from nti_batch.output.serialization import StoredInversion
from nti_batch.output.status import RunStatus, run_status
from nti_batch.records import CaptionedImage, WorkUnit
from nti_batch.report.charts import Chart, histogram_chart, in_words, throughput_chart, timestep_chart
from nti_batch.report.page import Example, Fact, Page, embed, settings_of
from nti_batch.report.statistics import RunNumbers, by_timestep, extremes, read_sample

SAMPLE = 256
"""Images of which losses and steps at each timestep are read, at most, drawn at random."""


def inversion_page(run: InversionRun, units: Sequence[WorkUnit], pictures: int) -> Page:
    """What there is to say of a run, from its rows and a sample of its inversions.

    Args:
        run: The output folder; it may still be written.
        units: All its work units, in the shards as they are to be had now.
        pictures: Images of each kind, worst, median and best, that are replayed; 0 loads no model.

    Raises:
        ValueError: If it is no run, or a manifest is damaged.
    """
    settings, notes = run.settings(), list[str]()
    numbers = RunNumbers(ManifestRow, ("psnr", "psnr_vae", "inner_steps"))
    status = run_status(run, units, numbers.add)
    num_steps = settings["model.num_steps"]
    assert isinstance(num_steps, int)
    charts = _charts(numbers, num_steps, notes) if len(numbers) else []
    examples = _examples(run, units, numbers, pictures, notes) if len(numbers) and pictures else []
    return Page(
        title=f"Inversions: {run.out.resolve().name}",
        what=f"Model {settings.get('model.name')}, {settings.get('model.method')} inversion, guidance "
        f"{settings.get('model.guidance_scale')}, {settings.get('model.num_steps')} steps.",
        done=status.done,
        failed=status.failed,
        missing=status.missing,
        facts=_facts(status),
        charts=charts,
        reasons=numbers.reasons.sorted(),
        examples=examples,
        notes=list(dict.fromkeys(notes)),
        settings=settings_of(run),
    )


def _facts(status: RunStatus) -> list[Fact]:
    facts = []
    if status.damaged_shards:
        facts.append(Fact(f"{status.damaged_shards:,}", "damaged shards"))
    if status.images_per_hour is not None:
        facts.append(Fact(f"{status.images_per_hour:,.0f}", "images an hour"))
    if status.missing and status.hours_left is not None:
        facts.append(Fact(in_words(3600 * status.hours_left), "left at this rate"))
    if status.psnr is not None and status.psnr_vae is not None:
        facts.append(Fact(f"{status.psnr:.2f} dB", "mean PSNR"))
        side = "above" if status.psnr > status.psnr_vae else "below"
        gap = f"{abs(status.psnr_vae - status.psnr):.2f} dB"
        facts.append(Fact(gap, f"{side} the VAE's own {status.psnr_vae:.2f} dB"))
    if status.prompts_truncated:
        facts.append(Fact(f"{status.prompts_truncated:,}", "prompts cut"))
    return facts


def _charts(numbers: RunNumbers[ManifestRow], num_steps: int, notes: list[str]) -> list[Chart]:
    charts = [
        throughput_chart(numbers["finished"], numbers["seconds"], "images"),
        histogram_chart("PSNR of the reconstruction", numbers["psnr"], "dB", 2, "images"),
        histogram_chart("PSNR below the VAE's own", numbers["psnr_vae"] - numbers["psnr"], "dB", 2, "images"),
        histogram_chart("Inner steps an image", numbers["inner_steps"], "updates", 0, "images"),
    ]
    sample = read_sample(numbers.find(numbers.sample(SAMPLE)), num_steps)
    if sample.faults:
        notes.append(f"{sample.faults[0]}" + (f"; and {more} more" if (more := len(sample.faults) - 1) else ""))
    if count := len(sample.losses):
        images = f"{count:,} images" + (", drawn at random" if count < len(numbers) else "")
        for title, about, values, ylabel in (
            ("Loss by timestep", "Mean squared distance of the guided step to the pivot", sample.losses, "loss"),
            ("Inner steps by timestep", "Updates of the null embedding", sample.inner_steps, "updates"),
        ):
            charts.append(timestep_chart(title, about, by_timestep(sample.timesteps, values), images, ylabel))
    return charts


def _examples(
    run: InversionRun, units: Sequence[WorkUnit], numbers: RunNumbers[ManifestRow], count: int, notes: list[str]
) -> list[tuple[str, list[Example]]]:
    groups = {
        f"The {name}, by the distance to the VAE's own PSNR": numbers.find(entries)
        for name, entries in extremes(numbers["psnr"] - numbers["psnr_vae"], count).items()
    }
    stored: dict[tuple[str, str], StoredInversion] = {}
    for path, row in (found for group in groups.values() for found in group):
        try:
            stored |= {(s.shard, s.key): s for s in read_part(path, [(row.shard, row.key)])}
        except ValueError as error:
            notes.append(str(error))
    settings, ids = run.settings(), stored.keys()
    height, width = settings["data.height"], settings["data.width"]
    assert isinstance(height, int) and isinstance(width, int)
    inputs = read_inputs(units, str(settings["data.caption"]), height, width, ids)
    if len(inputs) < len(ids):
        notes.append(f"{len(ids) - len(inputs)} of {len(ids)} inputs cannot be read any more: they are not shown.")
    networks = load_networks(settings, notes)
    shown = {
        heading: [(row, stored[row.shard, row.key]) for _, row in group if (row.shard, row.key) in stored]
        for heading, group in groups.items()
    }
    return [
        (heading, [_example(row, s, inputs.get((s.shard, s.key)), networks) for row, s in group])
        for heading, group in shown.items()
        if group
    ]


def load_networks(settings: Mapping[str, Json], notes: list[str]) -> StableDiffusion | None:
    """The networks of a run; None, and a note, where they are not to be had."""
    try:
        return load_model(settings)
    except ValueError as error:
        notes.append(f"No picture could be replayed: {error}")
        return None


@torch.no_grad()
def _example(
    row: ManifestRow, stored: StoredInversion, original: CaptionedImage | None, networks: StableDiffusion | None
) -> Example:
    columns: dict[str, Tensor] = {}
    if original:
        columns["input"] = original.pixels / 255
    if original and networks:
        pixels = original.pixels[None].to(networks.device)
        columns["VAE"] = networks.decode_latents(networks.encode_images(pixels))[0].cpu()
    if networks:
        columns["reconstruction"] = replay(networks, [stored], guided=True)[0].cpu()
    return Example(
        name=f"{row.shard}/{row.key}",
        captions=[stored.prompt],
        numbers=f"PSNR {row.psnr:.2f} dB, the VAE's own {row.psnr_vae:.2f} dB, {row.inner_steps} inner steps",
        pictures=[embed(title, picture) for title, picture in columns.items()],
    )
