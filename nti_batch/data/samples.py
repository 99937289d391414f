"""Samples of a work unit, with captions and, if asked for, decoded images."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from nti_batch.data.folder import IMAGE_EXTENSIONS, MAX_CAPTION_BYTES, MAX_IMAGE_BYTES, join_extensions
from nti_batch.data.images import decode_image
from nti_batch.data.shard_reader import ShardReader, ShardSample
from nti_batch.phrases import and_more
from nti_batch.records import CaptionedImage, Failure, WorkUnit

_MAX_ERRORS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class RawSample:
    """One captioned image that is not decoded yet."""

    unit: WorkUnit
    key: str
    prompt: str
    image: bytes
    """Content of the image file."""

    input_sha256: str
    """As in `CaptionedImage`."""


def caption_source(caption: str) -> tuple[str, str]:
    """Split the setting 'txt' or 'json:FIELD' into the member's extension and the field, which is empty for a text.

    Raises:
        ValueError: If the setting has another form.
    """
    extension, _, json_field = caption.partition(":")
    if caption == "txt" or (extension == "json" and json_field):
        return extension, json_field
    raise ValueError(f"caption is {caption!r}; allowed are 'txt' and 'json:FIELD', for example 'json:caption'")


def read_unit(
    unit: WorkUnit, caption: str, stopped: Callable[[], bool] = lambda: False
) -> Iterator[RawSample | Failure]:
    """Yield a sample or a failure for each key of a work unit, in the order of the shard.

    If something is wrong with the shard as a whole, a last failure with an empty key says so. Each unit yields it,
    since a transfer may break for one unit alone.

    Args:
        unit: The work unit to read.
        caption: Source of the prompts: 'txt' or 'json:FIELD'.
        stopped: Called while a transfer is waited for; if it returns True, the iteration ends without a failure.
    """
    extension, json_field = caption_source(caption)
    size_limits = {**dict.fromkeys(IMAGE_EXTENSIONS, MAX_IMAGE_BYTES), extension: MAX_CAPTION_BYTES}
    reader = ShardReader(unit.url, unit.holds, size_limits, stopped)
    for sample in reader:
        if sample.is_wanted:
            yield _captioned(unit, sample, extension, json_field)
    if reader.errors:
        yield Failure(unit, "", "shard", and_more(reader.errors, _MAX_ERRORS_SHOWN))


def _captioned(unit: WorkUnit, sample: ShardSample, extension: str, json_field: str) -> RawSample | Failure:
    stage, input_sha256 = "shard", _input_sha256(sample, extension)
    try:
        if sample.error:
            raise ValueError(sample.error)
        stage = "image"
        image = _image(sample)
        stage = "caption"
        prompt = read_caption(sample.content(extension), json_field)
    except (ValueError, RecursionError) as error:
        if sample.damage is None:
            return Failure(unit, sample.key, stage, str(error), input_sha256=input_sha256)
        return Failure(unit, sample.key, "shard", f"{error}: the shard is damaged here ({sample.damage})")
    return RawSample(unit, sample.key, prompt, image, input_sha256)


def _input_sha256(sample: ShardSample, extension: str) -> str:
    """SHA-256 of the image files, then of the caption file, as far as there are any; empty if one was not read."""
    names = [*(name for name in sample.members if name in IMAGE_EXTENSIONS), extension]
    contents = [sample.members[name] for name in names if name in sample.members]
    return "" if None in contents else hashlib.sha256(b"".join(filter(None, contents))).hexdigest()


def _image(sample: ShardSample) -> bytes:
    images = [extension for extension in sample.members if extension in IMAGE_EXTENSIONS]
    if len(images) != 1:
        raise ValueError(
            f"there are {len(images)} image members among {join_extensions(sample.members)}, not one; images end in "
            f"{join_extensions(IMAGE_EXTENSIONS)}, and in a tar a key ends at the first dot of the file name"
        )
    return sample.content(images[0])


def read_caption(data: bytes, json_field: str = "") -> str:
    """Read a caption from a text or from a field of a JSON, without the white space around it.

    Args:
        data: Content of the `.txt` or `.json` file.
        json_field: Field of the JSON object that has the caption; empty if the file is a text.

    Raises:
        ValueError: If there is no caption, or it is no text.
        RecursionError: If a JSON is nested too deeply.
    """
    text = data.decode("utf-8-sig")
    if json_field:
        record = json.loads(text)
        value = record.get(json_field) if isinstance(record, dict) else None
        if not isinstance(value, str):
            raise ValueError(f"the .json member has no field {json_field!r} that is a string")
        text = value
    # json can spell half a surrogate pair, which no output file could hold
    text.encode()
    if not text.strip():
        raise ValueError("the caption is empty")
    return text.strip()


def decode_sample(sample: RawSample, height: int, width: int) -> CaptionedImage | Failure:
    """Decode the image of a sample, cropped and resized to this many pixels; return why if it cannot be decoded."""
    try:
        pixels = decode_image(sample.image, height, width)
    except ValueError as error:
        return Failure(sample.unit, sample.key, "image", str(error), input_sha256=sample.input_sha256)
    return CaptionedImage(sample.unit, sample.key, sample.prompt, pixels, sample.input_sha256)


def read_inputs(
    units: Iterable[WorkUnit], caption: str, height: int, width: int, ids: Collection[tuple[str, str]]
) -> dict[tuple[str, str], CaptionedImage]:
    """Read and decode chosen input images.

    Args:
        units: Work units of the shards that may hold the images.
        caption: Source of the prompts: 'txt' or 'json:FIELD'.
        height: Height to crop and resize to, in pixels.
        width: Width to crop and resize to, in pixels.
        ids: Shard and key of each image.

    Returns:
        The images by shard and key; without those that the shards do not hold or that cannot be decoded.
    """
    found: dict[tuple[str, str], CaptionedImage] = {}
    for shard, url in dict.fromkeys((unit.shard, unit.url) for unit in units):
        keys = {key for name, key in ids if name == shard}
        for sample in _find_samples(WorkUnit(shard, url, 0, 1), caption, keys):
            image = decode_sample(sample, height, width)
            if isinstance(image, CaptionedImage):
                found[shard, sample.key] = image
    return found


def _find_samples(whole_shard: WorkUnit, caption: str, keys: set[str]) -> Iterator[RawSample]:
    """Yield the samples of these keys, and stop reading after the last one."""
    remaining = set(keys)
    for sample in read_unit(whole_shard, caption) if remaining else ():
        if isinstance(sample, RawSample) and sample.key in remaining:
            yield sample
            remaining.discard(sample.key)
            if not remaining:
                break
