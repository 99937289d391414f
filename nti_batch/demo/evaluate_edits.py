"""Compares edits of drawn scenes with the truth, for every method: `python -m nti_batch.demo.evaluate_edits`.

It inverts scenes that training does not use. For each scene and attribute it exchanges the word of the attribute, with
and without prompt-to-prompt, and compares the image with the edited scene, drawn. It prints a row of a Markdown table
for each kind of edit. `--plot` draws the table, and `--picture` draws some edits.
"""

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import isfinite, isnan, nan
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from nti_batch.benchmarks.job_loop import job_loop
from nti_batch.benchmarks.solvers import SOLVERS
from nti_batch.data.images import to_bytes
from nti_batch.demo.edits import KINDS, EditVerdict, Kind, blend_words, judge_edit, random_edit
from nti_batch.demo.scenes import Scene, draw, unseen_scenes
from nti_batch.diffusion.edit_settings import EditSettings
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.editing.editor import ControlledEdit, edit_images
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.serialization import StoredInversion
from nti_batch.records import CaptionedImage, WorkUnit
from nti_batch.report.preview import draw_rows

NUM_STEPS = 50
BATCH_SIZE = 24
"""Number of sources and edits in one UNet call."""

PLAIN = EditSettings(kind="replace", cross_replace_steps=0.0, self_replace_steps=0.0)
REPLACE_STEPS: dict[Kind, tuple[float, float]] = {
    "colour": (0.8, 0.8),
    "shape": (0.2, 0.0),
    "size": (0.4, 0.2),
    "place": (0.0, 0.0),
    "background": (0.8, 0.8),
}
"""`cross_replace_steps` and `self_replace_steps`: an edit that changes a form needs less attention of the source."""

HEADER = """\
| method | attention | edits of | number | as asked | all else kept | unedited part, dB | truth, dB | seconds |
|---|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True, slots=True)
class SceneEdit:
    """Edit of a scene, with the true result."""

    kind: Kind
    source: Scene
    edited: Scene

    def settings(self, controlled: bool) -> EditSettings:
        """Return settings for an edit.

        Args:
            controlled: Whether to use prompt-to-prompt with local blend, or only exchange the prompt.
        """
        if not controlled:
            return PLAIN
        cross_replace_steps, self_replace_steps = REPLACE_STEPS[self.kind]
        return EditSettings(
            kind="replace",
            cross_replace_steps=cross_replace_steps,
            self_replace_steps=self_replace_steps,
            blend_words=blend_words(self.source, self.edited),
            blend_threshold=0.5,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Edited:
    """Result of an edit."""

    edit: SceneEdit
    image: Tensor
    """Edited image, [3, 64, 64] in [0, 1]."""

    verdict: EditVerdict


def edits_of(scene: Scene, kinds: Sequence[Kind], rng: random.Random) -> list[SceneEdit]:
    """Make an edit of each kind; an object moves only if it is the only one."""
    possible = [kind for kind in kinds if kind != "place" or len(scene.objects) == 1]
    return [SceneEdit(kind, scene, random_edit(scene, kind, rng)) for kind in possible]


def invert(networks: StableDiffusion, scenes: Sequence[Scene], settings: InversionSettings) -> list[StoredInversion]:
    """Invert drawn scenes with the loop of the job."""
    images = [
        CaptionedImage(WorkUnit("scenes", "", 0, 1), str(i), scene.caption, to_bytes(draw(scene)), "")
        for i, scene in enumerate(scenes)
    ]
    schedule = networks.schedule(NUM_STEPS)
    with torch.enable_grad():
        inverted = job_loop(networks, networks.predict, images, schedule, settings, 16, "compact")
    return [
        StoredInversion("scenes", image.key, image.prompt, i.noise_latents, i.null_embeddings, {}, i.pivot)
        for image, i in zip(images, inverted, strict=True)
    ]


def perform(
    networks: StableDiffusion,
    inversions: Sequence[StoredInversion],
    edits: Sequence[Sequence[SceneEdit]],
    guidance_scale: float,
    controlled: bool,
) -> Iterator[Edited]:
    """Edit all images in batches, and judge the edits.

    Args:
        networks: Networks of the inversions.
        inversions: Inversions of scenes.
        edits: Edits of each scene.
        guidance_scale: Guidance scale of the inversions.
        controlled: Whether to use prompt-to-prompt.

    Yields:
        Each edit with its image and verdict.
    """
    pairs = iter(zip(inversions, edits, strict=True))
    images_per_call = max(1, BATCH_SIZE // (1 + max(map(len, edits))))
    settings = InversionSettings(guidance_scale=guidance_scale)
    while batch := list(islice(pairs, images_per_call)):
        groups = [
            (i, [ControlledEdit.of(networks, i.prompt, e.edited.caption, e.settings(controlled)) for e in of_image])
            for i, of_image in batch
        ]
        for (_, of_image), images in zip(batch, edit_images(networks, groups, settings), strict=True):
            for edit, image in zip(of_image, images[1:], strict=True):
                yield Edited(edit, image, judge_edit(image, edit.source, edit.edited))


@dataclass(frozen=True, slots=True)
class Summary:
    """Shares and means over the edits of one kind."""

    method: str
    controlled: bool
    kind: Kind
    number: int
    asked: float
    """Share of edits that show the requested attribute."""

    kept: float
    """Share of edits that keep everything else."""

    unedited: float
    """Mean PSNR of the unedited part, in dB; nan if no edit has such a part."""

    truth: float
    """Mean PSNR against the edited scene, drawn, in dB."""

    seconds: float
    """Seconds for an edit, with its share of the source's row."""

    @classmethod
    def of(cls, method: str, controlled: bool, kind: Kind, edited: Sequence[Edited], seconds: float) -> "Summary":
        """Sum up the edits of one kind.

        Args:
            method: Name of the inversion method.
            controlled: Whether the edits use prompt-to-prompt.
            kind: Kind of edit to sum up.
            edited: Edits of all kinds.
            seconds: Seconds for all edits.
        """
        verdicts = [e.verdict for e in edited if e.edit.kind == kind]
        unedited = [v.psnr_unedited for v in verdicts if isfinite(v.psnr_unedited)]
        return cls(
            method,
            controlled,
            kind,
            len(verdicts),
            fmean(v.asked for v in verdicts),
            fmean(v.object_kept and v.others_kept and v.background_kept for v in verdicts),
            fmean(unedited) if unedited else nan,
            fmean(v.psnr_truth for v in verdicts),
            seconds / len(edited),
        )

    @property
    def row(self) -> str:
        """Row of a Markdown table."""
        cells = [
            self.method,
            "prompt-to-prompt" if self.controlled else "plain",
            self.kind,
            str(self.number),
            f"{self.asked:.0%}",
            f"{self.kept:.0%}",
            "" if isnan(self.unedited) else f"{self.unedited:.1f}",
            f"{self.truth:.1f}",
            f"{self.seconds:.2f}",
        ]
        return f"| {' | '.join(cells)} |"


