"""The parser of the command line accepts the shipped YAML files."""

from pathlib import Path

import pytest
import yaml

from nti_batch.cli import main

CONFIGS = Path(__file__).parent.parent / "configs"
FAMILIES = sorted([*CONFIGS.glob("sd-*.yaml"), CONFIGS / "sdxl.yaml"])
FAST = CONFIGS / "fast.yaml"


def settings(capsys: pytest.CaptureFixture[str], command: str, *configs: Path) -> dict[str, dict[str, object]]:
    """Parse YAML files with the parser of a command."""
    with pytest.raises(SystemExit) as end:
        main([command, *(f"--config={config}" for config in configs), "--print_config"])
    assert end.value.code == 0
    shown: dict[str, dict[str, object]] = yaml.safe_load(capsys.readouterr().out)
    return shown


def assert_holds(shown: dict[str, dict[str, object]], config: Path) -> None:
    for section, keys in yaml.safe_load(config.read_text()).items():
        assert keys.items() <= shown[section].items()


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_key_of_a_config_sets_its_value(config: Path, capsys: pytest.CaptureFixture[str]):
    assert_holds(settings(capsys, "edit" if config.stem.startswith("edit") else "invert", config), config)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda path: path.stem)
def test_a_family_and_the_fast_settings_combine_in_either_order(family: Path, capsys: pytest.CaptureFixture[str]):
    for configs in ([family, FAST], [FAST, family]):
        shown = settings(capsys, "invert", *configs)
        for config in configs:
            assert_holds(shown, config)


def test_each_family_has_a_config():
    assert {path.stem for path in FAMILIES} == {"sd-1.4", "sd-1.5", "sd-2.1-base", "sd-2.1", "sdxl"}


def printed_config(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main([*argv, "--print_config"])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        ["invert", "--data.shards=demo", "--output.dir=o", "--model.solver=polyak", "--trainer.devices=2"],
        ["edit", "--data.inversions=i", "--output.dir=o", "--edit.kind=replace", "--model.batch_size=3"],
        ["bench", "--images=3", "--model.batch_size=2"],
    ],
)
def test_a_printed_config_sets_the_same_values(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = printed_config(argv, capsys)
    for flag in argv[1:]:
        name, _, value = flag.removeprefix("--").partition("=")
        setting = yaml.safe_load(config)
        for part in name.split("."):
            setting = setting[part]
        assert str(setting) == value
    (tmp_path / "job.yaml").write_text(config)
    assert printed_config([argv[0], f"--config={tmp_path / 'job.yaml'}"], capsys) == config
