"""Both recipes of the container have the same base and copy the same files; `.ci` cannot build them."""

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "container" / "Dockerfile").read_text()
DEFINITION = (ROOT / "container" / "nti-batch.def").read_text()


def test_both_recipes_have_the_same_base():
    (base,) = re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.findall(r"^    base=(\S+)$", DEFINITION, re.MULTILINE) == [base]
    assert "FROM ${BASE}\n" in DOCKERFILE and "\nFrom: {{ base }}\n" in DEFINITION


def test_both_recipes_copy_the_same_files_which_exist():
    copied = set()
    for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE):
        *sources, target = line.split()
        copied |= {(source, f"{target}{Path(source).name}" if target.endswith("/") else target) for source in sources}
    (section,) = re.findall(r"^%files\n((?:    .*\n)+)", DEFINITION, re.MULTILINE)
    assert {tuple(line.split()) for line in section.splitlines()} == copied
    assert all((ROOT / source).exists() for source, _ in copied)


def test_the_script_that_both_run_is_a_program_for_a_plain_shell():
    script = ROOT / "container" / "install.sh"
    assert script.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", str(script)], check=True)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (named,) = re.findall(r"/src\[([\w,]+)\]", script.read_text())
    assert set(named.split(",")) <= extras.keys()


def test_what_the_package_is_built_from_is_in_the_container():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert all(f"{name} " in DOCKERFILE for name in (project["readme"], *project["license-files"]))
