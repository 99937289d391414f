"""The help of the jobs, what a mistyped flag gives, and which flags are needed."""

import re
from pathlib import Path

import pytest

from nti_batch import cli
from nti_batch.exit_codes import WRONG_SETTINGS
from nti_batch.phrases import did_you_mean


def printed(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 0
    return capsys.readouterr().out


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(argv) == WRONG_SETTINGS
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(("command", "sections"), [("invert", 5), ("edit", 6)])
def test_help_has_each_flag_of_a_user_in_120_lines_and_help_all_the_others(
    command: str, sections: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    short, whole = printed([command, "--help"], capsys), printed([command, "--help_all"], capsys)
    assert len(short.splitlines()) <= 120 and max(map(len, short.splitlines())) <= 80
    assert (
        len(re.findall(r"^(?:model|data|output|edit|metrics|hardware|general):$", short, re.MULTILINE)) == sections + 1
    )
    known = {flag for flag in re.findall(r"^  (--[a-z_.]+)", whole, re.MULTILINE) if "." in flag}
    shown = set(re.findall(r"^  (--[a-z_.]+)", short, re.MULTILINE))
    assert {flag for flag in known if not flag.startswith("--trainer.")} <= shown
    assert "--trainer.devices" in shown and "--trainer.callbacks" in known - shown
    assert "--trainer.max_epochs" not in whole  # a job refuses it


def test_the_help_has_defaults_and_units(capsys: pytest.CaptureFixture[str]):
    text = " ".join(printed(["invert", "--help"], capsys).split())
    assert "--model.num_steps N Number of DDIM steps, T. [50]" in text
    assert "X Maximum time, in minutes, from the first record of a part to its commit. [10.0]" in text
    assert "[needed, or --data.shards]" in text


def test_the_help_of_edit_has_the_form_for_one_image(capsys: pytest.CaptureFixture[str]):
    assert "nti-batch edit --inversions RUN --key KEY --output FILE.png" in printed(["edit", "--help"], capsys)


def test_a_job_without_arguments_names_all_needed_flags(capsys: pytest.CaptureFixture[str]):
    assert "--data.images or --data.shards and --output.dir must be given" in refused(["invert"], capsys)
    assert "nti-batch: --output.dir must be given" in refused(["invert", "--data.images=photos"], capsys)
    assert "--data.inversions and --output.dir must be given" in refused(["edit"], capsys)


@pytest.mark.parametrize(
    ("typo", "flag"),
    [
        ("--model.stesp=3", "--model.num_steps"),
        ("--modle.num_steps=3", "--model.num_steps"),
        ("--num-steps=3", "--model.num_steps"),
        ("--data.imag=photos", "--data.images"),
        ("--trainer.device=2", "--trainer.devices"),
        ("--dry-run", "--dry_run"),
    ],
)
def test_a_mistyped_or_abbreviated_flag_gets_the_nearest_name(typo: str, flag: str, capsys: pytest.CaptureFixture[str]):
    assert refused(["invert", typo], capsys).endswith(f"; did you mean '{flag}'?\n")


def test_a_mistyped_key_of_a_file_and_a_mistyped_command_get_the_nearest_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "job.yaml").write_text("model: {num_step: 3}\n")
    assert "did you mean '--model.num_steps'?" in refused(["invert", f"--config={tmp_path / 'job.yaml'}"], capsys)
    assert "did you mean '--images'?" in refused(["bench", "--imges=3"], capsys)
    for argv, name in ((["statu"], "status"), (["status", "out", "--jsn"], "--json")):
        with pytest.raises(SystemExit) as end:
            cli.main(argv)
        assert end.value.code == WRONG_SETTINGS
        assert f"did you mean '{name}'?" in capsys.readouterr().err


def test_a_name_that_resembles_nothing_gets_no_suggestion():
    assert did_you_mean("--zzz", ["--model.num_steps", "--data.images"]) == ""
    assert did_you_mean("fsat", ["demo", "fast"]) == "; did you mean 'fast'?"
