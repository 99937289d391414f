"""`nti-batch bench`: the job beside the reference loop."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from nti_batch.benchmarks.compare import Setup, compare
from nti_batch.benchmarks.job_loop import load_images
from nti_batch.diffusion.rounding import Storage
from nti_batch.exit_codes import DONE
from nti_batch.jobs.consent import check_consent
from nti_batch.jobs.flags import InvertModelFlags, shard_addresses
from nti_batch.jobs.parser import ConfigFile, FlagParser, silence_warnings
from nti_batch.models.supported import ModelDescription
from nti_batch.terminal import print_json, print_lines, usage_error


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
    """Print the comparison of the job with the reference loop."""
    silence_warnings()
    parser = bench_parser()
    try:
        parsed = parser.parse_args(list(argv))
        check_consent(argv, parsed)
        flags = parser.instantiate(parsed)
        model: InvertModelFlags = flags.model
        setup = Setup(
            source=model.source,
            device=flags.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            precision=model.precision,
            compile_backend=model.compile,
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


def bench_parser() -> ArgumentParser:
    """The parser of the command; it takes the YAML files of `nti-batch invert`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = FlagParser(
        prog="nti-batch bench",
        description="Invert the same images with the job and with the reference loop, which is the authors' (one image "
        "at a time, weights not frozen, float32, their constants), in alternating rounds. Compare speed, UNet "
        "evaluations, quality, memory and bytes.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action=ConfigFile, help="a YAML file as for invert, such as configs/fast.yaml")
    parser.add_class_arguments(InvertModelFlags, "model")
    parser.add_class_arguments(BenchDataFlags, "data")
    parser.add_class_arguments(BenchOutputFlags, "output")
    parser.add_argument("--images", type=int, default=16, help="number of images")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each side, which share the images")
    parser.add_argument("--device", type=str, default=None, help="such as 'cuda'; a GPU if there is one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser
