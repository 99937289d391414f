"""`nti-batch env`: what a bug report needs to say of a machine."""

import os
import platform
import re
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nti_batch.exit_codes import DONE
from nti_batch.models.driver import nvidia_driver
from nti_batch.terminal import print_json, print_line

PACKAGES = (
    "nti-batch",
    "torch",
    "lightning",
    "diffusers",
    "transformers",
    "huggingface-hub",
    "webdataset",
    "safetensors",
    "pillow",
    "numpy",
)


def env(model: str | None = None, json: bool = False) -> int:
    """Print versions, platform, processor, devices and driver, for a bug report.

    Args:
        model: A model whose fingerprint is printed too: a folder, a hub id, a .safetensors file, or 'demo'. Nothing is
            fetched.
        json: Print one JSON object.

    Raises:
        ValueError: If there is no such model. A package that is missing or broken is no error.
    """
    found = environment()
    if model is not None:
        from nti_batch.models.fingerprint import model_fingerprint
        from nti_batch.models.source import ModelSource

        fingerprint = model_fingerprint(ModelSource(model))
        found |= {"model": model, "fingerprint": fingerprint or "unknown (no such folder, and not in the local cache)"}
    if json:
        print_json(found)
    else:
        for name, value in found.items():
            print_line(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
    return DONE


def environment() -> dict[str, str | int | list[str]]:
    """Facts of this machine by name: one for each package, then those of the machine."""
    return {
        **{name: _installed(name) for name in PACKAGES},
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "devices": _devices(),
        "file locks": _file_locks(),
    }


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        names = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # macOS has no such file
        names = None
    return names[1] if names else platform.processor() or platform.machine()


def _devices() -> list[str]:
    """Names of the devices that torch sees, and the driver of NVIDIA's."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a CUDA library is missing
        return [f"torch does not load ({error})"]
    if torch.cuda.is_available():
        names = [_cuda_device(torch.cuda.get_device_properties(index)) for index in range(torch.cuda.device_count())]
        return [*names, f"CUDA {torch.version.cuda}", f"driver {nvidia_driver() or 'unknown'}"]
    return ["MPS" if torch.backends.mps.is_available() else "CPU alone"]


def _cuda_device(properties: Any) -> str:  # torch gives its class no public name
    return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"


def _file_locks() -> str:
    """Whether flock(2), which keeps two jobs from one work unit, succeeds in the current folder."""
    try:
        import fcntl

        with tempfile.TemporaryFile(dir=".") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError) as error:
        return f"no ({error})"
    return f"yes, in {os.getcwd()!r}"
