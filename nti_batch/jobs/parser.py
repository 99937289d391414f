"""The command line of the jobs: Lightning's Trainer flags, and one section of typed flags for each part of the job."""

import argparse
import inspect
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jsonargparse import (  # type: ignore[attr-defined]  # ActionConfigFile is exported under a condition
    ActionConfigFile,
    ArgumentError,
    Namespace,
    set_parsing_settings,
)
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from nti_batch.jobs.configs import config_path
from nti_batch.jobs.consent import check_consent
from nti_batch.jobs.flag_parser import FlagParser
from nti_batch.jobs.help import HelpText, missing_flags, short_help
from nti_batch.terminal import print_lines

TRAINER_DEFAULTS: Mapping[str, object] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


FULL_PRECISION = "32-true"
MODEL_PRECISION = "set --model.precision of `nti-batch invert`, which records it and keeps the VAE in float32"
TRAINS = "it belongs to training, and a job trains nothing"
SHORTER_RUN = "set --data.limit to a number of images, or see what a job would do with --dry_run"
REFUSED: Mapping[str, str] = {
    "precision": MODEL_PRECISION,
    "max_time": "set --output.stop_after to a number of minutes",
    "fast_dev_run": SHORTER_RUN,
    "limit_predict_batches": SHORTER_RUN,
    "barebones": "a job needs its callbacks",
    "use_distributed_sampler": "a job shares its work units among the ranks by itself",
    "enable_progress_bar": "a job draws its own progress",
    "enable_checkpointing": "the same command resumes a job without checkpoints",
    "enable_model_summary": "`nti-batch env --model NAME` describes the model",
    **dict.fromkeys(
        (
            "accumulate_grad_batches",
            "check_val_every_n_epoch",
            "gradient_clip_algorithm",
            "gradient_clip_val",
            "limit_test_batches",
            "limit_train_batches",
            "limit_val_batches",
            "log_every_n_steps",
            "max_epochs",
            "max_steps",
            "min_epochs",
            "min_steps",
            "num_sanity_val_steps",
            "overfit_batches",
            "reload_dataloaders_every_n_epochs",
            "sync_batchnorm",
            "val_check_interval",
            "enable_autolog_hparams",
            "model_registry",
        ),
        TRAINS,
    ),
}
"""Trainer flags that do nothing in a prediction job or break it, and what to do instead."""


class ConfigFile(ActionConfigFile):
    """A flag for a YAML file, which may be a ready configuration by its name; errors name the file."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Read the file.

        Raises:
            TypeError: If it holds no flags, or a wrong one; the parser turns it into an error of the command line.
        """
        try:
            super().__call__(parser, cfg, config_path(values), option_string)  # type: ignore[no-untyped-call]
        except (ArgumentError, TypeError, UnicodeDecodeError) as error:
            is_of_a_flag = isinstance(error, ArgumentError) and "Unexpected config" not in str(error)
            allowed = "" if is_of_a_flag else "; allowed: a YAML file with flags, such as 'data: {shards: demo}'"
            raise TypeError(f"--config {values!r}: {error}{allowed}") from error


class JobParser(FlagParser, LightningArgumentParser):
    """The parser of a job, whose help is short."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of jsonargparse, which makes parsers of this class, too."""
        super().__init__(*args, **kwargs)
        self.command: JobCommand | None = None

    def format_help(self, *args: Any) -> str:
        """The flags that a user sets."""
        if self.command is None:
            return self.format_all_help()
        return short_help(self, self.command.help, list(self.command.sections))

    def format_all_help(self) -> str:
        """All flags with their whole descriptions."""
        return super().format_help()


class _AllHelp(argparse.Action):
    """The flag for the help with all flags."""

    def __call__(self, parser: Any, *_: object) -> None:
        """Print it, and exit."""
        print_lines(parser.format_all_help().rstrip().splitlines())
        parser.exit()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCommand:
    """A command that is a job."""

    name: str
    sections: Mapping[str, type]
    """Dataclass of flags of each section."""

    help: HelpText
    trainer_defaults: Mapping[str, object] = field(default_factory=dict)
    """Defaults of Trainer flags beside `TRAINER_DEFAULTS`."""


