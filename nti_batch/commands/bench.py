"""`nti-batch bench`: the job beside the reference loop."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from nti_batch.benchmarks.compare import Setup, compare
from nti_batch.benchmarks.job_loop import load_images
from nti_batch.diffusion.rounding import Storage
from nti_batch.exit_codes import DONE, usage_error
from nti_batch.jobs.flags import InvertModelFlags, shard_addresses
from nti_batch.jobs.parser import silence_warnings
from nti_batch.models.supported import ModelDescription


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
        flags = parser.instantiate(parser.parse_args(list(argv)))
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
        size = ModelDescription.of(setup.source).image_size(flags.data.height, flags.data.width)
        images = load_images(shard_addresses(flags.data.shards), flags.data.caption, size, flags.images)
        comparison = compare(setup, images, flags.rounds)
    except (ValueError, ArgumentError) as error:
        return usage_error(error)
    print(json.dumps(comparison.to_json()) if flags.json else "\n".join(comparison.lines()))
    return DONE


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
    parser.add_argument("--config", action="config", help="a YAML file as for invert, such as configs/fast.yaml")
    parser.add_class_arguments(InvertModelFlags, "model")
    parser.add_class_arguments(BenchDataFlags, "data")
    parser.add_class_arguments(BenchOutputFlags, "output")
    parser.add_argument("--images", type=int, default=16, help="number of images")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each side, which share the images")
    parser.add_argument("--device", type=str, default=None, help="such as 'cuda'; a GPU if there is one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser
