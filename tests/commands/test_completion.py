"""`nti-batch completion` completes commands and flags."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.jobs import run_console

from nti_batch.cli import main


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the output of `nti-batch completion bash` to a file."""
    path = tmp_path_factory.mktemp("completion") / "nti-batch.bash"
    path.write_text(run_console(["completion", "bash"], timeout=600).stdout)
    return path


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("inv", "invert"),
        ("invert --data.sha", "--data.shards"),
        ("invert --dry", "--dry_run"),
        ("edit --data.inv", "--data.inversions"),
        ("edit --inv", "--inversions"),
        ("bench --output.sto", "--output.storage"),
        ("status --exit", "--exit_code"),
        ("completion z", "zsh"),
    ],
)
def test_bash_completes_commands_and_flags(bash_script: Path, words: str, completed: str):
    script = f"""
        source {bash_script}
        COMP_WORDS=(nti-batch {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        function=$(complete -p nti-batch | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
        "$function" nti-batch "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}"
        echo "${{COMPREPLY[@]}}"
    """
    shell = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert shell.stdout.split() == [completed], shell.stderr


def test_completion_without_its_package_is_refused_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "zsh"]) == 2
    assert "pip install 'nti-batch[completion]'" in capsys.readouterr().err
