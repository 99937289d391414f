"""Samples of a work unit: captions, decoded images."""

import json
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from dataclasses import dataclass

from nti_batch.data.folder import IMAGE_EXTENSIONS, LARGEST_CAPTION, LARGEST_IMAGE, join_extensions
from nti_batch.data.images import decode_image
from nti_batch.data.shard_reader import _Sample, _samples
from nti_batch.records import CaptionedImage, Failure, WorkUnit

_FAULTS_TOLD = 5


@dataclass(frozen=True, slots=True)
class RawSample:
    """One captioned image as it lies in the shard, not yet decoded."""

    unit: WorkUnit
    key: str
    prompt: str
    image: bytes


def caption_source(caption: str) -> tuple[str, str]:
    """Split the setting 'txt' or 'json:FIELD' into the member's extension and the field, empty for a text."""
    extension, _, json_field = caption.partition(":")
    if caption == "txt" or (extension == "json" and json_field):
        return extension, json_field
    raise ValueError(f"caption is {caption!r}; allowed are 'txt' and 'json:FIELD', for example 'json:caption'")


def read_unit(
    unit: WorkUnit, caption: str, skip: Container[str], stopped: Callable[[], bool] = lambda: False
) -> Iterator[RawSample | Failure]:
    """A row for each id of this unit that is not in `skip`, in the order of the tar.

    Samples are dealt to the units by ordinal. What is wrong with the shard as a whole is told in a last row with an
    empty key, by each unit: of a transfer that broke for one, the others know nothing.

    Args:
        unit: What to read.
        caption: Where prompts are: 'txt' or 'json:FIELD'.
        skip: Keys to leave out; the empty one stands for the shard as a whole.
        stopped: Asked while a transfer is waited for; when it says so, reading ends without another row.
    """
    extension, json_field = caption_source(caption)
    faults: list[str] = []

    def is_wanted(ordinal: int, key: str) -> bool:
        return ordinal % unit.count == unit.index and key not in skip

    needed = {**dict.fromkeys(IMAGE_EXTENSIONS, LARGEST_IMAGE), extension: LARGEST_CAPTION}
    for sample in _samples(unit.url, is_wanted, needed, faults, stopped):
        if sample.wanted:
            yield _row(unit, sample, extension, json_field)
    if faults and "" not in skip:
        more = [f"and {len(faults) - _FAULTS_TOLD} more"] if len(faults) > _FAULTS_TOLD else []
        yield Failure(unit, "", "shard", "; ".join(faults[:_FAULTS_TOLD] + more))


def _row(unit: WorkUnit, sample: _Sample, extension: str, json_field: str) -> RawSample | Failure:
    stage = "shard"
    try:
        if sample.fault:
            raise ValueError(sample.fault)
        stage = "image"
        image = _image(sample)
        stage = "caption"
        prompt = read_caption(sample.whole(extension), json_field)
    except (ValueError, RecursionError) as error:
        if sample.damage is None:
            return Failure(unit, sample.key, stage, str(error))
        return Failure(unit, sample.key, "shard", f"{error}: the shard is damaged here ({sample.damage})")
    return RawSample(unit, sample.key, prompt, image)


def _image(sample: _Sample) -> bytes:
    images = [extension for extension in sample.members if extension in IMAGE_EXTENSIONS]
    if len(images) != 1:
        raise ValueError(
            f"there are {len(images)} image members among {join_extensions(sample.members)}, not one; images end in "
            f"{join_extensions(IMAGE_EXTENSIONS)}, and in a tar a key ends at the first dot of the file name"
        )
    return sample.whole(images[0])


def read_caption(data: bytes, json_field: str = "") -> str:
    """A caption without the white space around it, from a text or from a field of a JSON.

    Raises:
        ValueError: If there is none, or it is no text.
        RecursionError: Of a JSON that is nested too deeply.
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
    """A sample's picture in this size, or why it has none."""
    try:
        pixels = decode_image(sample.image, height, width)
    except ValueError as error:
        return Failure(sample.unit, sample.key, "image", str(error))
    return CaptionedImage(sample.unit, sample.key, sample.prompt, pixels)


def read_inputs(
    units: Iterable[WorkUnit], caption: str, height: int, width: int, ids: Collection[tuple[str, str]]
) -> dict[tuple[str, str], CaptionedImage]:
    """The input images of these ids, in this size."""
    found: dict[tuple[str, str], CaptionedImage] = {}
    for shard, url in dict.fromkeys((unit.shard, unit.url) for unit in units):
        wanted = {key for of, key in ids if of == shard}
        for sample in read_unit(WorkUnit(shard, url, 0, 1), caption, ()) if wanted else ():
            if isinstance(sample, RawSample) and sample.key in wanted:
                image = decode_sample(sample, height, width)
                assert isinstance(image, CaptionedImage)
                found[shard, sample.key] = image
                if len(wanted := wanted - {sample.key}) == 0:
                    break
    return found
