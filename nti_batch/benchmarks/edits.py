"""Compares the edit job with one edit at a time: `python -m nti_batch.benchmarks.edits INVERSIONS`.

`nti-batch edit` and a loop of `Editor.edit`, which loads the model once, make the same edits in alternating rounds.
Every edit exchanges a prompt for itself with prompt-to-prompt, which costs as much as any other edit. The time of the
job runs from its first batch to its last edit, as its files record it. Neither time includes Python's start and the
loading of the model.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean

from nti_batch.editing.editor import Editor
from nti_batch.output.inversions import read_inversions
from nti_batch.output.serialization import StoredInversion
from nti_batch.plans.open_plan import open_plan


def job_per_hour(inversions: Path, images: Sequence[StoredInversion], edits: int, batch_size: int) -> float:
    """Run the job in a temporary folder.

    Args:
        inversions: Output folder of `nti-batch invert`.
        images: Inversions to edit.
        edits: Number of edits of each image.
        batch_size: Batch size of the job.

    Returns:
        Edits an hour.
    """
    requests = [
        json.dumps({"shard": image.shard, "key": image.key, "name": str(number), "edit_prompt": image.prompt})
        for image in images
        for number in range(edits)
    ]
    with tempfile.TemporaryDirectory() as folder:
        out, edits_file = Path(folder) / "out", Path(folder) / "edits.jsonl"
        edits_file.write_text("\n".join(requests))
        command = [sys.executable, "-m", "nti_batch", "edit", f"--data.inversions={inversions}", f"--output.dir={out}"]
        command += [f"--data.edits={edits_file}", f"--model.batch_size={batch_size}", "--trainer.devices=1"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        plan = open_plan(out)
        rate = plan.status(plan.units).per_hour
    assert rate is not None
    return rate


def loop_per_hour(editor: Editor, images: Sequence[StoredInversion], edits: int) -> float:
    """Make each edit by itself, and encode it as PNG.

    Args:
        editor: Editor with the model of the inversions' run.
        images: Inversions to edit.
        edits: Number of edits of each image.

    Returns:
        Edits an hour.
    """
    start = time.monotonic()
    for image in images:
        for _ in range(edits):
            editor.edit(image, image.prompt).save(io.BytesIO(), "PNG")
    return 3600 * len(images) * edits / (time.monotonic() - start)


def main() -> None:
    """Measure both in alternating rounds, and print the ratio of the means."""
    parser = argparse.ArgumentParser(description="Compare the edit job with one edit at a time.")
    parser.add_argument("inversions", type=Path, help="output folder of nti-batch invert")
    parser.add_argument("--images", type=int, default=16, help="number of images")
    parser.add_argument("--edits", type=int, default=1, help="number of edits of each image")
    parser.add_argument("--batch_size", type=int, default=16, help="batch size of the job, as model.batch_size")
    parser.add_argument("--rounds", type=int, default=2, help="number of rounds of each side")
    arguments = parser.parse_args()
    images = list(islice(read_inversions(arguments.inversions), arguments.images))
    editor = Editor(arguments.inversions)
    job, loop = [], []
    for _ in range(arguments.rounds):
        job.append(job_per_hour(arguments.inversions, images, arguments.edits, arguments.batch_size))
        loop.append(loop_per_hour(editor, images, arguments.edits))
        print(f"job {job[-1]:.0f}, one at a time {loop[-1]:.0f} edits an hour", flush=True)
    print(f"the job is {fmean(job) / fmean(loop):.2f} times as fast")


if __name__ == "__main__":
    main()
