"""Ready configurations are found by name from any folder."""

from pathlib import Path

import pytest
import yaml

import nti_batch
from nti_batch.cli import main
from nti_batch.jobs.configs import CONFIGS

SOURCE = Path(__file__).parents[2] / "configs"


def test_the_project_has_one_copy_of_each_configuration():
    assert CONFIGS.parent == Path(nti_batch.__file__).parent
    assert CONFIGS.resolve() == SOURCE.resolve()


def test_a_configuration_is_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sdxl").mkdir()
    with pytest.raises(SystemExit):
        main(["invert", "--config", "sdxl", "--config=fast", "--print_config"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"]["name"] == "stabilityai/stable-diffusion-xl-base-1.0"
    assert shown["model"]["early_stop_growth"] == 0


def test_an_unknown_name_gets_the_nearest_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["invert", "--config", "fsat"]) == 2
    assert "did you mean 'fast'?" in capsys.readouterr().err


def test_the_list_has_every_configuration_with_what_it_is_for(capsys: pytest.CaptureFixture[str]):
    assert main(["configs"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert set(listed) == {path.stem for path in SOURCE.glob("*.yaml")}
    assert listed["fast"].startswith("The fewest UNet evaluations and bytes")


def test_the_demo_runs_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["invert", "--config=demo", "--dry_run"]) == 0
    assert "input: 1 shards" in capsys.readouterr().out