def silence_warnings() -> None:
    """Silence warnings that concern training, or nothing that a user can change."""
    # Lightning 2.6 calls jsonargparse in a way that newer versions deprecate
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for text in (
        # reading an image takes milliseconds, inverting it a minute
        ".*does not have many workers.*",
        ".*GPU available but not used.*",
        # records carry shard and key themselves
        "Couldn't infer the batch indices.*",
        # Lightning 2.6 with torch 2.13
        ".*treespec, LeafSpec.*",
        # diffusers asks for the version of torch while `torch.compile` reads it
        "(?s)Dynamo detected a call to a `functools.lru_cache`.*",
        # a job of one process is right where Slurm is installed, too
        "The `srun` command is available on your system but is not used.*",
    ):
        warnings.filterwarnings("ignore", text)


def job_parser(command: JobCommand) -> JobParser:
    """The parser of a job."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = JobParser(
        prog=f"nti-batch {command.name}",
        description=command.help.description,
        usage=f"nti-batch {command.name} [--FLAG VALUE ...]",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.command = command
    parser.add_argument("--help_all", action=_AllHelp, nargs=0, help="print all flags, with whole descriptions")
    parser.add_argument(
        "-c",
        "--config",
        action=ConfigFile,
        metavar="FILE",
        help="a YAML file with flags, or a name that `nti-batch configs` lists; several are merged in order",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print what the job would do and what would fail; load no weights and write nothing",
    )
    for name, flags in command.sections.items():
        parser.add_class_arguments(flags, name)
    parser.add_lightning_class_args(Trainer, "trainer")
    for name in REFUSED:
        # older versions of Lightning lack some of them
        if action := parser._option_string_actions.get(f"--trainer.{name}"):
            action.help = argparse.SUPPRESS
    defaults = {**TRAINER_DEFAULTS, **command.trainer_defaults}
    parser.set_defaults({f"trainer.{name}": value for name, value in defaults.items()})
    # under Slurm Lightning loads any hpc_ckpt_*.ckpt that it finds in its root folder instead of the model
    parser.link_arguments("output.dir", "trainer.default_root_dir")
    return parser


def parse_flags(command: JobCommand, argv: Sequence[str]) -> Namespace:
    """The flags of a job: an instance of each section's dataclass, and the arguments of the Trainer.

    Raises:
        ValueError: If the user's settings are wrong.
        ArgumentError: Likewise, from the parser.
    """
    parser = job_parser(command)
    parsed = parser.parse_args(argv)
    if missing := missing_flags(command.help, vars(parsed.as_flat())):
        raise ValueError(missing)
    check_consent(argv, parsed)
    flags: Namespace = parser.instantiate(parsed)
    _refuse_useless(flags.trainer)
    return flags


def build_trainer(arguments: Namespace) -> Trainer:
    """Lightning's Trainer.

    Raises:
        ValueError: If Lightning refuses a flag.
    """
    flags: dict[str, Any] = arguments.as_dict()
    try:
        trainer = Trainer(**flags)
    # a TypeError is what Lightning raises for a wrong --trainer.devices, a RuntimeError for a variable of Slurm
    except (TypeError, RuntimeError, MisconfigurationException) as error:
        raise ValueError(
            f"a --trainer flag or the environment is wrong: {error} (this machine has {torch.cuda.device_count()} CUDA "
            f"devices and {os.cpu_count()} processor cores)"
        ) from error
    if trainer.precision != FULL_PRECISION:
        raise ValueError(f"a plugin sets the precision {trainer.precision!r}, allowed: 32-true; {MODEL_PRECISION}")
    return trainer


def _refuse_useless(flags: Namespace) -> None:
    parameters = inspect.signature(Trainer).parameters
    for name, instead in REFUSED.items():
        if name not in parameters:
            continue
        default = TRAINER_DEFAULTS.get(name, parameters[name].default)
        if flags[name] != default and not (name == "precision" and flags[name] in (FULL_PRECISION, "32", 32)):
            raise ValueError(f"--trainer.{name} is {flags[name]!r}, leave it out: {instead}")
