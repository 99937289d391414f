"""Shell commands among the shards run with the literal flag of the command line alone."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.edits import edit, edits_flag, rows
from helpers.jobs import arguments, status_of
from helpers.tiny import captioned, write_shard

from nti_batch import InversionDataset
from nti_batch.cli import main
from nti_batch.data import download
from nti_batch.jobs.consent import FLAG
from nti_batch.json_object import Json

MASKED: dict[str, Json] = {
    "key": "000",
    "edit_prompt": "a small blue circle, number 0",
    "mask": [0, 64],
    "mask_size": [16, 16],
}


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a shard, its inversions, and edits that have masks."""
    folder = tmp_path_factory.mktemp("consent")
    shard = write_shard(folder / "a.tar", captioned(2))
    assert main(arguments(tiny_model, shard, folder / "inverted")) == 0
    edits = edits_flag(folder / "edits.jsonl", MASKED)
    assert main(edit(folder / "inverted", folder / "edited", edits)) == 0
    return folder


@pytest.fixture
def forged(finished: Path, tmp_path: Path) -> Path:
    """Copy of the folder; the inversions' `run.json` reads its shard by a command, which leaves the file `ran`."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    recorded = tmp_path / "inverted" / "run.json"
    content = json.loads(recorded.read_text())
    content["shards"] = {"a": f"pipe:touch {tmp_path}/ran; cat {tmp_path}/a.tar"}
    recorded.write_text(json.dumps(content))
    recorded = tmp_path / "edited" / "run.json"
    content = json.loads(recorded.read_text())
    content["settings"]["data"]["inversions"] = str(tmp_path / "inverted")
    content["settings"]["data"]["edits"] = str(tmp_path / "edits.jsonl")
    recorded.write_text(json.dumps(content))
    return tmp_path


REFUSED = {
    "status": ["status", "inverted"],
    "verify": ["verify", "inverted"],
    "verify --recompute": ["verify", "inverted", "--recompute=1"],
    "report": ["report", "inverted"],
    "score": ["score", "edited"],
}


@pytest.mark.parametrize("command", REFUSED)
def test_a_command_in_run_json_runs_with_the_flag_alone(
    forged: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(forged)
    (forged / "inverted" / "inversions" / "a.0of2.complete").unlink()
    assert main(REFUSED[command]) == 2
    assert "shard 'pipe:... a.tar' runs a command in a shell: add --data.allow_pipe=true" in capsys.readouterr().err
    assert not (forged / "ran").exists()
    assert main([*REFUSED[command], f"{FLAG}=true"]) == 0
    assert (forged / "ran").exists()


def test_a_job_refuses_a_command_in_run_json_before_it_computes(
    forged: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
):
    for file in (forged / "inverted" / "inversions").glob("*.complete"):
        file.unlink()
    job = arguments(tiny_model, forged / "a.tar", forged / "inverted")
    recorded = json.loads((forged / "inverted" / "run.json").read_text())
    recorded["shards"] = {"a": str(forged / "a.tar"), "b": f"pipe:touch {forged}/ran; cat b.tar"}
    (forged / "inverted" / "run.json").write_text(json.dumps(recorded))
    for more in ([], ["--dry_run"]):
        assert main([*job, *more]) == 2
        assert "'pipe:... b.tar' runs a command in a shell" in capsys.readouterr().err
    assert not (forged / "ran").exists()


def test_edits_with_masks_read_their_input_with_the_flag_alone(forged: Path, capsys: pytest.CaptureFixture[str]):
    job = edit(forged / "inverted", forged / "again", f"--data.edits={forged / 'edits.jsonl'}")
    assert main(job) == 2
    assert "runs a command in a shell" in capsys.readouterr().err
    assert not (forged / "ran").exists() and not (forged / "again").exists()
    assert main([*job, f"{FLAG}=true"]) == 0
    (row,) = rows(forged / "again").values()
    assert row.psnr_unedited is not None


def test_what_reads_no_input_asks_for_no_consent(forged: Path, capsys: pytest.CaptureFixture[str]):
    assert main(edit(forged / "inverted", forged / "again")) == 0
    assert main(["edit", f"--inversions={forged / 'inverted'}", "--key=000", f"--output={forged / 'x.png'}"]) == 0
    assert main(["export", str(forged / "inverted"), "--output", str(forged / "exported")]) == 0
    for command in ("status", "report"):
        assert main([command, str(forged / "edited")]) == 0
    assert main(["verify", str(forged / "inverted"), f"--data.shards={forged / 'a.tar'}"]) == 0
    with pytest.raises(ValueError, match=r"shard 'pipe:\.\.\. a\.tar' is remote"):
        InversionDataset(forged / "inverted", pixels=True)[0]
    assert not (forged / "ran").exists()
    assert status_of(forged / "edited", capsys)["done"] == 1


def test_the_warning_about_inputs_that_cannot_be_read_shows_no_credentials(
    forged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(download, "RETRY_DELAYS", ())
    recorded = forged / "inverted" / "run.json"
    address = "http://user:PASSWORD@127.0.0.1:9/a.tar?key=TOKEN"  # nobody listens there
    recorded.write_text(json.dumps({**json.loads(recorded.read_text()), "shards": {"a": address}}))
    assert main(edit(forged / "inverted", forged / "again", f"--data.edits={forged / 'edits.jsonl'}")) == 0
    printed = capsys.readouterr().err
    assert "http://127.0.0.1:9/a.tar: 1 of 1 inputs cannot be read" in printed
    shown = printed + (forged / "again" / "log" / "rank-0.log").read_text()
    assert "PASSWORD" not in shown and "TOKEN" not in shown


SPELLINGS = {
    "a file": ["--config=FOLDER/c.yaml"],
    "a file of the section": ["--data=FOLDER/d.yaml"],
    "a file after the flag": [f"{FLAG}=false", "--config=FOLDER/c.yaml"],
    "text in place of a file": ["--config=data: {allow_pipe: true}"],
    "a section as text": ['--data={"allow_pipe": true}'],
    "another word": [f"{FLAG}=yes"],
    "an environment variable": [],
}


@pytest.mark.parametrize(
    ("command", "spelling"),
    [(command, spelling) for command in ("invert", "edit", "bench") for spelling in SPELLINGS]
    + [("status", spelling) for spelling, flags in SPELLINGS.items() if "--config" not in " ".join(flags)],
)
def test_nothing_but_the_literal_flag_consents(
    forged: Path,
    tiny_model: Path,
    command: str,
    spelling: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    (forged / "c.yaml").write_text("data:\n  allow_pipe: true\n")
    (forged / "d.yaml").write_text("allow_pipe: true\n")
    if spelling == "an environment variable":
        monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
        for prefix in ("PL", "NTI_BATCH STATUS", "NTI_BATCH BENCH"):
            monkeypatch.setenv(f"{prefix}_DATA__ALLOW_PIPE", "true")
    pipe = f"pipe:touch {forged}/ran; cat {forged}/a.tar"
    line = {
        "invert": arguments(tiny_model, pipe, forged / "new"),
        "edit": edit(forged / "inverted", forged / "new", f"--data.edits={forged / 'edits.jsonl'}"),
        "status": ["status", str(forged / "inverted")],
        "bench": ["bench", f"--data.shards={pipe}", "--images=1", "--rounds=1", f"--model.name={tiny_model}"],
    }[command]
    flags = [word.replace("FOLDER", str(forged)) for word in SPELLINGS[spelling]]
    assert main([*line, *flags]) == 2
    assert "data.allow_pipe is true without the flag: a configuration file or an" in capsys.readouterr().err
    assert not (forged / "ran").exists() and not (forged / "new").exists()


@pytest.mark.parametrize("flag", [[f"{FLAG}=true"], [FLAG, "true"], [f"{FLAG}=false", f"{FLAG}=true"]])
def test_the_literal_flag_consents_in_every_form(forged: Path, flag: list[str]):
    (forged / "inverted" / "inversions" / "a.0of2.complete").unlink()
    assert main(["status", str(forged / "inverted"), *flag]) == 0
    assert (forged / "ran").exists()


@pytest.mark.parametrize("place", ["top", "settings", "data"])
def test_consent_in_run_json_is_refused(forged: Path, place: str, capsys: pytest.CaptureFixture[str]):
    recorded = forged / "inverted" / "run.json"
    content = json.loads(recorded.read_text())
    section = {"top": content, "settings": content["settings"], "data": content["settings"]["data"]}[place]
    section["allow_pipe"] = True
    recorded.write_text(json.dumps(content))
    assert main(["status", str(forged / "inverted")]) == 2
    assert "allow_pipe is an unknown key" in capsys.readouterr().err
    assert not (forged / "ran").exists()
