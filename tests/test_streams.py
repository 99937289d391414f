"""A closed, full or abandoned standard output or error ends no command in a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BROKEN = ("closed pipe", "/dev/full", "closed")
CASES = [*((["--help"], state) for state in BROKEN), (["status", "--help"], "closed pipe"), (["env"], "closed pipe")]


def run(arguments: list[str], out: str, err: str, folder: Path) -> tuple[int, str]:
    """Run a command with streams in some state; return its exit code and what it could print."""
    script = 'nti=("$@"); exec 9>printed; '
    for stream, state in ((1, out), (2, err)):
        target = {"open": "&9", "closed pipe": "pipe", "/dev/full": "/dev/full", "closed": "&-"}[state]
        script += f"exec {stream}>{target}; "
    # opening a named pipe for both directions does not wait, and once it is for writing alone, nobody reads it
    opened = "mkfifo pipe; exec 8<>pipe; exec 7>pipe; exec 8<&-; " + script.replace(">pipe", ">&7")
    command = [sys.executable, "-m", "nti_batch", *arguments]
    code = subprocess.run(
        ["bash", "-c", opened + 'exec "${nti[@]}" 7>&- 9>&-', "bash", *command],
        cwd=folder,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    ).returncode
    return code, (folder / "printed").read_text()


@pytest.mark.parametrize(("arguments", "state"), CASES)
def test_output_that_nobody_takes_ends_in_an_exit_code(arguments: list[str], state: str, tmp_path: Path):
    code, printed = run(arguments, state, "open", tmp_path)
    assert code in (0, 1, 2)
    assert "Traceback" not in printed and "Exception ignored" not in printed
    assert printed == ""


def test_json_on_a_full_disk_is_an_error_in_one_line(tmp_path: Path):
    assert run(["env", "--json"], "/dev/full", "open", tmp_path) == (1, "nti-batch: No space left on device\n")


@pytest.mark.parametrize("state", BROKEN)
def test_an_error_that_cannot_be_printed_keeps_its_exit_code(state: str, tmp_path: Path):
    assert run(["status", "nowhere"], "open", state, tmp_path)[0] == 2


def test_a_character_that_the_terminal_lacks_is_escaped(tmp_path: Path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    script = "from nti_batch import streams, terminal; streams.open_streams(); terminal.print_outcome(['é'])"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "\\xe9\n"
