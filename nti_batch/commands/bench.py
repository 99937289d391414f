"""`nti-batch bench`: the job beside the reference loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings
from jsonargparse.typing import Path_drw, PositiveFloat, PositiveInt

from nti_batch.benchmarks.compare import Setup, compare
from nti_batch.benchmarks.full_size import Family
from nti_batch.benchmarks.full_size_setup import FullSize
from nti_batch.benchmarks.full_size_table import full_size_rows
from nti_batch.benchmarks.job_loop import load_images
from nti_batch.commands.invert import build_invert_job
from nti_batch.diffusion.rounding import Storage
from nti_batch.exit_codes import DONE
from nti_batch.jobs.consent import check_consent
from nti_batch.jobs.flags import InvertModelFlags, shard_addresses
from nti_batch.jobs.parser import ConfigFile, silence_warnings
from nti_batch.models.source import Precision
from nti_batch.models.supported import ModelDescription
from nti_batch.terminal import print_json, print_line, print_lines, usage_error

FULL_SIZE = "--full-size"


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchDataFlags:
    """Input of the comparison."""

    shards: str = "demo"
    """Shards, as for invert."""

    caption: str = "txt"
    """Place of the prompts, as for invert."""

    height: int | None = None
    """Height of the images in pixels, as for invert."""

    width: int | None = None
    """Width of the images in pixels, as for invert."""

    allow_pipe: bool = False
    """Allow shards that are the output of a shell command, as for invert; only this flag itself is consent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOutputFlags:
    """Output of the comparison."""

    storage: Storage = "float32"
    """Storage of the job, as for invert."""


def bench(argv: Sequence[str]) -> int:
    """Print the comparison of the job with the reference loop, or with `--full-size` a full-size model's figures."""
    silence_warnings()
    if FULL_SIZE in argv:
        return bench_full_size([argument for argument in argv if argument != FULL_SIZE])
    parser = bench_parser()
    try:
        parsed = parser.parse_args(list(argv))
        check_consent(argv, parsed)
        flags = parser.instantiate(parsed)
        model: InvertModelFlags = flags.model
        device = chosen_device(flags.device)
        model.acceleration.check()
        model.acceleration.check_device(device)
        setup = Setup(
            source=model.source,
            device=str(device),
            precision=model.precision,
            acceleration=model.acceleration,
            num_steps=model.num_steps,
            settings=model.inversion,
            batch_size=model.batch_size,
            storage=flags.output.storage,
            optimize_pooled=model.optimize_pooled,
        )
        data: BenchDataFlags = flags.data
        size = ModelDescription.of(setup.source).image_size(data.height, data.width)
        shards = shard_addresses(data.shards, allow_pipe=data.allow_pipe)
        images = load_images(shards, data.caption, size, flags.images, data.allow_pipe)
        comparison = compare(setup, images, flags.rounds)
    except (ValueError, ArgumentError) as error:
        return usage_error(error)
    if flags.json:
        print_json(comparison.to_json())
    else:
        print_lines(comparison.lines())
    return DONE


def chosen_device(name: str | None) -> torch.device:
    """The device with a name; without one a GPU, if there is one.

    Raises:
        ValueError: If PyTorch does not know the device, or there is no such GPU.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    # an AssertionError is what torch raises if it was built without CUDA
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"--device is {name!r}, allowed: one that this machine has, such as 'cpu': {reason}"
        ) from error
    return device


def bench_parser() -> ArgumentParser:
    """The parser of the command; it takes the YAML files of `nti-batch invert`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="nti-batch bench",
        description="Invert the same images with the job and with the reference loop, which is the authors' (one image "
        "at a time, weights not frozen, float32, their constants), in alternating rounds. Compare speed, UNet "
        "evaluations, quality, memory and bytes.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action=ConfigFile, help="a YAML file as for invert, such as configs/fast.yaml")
    parser.add_class_arguments(InvertModelFlags, "model")
    parser.add_class_arguments(BenchDataFlags, "data")
    parser.add_class_arguments(BenchOutputFlags, "output")
    parser.add_argument("--images", type=int, default=16, help="number of images")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each side, which share the images")
    parser.add_argument("--device", type=str, default=None, help="such as 'cuda'; a GPU if there is one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(FULL_SIZE, action="store_true", help=f"see `nti-batch bench {FULL_SIZE} --help`")
    return parser


def bench_full_size(argv: Sequence[str]) -> int:
    """Print the figures of a full-size model with random weights, each line once it is known."""
    try:
        flags = full_size_parser().parse_args(list(argv))
        device = chosen_device(flags.device)
    except (ValueError, ArgumentError) as error:
        return usage_error(error)
    with TemporaryDirectory(dir=flags.folder) as folder:
        bench = FullSize(
            build=build_invert_job,
            folder=Path(folder),
            family=flags.family,
            precision=flags.precision,
            batch_size=flags.batch_size,
            device=device,
            minutes=flags.minutes,
        )
        for row in full_size_rows(bench):
            if flags.json:
                print_json(row.to_json() | {"device": bench.device_name})
            else:
                print_line(row.line())
    return DONE


def full_size_parser() -> ArgumentParser:
    """The parser of `nti-batch bench --full-size`."""
    parser = ArgumentParser(
        prog=f"nti-batch bench {FULL_SIZE}",
        description="Measure the job at the size of a public model, with random weights, on which null-text inversion "
        "does not converge: each timestep has a fixed number of updates, a mean of the embedded model.",
        exit_on_error=False,
    )
    parser.add_argument("--family", type=Family, default="1.x", help="family of models")
    parser.add_argument("--precision", type=Precision, default="bfloat16", help="precision of the UNet")
    parser.add_argument("--batch_size", type=PositiveInt, default=16, help="images in one UNet call of the job")
    parser.add_argument("--minutes", type=PositiveFloat, default=5.0, help="time; no part starts that takes longer")
    parser.add_argument("--folder", type=Path_drw | None, default=None, help="folder for 3 to 9 GB of temporary files")
    parser.add_argument("--device", type=str | None, default=None, help="such as 'cuda'; a GPU if there is one")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each line")
    return parser
