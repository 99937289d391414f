"""The job on a virtual device: `python -m nti_batch.benchmarks.virtual_device [--config FILE] [--devices N] [--json]`.

It measures which part of a job's time passes outside the UNet, on a machine without a GPU. The job is the real one,
from the shard to the committed part, with the settings of `configs/sd-1.5.yaml`: 512 x 512 pixels, 50 steps, compact
storage, and a batch size of 16. Only the networks are virtual: their calls wait, outside Python's lock, for as long as
they take on a GPU (`virtual_networks`).

In the pool an embedding has only a few values a token, so that a tensor operation takes about as long as its launch
on a GPU. An inversion gets its true size where it is packed.

With several devices, each has a process of its own, as in a job. They start together, and their images a second count
against those of one device, which is measured before and after them.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jsonargparse import ArgumentError
from torch import Tensor

from nti_batch.benchmarks.full_size import write_images
from nti_batch.benchmarks.timing import OwnProcess
from nti_batch.benchmarks.virtual_networks import DIM, TOKENS, VirtualDevice, VirtualNetworks, VirtualPool
from nti_batch.data.shards import work_units
from nti_batch.diffusion.rounding import round_embeddings, round_values
from nti_batch.exit_codes import DONE
from nti_batch.jobs.flags import InvertDataFlags, InvertModelFlags, InvertOutputFlags
from nti_batch.jobs.help import HelpText
from nti_batch.jobs.invert_module import InversionModule
from nti_batch.jobs.metrics import MetricsFlags
from nti_batch.jobs.parser import JobCommand, parse_flags, silence_warnings
from nti_batch.jobs.run import build_job, predict, record_writer
from nti_batch.jobs.signals import StopSignals
from nti_batch.models.acceleration import Acceleration
from nti_batch.output.inversions import INVERT
from nti_batch.output.manifest_rows import Metadata
from nti_batch.output.run_folder import OutputRun
from nti_batch.output.serialization import encode_inversion
from nti_batch.plans.missing_images import ImagePlan
from nti_batch.records import Inversion
from nti_batch.settings import InversionRunSettings
from nti_batch.terminal import print_json, print_lines, usage_error

COMMAND = JobCommand(
    name="invert",
    sections={"model": InvertModelFlags, "data": InvertDataFlags, "output": InvertOutputFlags, "metrics": MetricsFlags},
    help=HelpText(description="The inversion job on a virtual device.", needed=(), example=""),
    trainer_defaults={"inference_mode": False},
)
SETTINGS = (
    "--model.precision=bfloat16",
    "--model.batch_size=16",
    "--data.units_per_shard=1",
    "--output.storage=compact",
)
SIDE = 512
START_SECONDS = 120.0
"""Longest time for which a device waits for the others to be ready."""

LEVEL_DEVIATION = 3.9
"""Standard deviation of the levels of an update, whose entropy is then 4 bits, as of an Adam run's."""


