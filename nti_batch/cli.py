"""The command line: the main job and its bench. Other commands are in `pack_command`, `edit_command`, `run_commands`.

The exit codes are in `job`. `status --exit-code` has the same: 0 done, 3 some have failed, 75 images are missing.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nti_batch.completion import SHELLS, completion_script
from nti_batch.edit_command import edit, one_picture_parser, prepare_edits
from nti_batch.job import (
    DONE,
    Job,
    assemble,
    quiet,
    read_settings,
    refuse,
    run_job,
    writer_of,
)
from nti_batch.pack_command import add_pack
from nti_batch.run_commands import add_export, add_report, add_score, add_status, add_verify

if TYPE_CHECKING:
    from nti_batch.signals import StopSignals

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    parser, _ = _parsers()
    arguments, rest = parser.parse_known_args(argv)
    if rest and not arguments.takes_rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    code: int = arguments.run(rest) if arguments.takes_rest else arguments.run(arguments)
    return code


def _parsers() -> tuple[argparse.ArgumentParser, "Commands"]:
    """That of the command line, and its commands."""
    parser = argparse.ArgumentParser(
        prog="nti-batch", description="Null-text inversion of image collections: real images become editable ones."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_pack(commands)
    _add_job(commands, "invert", "invert the images of WebDataset shards, or of a folder", invert)
    _add_job(commands, "edit", "edit inverted images, or rebuild them", edit)
    add_status(commands)
    add_report(commands)
    _add_job(commands, "bench", "compare the job with the authors' loop", bench)
    add_verify(commands)
    add_score(commands)
    add_export(commands)
    _add_completion(commands)
    return parser, commands


def _add_job(commands: "Commands", name: str, help: str, run: Callable[[Sequence[str]], int]) -> None:
    """A command that reads its arguments by itself."""
    commands.add_parser(name, help=help, add_help=False).set_defaults(run=run, takes_rest=True)


def _add_completion(commands: "Commands") -> None:
    parser = commands.add_parser("completion", help="print a script that completes commands and flags in the shell")
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(takes_rest=False, run=lambda a: completion(a.shell))


def completion(shell: str) -> int:
    """Print the script."""
    from jsonargparse import capture_parser

    from nti_batch.signals import StopSignals

    quiet()
    flags: dict[str, list[argparse.ArgumentParser]] = {
        "invert": [capture_parser(prepare_inversion, [], StopSignals())],
        "edit": [capture_parser(prepare_edits, [], StopSignals()), one_picture_parser()],
        "bench": [capture_parser(bench, [])],
    }
    try:
        print(completion_script(*_parsers(), flags, shell))
    except ValueError as error:
        return refuse(error)
    return DONE


def bench(argv: Sequence[str]) -> int:
    """Print the comparison of the job with the authors' loop."""
    import torch
    from jsonargparse import ArgumentError, ArgumentParser

    from nti_batch.benchmarks.job_loop import load_images
    from nti_batch.benchmarks.side_by_side import Setup, compare
    from nti_batch.datamodule import InversionDataModule
    from nti_batch.diffusion.rounding import Storage
    from nti_batch.model_source import ModelDescription
    from nti_batch.module import NullTextInversion

    quiet()
    parser = ArgumentParser(
        prog="nti-batch bench",
        description="Invert the same images by the job and by the authors' loop (one image at a time, weights not "
        "frozen, float32, their constants), in turns, and compare speed, UNet work, quality, memory and bytes.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file as for invert, such as configs/fast.yaml")
    parser.add_class_arguments(NullTextInversion, "model")
    parser.add_argument("--data.shards", type=str, default="demo", help="as for invert")
    parser.add_argument("--data.caption", type=str, default="txt", help="as for invert")
    parser.add_argument("--output.storage", type=Storage, default="float32", help="of the job, as for invert")
    parser.add_argument("--images", type=int, default=16, help="number of images")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side, which take a share of the images")
    parser.add_argument("--device", type=str, default=None, help="such as 'cuda'; a GPU if there is one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    try:
        arguments = parser.parse_args(list(argv))
        module = NullTextInversion(**arguments.model)
        data = InversionDataModule(arguments.data.shards, arguments.data.caption, slices=1)
        setup = Setup(
            source=module.source,
            device=arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            precision=module.precision,
            compile_backend=module.compile_backend,
            num_steps=module.num_steps,
            settings=module.null_text,
            slots=module.slots,
            storage=arguments.output.storage,
            optimize_pooled=module.optimize_pooled,
        )
        images = load_images(data, ModelDescription.of(module.source).size, arguments.images)
        comparison = compare(setup, images, arguments.rounds)
    except (ValueError, ArgumentError) as error:
        return refuse(error)
    print(json.dumps(comparison.as_json()) if arguments.json else "\n".join(comparison.lines()))
    return DONE


def invert(argv: Sequence[str]) -> int:
    """Invert what is not committed yet: the main job."""
    return run_job(prepare_inversion, argv)


def prepare_inversion(argv: Sequence[str], stop: "StopSignals") -> Job:
    """Everything that can be refused, before any weights are loaded.

    Raises:
        ValueError: If the user's settings are wrong.
    """
    from nti_batch import preview
    from nti_batch.datamodule import InversionDataModule
    from nti_batch.model_source import ModelDescription, embedding_shape
    from nti_batch.module import NEEDS_GRADIENTS, NullTextInversion
    from nti_batch.packing import StoredSize, stored_size
    from nti_batch.writer import InversionWriter

    cli = read_settings(
        "invert",
        NullTextInversion,
        InversionDataModule,
        InversionWriter,
        argv,
        trainer_defaults={"inference_mode": False},
    )
    if cli.config.trainer.inference_mode:
        raise ValueError(NEEDS_GRADIENTS)
    module, data, writer = cli.model, cli.datamodule, writer_of(cli)
    assert isinstance(writer, InversionWriter)
    description = ModelDescription.of(module.source)
    data.attach(writer.run, description.size)
    description.check_size(data.height, data.width)
    module.storage, module.stop = writer.storage, stop
    settings = {**module.result_settings, **data.result_settings, "output.storage": writer.storage}
    writer.run.create(settings, data.urls, cli.config.dry_run)

    def new_size() -> StoredSize:
        assert data.height and data.width
        latents = description.latents(data.height, data.width)
        embeddings = module.num_steps, *embedding_shape(module.source, description.is_xl)
        return stored_size(writer.storage, latents, embeddings, module.null_text.method == "direct")

    return assemble(cli, stop, lambda: preview.draw_preview(data.run, data, module.networks), new_size)


if __name__ == "__main__":
    sys.exit(main())
