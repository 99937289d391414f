"""Changes the files of a diffusers checkpoint folder."""

import json
import shutil
from pathlib import Path


def edit_json(path: Path, **changes: object) -> None:
    """Set keys of a JSON object."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_keys(path: Path, *keys: str) -> None:
    """Remove keys of a JSON object."""
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key not in keys}))


def changed_model(model: Path, copy: Path, file: str, **changes: object) -> Path:
    """Copy a model, with other values in one of its JSON files."""
    shutil.copytree(model, copy)
    edit_json(copy / file, **changes)
    return copy
