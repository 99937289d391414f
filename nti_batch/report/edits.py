"""`nti-batch report` on a run of edits."""

from pathlib import Path

import numpy as np
from torch import Tensor

from nti_batch.editing.reconstruct import replay
from nti_batch.jobs.edit_datamodule import EditDataModule
from nti_batch.output.edit_status import EditStatus
from nti_batch.output.inversions import read_inversions
from nti_batch.output.manifest import EditRow
from nti_batch.report.charts import Chart, histogram_chart, throughput_chart
from nti_batch.report.inversions import load_networks
from nti_batch.report.page import Example, Fact, Page, embed, settings_of
from nti_batch.report.statistics import RunNumbers, extremes


def edit_page(out: Path, pictures: int, allow_pipe: bool) -> Page:
    """What there is to say of a run of edits, from its rows; arguments as for `inversion_page`.

    Raises:
        ValueError: If it is no run, or what it was made from is gone.
    """
    data = EditDataModule.of_run(out, allow_pipe)
    assert data.run is not None
    notes = list[str]()
    numbers = RunNumbers(EditRow, ("psnr_unedited", "ssim_unedited"))
    status = data.status(data.units, numbers.add)
    settings = data.run.settings()
    return Page(
        title=f"Edits: {out.resolve().name}",
        what=f"Of the inversions in {settings['data.inversions']}.",
        done=status.done,
        failed=status.failed,
        missing=status.missing,
        facts=_facts(status),
        charts=_charts(numbers) if len(numbers) else [],
        reasons=numbers.reasons.sorted(),
        examples=_examples(data, numbers, pictures, notes) if len(numbers) and pictures else [],
        notes=notes,
        settings=settings_of(data.run),
    )


def _facts(status: EditStatus) -> list[Fact]:
    facts = []
    if status.edits_per_hour is not None:
        facts.append(Fact(f"{status.edits_per_hour:,.0f}", "edits an hour"))
    if status.scored:
        facts.append(Fact(f"{status.psnr_unedited:.2f} dB", f"mean PSNR of the unedited part of {status.scored:,}"))
        facts.append(Fact(f"{status.ssim_unedited:.3f}", "mean SSIM of the unedited part"))
    return facts


def _charts(numbers: RunNumbers[EditRow]) -> list[Chart]:
    charts = [throughput_chart(numbers["finished"], numbers["seconds"], "edits")]
    for column, title, unit, digits in (("psnr_unedited", "PSNR", "dB", 2), ("ssim_unedited", "SSIM", "SSIM", 3)):
        values = numbers[column]
        if len(scored := values[np.isfinite(values)]):
            charts.append(histogram_chart(f"{title} of the unedited part", scored, unit, digits, "edits"))
    return charts


def _examples(
    data: EditDataModule, numbers: RunNumbers[EditRow], count: int, notes: list[str]
) -> list[tuple[str, list[Example]]]:
    values = numbers["psnr_unedited"]
    scored = np.flatnonzero(np.isfinite(values))
    if len(scored):
        groups = {
            f"The {name}, by the PSNR of the unedited part": numbers.find(scored[entries])
            for name, entries in extremes(values[scored], count).items()
        }
    else:
        groups = {"Some of them": numbers.find(numbers.sample(3 * count))}
    rows = [row for group in groups.values() for _, row in group]
    sources = _sources(data, {(row.shard, row.key) for row in rows}, notes)
    return [
        (heading, [_example(data, row, sources.get((row.shard, row.key))) for _, row in group])
        for heading, group in groups.items()
    ]


def _sources(
    data: EditDataModule, images: set[tuple[str, str]], notes: list[str]
) -> dict[tuple[str, str], tuple[str, Tensor]]:
    """Prompts and rebuilt pictures, [3, height, width] in [0, 1], of images; none where they are not to be had."""
    networks = load_networks(data.inverted_with, notes)
    if networks is None:
        return {}
    try:
        found = list(read_inversions(data.inversions.out, images))
    except ValueError as error:
        notes.append(f"No source could be rebuilt: {error}")
        return {}
    return {(s.shard, s.key): (s.prompt, replay(networks, [s], guided=True)[0].cpu()) for s in found}


def _example(data: EditDataModule, row: EditRow, source: tuple[str, Tensor] | None) -> Example:
    assert data.run is not None
    ((_, edited),) = data.run.read(data.unit_of(row.shard, row.key), [row.id])
    captions, pictures = [row.edit_prompt or "rebuilt"], [embed(row.name, edited)]
    if source:
        prompt, picture = source
        captions.insert(0, prompt)
        pictures.insert(0, embed("source, rebuilt", picture))
    scores = "" if row.psnr_unedited is None else f"unedited part: PSNR {row.psnr_unedited:.2f} dB"
    return Example(f"{row.shard}/{row.key}", captions, scores, pictures)
