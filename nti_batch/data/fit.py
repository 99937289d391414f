"""How an image of any shape becomes one of the size of a run, and where it lies in it.

- crop: the largest part about the centre that has the run's shape;
- pad: the whole image, scaled to fit, on black;
- stretch: the whole image, each side scaled by itself.
"""

from PIL import Image
from torch import Tensor

from nti_batch.records import Fit, Original

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""

Place = tuple[float, float, float, float]
"""The same, in parts of pixels."""


def source_place(fit: Fit, size: tuple[int, int], shape: tuple[int, int]) -> Place:
    """The part of an image that is shown.

    Args:
        fit: How it is fitted.
        size: Width and height of the image.
        shape: Width and height that it is fitted to.
    """
    (width, height), ratio = size, shape[0] / shape[1]
    if fit != "crop" or width / height == ratio:
        return 0, 0, width, height
    if width / height > ratio:
        left = (width - ratio * height) / 2
        return left, 0, left + ratio * height, height
    top = (height - width / ratio) / 2
    return 0, top, width, top + width / ratio


def target_box(fit: Fit, size: tuple[int, int], shape: tuple[int, int]) -> Box:
    """Where it is shown: everywhere but with `pad`. The arguments are those of `source_place`."""
    width, height = shape
    if fit == "pad":
        scale = min(shape[0] / size[0], shape[1] / size[1])
        width, height = (min(most, max(1, round(side * scale))) for side, most in zip(size, shape, strict=True))
    left, top = (shape[0] - width) // 2, (shape[1] - height) // 2
    return left, top, left + width, top + height


def fit_image(image: Image.Image, original: Original, shape: tuple[int, int]) -> Image.Image:
    """Fit an image to a width and height.

    Args:
        image: The original, or a smaller copy of the part that is shown or more.
        original: Size of the original, and how it is fitted.
        shape: Width and height of the result.
    """
    left, top, right, bottom = target_box(original.fit, (original.width, original.height), shape)
    place = source_place(original.fit, image.size, shape)
    shown = image.resize((right - left, bottom - top), Image.Resampling.LANCZOS, place)
    if shown.size == shape:
        return shown
    result = Image.new("RGB", shape)
    result.paste(shown, (left, top))
    return result


def without_padding(pixels: Tensor, original: Original) -> Tensor:
    """The pixels of a fitted image, [..., height, width], that show the original."""
    height, width = pixels.shape[-2:]
    left, top, right, bottom = target_box(original.fit, (original.width, original.height), (width, height))
    return pixels[..., top:bottom, left:right]


def is_cropped(original: Original, shape: tuple[int, int]) -> bool:
    """Whether a part of the original is not in an image of this width and height."""
    size = original.width, original.height
    return source_place(original.fit, size, shape) != (0, 0, *size)


def put_back(fitted: Image.Image, original: Original, source: Image.Image | None) -> Image.Image:
    """Give a fitted image the size of its original, at the place that it shows.

    Args:
        fitted: An image of a run's size.
        original: Size of the original, and how it was fitted.
        source: The original, which shows what was cropped away; None if nothing was.
    """
    size = original.width, original.height
    shown = fitted.crop(target_box(original.fit, size, fitted.size))
    left, top, right, bottom = map(round, source_place(original.fit, size, fitted.size))
    shown = shown.resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.LANCZOS)
    if source is None:
        return shown
    result = source.copy()
    result.paste(shown, (left, top))
    return result
