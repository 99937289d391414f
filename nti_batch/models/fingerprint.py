"""The fingerprint of a model, which says whether two machines have the same weights and settings."""

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nti_batch.models.source import ModelSource
from nti_batch.models.weight_files import weight_files

_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
_THREADS = 8


def model_fingerprint(source: ModelSource) -> str | None:
    """Fingerprint of a model's files; nothing is fetched.

    A folder's is the SHA-256 over the lines "NAME SHA-256" of the files that its parts use, sorted by name. A single
    file's covers the file and its configuration, if it has one. A hub model's is the commit in the local cache, or the
    commit that the revision names.

    Returns:
        "sha256:HEX" or "commit:HEX"; None for a hub id that the local cache does not hold.

    Raises:
        ValueError: If a file is missing or cannot be read.
    """
    if source.checkpoint:
        return _digest({"checkpoint.safetensors": source.checkpoint, **_configuration(source)})
    if source.folder:
        return _digest({name: source.folder / name for name in _used(source.folder, source.variant)})
    commit = _cached_commit(source.location, source.revision)
    return f"commit:{commit}" if commit else None


def check_fingerprint(source: ModelSource, expected: str | None) -> None:
    """Check that a model is the one that a run was made with.

    Args:
        source: Present place of the model.
        expected: Its fingerprint in the run. A commit and a checksum of files cannot be compared, and pass.

    Raises:
        ValueError: If it is another model, or there is none.
    """
    found = model_fingerprint(source)
    if found and expected and _kind(found) == _kind(expected) and found != expected:
        raise ValueError(
            f"model {source.name!r} is another one than the run was made with: its fingerprint is {found}, and the "
            f"run's is {expected}; give the run's model, or make a new run with this one"
        )


def _kind(fingerprint: str) -> str:
    return fingerprint.partition(":")[0]


def _configuration(source: ModelSource) -> dict[str, Path | str]:
    """What a single file takes from elsewhere: its JSON files and tokenizers, or the commit that has them."""
    if not source.config:
        return {}
    if not source.folder:
        return {"commit": _cached_commit(source.config, source.revision) or "unknown"}
    names = _used(source.folder, None)
    return {name: source.folder / name for name in names if not name.endswith(".safetensors")}


def _digest(files: dict[str, Path | str]) -> str:
    """Hash the list of hashes; the files are hashed side by side, since hashing lets other threads run."""
    with ThreadPoolExecutor(_THREADS) as threads:
        hashes = dict(zip(files, threads.map(_sha256, files.values()), strict=True))
    lines = "".join(f"{name} {hashes[name]}\n" for name in sorted(hashes))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def _sha256(file: Path | str) -> str:
    """Hash of a file; a commit stands for itself."""
    if isinstance(file, str):
        return file
    # a pipe would wait for ever
    if not file.is_file():
        raise ValueError(f"model file {str(file)!r}: there is no such file")
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"model file {str(file)!r} cannot be read: {error}") from error


def _used(folder: Path, variant: str | None) -> Iterator[str]:
    """Names of the files that a model is loaded from, relative to its folder."""
    if (folder / "model_index.json").is_file():
        yield "model_index.json"
    for part in _PARTS:
        # merges.txt and vocab.json are a tokenizer without tokenizer.json; an index only names the other files
        settings = [*(folder / part).glob("*.json"), *(folder / part).glob("*.txt")]
        for path in (*settings, *weight_files(folder, part, variant)):
            if ".index." not in path.name:
                yield path.relative_to(folder).as_posix()


def _cached_commit(name: str, revision: str | None) -> str | None:
    """Commit of a hub model: the revision itself, or the one in the local cache."""
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    try:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(name, "unet/config.json", revision=revision)
    except (ImportError, ValueError):  # ValueError: the name is no hub id
        return None
    # the cache keeps snapshots/COMMIT/unet/config.json
    return Path(path).parents[1].name if isinstance(path, str) else None
