"""`nti-batch env` and `nti-batch --version`."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch

import nti_batch
from nti_batch.cli import main

WITHOUT_PACKAGES = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "lightning", "diffusers", "transformers", "huggingface_hub", "numpy"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Absent())
from nti_batch.cli import main
sys.exit(main(["env", "--model", "user/model"]))
"""


def test_it_prints_what_is_installed(capsys: pytest.CaptureFixture[str]):
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = {
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "nti-batch": nti_batch.__version__,
        "python": f"CPython {sys.version.split()[0]}",
    }
    assert found | expected == found
    # a build's name, as in 2.13.0+cpu, is not part of every installation's version
    assert torch.__version__.startswith(found["torch"])
    assert found["processor"] and found["devices"] and "fingerprint" not in found


def test_every_fact_is_a_line(capsys: pytest.CaptureFixture[str]):
    assert main(["env", "--json", "--model", "demo"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fingerprint"].startswith("sha256:")
    assert main(["env", "--model", "demo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == list(found)


def test_a_model_that_is_no_file_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["env", "--model", "no.safetensors"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "nti-batch: model file 'no.safetensors': there is no such file\n" and not captured.out


def test_it_runs_where_no_package_does():
    done = subprocess.run([sys.executable, "-c", WITHOUT_PACKAGES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "devices: torch does not load (No module named 'torch')" in done.stdout
    assert "fingerprint: unknown" in done.stdout


def test_a_folder_that_takes_no_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["env"]) == 0
    assert f"file locks: yes, in {str(tmp_path)!r}" in capsys.readouterr().out

    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert main(["env"]) == 0
    assert "file locks: no ([Errno 37] No locks available)" in capsys.readouterr().out


def test_the_version_is_that_of_the_project_file(capsys: pytest.CaptureFixture[str]):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"nti-batch {project['version']}\n"
