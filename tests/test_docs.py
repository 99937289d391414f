"""Every command and example in the documents runs, every quoted text is the program's, every link leads somewhere."""

import ast
import dataclasses
import io
import json
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.pie_folder import write_pie_folder
from helpers.tiny import captioned, png, write_shard
from helpers.tiny_scores import torchmetrics_lpips, write_clip, write_dino, write_lpips
from PIL import Image

from nti_batch.cli import main
from nti_batch.commands.app import app
from nti_batch.commands.parser import function_parser
from nti_batch.diffusion.edit_settings import EditSettings
from nti_batch.editing.requests import read_requests

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "slurm/README.md", "k8s/README.md")
]
DOCUMENTS += [ROOT / "nti_batch" / "demo" / name / "README.md" for name in ("model", "samples")]
DOCUMENTS += [ROOT / "nti_batch" / "health" / "photographs" / "README.md"]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))
RUN = [document for document in DOCUMENTS if document.name != "use.md" and "```" in document.read_text()]
"""tests/output/test_export.py runs use.md."""

ON_CPU = ["--trainer.accelerator=cpu", "--trainer.devices=1"]
SHORTER = {
    "invert": ["--model.num_steps=2", *ON_CPU],
    "edit": ON_CPU,
    "pie-bench": ["--model.num_steps=2", "--methods", "ddim", *ON_CPU],
    "check": ["--num_steps=10"],
    "bench": ["--images=2", "--rounds=1", "--model.num_steps=2"],
}
"""Flags that make a command take seconds."""

HERE = {
    "--config configs/sd-1.5.yaml": "--model.name=demo",
    "--config configs/sdxl.yaml": "--model.name=demo",
    "/models/some-model.safetensors --model.config=/models/stable-diffusion-v1-5": "demo",
    "--model.compile=inductor --model.cuda_graphs=true": "",
    "/models/stable-diffusion-v1-5 --model.vae=/models/sd-vae-ft-mse": "demo",
    "--model.loras /models/style.safetensors=0.8 /models/detail": "",
    "/data/": "data/",
    "/results/": "results/",
    "{00000..00099}": "{00000..00001}",
    "--model.name=...": "--model.name=demo",
}
"""Stand-ins for real models, for what needs a GPU, and for the addresses of a cluster."""

LOGGER_FLAGS = {"--trainer.logger.save_dir", "--trainer.logger.project"}
"""Flags that exist once a logger is chosen."""

LOGGERS = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb"}
"""Loggers whose packages need not be installed."""

LONG = ("nti_batch.benchmarks.", "nti_batch.demo.evaluate")
"""Modules that measure for minutes: only their flags are tested here."""

ELSEWHERE = ("apptainer", "docker", "hf", "kubectl", "pip", "sbatch", "source")
"""CI installs the package, and tests/slurm/test_slurm.py runs the scripts under a Slurm; the others need a cluster or
a network."""


def blocks(document: Path, language: str) -> Iterator[str]:
    """The fenced code of a language."""
    yield from re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


