"""The fingerprint of a model, which says whether two machines have the same weights and settings."""

import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from nti_batch.models.source import ModelSource
from nti_batch.models.weight_files import weight_files

_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
_THREADS = 8


def model_fingerprint(source: ModelSource) -> str | None:
    """Fingerprint of a model's files; nothing is fetched.

    A folder's is the SHA-256 over the lines "NAME SHA-256" of the files that its parts use, sorted by name. A single
    file's covers the file and its configuration, if it has one. A hub model's is the commit in the local cache, or the
    commit that the revision names. Another VAE and each LoRA add their own.

    Returns:
        "sha256:HEX" or "commit:HEX", then " vae=sha256:HEX" or " vae=commit:HEX", then " lora=sha256:HEX*WEIGHT" for
        each LoRA; None for a hub id that the local cache does not hold.

    Raises:
        ValueError: If a file is missing or cannot be read.
    """
    found = [_fingerprint(source.own, _PARTS)]
    if source.vae is not None:
        vae = _fingerprint(source.of_part("vae"), ("vae",))
        found.append(vae and f"vae={vae}")
    found += [f"lora=sha256:{_sha256(lora.file)}*{lora.weight}" for lora in source.loras]
    return None if None in found else " ".join(filter(None, found))


def _fingerprint(source: ModelSource, parts: Sequence[str]) -> str | None:
    """Fingerprint of some parts of a model."""
    if source.checkpoint:
        return _digest({"checkpoint.safetensors": source.checkpoint, **_configuration(source, parts)})
    if source.folder:
        return _digest(_used(source, parts))
    commit = _cached_commit(source, parts[0])
    return f"commit:{commit}" if commit else None


def check_fingerprint(source: ModelSource, expected: str | None) -> None:
    """Check that a model is the one that a run was made with.

    Args:
        source: Present place of the model.
        expected: Its fingerprint in the run. A commit and a checksum of files cannot be compared, and pass.

    Raises:
        ValueError: If it is another model, or there is none.
    """
    compare_fingerprints(source, model_fingerprint(source), expected)


def compare_fingerprints(source: ModelSource, found: str | None, expected: str | None) -> None:
    """Compare the fingerprint of a model with that of a run, as `check_fingerprint` does.

    Raises:
        ValueError: If they are of two models.
    """
    if found and expected and not _agree(found.split(), expected.split()):
        raise ValueError(
            f"model {source.name!r} is another one than the run was made with: its fingerprint is {found}, and the "
            f"run's is {expected}; give the run's model, or make a new run with this one"
        )


def _agree(found: Sequence[str], expected: Sequence[str]) -> bool:
    """Whether two models have the same parts, and no two comparable fingerprints of a part differ."""
    if len(found) != len(expected):
        return False
    for one, other in zip(found, expected, strict=True):
        (part, _, value), (other_part, _, other_value) = one.rpartition("="), other.rpartition("=")
        if part != other_part or (_kind(value) == _kind(other_value) and value != other_value):
            return False
    return True


def _kind(fingerprint: str) -> str:
    return fingerprint.partition(":")[0]


def _configuration(source: ModelSource, parts: Sequence[str]) -> dict[str, Path | str]:
    """What a single file takes from elsewhere: its JSON files and tokenizers, or the commit that has them."""
    if not source.config:
        return {}
    if not source.folder:
        return {"commit": _cached_commit(source, parts[0]) or "unknown"}
    used = _used(replace(source, variant=None), parts)
    return {name: path for name, path in used.items() if not name.endswith(".safetensors")}


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


def _used(source: ModelSource, parts: Sequence[str]) -> dict[str, Path | str]:
    """Files that parts of a model are loaded from, by their names in a folder of the whole model."""
    folder = source.folder
    assert folder is not None
    index = folder / "model_index.json"
    used: dict[str, Path | str] = {index.name: index} if parts == _PARTS and index.is_file() else {}
    for part in parts:
        subfolder = source.subfolder(part)
        # merges.txt and vocab.json are a tokenizer without tokenizer.json; an index only names the other files
        settings = [*(folder / subfolder).glob("*.json"), *(folder / subfolder).glob("*.txt")]
        for path in (*settings, *weight_files(folder, subfolder, source.variant)):
            if ".index." not in path.name:
                used[f"{part}/{path.name}"] = path
    return used


def _cached_commit(source: ModelSource, part: str) -> str | None:
    """Commit of a hub model: the revision itself, or the one in the local cache."""
    if source.revision and re.fullmatch(r"[0-9a-f]{40}", source.revision):
        return source.revision
    try:
        from huggingface_hub import try_to_load_from_cache

        # a VAE alone has its configuration in no subfolder
        names = f"{part}/config.json", "config.json"
        paths = [try_to_load_from_cache(source.location, name, revision=source.revision) for name in names]
    except (ImportError, ValueError):  # ValueError: the name is no hub id
        return None
    # the cache keeps snapshots/COMMIT/unet/config.json
    for path, depth in zip(paths, (1, 0), strict=True):
        if isinstance(path, str):
            return Path(path).parents[depth].name
    return None
