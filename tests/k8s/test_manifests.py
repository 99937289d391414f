"""The manifests in `k8s/` follow the schema of Kubernetes, and name flags and exit codes of the program."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.tiny import captioned, write_shard

from nti_batch.cli import main
from nti_batch.exit_codes import SOME_FAILED, STOPPED, WRONG_SETTINGS

K8S = Path(__file__).parents[2] / "k8s"
MANIFESTS = sorted(K8S.glob("*.yaml"))


def load(name: str) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((K8S / name).read_text())
    return manifest


@pytest.fixture
def spec() -> dict[str, Any]:
    """Settings of the Job."""
    found: dict[str, Any] = load("invert.yaml")["spec"]
    return found


@pytest.fixture
def container(spec: dict[str, Any]) -> dict[str, Any]:
    """The Job's only container."""
    (found,) = spec["template"]["spec"]["containers"]
    return dict(found)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_follows_the_schema(path: Path):
    validate = pytest.importorskip("kubernetes_validate")
    manifest = yaml.safe_load(path.read_text())
    validate.validate(manifest, validate.latest_version(), strict=True)
    with pytest.raises(validate.ValidationError):
        validate.validate({**manifest, "sepc": {}}, validate.latest_version(), strict=True)


def test_each_exit_code_has_its_rule(spec: dict[str, Any], container: dict[str, Any]):
    rules = spec["podFailurePolicy"]["rules"]
    codes = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {}).get("values", ())}
    assert codes == {STOPPED: "Ignore", WRONG_SETTINGS: "FailJob", SOME_FAILED: "FailIndex"}
    assert all(rule["onExitCodes"]["containerName"] == container["name"] for rule in rules if "onExitCodes" in rule)
    # what the schema does not say: the API server refuses these rules otherwise
    assert spec["template"]["spec"]["restartPolicy"] == "Never" and spec["backoffLimitPerIndex"] > 0


def test_the_pods_share_one_volume_of_many_writers(spec: dict[str, Any], container: dict[str, Any]):
    storage = load("storage.yaml")
    (volume,) = spec["template"]["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == storage["metadata"]["name"]
    assert storage["spec"]["accessModes"] == ["ReadWriteMany"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    paths = [argument.partition("=")[2] for argument in container["args"] if "=/" in argument]
    assert all(path.startswith(f"{mount['mountPath']}/") for path in paths) and len(paths) == 3


def test_the_pods_of_all_indices_do_all_work_units(
    container: dict[str, Any],
    spec: dict[str, Any],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    write_shard(tmp_path / "a.tar", captioned(1))
    here = {
        "/data/models/stable-diffusion-v1-5": str(tiny_model),
        "/data/shards/*.tar": str(tmp_path / "a.tar"),
        "/data/runs/first": str(tmp_path / "out"),
        "0.0.0.0": "127.0.0.1",
    }
    units = 0
    for index in range(spec["completions"]):
        arguments = [argument.replace("$(JOB_COMPLETION_INDEX)", str(index)) for argument in container["args"]]
        for there, path in here.items():
            arguments = [argument.replace(there, path) for argument in arguments]
        arguments = [argument for argument in arguments if not argument.startswith("--metrics.")]
        more = [f"--data.units_per_shard={2 * spec['completions']}", "--trainer.accelerator=cpu", "--dry_run"]
        assert main([*arguments, *more]) == 0, arguments
        said = capsys.readouterr().out
        assert "2 work units" in said
        units += 2
    assert units == 2 * spec["completions"]


def test_the_metrics_are_served_to_other_machines_on_the_port_that_is_announced(
    container: dict[str, Any], spec: dict[str, Any]
):
    (port,) = container["ports"]
    assert f"--metrics.port={port['containerPort']}" in container["args"]
    assert "--metrics.host=0.0.0.0" in container["args"]
    assert spec["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])
