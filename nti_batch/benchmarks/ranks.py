"""One rank of one thread against two: `python -m nti_batch.benchmarks.ranks SHARDS`.

Each is `nti-batch invert` as users run it, on the same images. The time is that from the first image admitted to the
last one finished, in any rank, as the files tell it; loading Python and the model is left out.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from nti_batch.output.inversions import read_inversions


def images_per_hour(shards: str, ranks: int, flags: list[str]) -> float:
    """Run the job in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [sys.executable, "-m", "nti_batch", "invert", f"--data.shards={shards}", f"--output.dir={out}"]
        command += ["--trainer.accelerator=cpu", f"--trainer.devices={ranks}", *flags]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        spans = [(float(str(i.metadata["finished"])), float(str(i.metadata["seconds"]))) for i in read_inversions(out)]
    first, last = min(end - seconds for end, seconds in spans), max(end for end, _ in spans)
    return 3600 * len(spans) / (last - first)


def main() -> None:
    """Measure both, alternating, and print the ratio of the means."""
    parser = argparse.ArgumentParser(description="One rank of one thread against two.")
    parser.add_argument("shards", help="input shards; the two ranks share their work units")
    parser.add_argument("--rounds", type=int, default=2)
    arguments, flags = parser.parse_known_args()
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(arguments.rounds):
        for ranks, found in rates.items():
            found.append(images_per_hour(arguments.shards, ranks, flags))
            print(f"{ranks} rank(s): {found[-1]:.0f} images an hour", flush=True)
    print(f"two ranks against one: {sum(rates[2]) / sum(rates[1]):.2f}")


if __name__ == "__main__":
    main()
