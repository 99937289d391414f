"""Imports run one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nti_batch

PACKAGE = Path(nti_batch.__file__).parent
LAYERS = [
    {"diffusion.schedule"},
    {"diffusion.guidance"},
    {
        "diffusion.alignment",
        "diffusion.ddim",
        "diffusion.metrics",
        "diffusion.pooled",
        "diffusion.rounding",
        "diffusion.batch_size",
        "diffusion.solvers",
    },
    {"diffusion.edits", "diffusion.null_text"},
    {"diffusion.pool", "diffusion.prompt_to_prompt"},
    {"diffusion.controlled_attention"},
    {"records", "archive", "folder", "tables"},
    {"transfer"},
    {"model_source", "text_encoders"},
    {"weights"},
    {"stable_diffusion", "stream", "images", "manifest", "masks", "lock", "signals", "lpips"},
    {"packing", "parts", "pie_bench", "learned_scores", "image_list"},
    {"shard_writer", "inversions", "edit_run", "editing", "edit_requests", "edit_scores"},
    {"module", "edit_module", "writer", "status", "run_numbers", "dataset", "export"},
    {"edit_status", "charts"},
    {"failure_limit", "page"},
    {"datamodule"},
    {"edit_datamodule"},
    {"job_log", "progress", "preview", "benchmarks.inverted", "benchmarks.stopwatch"},
    {"plan", "verify", "edit_preview", "report"},
    {"edit_verify"},
    {"job", "score_run", "edit_report"},
    {"edit_command", "pack_command", "run_commands", "completion"},
    {"benchmarks.reference_loop", "benchmarks.job_loop"},
    {
        "benchmarks.side_by_side",
        "benchmarks.solvers",
        "benchmarks.inner_step",
        "benchmarks.ranks",
        "benchmarks.ablations",
        "benchmarks.edits",
    },
    {"benchmarks.storage", "benchmarks.step_memory"},
    {"cli"},
    {"__main__"},
]
"""Files of one set do not know each other; the package's own `__init__` imports lazily, and `demo` is no part of it."""


def imports_of(path: Path) -> set[str]:
    """Full names of modules imported anywhere in a file, in functions too, but for type checking only."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    skipped = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module}
    return names


def modules() -> dict[str, Path]:
    """Module names below the package, without the demo."""
    files = [p for p in PACKAGE.rglob("*.py") if "demo" not in p.relative_to(PACKAGE).parts and p.name != "__init__.py"]
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in files}


def test_every_module_has_a_layer():
    assert set(modules()) == set().union(*LAYERS)


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_only_from_layers_below(name: str):
    own = next(i for i, layer in enumerate(LAYERS) if name in layer)
    below = set().union(*LAYERS[:own])
    ours = {m.removeprefix("nti_batch.") for m in imports_of(modules()[name]) if m.startswith("nti_batch.")}
    assert ours <= below, f"{name} imports {ours - below}"


@pytest.mark.parametrize("name", sorted(m for m in modules() if m.startswith("diffusion.")))
def test_the_method_imports_torch_and_nothing_else(name: str):
    roots = {m.split(".")[0] for m in imports_of(modules()[name])}
    assert roots - set(sys.stdlib_module_names) <= {"torch", "nti_batch"}


@pytest.mark.parametrize(
    ("foreign", "files"),
    [("diffusers", {"weights"}), ("transformers", {"weights", "learned_scores"})],
)
def test_networks_of_others_come_in_through_one_file_for_each_purpose(foreign: str, files: set[str]):
    assert {n for n, p in modules().items() if foreign in {m.split(".")[0] for m in imports_of(p)}} == files


def test_asking_for_help_imports_no_torch():
    check = "import sys; sys.argv[1:] = ['--help']\ntry: import nti_batch.__main__\nexcept SystemExit: pass\n"
    check += "sys.exit(any(m in sys.modules for m in ('torch', 'lightning', 'diffusers', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", check], stdout=subprocess.DEVNULL).returncode == 0