class VirtualModule(InversionModule):
    """The inversion job's own module, with virtual networks."""

    def __init__(self, device: VirtualDevice, wait: Callable[[], object], *arguments: Any) -> None:
        """Take the device, what to wait for before the clock starts, and what `InversionModule` takes."""
        super().__init__(*arguments)
        self.virtual, self.wait, self.started = device, wait, 0.0
        self.pool_type = partial(VirtualPool, device)

    def setup(self, stage: str) -> None:
        """Make the networks."""
        self.networks = VirtualNetworks(self.virtual)

    def on_predict_start(self) -> None:
        """Start the clock."""
        self.wait()
        self.started = time.perf_counter()
        super().on_predict_start()


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Where the time of a job went."""

    images: int
    seconds: float
    device_seconds: dict[str, float]
    """Seconds of each kind of call."""

    forwards: float
    backwards: float
    """Passes of an image, on average."""

    @property
    def outside_unet(self) -> float:
        """Share of the time outside the UNet."""
        return 1 - sum(s for kind, s in self.device_seconds.items() if kind.startswith("UNet")) / self.seconds

    def to_json(self) -> dict[str, object]:
        """The numbers for a program."""
        return {
            "outside_unet": self.outside_unet,
            "images": self.images,
            "seconds": self.seconds,
            "device_seconds": self.device_seconds,
            "waiting_seconds": self.seconds - sum(self.device_seconds.values()),
            "forward_passes": self.forwards,
            "backward_passes": self.backwards,
        }

    def lines(self) -> list[str]:
        """A Markdown table."""
        idle = self.seconds - sum(self.device_seconds.values())
        rows = {**self.device_seconds, "nothing to do": idle}
        return [
            f"{self.images} images, {self.forwards:.0f} forward and {self.backwards:.0f} backward passes an image",
            "| the device | seconds | share |",
            "|---|---|---|",
            *(f"| {name} | {seconds:.2f} | {100 * seconds / self.seconds:.1f} % |" for name, seconds in rows.items()),
            f"| in all | {self.seconds:.2f} | outside the UNet {100 * self.outside_unet:.1f} % |",
        ]


def true_size(settings: InversionRunSettings, updated: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """A start embedding and null embeddings of Stable Diffusion 1.5, rounded to the storage.

    Args:
        settings: Settings of the run.
        updated: For each timestep, the noisiest first, whether the embedding was updated there.
    """
    generator = torch.Generator().manual_seed(0)
    start = round_values(settings.storage, torch.randn(TOKENS, DIM, generator=generator))
    rows = [start]
    for is_updated in updated:
        levels = (LEVEL_DEVIATION * torch.randn(TOKENS, DIM, generator=generator)).round().clamp(-15, 15)
        wanted = rows[-1] + 1e-3 * levels if is_updated else rows[-1]
        rows.append(round_embeddings(settings.storage, wanted[None], rows[-1][None])[0])
    return start, torch.stack(rows[1:])


def measure(argv: Sequence[str], images: int, wait: Callable[[], object] = lambda: None) -> Share:
    """Run a job in a temporary folder.

    Args:
        argv: Flags of `nti-batch invert`, without input and output.
        images: Number of images.
        wait: Called when the job is ready, before the clock starts.

    Raises:
        ValueError: If a flag is wrong.
        ArgumentError: Likewise, from the parser.
        RuntimeError: If the job fails.
    """
    silence_warnings()
    with tempfile.TemporaryDirectory() as folder, StopSignals() as stop:
        shard, out, device = Path(folder) / "images.tar", Path(folder) / "out", VirtualDevice()
        places = f"--data.shards={shard}", f"--output.dir={out}", "--trainer.accelerator=cpu"
        flags = parse_flags(COMMAND, [*SETTINGS, *argv, *places])
        write_images(shard, images, height=768, width=1024)
        settings, shards = run_settings(flags.model, flags.data, flags.output), flags.data.addresses()
        kind = replace(INVERT, encode=partial(encode_at_true_size, sizes={}))
        run = OutputRun.create(kind, out, settings, shards)
        plan = ImagePlan(run, work_units(shards, settings.units_per_shard))
        writer = record_writer(run, flags.data, flags.output)
        module = VirtualModule(device, wait, settings, flags.model.batch_size, stop, writer.put, Acceleration())
        job = build_job(flags, plan, module, writer, stop, lambda: None)
        if not predict(job) or writer.tally.done != images:
            raise RuntimeError("the job has failed")
        seconds, work = time.perf_counter() - module.started, module.pool.work
    return Share(
        images=images,
        seconds=seconds,
        device_seconds=dict(device.seconds),
        forwards=work.forwards / images,
        backwards=work.backwards / images,
    )


def speedups(argv: Sequence[str], images: int, devices: int, rounds: int) -> Iterator[float]:
    """Images a second of several devices, each with `images` images, as multiples of those of one.

    One device and all of them take turns; each round compares with the mean of the two turns of one around it.
    """
    with ExitStack() as stack:
        processes = [stack.enter_context(OwnProcess()) for _ in range(devices)]
        manager = stack.enter_context(get_context("spawn").Manager())
        with ThreadPoolExecutor(devices) as threads:
            alone = processes[0].call(measure, argv, images).seconds
            for _ in range(rounds):
                wait = manager.Barrier(devices, timeout=START_SECONDS).wait
                turns = [threads.submit(process.call, measure, argv, images, wait) for process in processes]
                together = max(turn.result().seconds for turn in turns)
                before, alone = alone, processes[0].call(measure, argv, images).seconds
                yield devices * (before + alone) / 2 / together


def run_settings(model: InvertModelFlags, data: InvertDataFlags, output: InvertOutputFlags) -> InversionRunSettings:
    """Settings of the run, without looking for a model."""
    return InversionRunSettings(
        source=model.source,
        fingerprint=None,
        precision=model.precision,
        num_steps=model.num_steps,
        optimize_pooled=False,
        inversion=model.inversion,
        caption=data.caption,
        height=SIDE,
        width=SIDE,
        units_per_shard=data.units_per_shard,
        is_folder=False,
        storage=output.storage,
    )


def encode_at_true_size(
    inversion: Inversion, settings: InversionRunSettings, sizes: dict[tuple[bool, ...], tuple[Tensor, Tensor]]
) -> tuple[bytes, Metadata]:
    """Pack an inversion whose embeddings get their true size; `sizes` keeps those that were made."""
    updated = tuple(steps > 0 for steps in inversion.inner_steps)
    if updated not in sizes:
        sizes[updated] = true_size(settings, updated)
    start, null_embeddings = sizes[updated]
    return encode_inversion(replace(inversion, start_embedding=start, null_embeddings=null_embeddings), settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(
        description="Share of a job's time outside the UNet, on a virtual device.",
        epilog="It also takes the flags of nti-batch invert, such as --config FILE.",
    )
    parser.add_argument("--images", type=int, default=64, help="number of images")
    parser.add_argument("--devices", type=int, default=1, help="number of devices, compared with one if there are more")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of that comparison")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    arguments, flags = parser.parse_known_args(argv)
    try:
        if arguments.devices > 1:
            found = list(speedups(flags, arguments.images, arguments.devices, arguments.rounds))
            return _print_speedups(arguments.devices, found, arguments.json)
        share = measure(flags, arguments.images)
    except (ValueError, ArgumentError) as error:
        return usage_error(error)
    if arguments.json:
        print_json(share.to_json())
    else:
        print_lines(share.lines())
    return DONE


def _print_speedups(devices: int, found: list[float], as_json: bool) -> int:
    if as_json:
        print_json({"devices": devices, "speedups": found, "speedup": median(found)})
    else:
        shown = ", ".join(f"{speedup:.2f}" for speedup in found)
        print_lines([f"{devices} devices invert {median(found):.2f} times the images a second of one ({shown})"])
    return DONE


if __name__ == "__main__":
    sys.exit(main())
