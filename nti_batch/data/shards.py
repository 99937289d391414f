"""Expands the settings of the input into shards, and shards into work units.

A shard is a tar, or a folder of images, whose keys are paths without extensions. Patterns are WebDataset's.

The name of a shard is its identity: a tar has its file name, and a folder of images is always called `images`. The
address of a shard may change. It may hold a password or a token: messages show its `public_address`.
"""

import glob
import os
import re
from collections.abc import Iterable, Mapping

from webdataset.shardlists import expand_urls

from nti_batch.data.folder import IMAGE_EXTENSIONS, extension_of, is_run_folder, read_file
from nti_batch.data.hub import list_hub
from nti_batch.data.object_stores import STORES, list_objects, split_address
from nti_batch.phrases import hide_credentials, without_credentials
from nti_batch.records import WorkUnit

Shards = Mapping[str, str]
"""Address of each input shard by its name."""

FOLDER_SHARD = "images"
"""Name of a folder of images, wherever it is."""

MAX_LIST_BYTES = 1 << 28
"""Largest '@FILE'."""

MAX_UNITS_IN_ALL = 1 << 22
MAX_SHARD_NAME_BYTES = 216
"""File systems take names of 255 bytes; '.65535of65536.00000.tar.salvage' comes behind the name of a shard."""

COMMAND = "pipe:"
"""Scheme of a shell command, whose output is a shard."""

_SCHEMES = {"file", "pipe", "http", "https", "hf", *STORES}
_ENDING = re.compile(r"\.(tar(\.(gz|bz2|xz))?|tgz)$", re.IGNORECASE)
_OF_IMAGES = (*IMAGE_EXTENSIONS, "txt")
_TAR = re.compile(r".+\.(?:tar(?:\.\w+)?|tgz)(?![\w.])", re.IGNORECASE)


def input_shards(shards: str | None, images: str | None, allow_pipe: bool = False) -> dict[str, str]:
    """Return the name and the address of each shard of the input.

    Args:
        shards: Patterns of tars, as for `expand_shards`.
        images: A folder of images, in place of `shards`.
        allow_pipe: Whether 'pipe:COMMAND' may be among the shards.

    Raises:
        ValueError: If both or none are given, nothing is found, or two shards have one name.
    """
    if shards is not None and images is None:
        return name_shards(expand_shards(shards, allow_pipe))
    if images is not None and shards is None:
        return {FOLDER_SHARD: check_folder(images)}
    raise ValueError(
        f"data.shards is {_public_patterns(shards)!r} and data.images is {images!r}: give one of them, tars with "
        "--data.shards or a folder of images with --data.images"
    )


def expand_shards(patterns: str, allow_pipe: bool = False) -> list[str]:
    """Expand patterns into the address of each shard, once.

    Args:
        patterns: Paths, globs, braces and urls, joined by '::'; '@FILE' is a text file with one pattern a line. Of a
            folder, and of what a glob matches, only the tars are taken. Globs match in object stores and on the hub,
            too.
        allow_pipe: Whether 'pipe:COMMAND' may be among them.

    Raises:
        ValueError: If nothing is found, or a pattern cannot be expanded or is not allowed.
    """
    expanded = [line for pattern in _expand(patterns) for line in _lines(pattern)]
    shards = list(dict.fromkeys(shard for pattern in expanded for shard in _matches(pattern)))
    if not allow_pipe:
        refuse_pipes(shards)
    return shards


def check_folder(folder: str) -> str:
    """Return the absolute path of a folder of images, which is read as one shard.

    Raises:
        ValueError: If there is no such folder, or one of tars.
    """
    if not os.path.isdir(folder):
        raise ValueError(
            f"images: {folder!r} is no folder, seen from {os.getcwd()!r}; give one with images and captions in it, "
            "or tars with --data.shards"
        )
    if tars := _tars_alone(folder):
        raise ValueError(
            f"images: {folder!r} holds no image, but {len(tars)} tars such as {min(tars)!r}: give it with --data.shards"
        )
    return os.path.abspath(folder)


