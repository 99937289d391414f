"""Shows each document under its path in the repository, so that relative links work on GitHub and on the site."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE_DOCS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "examples/edits.ipynb",
    "slurm/README.md",
    "k8s/README.md",
    "nti_batch/demo/model/README.md",
    "nti_batch/demo/samples/README.md",
    "nti_batch/health/photographs/README.md",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Move the pages below `docs/`, and add the documents that lie elsewhere."""
    paths = [
        f"docs/{file.src_uri}" for file in files if file.src_dir == config.docs_dir and file.inclusion.is_included()
    ]
    moved = [File.generated(config, path, abs_src_path=str(ROOT / path)) for path in (*paths, *OUTSIDE_DOCS)]
    return Files([*(file for file in files if file.src_dir != config.docs_dir), *moved])
