"""The driver of the devices."""

import re
from pathlib import Path


def nvidia_driver() -> str | None:
    """Version of NVIDIA's driver; None if there is none."""
    try:
        found = re.search(r"\d+\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found[0] if found else None