def _tars_alone(folder: str) -> list[str]:
    """Return the names of the tars in a folder that has no image, no subfolder and no caption beside them."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() or extension_of(entry.name) in _OF_IMAGES]
    return [] if names else [name for name in os.listdir(folder) if _ENDING.search(name)]


def refuse_pipes(urls: Iterable[str]) -> None:
    """Check that no address runs a command in a shell.

    Raises:
        ValueError: If one does.
    """
    for url in urls:
        if url.startswith(COMMAND):
            raise ValueError(
                f"shard {public_address(url)!r} runs a command in a shell: add --data.allow_pipe=true if you trust "
                "where it comes from"
            )


def _expand(patterns: str) -> list[str]:
    try:
        expanded: list[str] = expand_urls(patterns)
    except (AssertionError, ValueError) as error:
        shown = _public_patterns(patterns)
        raise ValueError(f"shards {shown!r} cannot be expanded: {error}; check its braces and variables") from error
    return expanded


def _lines(pattern: str) -> list[str]:
    """Return the pattern itself, or the patterns in the file that it names."""
    if not pattern.startswith("@"):
        return [pattern]
    try:
        lines = read_file(pattern[1:], MAX_LIST_BYTES).decode().splitlines()
    except ValueError as error:
        raise ValueError(f"shards '@{public_address(pattern[1:])}': the list cannot be read: {error}") from error
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise ValueError(f"shards {pattern!r}: the list is empty; give one path, glob or url a line")
    return [expanded for line in found for expanded in _expand(line)]


def _matches(pattern: str) -> list[str]:
    if is_url(pattern):
        return _matches_of_url(pattern)
    if "://" in pattern:
        raise ValueError(
            f"shard {public_address(pattern)!r} has an unknown scheme, allowed: "
            f"{', '.join(sorted(_SCHEMES))}; use 'pipe:COMMAND', which writes it to its stdout"
        )
    # a name may hold brackets itself
    if os.path.exists(pattern) and not os.path.isdir(pattern):
        return [pattern]
    matches = glob.glob(f"{glob.escape(pattern)}/**" if os.path.isdir(pattern) else pattern, recursive=True)
    others = [path for path in _files_of_others(matches) if not os.path.isdir(path)]
    files = [path for path in others if _ENDING.search(path)]
    if not files:
        raise ValueError(
            f"shards: no {'tar' if others else 'file'} matches {pattern!r}, seen from {os.getcwd()!r}; "
            "give tars as paths, a folder of them, 'folder/*.tar', '{000..009}.tar', urls or several of them joined by "
            "'::', or a folder of images with --data.images"
        )
    return files


def _matches_of_url(pattern: str) -> list[str]:
    """Expand a glob, or a folder (which ends in '/'), of a store or the hub; other urls stay as they are."""
    scheme = pattern.partition(":")[0]
    if scheme in STORES:
        split_address(pattern)
    elif scheme != "hf":
        return [pattern]
    names = f"{pattern}**" if pattern.endswith("/") else pattern
    tars = _listed_tars(names) if re.search(r"[*?\[]", names) else [pattern]
    if unclear := [tar for tar in tars if public_address(tar) != tar]:
        raise ValueError(
            f"shard {public_address(unclear[0])!r} goes on with '?' or '#', as do credentials in a url, so that it "
            "could not be named: rename it"
        )
    return tars


def _listed_tars(pattern: str) -> list[str]:
    scheme = pattern.partition(":")[0]
    found = list_objects(pattern) if scheme in STORES else list_hub(pattern)
    tars = sorted(address for address in found if _ENDING.search(address))
    if not tars:
        raise ValueError(
            f"shards: no {'tar' if found else 'file'} matches {public_address(pattern)!r}; give tars as "
            f"'{scheme}://.../00000.tar', '.../{{000..009}}.tar', '.../*.tar', or a folder of them that ends in '/'"
        )
    return tars


def _files_of_others(paths: Iterable[str]) -> list[str]:
    """Return the paths, sorted, without those in the output folder of a job."""
    return [path for path in sorted(paths) if not is_run_folder(os.path.dirname(os.path.dirname(path)) or ".")]


def is_url(address: str) -> bool:
    """Return whether an address is a url or a command; otherwise it is a path."""
    scheme, colon, _ = address.partition(":")
    return bool(colon) and scheme in _SCHEMES


def stored_address(address: str) -> str:
    """Return an address for a file: the same from every working folder, and without credentials in its urls."""
    if address.startswith(COMMAND):
        return hide_credentials(address)
    return public_address(address if is_url(address) else os.path.abspath(address))


def public_address(url: str) -> str:
    """Return what may be shown of an address: no user, password, query or fragment of a url, and no command."""
    if url.startswith(COMMAND):
        return f"{COMMAND}... {_file_name(url)}".rstrip()
    return without_credentials(url) if is_url(url) or "://" in url else url


def _public_patterns(patterns: str | None) -> str | None:
    return patterns and "::".join(map(public_address, patterns.split("::")))


def name_shards(addresses: Iterable[str]) -> dict[str, str]:
    """Return each address by the name of its shard.

    Raises:
        ValueError: If two shards have one name.
    """
    shards: dict[str, str] = {}
    for address in addresses:
        name = shard_name(address)
        if name in shards:
            raise ValueError(
                f"shards {public_address(shards[name])!r} and {public_address(address)!r} are both called {name!r}, so "
                "their results would mix; rename one, or run them into different output folders"
            )
        shards[name] = address
    return shards


def shard_name(url: str) -> str:
    """Return the file name without '.tar', '.tar.gz' or '.tgz', which names the shard's rows and output files.

    Raises:
        ValueError: If the address has no file name.
    """
    name = _ENDING.sub("", _file_name(url))
    if not name:
        raise ValueError(
            f"shard {public_address(url)!r} has no file name to call its results by; name a file, as in '.../00000.tar'"
        )
    return name


def _file_name(url: str) -> str:
    """File name in an address; empty if it has none."""
    if not url.startswith(COMMAND):
        address = public_address(url)
        return "" if re.fullmatch("[^/]*://[^/]*", address) else os.path.basename(address)
    command = url.removeprefix(COMMAND)
    if tars := [tar[0] for part in re.split(r"[/\s='\"]+", command) if (tar := _TAR.match(part))]:
        return tars[-1]
    name = os.path.basename(re.split("[?#]", " ".join(command.split()[-1:]).strip("'\""))[0])
    # an option or a pair of user and password names no file
    return "" if re.search("^-|[=:]", name) else name


def work_units(shards: Shards, units_per_shard: int) -> list[WorkUnit]:
    """Divide each shard into work units, one shard after the other.

    Raises:
        ValueError: If `units_per_shard` is below 1, there are too many units, or a name cannot be that of files.
    """
    if units_per_shard < 1:
        raise ValueError(
            f"units_per_shard is {units_per_shard}, but a shard has at least 1; set 1 to read each shard as a whole"
        )
    if len(shards) * units_per_shard > MAX_UNITS_IN_ALL:
        raise ValueError(
            f"{len(shards):,} shards have {units_per_shard:,} work units each, allowed: {MAX_UNITS_IN_ALL:,} in all; "
            "set fewer with --data.units_per_shard"
        )
    for name in shards:
        if "/" in name or len(os.fsencode(name)) > MAX_SHARD_NAME_BYTES:
            raise ValueError(
                f"the shard name {name!r} cannot be that of output files, allowed: {MAX_SHARD_NAME_BYTES} bytes "
                "without '/'; rename the shard"
            )
    return [
        WorkUnit(name, url, index, units_per_shard) for name, url in shards.items() for index in range(units_per_shard)
    ]
