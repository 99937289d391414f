"""Compares one rank with two, each of one thread: `python -m nti_batch.benchmarks.ranks SHARDS`.

Both runs of `nti-batch invert` have the same images. The time runs from the first admitted image to the last finished
one in any rank, as the files record it. It does not include Python's start and the loading of the model.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from nti_batch.output.inversions import read_inversions


def images_per_hour(shards: str, ranks: int, flags: list[str]) -> float:
    """Run the job in a temporary folder.

    Args:
        shards: Input shards.
        ranks: Number of ranks.
        flags: More flags of `nti-batch invert`.

    Returns:
        Images an hour.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [sys.executable, "-m", "nti_batch", "invert", f"--data.shards={shards}", f"--output.dir={out}"]
        command += ["--trainer.accelerator=cpu", f"--trainer.devices={ranks}", *flags]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        spans = [(float(str(i.metadata["finished"])), float(str(i.metadata["seconds"]))) for i in read_inversions(out)]
    first, last = min(end - seconds for end, seconds in spans), max(end for end, _ in spans)
    return 3600 * len(spans) / (last - first)


def main() -> None:
    """Measure both in alternating rounds, and print the ratio of the means."""
    parser = argparse.ArgumentParser(description="Compare one rank with two, each of one thread.")
    parser.add_argument("shards", help="input shards; the two ranks share their work units")
    parser.add_argument("--rounds", type=int, default=2, help="number of rounds of each side")
    arguments, flags = parser.parse_known_args()
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(arguments.rounds):
        for ranks, measured in rates.items():
            measured.append(images_per_hour(arguments.shards, ranks, flags))
            print(f"{ranks} rank(s): {measured[-1]:.0f} images an hour", flush=True)
    print(f"two ranks are {sum(rates[2]) / sum(rates[1]):.2f} times as fast as one")


if __name__ == "__main__":
    main()
