"""The state of a shard's files changes with them, for the work unit that reads them alone."""

import os
from pathlib import Path
from zlib import crc32

from helpers.pack import write_folder

from nti_batch.data.input_state import input_states


def test_a_file_of_a_folder_changes_the_state_of_its_work_unit_alone(tmp_path: Path):
    folder = write_folder(tmp_path / "source", ("a", "b", "c"))
    before = input_states(str(folder), 4)
    assert input_states(str(folder), 4) == before
    os.utime(folder / "b.txt", ns=(1, 1))
    assert changed(before, input_states(str(folder), 4)) == {crc32(b"b") % 4}
    before = input_states(str(folder), 4)
    write_folder(folder, ("new",))
    assert changed(before, input_states(str(folder), 4)) == {crc32(b"new") % 4}


def test_a_folder_that_moves_keeps_its_state(tmp_path: Path):
    folder = write_folder(tmp_path / "source", ("a", "b", "c"))
    before = input_states(str(folder), 2)
    assert input_states(str(folder.rename(tmp_path / "moved")), 2) == before


def test_a_tar_changes_the_state_of_all_its_work_units_and_a_remote_one_has_none(tmp_path: Path):
    tar = tmp_path / "a.tar"
    tar.write_bytes(b"1")
    before = input_states(str(tar), 2)
    tar.write_bytes(b"12")
    assert changed(before, input_states(str(tar), 2)) == {0, 1}
    assert input_states("https://host/a.tar", 2) == ["", ""]


def changed(before: list[str], after: list[str]) -> set[int]:
    return {index for index, (one, other) in enumerate(zip(before, after, strict=True)) if one != other}
