"""Any file of a run, of its edits or of its settings may be damaged or forged: a command ends in words.

The long version tries more of the same: `pytest -m long tests/commands/test_hostile_files.py`.
"""

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.edits import edit, edits_flag
from helpers.fuzz import bounded
from helpers.jobs import arguments
from helpers.pie_folder import write_pie_folder
from helpers.tiny import captioned, write_shard

from nti_batch.cli import main
from nti_batch.json_object import Json

SITE = ("run", "edits", "pie", "list.jsonl", "list.csv", "job.yaml", "s.tar")
VALUES: list[Any] = [None, True, -1, 0, 1 << 40, 10**400, 1e308, float("nan"), "", "x" * 300, "\0", "\x1b[2J", "../x"]
VALUES += [[], {}, [[1]], {"a": 1}, ["x"] * 3]


@pytest.fixture(scope="module")
def site(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of inversions, a run of edits, a PIE-Bench folder, lists of edits and a YAML file."""
    folder = tmp_path_factory.mktemp("site")
    write_shard(folder / "s.tar", captioned(3))
    assert main(arguments(tiny_model, folder / "s.tar", folder / "run")) == 0
    words: dict[str, Json] = {
        "edit_prompt": "a blue circle",
        "mask": [0, 9],
        "mask_size": [16, 16],
        "equalizer": {"blue": 2},
    }
    listed = edits_flag(folder / "list.jsonl", {"key": "000", "shard": "s", **words}, {"key": "001", "shard": "s"})
    assert main(edit(folder / "run", folder / "edits", listed)) in (0, 3)
    write_pie_folder(folder / "pie")
    (folder / "list.csv").write_text("key,edit_prompt,equalizer\n000,a blue circle,blue=2\n")
    (folder / "job.yaml").write_text("model: {name: demo}\ndata: {shards: s.tar}\noutput: {dir: new}\n")
    return folder


@pytest.fixture
def here(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the site, entered."""
    restore(site, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def restore(site: Path, here: Path) -> None:
    """Copy the site anew."""
    for old in here.iterdir():
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    shutil.copytree(site, here, dirs_exist_ok=True)


def commands(site: Path, path: str) -> Iterator[list[str]]:
    """Commands without a model that read a file."""
    jobs = ["--dry_run", "--trainer.accelerator=cpu"]
    if path.startswith("run"):
        yield from (["status", "run"], ["verify", "run", "--json"], ["export", "run", "--output", "out"])
        yield ["edit", "--data.inversions=run", "--output.dir=new", *jobs]
    elif path.startswith("edits"):
        yield from (["status", "edits", "--json"], ["verify", "edits"], ["score", "edits"])
    elif path.startswith("job"):
        yield ["invert", "--config=job.yaml", *jobs]
    elif path != "s.tar":
        listed = "pie" if path.startswith("pie") else path
        yield ["edit", "--data.inversions=run", f"--data.edits={listed}", "--output.dir=new", *jobs]
    else:
        yield from (["status", "run"], ["verify", "run"])


def ends_in_words(site: Path, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the commands that read a file; each ends in an exit code of the list."""
    for command in commands(site, path):
        try:
            with bounded(60, megabytes=600):
                code = main(command)
        except SystemExit as end:
            code = int(end.code or 0)
        printed = "".join(capsys.readouterr())
        assert code in (0, 1, 2, 3), (command, code)
        assert "Traceback" not in printed, command


def files(here: Path) -> list[str]:
    """All files of a site, by their paths."""
    return sorted(str(path.relative_to(here)) for path in here.rglob("*") if path.is_file() and path.suffix != ".log")


def forge(value: Any, dice: random.Random) -> Any:
    """Replace, remove or add one value somewhere in a JSON."""
    if not isinstance(value, (dict, list)) or not value or dice.random() < 0.1:
        return dice.choice(VALUES)
    places = list(value) if isinstance(value, dict) else list(range(len(value)))
    place, copy = dice.choice(places), value.copy()
    if dice.random() < 0.1:
        del copy[place]
    else:
        copy[place] = forge(value[place], dice)
    return copy


def forge_json(content: bytes, dice: random.Random) -> bytes:
    """Forge a JSON, a row of a JSONL, or a manifest, whose checksum is made right again."""
    try:
        return json.dumps(forge(json.loads(content), dice)).encode()
    except ValueError:
        lines = content.decode().splitlines()
    which = dice.randrange(len(lines))
    lines[which] = json.dumps(forge(json.loads(lines[which]), dice))
    if '{"sha256": ' in lines[-1][:12]:
        lines[-1] = json.dumps({"sha256": hashlib.sha256("\n".join(lines[:-1]).encode()).hexdigest()})
    return ("\n".join(lines) + "\n").encode()


def flip_bytes(content: bytes, dice: random.Random) -> bytes:
    """Change some bytes, insert some, and perhaps cut the end."""
    changed = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(changed) + 1)
        changed[place : place + dice.randint(0, 3)] = dice.randbytes(dice.randint(0, 5))
    return bytes(changed[: dice.randrange(len(changed) + 1)] if dice.random() < 0.2 else changed)


def forge_tensors(content: bytes, dice: random.Random) -> bytes:
    """Forge a number in the header of the first safetensors of a part."""
    digits = list(re.finditer(rb"(?<=[\[,])\d+", content[:4096]))
    if not digits:
        return flip_bytes(content, dice)
    found = dice.choice(digits)
    return content[: found.start()] + b"9" * len(found[0]) + content[found.end() :]


def damage(path: Path, dice: random.Random) -> None:
    """Damage or forge a file in one of many ways."""
    content = path.read_bytes()
    is_json = path.suffix in (".json", ".jsonl", ".complete")
    ways: list[Callable[[bytes, random.Random], bytes]] = [flip_bytes]
    ways += [forge_json] * 4 if is_json else [forge_tensors] if path.suffix == ".tar" else []
    path.write_bytes(dice.choice(ways)(content, dice))
    if path.suffix == ".tar" and path.name != "s.tar" and dice.random() < 0.7:
        match_checksum(path)


def match_checksum(part: Path) -> None:
    """Write the checksum of a part into its manifest, as a forger does."""
    for manifest in part.parent.glob("*.jsonl"):
        *rows, footer, _ = manifest.read_text().splitlines()
        values = json.loads(footer)
        if values["tar"] == part.name:
            footer = json.dumps({**values, "tar_sha256": hashlib.sha256(part.read_bytes()).hexdigest()})
            checked = "\n".join([*rows, footer])
            checksum = json.dumps({"sha256": hashlib.sha256(checked.encode()).hexdigest()})
            manifest.write_text(f"{checked}\n{checksum}\n")


def fuzz(site: Path, here: Path, examples: int, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Damage one file at a time."""
    dice = random.Random(seed)
    names = [name for name in files(here) if not name.endswith((".png", ".jpg", ".lock"))]
    for number in range(examples):
        name = names[number % len(names)]
        damage(here / name, dice)
        try:
            ends_in_words(site, name, capsys)
        except BaseException as error:
            error.add_note(f"seed {seed}, example {number}, {name}: {(here / name).read_bytes()[:3000]!r}")
            raise
        restore(site, here)


def test_a_damaged_or_forged_file_ends_in_words(site: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    fuzz(site, here, 60, 0, capsys)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_damaged_or_forged_files_end_in_words(
    seed: int, site: Path, here: Path, capsys: pytest.CaptureFixture[str]
):
    fuzz(site, here, 300, seed, capsys)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def become_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def grow(path: Path) -> None:
    os.truncate(path, 1 << 31)


KINDS = ["run/run.json", "run/inversions/*.jsonl", "run/inversions/*.tar", "run/inversions/*.complete"]
KINDS += ["edits/edits/*.jsonl", "edits/edits/*.tar", "list.jsonl", "list.csv", "job.yaml", "pie/mapping_file.json"]


@pytest.mark.parametrize("change", [empty, become_folder, become_loop, become_pipe, grow])
def test_a_file_that_is_none_ends_in_words(
    change: Callable[[Path], None], site: Path, here: Path, capsys: pytest.CaptureFixture[str]
):
    """A list of edits, a YAML file and an input shard are the user's own: their pipes are waited for."""
    for kind in KINDS:
        is_own = not kind.startswith(("run", "edits"))
        if (is_own and change in (become_pipe, grow)) or (change is grow and kind.endswith(".tar")):
            continue
        path = next(here.glob(kind))
        change(path)
        ends_in_words(site, str(path.relative_to(here)), capsys)
        restore(site, here)


def test_a_report_of_damaged_files_ends_in_words(site: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    for name, kind in (("run", "inversions"), ("edits", "edits")):
        for path in sorted((here / name / kind).glob("*")):
            if path.suffix in (".tar", ".jsonl"):
                path.write_bytes(flip_bytes(path.read_bytes(), random.Random(3)))
                assert main(["report", name, "--images=0"]) in (0, 2)
                restore(site, here)
    assert "Traceback" not in "".join(capsys.readouterr())
