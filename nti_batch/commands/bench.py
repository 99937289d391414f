"""`nti-batch bench`: the job beside the reference loop."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nti_batch.jobs.run import DONE, silence_warnings, usage_error

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def bench(argv: Sequence[str]) -> int:
    """Print the comparison of the job with the authors' loop."""
    import torch
    from jsonargparse import ArgumentError, ArgumentParser

    from nti_batch.benchmarks.compare import Setup, compare
    from nti_batch.benchmarks.job_loop import load_images
    from nti_batch.diffusion.rounding import Storage
    from nti_batch.jobs.invert_datamodule import InversionDataModule
    from nti_batch.jobs.invert_module import InversionModule
    from nti_batch.models.source import ModelDescription

    silence_warnings()
    parser = ArgumentParser(
        prog="nti-batch bench",
        description="Invert the same images by the job and by the authors' loop (one image at a time, weights not "
        "frozen, float32, their constants), in turns, and compare speed, UNet work, quality, memory and bytes.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file as for invert, such as configs/fast.yaml")
    parser.add_class_arguments(InversionModule, "model")
    parser.add_argument("--data.shards", type=str, default="demo", help="as for invert")
    parser.add_argument("--data.caption", type=str, default="txt", help="as for invert")
    parser.add_argument("--output.storage", type=Storage, default="float32", help="of the job, as for invert")
    parser.add_argument("--images", type=int, default=16, help="number of images")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side, which take a share of the images")
    parser.add_argument("--device", type=str, default=None, help="such as 'cuda'; a GPU if there is one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    try:
        arguments = parser.parse_args(list(argv))
        module = InversionModule(**arguments.model)
        data = InversionDataModule(arguments.data.shards, arguments.data.caption, units_per_shard=1)
        setup = Setup(
            source=module.source,
            device=arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            precision=module.precision,
            compile_backend=module.compile_backend,
            num_steps=module.num_steps,
            settings=module.null_text,
            batch_size=module.batch_size,
            storage=arguments.output.storage,
            optimize_pooled=module.optimize_pooled,
        )
        images = load_images(data, ModelDescription.of(module.source).size, arguments.images)
        comparison = compare(setup, images, arguments.rounds)
    except (ValueError, ArgumentError) as error:
        return usage_error(error)
    print(json.dumps(comparison.as_json()) if arguments.json else "\n".join(comparison.lines()))
    return DONE
