"""The edit job against one edit at a time: `python -m nti_batch.benchmarks.edits INVERSIONS`.

In turns, on the same edits: `nti-batch edit` as users run it, and `edit_image` in a loop, its networks loaded once.
Every edit exchanges a prompt for itself with prompt-to-prompt, which is the work of any other edit. The job's time runs
from its first batch to its last edit, as its files tell it; loading Python and the model is left out on both sides.
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

from nti_batch.editing.editor import edit_image
from nti_batch.models.load import load_model
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.inversions import open_inversions, read_inversions
from nti_batch.output.serialization import StoredInversion
from nti_batch.plans.open_plan import open_plan


def job_per_hour(inversions: Path, images: Sequence[StoredInversion], edits: int, rows: int) -> float:
    """Edits an hour of the job, in a folder that is thrown away."""
    asked = [
        json.dumps({"shard": image.shard, "key": image.key, "name": str(number), "edit_prompt": image.prompt})
        for image in images
        for number in range(edits)
    ]
    with tempfile.TemporaryDirectory() as folder:
        out, listed = Path(folder) / "out", Path(folder) / "edits.jsonl"
        listed.write_text("\n".join(asked))
        command = [sys.executable, "-m", "nti_batch", "edit", f"--data.inversions={inversions}", f"--output.dir={out}"]
        command += [f"--data.edits={listed}", f"--model.batch_size={rows}", "--trainer.devices=1"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        plan = open_plan(out)
        rate = plan.status(plan.units).per_hour
    assert rate is not None
    return rate


def loop_per_hour(networks: StableDiffusion, images: Sequence[StoredInversion], edits: int) -> float:
    """Edits an hour when each is made, and stored as a PNG, by itself."""
    start = time.monotonic()
    for image in images:
        for _ in range(edits):
            edit_image(image, image.prompt, networks=networks).save(io.BytesIO(), "PNG")
    return 3600 * len(images) * edits / (time.monotonic() - start)


def main() -> None:
    """Measure both, alternating, and print the ratio of the means."""
    parser = argparse.ArgumentParser(description="The edit job against one edit at a time.")
    parser.add_argument("inversions", type=Path, help="output folder of nti-batch invert")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--edits", type=int, default=1, help="of each image")
    parser.add_argument(
        "--rows", type=int, default=16, help="pictures in one UNet call of the job, as model.batch_size"
    )
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    images = list(islice(read_inversions(arguments.inversions), arguments.images))
    settings = open_inversions(arguments.inversions).settings
    networks = load_model(settings.source, settings.precision)
    job, loop = [], []
    for _ in range(arguments.rounds):
        job.append(job_per_hour(arguments.inversions, images, arguments.edits, arguments.rows))
        loop.append(loop_per_hour(networks, images, arguments.edits))
        print(f"job {job[-1]:.0f}, one at a time {loop[-1]:.0f} edits an hour", flush=True)
    print(f"{fmean(job) / fmean(loop):.2f} times")


if __name__ == "__main__":
    main()
