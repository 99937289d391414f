"""The input image of a record, as its `.json` member describes it."""

from typing import cast, get_args

from nti_batch.data.images import MAX_PIXELS
from nti_batch.json_object import Json, JsonObject
from nti_batch.records import Fit, Original


def original_to_json(original: Original | None) -> dict[str, Json]:
    """The key `original`; none if the image is not known."""
    if original is None:
        return {}
    return {"original": {"height": original.height, "width": original.width, "fit": original.fit}}


def original_from_json(metadata: JsonObject) -> Original | None:
    """Read what `original_to_json` wrote.

    Raises:
        ValueError: If it is damaged.
    """
    if "original" not in metadata:
        return None
    values = metadata.section("original")
    original = Original(
        height=values.integer("height", 1, MAX_PIXELS),
        width=values.integer("width", 1, MAX_PIXELS),
        fit=cast(Fit, values.choice("fit", get_args(Fit))),
    )
    if original.height * original.width > MAX_PIXELS:
        raise ValueError(f"{metadata.file}: original has too many pixels, allowed: {MAX_PIXELS:,}")
    return original