def plot(summaries: Sequence[Summary], path: Path) -> None:
    """Draw a panel for each kind: the share of edits that are as asked against the PSNR of the unedited part.

    Args:
        summaries: Summaries, each of which is a point.
        path: Path of the image file.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    kinds, methods = (list(dict.fromkeys(getattr(s, name) for s in summaries)) for name in ("kind", "method"))
    figure = Figure(figsize=(3 * len(kinds), 4.4), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for kind, axes in zip(kinds, panels, strict=True):
        axes.set(title=kind, xlabel="unedited part, dB", ylim=(0, 1.04))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        for summary in (s for s in summaries if s.kind == kind):
            colour = f"C{methods.index(summary.method)}"
            name = summary.method if summary.controlled else None
            face = colour if summary.controlled else "none"
            axes.scatter(summary.unedited, summary.asked, label=name, edgecolors=colour, facecolors=face)
    panels[0].set_ylabel("as asked")
    handles, labels = panels[0].get_legend_handles_labels()
    title = "filled: prompt-to-prompt, hollow: plain exchange of the prompt"
    figure.legend(handles, labels, loc="outside lower center", ncols=3, title=title)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Invert and edit the scenes by each method; print the table, and draw what the flags name."""
    arguments = _parser().parse_args()
    networks, rng = StableDiffusion.load(ModelSource("demo")), random.Random(arguments.seed)
    scenes = unseen_scenes(arguments.scenes, arguments.seed)
    edits = [edits_of(scene, arguments.kinds, rng) for scene in scenes]
    columns: dict[str, list[Edited]] = {}
    summaries: list[Summary] = []
    print(HEADER)
    for method in arguments.methods:
        settings = replace(SOLVERS[method], guidance_scale=arguments.guidance_scale)
        inversions = invert(networks, scenes, settings)
        for controlled in (False, True):
            start = time.monotonic()
            edited = columns[method] = list(perform(networks, inversions, edits, arguments.guidance_scale, controlled))
            seconds = time.monotonic() - start
            for kind in arguments.kinds:
                summaries.append(Summary.of(method, controlled, kind, edited, seconds))
                print(summaries[-1].row, flush=True)
    if arguments.plot:
        plot(summaries, arguments.plot)
    if arguments.picture:
        draw_edits(columns, arguments.picture)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare edits of drawn scenes with the truth, for every method.")
    parser.add_argument("--scenes", type=int, default=100, help="number of scenes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes and their edits")
    parser.add_argument("--guidance_scale", type=float, default=2.0, help="guidance scale of inversions and edits")
    parser.add_argument("--methods", nargs="+", default=list(SOLVERS), choices=list(SOLVERS), metavar="METHOD")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--plot", type=Path, help="file for a plot of success against the PSNR of the unedited part")
    parser.add_argument("--picture", type=Path, help="file for a picture of the first edits of each kind")
    return parser


def draw_edits(columns: dict[str, list[Edited]], path: Path) -> None:
    """Draw two edits of each kind: the source, the edit by each method, and the truth.

    Args:
        columns: Edits with prompt-to-prompt, by method.
        path: Path of the image file.
    """
    of_first, rows = next(iter(columns.values())), []
    titles = ["source", *columns, "drawn as asked"]
    for kind in KINDS:
        for i in islice((i for i, e in enumerate(of_first) if e.edit.kind == kind), 2):
            edit = of_first[i].edit
            images = [draw(edit.source), *(edited[i].image for edited in columns.values()), draw(edit.edited)]
            rows.append(([edit.source.caption, edit.edited.caption], torch.stack(images), titles))
    draw_rows(rows).save(path)


if __name__ == "__main__":
    main()
