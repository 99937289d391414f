"""A run as a folder for `hf upload`: its committed parts as they are, the table of its rows, and a dataset card.

    FOLDER/README.md                      the card; it names the table as the data of `datasets.load_dataset`
    FOLDER/inversions.parquet             the rows
    FOLDER/run.json, inversions/          the run itself, which whoever downloads it can read, verify and edit

Files of a part are never rewritten, so that they are hard links where the file system has them.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from nti_batch.files import atomic_open, atomic_write, translate_os_errors
from nti_batch.lock import lock_folder
from nti_batch.output.dataset_card import dataset_card
from nti_batch.output.export import Exported
from nti_batch.output.manifest import Manifest
from nti_batch.output.run_file import RUN_FILE
from nti_batch.output.run_folder import AnyRun
from nti_batch.output.stored_part import StoredPart
from nti_batch.output.table import RunTable, table_file


def export_hub(run: AnyRun, folder: Path) -> Exported:
    """Write the folder; parts that an earlier export has written stay.

    Raises:
        ValueError: If the folder cannot be written, is the run itself, or holds another run.
        OutputError: If a file cannot be written.
        UnitInUseError: If another export writes to it.
    """
    if folder.exists() and folder.samefile(run.out):
        raise ValueError(f"--output is {str(folder)!r}, the run itself, whose logs and locks are no part of a dataset")
    table, exported = RunTable(run), Exported()
    with lock_folder(folder, "export.lock", "--output"):
        for part in run.all_parts():
            exported += _export_part(part, folder)
        exported += replace(table.write(table_file(run, folder)), written=0)
        with translate_os_errors(folder / RUN_FILE):
            for path in (run.files.path(RUN_FILE), *run.files.added_shards()):
                atomic_write(folder / path.name, path.read_bytes())
            atomic_write(folder / "README.md", dataset_card(run, table.counts, table.origins))
    return replace(exported, damage=tuple(dict.fromkeys(exported.damage)))


def _export_part(part: StoredPart[Any], folder: Path) -> Exported:
    """Link a part, its manifest last.

    Raises:
        ValueError: If the folder has another part of this name.
        OutputError: If a file cannot be written.
    """
    target = folder / part.path.parent.name / part.path.name
    try:
        content, tar = part.path.read_bytes(), Manifest.read(part.path, part.row_type).tar
    except (OSError, ValueError) as error:
        return Exported(damage=(part.files.shown(str(error)),))
    if target.exists():
        if target.read_bytes() == content:
            return Exported(existing=1)
        raise ValueError(f"--output has another {target.name!r}: the folder holds another run; give a new one")
    with translate_os_errors(target):
        target.parent.mkdir(exist_ok=True)
    try:
        if tar is not None:
            _link_tar(part, tar, target.with_name(tar.name))
    except ValueError as error:
        return Exported(damage=(str(error),))
    _link(part.path, target)
    return Exported(written=1)


def _link_tar(part: StoredPart[Any], tar: Path, target: Path) -> None:
    """Link a tar.

    Raises:
        ValueError: If it is missing.
        OutputError: If the link cannot be made.
    """
    with part.files.tar(tar) as local:
        if not local.is_file():
            raise ValueError(f"{tar} is missing")
        _link(local, target)


def _link(source: Path, target: Path) -> None:
    """Make a hard link, or on another file system a copy, which appears whole."""
    with translate_os_errors(target):
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            with open(source, "rb") as file, atomic_open(target) as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
