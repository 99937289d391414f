"""Reads PIE-Bench's folder: its edits, and its images as a shard.

Ju et al., "PnP Inversion: Boosting Diffusion-based Editing with 3 Lines of Code", 2023,
https://arxiv.org/abs/2310.01506. The folder holds `mapping_file.json`, and the images below `annotation_images`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

from nti_batch.data.tar import write_samples
from nti_batch.diffusion.alignment import TokenizedPrompt
from nti_batch.diffusion.edit_settings import EditSettings
from nti_batch.editing.masks import check_pairs, decode_runs, encode_runs
from nti_batch.records import EditRequest, Mask

SIZE = 512
"""Height and width of the benchmark's images and masks, in pixels."""


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
"""Categories by `editing_type_id`."""


WEIGHT = 2.0
"""Equalizer of the edit's blend word in the benchmark's runs of prompt-to-prompt."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of `mapping_file.json`, as it is in the file."""

    image_path: str
    original_prompt: str
    editing_prompt: str
    editing_type_id: str
    blended_word: str
    mask: list[int]

    @property
    def source_prompt(self) -> str:
        """Prompt of the source without bracket marks."""
        return _strip_brackets(self.original_prompt)

    @property
    def edit_prompt(self) -> str:
        """Prompt of the edit without bracket marks."""
        return _strip_brackets(self.editing_prompt)

    @property
    def has_brackets(self) -> bool:
        """Whether a prompt has bracket marks around the words that change."""
        return (self.source_prompt, self.edit_prompt) != (self.original_prompt, self.editing_prompt)


def _strip_brackets(prompt: str) -> str:
    return prompt.replace("[", "").replace("]", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialCases:
    """Numbers of edits that the benchmark's code treats in a way of its own."""

    edits: int
    """All edits."""

    brackets: int
    """Edits with bracket marks in a prompt, which are left out."""

    empty_masks: int
    """Edits whose mask has no pixel, so that the borders alone are its edited part."""

    full_masks: int
    """Edits whose mask leaves no unedited part, which therefore have no scores of it."""

    no_blend_words: int
    """Edits without two blend words, which have neither local blend nor an equalizer."""

    missing_blend_words: int
    """Edits with a blend word that is not in its prompt, so that the other word's attention decides alone."""


def read_edits(folder: Path, shard: str, defaults: EditSettings) -> list[EditRequest]:
    """Read the benchmark's edits, one for each image, named by category and id.

    As in the benchmark's code, `blended_word` gives the blend words, the attention to the edit's word is doubled, and
    the borders of a mask are inside. A blend word that is not in its prompt selects nothing, so that the mask of local
    blend is the other word's alone (`has_missing_blend_word`). An edit without two words, as for changes of style, does
    not blend.

    Args:
        folder: The benchmark's folder.
        shard: Shard of the inversions, without '.tar'.
        defaults: All other settings; the defaults of `EditSettings` are the benchmark's.

    Raises:
        ValueError: If the mapping file is missing or damaged.
    """
    return [_request(folder, key, entry, shard, defaults) for key, entry in _read_mapping(folder).items()]


def category(edit_name: str) -> str:
    """Return the category, one of `CATEGORIES`, of an edit from `read_edits` by its name."""
    return CATEGORIES[int(edit_name.partition("-")[0])]


def has_missing_blend_word(request: EditRequest) -> bool:
    """Whether an edit from `read_edits` has a blend word that is not in its prompt."""
    return "" in (request.settings.blend_words or ())


def special_cases(folder: Path) -> SpecialCases:
    """Count the edits that the benchmark treats in a way of its own.

    Raises:
        ValueError: As `read_edits`.
    """
    entries, requests = _read_mapping(folder), read_edits(folder, "", EditSettings())
    return SpecialCases(
        edits=len(entries),
        brackets=sum(entry.has_brackets for entry in entries.values()),
        empty_masks=sum(not decode_runs(_clipped(entry.mask)).any() for entry in entries.values()),
        full_masks=sum(request.mask is not None and bool(decode_runs(request.mask).all()) for request in requests),
        no_blend_words=sum(request.settings.blend_words is None for request in requests),
        missing_blend_words=sum(map(has_missing_blend_word, requests)),
    )


def write_shard(folder: Path, out_tar: Path) -> int:
    """Write the image files, unchanged, and the source prompts as a WebDataset shard; return the number of images.

    Raises:
        ValueError: If the mapping file or an image is missing or damaged.
        OSError: If the shard cannot be written.
    """
    entries = _read_mapping(folder)
    write_samples(out_tar, _samples(folder, entries))
    return len(entries)


def _samples(folder: Path, entries: dict[str, _Entry]) -> Iterator[dict[str, str | bytes]]:
    for key, entry in entries.items():
        path = folder / "annotation_images" / entry.image_path
        try:
            image = path.read_bytes()
        except OSError as error:
            raise ValueError(f"image of {key!r} cannot be read: {error}; take PIE-Bench's whole folder") from error
        yield {"__key__": key, path.suffix[1:]: image, "txt": entry.source_prompt.encode()}


def _read_mapping(folder: Path) -> dict[str, _Entry]:
    path = folder / "mapping_file.json"
    try:
        mapping = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}; give PIE-Bench's folder") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}; download it anew") from error
    if not isinstance(mapping, dict):
        raise ValueError(f"{path} is of type {type(mapping).__name__}, allowed: an object with an entry for each image")
    if not mapping:
        raise ValueError(f"{path} has no entries; give PIE-Bench's folder")
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
        prompt=entry.source_prompt,
        edit_prompt=entry.edit_prompt,
        settings=_settings(entry, defaults),
        mask=mask,
    )


def _settings(entry: _Entry, defaults: EditSettings) -> EditSettings:
    words = entry.blended_word.split(" ")
    if not any(words) or len(words) < 2:
        return defaults
    source, target = _if_in(words[0], entry.source_prompt), _if_in(words[1], entry.edit_prompt)
    weights = {target: WEIGHT} if target else {}
    return replace(defaults, blend_words=(source, target), equalizer={**defaults.equalizer, **weights})


def _if_in(word: str, prompt: str) -> str:
    """Return the word, or an empty text if it is not in the prompt as a word."""
    return word if TokenizedPrompt.of(prompt, ()).has(word) else ""


def _mask(runs: list[int]) -> Mask:
    """Put the borders inside, where drawn masks have gaps."""
    pixels = decode_runs(_clipped(runs))
    pixels[[0, -1], :] = True
    pixels[:, [0, -1]] = True
    return encode_runs(pixels)


def _clipped(runs: list[int]) -> Mask:
    """Leave out what runs have behind the end of the image."""
    check_pairs(runs)
    end, pairs = SIZE * SIZE, zip(runs[::2], runs[1::2], strict=True)
    clipped = (number for start, n in pairs if start < end and n > 0 for number in (start, min(n, end - start)))
    return Mask(tuple(clipped), SIZE, SIZE)