def commands(document: Path) -> Iterator[list[str]]:
    """Words of each command in the shell's blocks."""
    for block in blocks(document, "bash"):
        for text, here in HERE.items():
            block = block.replace(text, here)
        block = re.sub(" > .*", "", block)
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder that has every file which the documents take for granted."""
    for folder in ("configs", "nti_batch", "slurm"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "scenes").mkdir()
    (tmp_path / "data" / "shards").mkdir(parents=True)
    for number in range(2):
        write_shard(tmp_path / "data" / "shards" / f"{number:05}.tar", captioned(2))
    shutil.copytree(tmp_path / "data" / "shards", tmp_path / "downloads")
    (tmp_path / "edits.jsonl").write_text(json.dumps({"key": "cup", "edit_prompt": "a blue cup"}))
    write_photos(tmp_path)
    (tmp_path / "job.yaml").write_text("data: {shards: data/shards/*.tar}\noutput: {dir: results/job}\n")
    write_pie_folder(tmp_path / "FOLDER")
    write_clip(tmp_path / "weights" / "clip")
    write_dino(tmp_path / "weights" / "dino")
    write_lpips(tmp_path / "weights" / "lpips", torchmetrics_lpips(monkeypatch))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_photos(folder: Path) -> None:
    """Write `photos`, a list of them, and edits of the cup."""
    (folder / "photos" / "cats").mkdir(parents=True)
    for number, (name, caption) in enumerate({"cup": "a red cup", "cats/tom": "a cat on a sofa"}.items()):
        Image.open(io.BytesIO(png(number, 64))).save(folder / "photos" / f"{name}.jpg")
        (folder / "photos" / f"{name}.txt").write_text(caption)
    (folder / "list.csv").write_text("file,text\nphotos/cup.jpg,a red cup\n")
    (lines,) = blocks(ROOT / "docs" / "tutorial.md", "json")
    (folder / "cup-edits.jsonl").write_text(lines)


def recipe(target: str) -> list[list[str]]:
    """Commands of a target of the Makefile."""
    (lines,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return [shlex.split(line.replace("$(BIN)/", "")) for line in lines.splitlines()]


def run_module(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a module as `python -m` does; return its exit code."""
    monkeypatch.setattr("sys.argv", [name, *arguments])
    monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        runpy.run_module(name, run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def run(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command, and expect success."""
    match words:
        case ["make", "demo"]:
            for line in recipe("demo"):
                run(line, monkeypatch, capsys)
        case ["make", "test" | "lint" as target]:
            assert recipe(target)
        case ["nti-batch", "bench", "--full-size", *arguments]:
            known = help_text(["bench", "--full-size"], capsys)
            assert all(flag in known for flag in re.findall(r"--[a-z_]+", " ".join(arguments))), words
        case ["nti-batch", "app", *arguments]:  # serves a page until Ctrl-C
            assert function_parser(app, "nti-batch app").parse_args(arguments)
        case ["nti-batch", command, *arguments] if any("s3:/" in argument for argument in arguments):
            known = help_text([command], capsys)
            assert all(flag in known for flag in re.findall(r"--[a-z_.]+", " ".join(arguments))), words
        case ["nti-batch", command, *arguments]:
            loggers = [logger for logger in LOGGERS if f"--trainer.logger={logger}" in arguments]
            if any(find_spec(LOGGERS[logger]) is None for logger in loggers):
                return
            more = [] if "--inversions" in arguments else SHORTER.get(command, [])
            assert main([command, *arguments, *more]) == 0, words
        case ["python", "-m", module, *arguments] if module.startswith(LONG):
            capsys.readouterr()
            assert run_module(module, ["--help"], monkeypatch) == 0
            known = capsys.readouterr().out
            assert all(flag in known for flag in re.findall(r"--[a-z_]+", " ".join(arguments))), words
        case ["python", "-m", module, *arguments]:
            assert run_module(module, arguments, monkeypatch) == 0, words
        case [program, *_]:
            assert program in ELSEWHERE, words


@pytest.mark.parametrize("document", RUN, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_and_example_runs(
    document: Path, site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for words in commands(document):
        run(words, monkeypatch, capsys)
    for block in blocks(document, "python"):
        code = compile(block, str(document), "exec")
        if "from_pretrained" not in block:  # fetches from the hub
            exec(code, {})


def program_texts() -> str:
    """Every text that the code may print, with `...` for what it fills in."""
    texts = []
    for path in sorted((ROOT / "nti_batch").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(_text_of(part) for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def _text_of(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else "..."


def test_the_error_texts_that_are_explained_are_those_of_the_code():
    titles = re.findall(r"^### (.*)$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    texts = [text for title in titles for text in re.findall(r"`([^`]* [^`]*)`", title)]
    known = program_texts()
    unknown = [text for text in texts if text not in known]
    assert not unknown and len(texts) > 20


def help_text(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Text that `--help` prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*arguments, "--help"])
    return capsys.readouterr().out


def test_the_list_of_commands_is_what_the_help_says(capsys: pytest.CaptureFixture[str]):
    (quoted,) = blocks(ROOT / "docs" / "commands.md", "text")
    assert f"COMMAND {' '.join(quoted.split())} options:" in " ".join(help_text([], capsys).split())


def test_every_flag_in_the_documents_exists(capsys: pytest.CaptureFixture[str]):
    names = re.findall(r"^    ([a-z-]+)", help_text([], capsys), re.MULTILINE)
    helps = [
        help_text(arguments, capsys) for arguments in ([], *([name] for name in names), ["edit", "--inversions=x"])
    ]
    capsys.readouterr()
    for name in ("invert", "edit"):
        with pytest.raises(SystemExit):
            main([name, "--help_all"])
    helps.append(capsys.readouterr().out)
    known = {"--version", *re.findall(r"--[a-z_.-]+[a-z]", " ".join(helps))}
    for document in DOCUMENTS:
        if document.name != "CHANGELOG.md":
            flags = re.findall(r"--(?:model|data|output|edit|trainer)\.[a-z_.]*[a-z_]", document.read_text())
            assert set(flags) - LOGGER_FLAGS <= known, document
    for document in (ROOT / "docs" / name for name in ("commands.md", "editing.md", "running.md", "pack.md", "use.md")):
        flags = re.findall(r"`(?:nti-batch [^`]*)?(--[a-z_-]+[a-z_])", document.read_text())
        assert set(flags) <= known, document


def test_the_lines_of_a_list_of_edits_are_understood_and_show_every_setting(tmp_path: Path):
    examples = [" ".join(block.splitlines()) for block in blocks(ROOT / "docs" / "editing.md", "json")]
    (tmp_path / "edits.jsonl").write_text("\n".join(examples))
    requests = read_requests(tmp_path / "edits.jsonl", ["00000"], EditSettings())
    given = {name for example in examples for name in json.loads(example)}
    assert {field.name for field in dataclasses.fields(EditSettings)} <= given
    assert len({request.settings.attention for request in requests}) == 3


def test_a_reader_reaches_the_end_of_the_readme():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 130 and max(map(len, lines)) <= 120


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path):
    links = re.findall(r"\]\(([^)#]+)", document.read_text())
    files = [link for link in links if not link.startswith("https://")]
    assert [link for link in files if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_of_the_project_that_a_document_names_exists(document: Path):
    homes = (ROOT, ROOT / "nti_batch")
    text = document.read_text()
    names = re.findall(r"`((?:\w+/)+(?:[\w-]+\.(?:py|yaml|sbatch))?)`", text) + re.findall(r"\btests/[\w/]+\.py", text)
    own = [name for name in names if any((home / name.split("/")[0]).is_dir() for home in homes)]
    assert [name for name in own if not any((home / name).exists() for home in homes)] == []
