"""Imports run one way: a package imports only from packages above it in the list, and no files import each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nti_batch

PACKAGE = Path(nti_batch.__file__).parent
PACKAGES = [
    "files",
    "phrases",
    "exit_codes",
    "streams",
    "terminal",
    "console",
    "json_object",
    "lock",
    "diffusion",
    "records",
    "models",
    "data",
    "settings",
    "scores",
    "output",
    "editing",
    "plans",
    "report",
    "jobs",
    "benchmarks",
    "health",
    "app",
    "commands",
    "cli",
    "__main__",
]
"""Each imports only from those before it. `demo` is not listed: no package imports it."""

SEPARATE = [("jobs", "report"), ("models", "data"), ("diffusion", "files")]
"""Pairs that do not import each other in either direction."""


def imports_of(path: Path) -> set[str]:
    """Full names of modules imported anywhere in a file, in functions too, but not for type checking only."""
    tree = ast.parse(path.read_text())
    skipped = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node not in skipped:
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node not in skipped:
            # `from package import module` names a module, too
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def modules() -> dict[str, Path]:
    """Files of the package by their module names below it, without the demo and the packages' own files."""
    files = (p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")
    named = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in files}
    return {name: path for name, path in named.items() if not name.startswith("demo.")}


MODULES = modules()
IMPORTS = {
    name: {m.removeprefix("nti_batch.") for m in imports_of(path)} & set(MODULES) for name, path in MODULES.items()
}


def package_of(module: str) -> str:
    return module.partition(".")[0]


def test_every_file_belongs_to_a_package_of_the_list():
    assert {package_of(name) for name in MODULES} == set(PACKAGES)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_file_imports_only_from_its_own_package_and_those_before_it(name: str):
    allowed = PACKAGES[: PACKAGES.index(package_of(name)) + 1]
    if name == "commands.completion":
        # it describes the whole command line
        allowed = [*allowed, "cli"]
    assert {m for m in IMPORTS[name] if package_of(m) not in allowed} == set()


@pytest.mark.parametrize(("one", "other"), SEPARATE)
def test_these_packages_do_not_know_each_other(one: str, other: str):
    pairs = {(package_of(name), package_of(m)) for name, imported in IMPORTS.items() for m in imported}
    assert not pairs & {(one, other), (other, one)}


def test_no_files_import_each_other_in_a_circle():
    """Remove files that import no remaining file until none is left; a circle would remain."""
    left = {name: set(imported) for name, imported in IMPORTS.items()}
    while free := [name for name, imported in left.items() if not imported]:
        for name in free:
            del left[name]
        for imported in left.values():
            imported.difference_update(free)
    assert left == {}


@pytest.mark.parametrize("name", sorted(m for m in MODULES if package_of(m) == "diffusion"))
def test_the_method_imports_torch_and_nothing_else(name: str):
    roots = {m.split(".")[0] for m in imports_of(MODULES[name])}
    assert roots - set(sys.stdlib_module_names) <= {"torch", "nti_batch"}


@pytest.mark.parametrize(
    ("foreign", "files"),
    [
        ("gradio", {"app.layout", "app.page", "app.serve"}),
        ("diffusers", {"models.loras", "models.weights", "benchmarks.full_size"}),
        (
            "transformers",
            {"models.loras", "models.tokenizers", "models.weights", "scores.learned", "benchmarks.full_size"},
        ),
        ("lightning", {m for m in MODULES if package_of(m) == "jobs"}),
    ],
)
def test_a_foreign_library_is_imported_in_few_places(foreign: str, files: set[str]):
    assert {name for name, path in MODULES.items() if foreign in {m.split(".")[0] for m in imports_of(path)}} <= files


def test_asking_for_help_imports_no_torch():
    check = "import sys; sys.argv[1:] = ['--help']\ntry: import nti_batch.__main__\nexcept SystemExit: pass\n"
    check += "sys.exit(any(m in sys.modules for m in ('torch', 'lightning', 'diffusers', 'PIL', 'jsonargparse')))"
    assert subprocess.run([sys.executable, "-c", check], stdout=subprocess.DEVNULL).returncode == 0
