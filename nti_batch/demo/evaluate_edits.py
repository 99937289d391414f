"""Edits of drawn scenes against the truth, by every method and solver: `python -m nti_batch.demo.evaluate_edits`.

Scenes that training never saw are inverted; of each, one attribute after another is edited by exchanging its word, with
prompt-to-prompt and without, and judged beside the scene drawn as asked. Prints a row of a Markdown table for each kind
of edit, and draws the table where `--plot` says and some edits where `--picture` says.
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
from nti_batch.diffusion.edits import EditSettings
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.editing.editor import ControlledEdit, edit_images
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.serialization import StoredInversion
from nti_batch.records import CaptionedImage, WorkUnit
from nti_batch.report.preview import draw_rows

NUM_STEPS = 50
ROWS = 24
"""Sources and edits in one call."""

PLAIN = EditSettings(kind="replace", cross_replace_steps=0.0, self_replace_steps=0.0)
SHARES: dict[Kind, tuple[float, float]] = {
    "colour": (0.8, 0.8),
    "shape": (0.2, 0.0),
    "size": (0.4, 0.2),
    "place": (0.0, 0.0),
    "background": (0.8, 0.8),
}
"""Of cross- and self-attention: what changes a form must let go of the source's."""

HEADER = """\
| method | attention | edits of | number | as asked | all else kept | unedited part, dB | truth, dB | seconds |
|---|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True, slots=True)
class SceneEdit:
    """An edit and its truth."""

    kind: Kind
    source: Scene
    edited: Scene

    def settings(self, controlled: bool) -> EditSettings:
        """Prompt-to-prompt with local blend, or the plain exchange of the prompt."""
        if not controlled:
            return PLAIN
        cross_replace_steps, self_replace_steps = SHARES[self.kind]
        return EditSettings(
            kind="replace",
            cross_replace_steps=cross_replace_steps,
            self_replace_steps=self_replace_steps,
            blend_words=blend_words(self.source, self.edited),
            blend_threshold=0.5,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Edited:
    """What became of an edit."""

    edit: SceneEdit
    picture: Tensor
    """[3, 64, 64] in [0, 1]."""

    verdict: EditVerdict


def edits_of(scene: Scene, kinds: Sequence[Kind], rng: random.Random) -> list[SceneEdit]:
    """An edit of each kind; only an object that is alone can be moved."""
    possible = [kind for kind in kinds if kind != "place" or len(scene.objects) == 1]
    return [SceneEdit(kind, scene, random_edit(scene, kind, rng)) for kind in possible]


def invert(networks: StableDiffusion, scenes: Sequence[Scene], settings: InversionSettings) -> list[StoredInversion]:
    """Invert drawn scenes as the job does."""
    images = [
        CaptionedImage(WorkUnit("scenes", "", 0, 1), str(i), scene.caption, to_bytes(draw(scene)))
        for i, scene in enumerate(scenes)
    ]
    schedule = networks.schedule(NUM_STEPS)
    with torch.enable_grad():
        found = job_loop(networks, networks.predict, images, schedule, settings, 16, "compact")
    return [
        StoredInversion("scenes", i.key, i.prompt, f.noise_latents, f.null_embeddings, {}, f.pivot)
        for i, f in zip(images, found, strict=True)
    ]


def perform(
    networks: StableDiffusion,
    inversions: Sequence[StoredInversion],
    edits: Sequence[Sequence[SceneEdit]],
    guidance_scale: float,
    controlled: bool,
) -> Iterator[Edited]:
    """Edit every image in batches, and judge the edits."""
    images = iter(zip(inversions, edits, strict=True))
    per_call = max(1, ROWS // (1 + max(map(len, edits))))
    while batch := list(islice(images, per_call)):
        groups = [
            (stored, [ControlledEdit.of(networks, stored.prompt, e.edited.caption, e.settings(controlled)) for e in of])
            for stored, of in batch
        ]
        for (_, of), pictures in zip(batch, edit_images(networks, groups, guidance_scale), strict=True):
            for edit, picture in zip(of, pictures[1:], strict=True):
                yield Edited(edit, picture, judge_edit(picture, edit.source, edit.edited))


@dataclass(frozen=True, slots=True)
class Summary:
    """Shares and means over the edits of one kind."""

    method: str
    controlled: bool
    kind: Kind
    number: int
    asked: float
    """Share that is as asked."""

    kept: float
    """Share in which all else is kept."""

    unedited: float
    """PSNR of the unedited part, in dB; no number where nothing is unedited."""

    truth: float
    """PSNR to the scene drawn as asked, in dB."""

    seconds: float
    """Of an edit, with its share of the source's row."""

    @classmethod
    def of(cls, method: str, controlled: bool, kind: Kind, edited: Sequence[Edited], seconds: float) -> "Summary":
        """Sum up the edits of a kind among those that took so long."""
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
        """Of a Markdown table."""
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


def plot(found: Sequence[Summary], path: Path) -> None:
    """Draw each kind's edits as points: what is as asked against what is not to change."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    kinds, methods = (list(dict.fromkeys(getattr(s, name) for s in found)) for name in ("kind", "method"))
    figure = Figure(figsize=(3 * len(kinds), 4.4), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for kind, axes in zip(kinds, panels, strict=True):
        axes.set(title=kind, xlabel="unedited part, dB", ylim=(0, 1.04))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        for summary in (s for s in found if s.kind == kind):
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
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description="Edits of drawn scenes by every method, against the truth.")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and their edits")
    parser.add_argument("--guidance_scale", type=float, default=2.0)
    parser.add_argument("--methods", nargs="+", default=list(SOLVERS), choices=list(SOLVERS), metavar="METHOD")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--plot", type=Path, help="draw success against what is kept there, for each kind of edit")
    parser.add_argument("--picture", type=Path, help="draw the first edits of each kind there")
    arguments = parser.parse_args()
    networks, rng = StableDiffusion.load(ModelSource("demo")), random.Random(arguments.seed)
    scenes = unseen_scenes(arguments.scenes, arguments.seed)
    edits = [edits_of(scene, arguments.kinds, rng) for scene in scenes]
    columns: dict[str, list[Edited]] = {}
    found: list[Summary] = []
    print(HEADER)
    for method in arguments.methods:
        settings = replace(SOLVERS[method], guidance_scale=arguments.guidance_scale)
        inversions = invert(networks, scenes, settings)
        for controlled in (False, True):
            start = time.monotonic()
            edited = columns[method] = list(perform(networks, inversions, edits, arguments.guidance_scale, controlled))
            seconds = time.monotonic() - start
            for kind in arguments.kinds:
                found.append(Summary.of(method, controlled, kind, edited, seconds))
                print(found[-1].row, flush=True)
    if arguments.plot:
        plot(found, arguments.plot)
    if arguments.picture:
        draw_edits(columns, arguments.picture)


def draw_edits(columns: dict[str, list[Edited]], path: Path) -> None:
    """Two edits of each kind: source, every method with prompt-to-prompt, truth."""
    of_first, rows = next(iter(columns.values())), []
    titles = ["source", *columns, "drawn as asked"]
    for kind in KINDS:
        for i in islice((i for i, e in enumerate(of_first) if e.edit.kind == kind), 2):
            edit = of_first[i].edit
            pictures = [draw(edit.source), *(edited[i].picture for edited in columns.values()), draw(edit.edited)]
            rows.append(([edit.source.caption, edit.edited.caption], torch.stack(pictures), titles))
    draw_rows(rows).save(path)


if __name__ == "__main__":
    main()
