"""Compares edits of drawn scenes with the truth: `python -m nti_batch.demo.evaluate_edits OUT`.

It inverts scenes that training does not use, by `nti-batch invert`. For each scene and attribute it exchanges the word
of the attribute by `nti-batch edit`, and compares the image with the edited scene, drawn. It prints a row of a Markdown
table for each guidance scale and method. `--plot` draws the rows, and `--picture` draws some edits.

The same command resumes an evaluation that was interrupted, since both jobs resume.
"""

import argparse
import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from nti_batch.benchmarks.solvers import SOLVERS
from nti_batch.demo.edit_methods import METHODS, EditMethod
from nti_batch.demo.edit_table import Edited, Summary, draw_edits, plot, table_header, table_row
from nti_batch.demo.edits import KINDS, SceneEdit, edits_of, judge_edit
from nti_batch.demo.samples import write_shard
from nti_batch.demo.scenes import unseen_scenes
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.editing.requests import request_id
from nti_batch.exit_codes import DONE
from nti_batch.output.edits import read_edited_images
from nti_batch.plans.missing_edits import EditPlan
from nti_batch.plans.open_plan import open_plan

SHARD = "scenes"


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluation:
    """Folder of an evaluation, and what all its jobs share."""

    out: Path
    model: str
    edits: tuple[tuple[SceneEdit, ...], ...]
    """Edits of each scene, in the order of the shard."""

    batch_size: int

    def invert(self, inversion: str, guidance_scale: float) -> Path:
        """Invert the scenes, or resume the run; return its folder."""
        out = self._folder(guidance_scale) / "inversions" / _file_name(inversion)
        settings = dataclasses.replace(SOLVERS[inversion], guidance_scale=guidance_scale)
        flags = [f"--model.{name}={value}" for name, value in _changes(settings)]
        flags += [f"--model.name={self.model}", f"--data.shards={self.out / SHARD}.tar", "--output.storage=compact"]
        self._run("invert", out, flags)
        return out

    def edit(self, name: str, method: EditMethod, guidance_scale: float) -> list[Edited]:
        """Edit and judge the scenes by a method, or resume the run."""
        inversions = self.invert(method.inversion, guidance_scale)
        out = self._folder(guidance_scale) / "edits" / _file_name(name)
        edits_file = out.with_suffix(".jsonl")
        out.parent.mkdir(parents=True, exist_ok=True)
        edits_file.write_text("".join(_lines(self.edits, method)))
        self._run("edit", out, [f"--data.inversions={inversions}", f"--data.edits={edits_file}"])
        return list(_judged(out, self.edits))

    def _folder(self, guidance_scale: float) -> Path:
        return self.out / f"guidance-{guidance_scale:g}"

    def _run(self, command: str, out: Path, flags: Sequence[str]) -> None:
        """Run a job.

        Raises:
            SystemExit: If an image or edit failed, or the job stopped early; the exit code is the job's.
        """
        print(f"{command}: {out}", file=sys.stderr, flush=True)
        shared = [f"--output.dir={out}", f"--model.batch_size={self.batch_size}", "--trainer.devices=1"]
        job = subprocess.run(
            [sys.executable, "-m", "nti_batch", command, *flags, *shared], stdout=subprocess.DEVNULL, check=False
        )
        if job.returncode != DONE:
            raise SystemExit(job.returncode)


def _changes(settings: InversionSettings) -> Iterator[tuple[str, object]]:
    """Settings that differ from the default, by name."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value != field.default:
            yield field.name, value


def _file_name(name: str) -> str:
    """Name of a method as a file name."""
    return name.replace('""', "empty").replace(",", "").replace(" ", "-")


def _lines(edits: Iterable[Sequence[SceneEdit]], method: EditMethod) -> Iterator[str]:
    """List the edits as JSONL."""
    for i, of_scene in enumerate(edits):
        for edit in of_scene:
            request = {"key": f"{i:06d}", "name": edit.kind, "edit_prompt": edit.edited.caption}
            yield json.dumps(request | edit.settings.to_json() | dict(method.edit)) + "\n"


def _judged(out: Path, edits: Sequence[Sequence[SceneEdit]]) -> Iterator[Edited]:
    """Judge the edits of a run, in the order of their list."""
    plan = open_plan(out)
    assert isinstance(plan, EditPlan)
    images: dict[tuple[str, str], Tensor] = {}
    for unit in plan.units:
        ids = [request_id(request) for request in plan.requests_of(unit)]
        images |= {(row.key, row.name): pixels / 255 for row, pixels in read_edited_images(plan.run, unit, ids)}
    for i, of_scene in enumerate(edits):
        for edit in of_scene:
            image = images[f"{i:06d}", edit.kind]
            yield Edited(edit, image, judge_edit(image, edit.source, edit.edited))


def main() -> None:
    """Invert and edit the scenes by each method; print the table, and draw what the flags name."""
    arguments = _parser().parse_args()
    scenes, rng = unseen_scenes(arguments.scenes, arguments.seed), random.Random(arguments.seed)
    edits = tuple(tuple(edits_of(scene, arguments.kinds, rng)) for scene in scenes)
    evaluation = Evaluation(arguments.out, arguments.model, edits, arguments.batch_size)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_shard(arguments.out / f"{SHARD}.tar", scenes)
    print(table_header([edit for of_scene in edits for edit in of_scene], arguments.kinds), flush=True)
    for guidance_scale in arguments.guidance_scales:
        columns, summaries = {}, []
        for name in arguments.methods:
            columns[name] = evaluation.edit(name, METHODS[name], guidance_scale)
            summaries += (row := [Summary.of(name, kind, columns[name]) for kind in arguments.kinds])
            print(table_row(guidance_scale, row), flush=True)
        if arguments.plot:
            plot(summaries, arguments.out / f"guidance-{guidance_scale:g}-plot.png")
        if arguments.picture:
            draw_edits(columns, arguments.out / f"guidance-{guidance_scale:g}-edits.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare edits of drawn scenes with the truth, for every method.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the runs; the same command resumes them")
    parser.add_argument("--model", default="demo", help="model of drawn scenes; default: the embedded model")
    parser.add_argument("--scenes", type=int, default=100, help="number of scenes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes and their edits")
    parser.add_argument("--guidance_scales", type=float, nargs="+", default=[2.0, 5.0, 7.5], metavar="SCALE")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--batch_size", type=int, default=24, help="images in one UNet call")
    parser.add_argument("--plot", action="store_true", help="draw the success against the PSNR of the unedited part")
    parser.add_argument("--picture", action="store_true", help="draw the first edits of each kind")
    return parser


if __name__ == "__main__":
    main()
