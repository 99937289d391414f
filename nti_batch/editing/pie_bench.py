"""PIE-Bench's files: `python -m nti_batch.editing.pie_bench FOLDER OUT.tar` makes a shard of them for `nti-batch invert`.

Ju et al., "PnP Inversion: Boosting Diffusion-based Editing with 3 Lines of Code", 2023,
https://arxiv.org/abs/2310.01506. A folder holds `mapping_file.json` and the pictures, below `annotation_images`.
"""

import argparse
import io
import json
import os
import tarfile
from dataclasses import dataclass, fields, replace
from pathlib import Path

from nti_batch.diffusion.alignment import TokenizedPrompt
from nti_batch.diffusion.edits import EditSettings
from nti_batch.editing.masks import decode_runs, encode_runs
from nti_batch.records import EditRequest, Mask

SIZE = 512
"""Height and width of the benchmark's pictures and masks."""


CATEGORIES = (
    "random",
    "change object",
    "add object",
    "delete object",
    "change content",
    "change pose",
    "change colour",
    "change material",
    "change background",
    "change style",
)
"""What `editing_type_id` stands for."""


WEIGHT = 2.0
"""Of the edit's blend word in the benchmark's runs of prompt-to-prompt."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is read of an entry of `mapping_file.json`; the prompts with their brackets taken off."""

    image_path: str
    original_prompt: str
    editing_prompt: str
    editing_type_id: str
    blended_word: str
    mask: list[int]


def read_edits(folder: Path, shard: str, defaults: EditSettings) -> list[EditRequest]:
    """The benchmark's edits, one of each picture, called by its category and id.

    As in the benchmark's code, `blended_word` gives the blend words, of which the edit's is attended to twice as much,
    and a mask's borders are inside. Where `blended_word` is empty, as for changes of style, nothing is blended; nor
    where one of its words is not in its prompt as a word, since then there is nowhere to look for it.

    Args:
        folder: The benchmark's.
        shard: Shard of the inversions, without '.tar'.
        defaults: All other settings; those of `EditSettings` are the benchmark's.

    Raises:
        ValueError: If the mapping file is missing or damaged.
    """
    return [_request(folder, key, entry, shard, defaults) for key, entry in _read_mapping(folder).items()]


def category(edit_name: str) -> str:
    """The category of an edit from `read_edits`, one of `CATEGORIES`, by its name."""
    return CATEGORIES[int(edit_name.partition("-")[0])]


def write_shard(folder: Path, out_tar: Path) -> int:
    """Write the pictures, as they are, and the source's prompts as a WebDataset shard; return how many.

    Raises:
        ValueError: If the mapping file or a picture is missing or damaged.
    """
    entries = _read_mapping(folder)
    unfinished = out_tar.with_name(f"{out_tar.name}.part")
    with tarfile.open(unfinished, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, entry in entries.items():
            path = folder / "annotation_images" / entry.image_path
            try:
                picture = path.read_bytes()
            except OSError as error:
                raise ValueError(
                    f"picture of {key!r} cannot be read: {error}; take PIE-Bench's whole folder"
                ) from error
            _add(tar, f"{key}{path.suffix}", picture)
            _add(tar, f"{key}.txt", entry.original_prompt.encode())
    os.replace(unfinished, out_tar)
    return len(entries)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _read_mapping(folder: Path) -> dict[str, _Entry]:
    path = folder / "mapping_file.json"
    try:
        mapping = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}; give PIE-Bench's folder") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}; download it anew") from error
    if not isinstance(mapping, dict):
        raise ValueError(
            f"{path} is of type {type(mapping).__name__}, allowed: an object with an entry for each picture"
        )
    return {key: _entry(f"{path}, entry {key!r}", values) for key, values in mapping.items()}


def _entry(where: str, values: object) -> _Entry:
    if not isinstance(values, dict):
        raise ValueError(f"{where} is of type {type(values).__name__}, allowed: an object")
    read = {field.name: values.get(field.name) for field in fields(_Entry)}
    mask = read.pop("mask")
    if not isinstance(mask, list) or not all(type(number) is int for number in mask):
        raise ValueError(f"{where}: 'mask' is no list of whole numbers: start, length, start, length, ...")
    texts = {name: value for name, value in read.items() if isinstance(value, str)}
    if wrong := sorted(read.keys() - texts.keys()):
        raise ValueError(f"{where} lacks a text for {', '.join(map(repr, wrong))}")
    if texts["editing_type_id"] not in map(str, range(len(CATEGORIES))):
        raise ValueError(f"{where}: 'editing_type_id' is {texts['editing_type_id']!r}, allowed: '0' to '9'")
    for name in ("original_prompt", "editing_prompt"):
        texts[name] = texts[name].replace("[", "").replace("]", "")
    return _Entry(**texts, mask=mask)


def _request(folder: Path, key: str, entry: _Entry, shard: str, defaults: EditSettings) -> EditRequest:
    try:
        mask = _mask(entry.mask)
    except ValueError as error:
        raise ValueError(f"{folder / 'mapping_file.json'}, entry {key!r}: {error}") from error
    return EditRequest(
        shard=shard,
        key=key,
        name=f"{entry.editing_type_id}-{key}",
        prompt=entry.original_prompt,
        edit_prompt=entry.editing_prompt,
        settings=_settings(entry, defaults),
        mask=mask,
    )


def _settings(entry: _Entry, defaults: EditSettings) -> EditSettings:
    match entry.blended_word.split():
        case [source, target, *_] if _has(entry.original_prompt, source) and _has(entry.editing_prompt, target):
            weights = {**defaults.equalizer, target: WEIGHT}
            return replace(defaults, blend_words=(source, target), equalizer=weights)
    return defaults


def _has(prompt: str, word: str) -> bool:
    """Whether the word is in the prompt as a word."""
    return set(TokenizedPrompt.of(word, ()).words) <= set(TokenizedPrompt.of(prompt, ()).words)


def _mask(runs: list[int]) -> Mask:
    """The benchmark's mask: a run may reach past the end, and the borders, where drawn masks have gaps, are inside."""
    clipped = [min(n, SIZE * SIZE - runs[i - 1]) if i % 2 else n for i, n in enumerate(runs)]
    pixels = decode_runs(Mask(tuple(clipped), SIZE, SIZE))
    pixels[[0, -1], :] = True
    pixels[:, [0, -1]] = True
    return encode_runs(pixels)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m nti_batch.editing.pie_bench", description="Make a shard of PIE-Bench."
    )
    parser.add_argument("folder", type=Path, help="with mapping_file.json and annotation_images")
    parser.add_argument("out", type=Path, help="the tar to write")
    chosen = parser.parse_args()
    try:
        print(f"{write_shard(chosen.folder, chosen.out)} pictures in {chosen.out}")
    except (ValueError, OSError) as error:
        parser.error(str(error))
