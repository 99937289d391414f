"""Samples of a work unit, with captions and, if asked for, decoded images."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from nti_batch.data.folder import IMAGE_EXTENSIONS, MAX_CAPTION_BYTES, MAX_IMAGE_BYTES, join_extensions
from nti_batch.data.images import MAX_MEMORY, decode_original
from nti_batch.data.shard_reader import ShardReader, ShardSample, key_reader
from nti_batch.phrases import and_more
from nti_batch.records import CaptionedImage, Failure, Fit, WorkUnit

logger = logging.getLogger(__name__)
_MAX_ERRORS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Reading:
    """How a job reads its input; it changes no result that is committed."""

    limit: int | None = None
    """Number of images from the beginning of the input; None reads all."""

    default_caption: str | None = None
    """Caption of the images without a caption file; None makes them failures."""

    max_memory: int = MAX_MEMORY
    """Bytes that decoding one image may take."""

    allow_pipe: bool = False
    """Whether a shard may be a shell command."""


ALL_READ = Reading()


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
    unit: WorkUnit, caption: str, reading: Reading = ALL_READ, stopped: Callable[[], bool] = lambda: False
) -> Iterator[RawSample | Failure]:
    """Yield a sample or a failure for each key of a work unit, in the order of the shard.

    If something is wrong with the shard as a whole, a last failure with an empty key says so. Each unit yields it,
    since a transfer may break for one unit alone.

    Args:
        unit: The work unit to read.
        caption: Source of the prompts: 'txt' or 'json:FIELD'.
        reading: How the input is read.
        stopped: Called before each read; if it returns True, the iteration ends without a failure.

    Raises:
        ValueError: If the shard is a shell command, and may not be.
    """
    extension, json_field = caption_source(caption)
    size_limits = {**dict.fromkeys(IMAGE_EXTENSIONS, MAX_IMAGE_BYTES), extension: MAX_CAPTION_BYTES}
    reader = ShardReader(unit.url, unit.holds, size_limits, extension, stopped, reading.allow_pipe)
    for sample in reader:
        if sample.is_wanted:
            captioned = _with_caption(sample, extension, json_field, reading.default_caption)
            yield _captioned(unit, captioned, extension, json_field)
    if reader.note and unit.index == 0:
        logger.warning("%s: %s", unit.shard, reader.note)
    if reader.errors:
        yield Failure(unit, "", "shard", and_more(reader.errors, _MAX_ERRORS_SHOWN))


def first_keys(
    shards: Mapping[str, str], caption: str, count: int, allow_pipe: bool, stopped: Callable[[], bool]
) -> dict[str, frozenset[str]]:
    """Find the first images of the input, in the order of its shards, by their keys.

    Args:
        shards: Addresses of the shards by their names.
        caption: Source of the prompts, as for `read_unit`.
        count: Number of images.
        allow_pipe: As for `ShardReader`.
        stopped: As for `read_unit`.

    Returns:
        Keys by the name of the shard, without shards that have none.
    """
    found: dict[str, frozenset[str]] = {}
    for shard, url in shards.items():
        reader = key_reader(url, caption, stopped, allow_pipe)
        with closing(iter(reader)) as samples:
            keys = frozenset(sample.key for sample in islice(samples, count))
        if reader.errors:
            logger.warning("%s: %s", shard, and_more(reader.errors, _MAX_ERRORS_SHOWN))
        if keys:
            found[shard] = keys
            count -= len(keys)
        if not count:
            break
    return found


def _with_caption(sample: ShardSample, extension: str, json_field: str, caption: str | None) -> ShardSample:
    """Add a caption file with this caption to a whole sample that has none."""
    if caption is None or extension in sample.members or sample.damage is not None:
        return sample
    content = json.dumps({json_field: caption}) if json_field else caption
    return dataclasses.replace(sample, members={**sample.members, extension: content.encode()})


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
    digest = hashlib.sha256()
    for name in names:
        if (content := sample.members.get(name, b"")) is None:
            return ""
        digest.update(content)
    return digest.hexdigest()


def _image(sample: ShardSample) -> bytes:
    images = [extension for extension in sample.members if extension in IMAGE_EXTENSIONS]
    if not images:
        raise ValueError(
            f"there is no image beside {join_extensions(sample.members)}; images end in "
            f"{join_extensions(IMAGE_EXTENSIONS)}, and in a tar a key ends at the first dot of the file name"
        )
    if len(images) > 1:
        raise ValueError(f"there are {len(images)} images, {join_extensions(images)}, of one key; allowed: one")
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


def decode_sample(
    sample: RawSample, height: int, width: int, max_memory: int | None = MAX_MEMORY, fit: Fit = "crop"
) -> CaptionedImage | Failure:
    """Decode the image of a sample, as `decode_original` does; return why if it cannot be decoded."""
    try:
        pixels, original = decode_original(sample.image, height, width, max_memory, fit)
    except ValueError as error:
        return Failure(sample.unit, sample.key, "image", str(error), input_sha256=sample.input_sha256)
    return CaptionedImage(sample.unit, sample.key, sample.prompt, pixels, sample.input_sha256, original)


def read_inputs(
    units: Iterable[WorkUnit],
    caption: str,
    height: int,
    width: int,
    ids: Collection[tuple[str, str]],
    allow_pipe: bool = False,
    fit: Fit = "crop",
) -> dict[tuple[str, str], CaptionedImage]:
    """Read and decode chosen input images, whatever their captions are and the memory that a job allowed for them.

    Args:
        units: Work units of the shards that may hold the images.
        caption: Source of the prompts: 'txt' or 'json:FIELD'.
        height: Height of the images, in pixels.
        width: Width of the images, in pixels.
        ids: Shard and key of each image.
        allow_pipe: Whether a shard may be a shell command.
        fit: How images are fitted to height and width.

    Returns:
        The images by shard and key; without those that the shards do not hold or that cannot be decoded.

    Raises:
        ValueError: If a shard that has to be read is a shell command, and may not be.
    """
    found: dict[tuple[str, str], CaptionedImage] = {}
    reading = Reading(default_caption="-", allow_pipe=allow_pipe)
    for shard, url in dict.fromkeys((unit.shard, unit.url) for unit in units):
        keys = {key for name, key in ids if name == shard}
        for sample in samples_of(keys, read_unit(WorkUnit(shard, url, 0, 1), caption, reading)):
            image = decode_sample(sample, height, width, None, fit) if isinstance(sample, RawSample) else sample
            if isinstance(image, CaptionedImage):
                found[shard, sample.key] = image
    return found


def samples_of(keys: Iterable[str], samples: Iterable[RawSample | Failure]) -> Iterator[RawSample | Failure]:
    """Yield the samples of some keys, and stop reading after the last one."""
    remaining = set(keys)
    for sample in samples if remaining else ():
        if sample.key in remaining:
            yield sample
            remaining.discard(sample.key)
            if not remaining:
                break
