"""Ready configurations, which `--config` finds by their names."""

import os
from collections.abc import Mapping
from pathlib import Path

from nti_batch.phrases import did_you_mean

CONFIGS = Path(__file__).parents[1] / "configs"
"""A link to `configs/` of the project; a wheel has a copy of the files."""


def ready_configs() -> Mapping[str, Path]:
    """Path of each ready configuration by its name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}


def config_path(given: str) -> str:
    """The path of a configuration: a file, or one that is ready. A text with line breaks or braces is YAML itself.

    Raises:
        TypeError: If there is neither such a file nor such a name; the parser expects this type.
    """
    ready = ready_configs()
    if os.path.isfile(given) or any(c in given for c in "\n{"):
        return given
    if path := ready.get(given.removesuffix(".yaml")):
        return str(path)
    name = Path(given).name.removesuffix(".yaml")
    raise TypeError(
        f"there is no such file, and no ready configuration of this name{did_you_mean(name, ready)}; "
        f"ready are {', '.join(ready)}"
    )


def describe_config(path: Path) -> str:
    """What a configuration is for: the first sentence of the comment at its head."""
    lines = path.read_text().splitlines()
    head = " ".join(line.lstrip("# ") for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")])
    return head.partition(". ")[0].removesuffix(".")
