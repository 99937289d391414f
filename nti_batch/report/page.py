"""The page about a run as HTML in one file, which fetches nothing."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from torch import Tensor

from nti_batch.data.images import to_bytes, to_image
from nti_batch.data.shards import public_address
from nti_batch.output.run_folder import OutputRun
from nti_batch.report.changed_words import Word
from nti_batch.report.charts import Chart
from nti_batch.report.statistics import Reason
from nti_batch.settings import flatten
from nti_batch.terminal import own_lines

LOSSLESS_SIZE = 128


LARGEST_SIZE = 384
"""Sizes of embedded images in pixels: up to the first they are PNG, larger ones are JPEG and shrunk to the second."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A number in large print."""

    value: str
    label: str


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """An image inside the page."""

    title: str
    source: str
    """A data url."""


@dataclass(frozen=True, slots=True)
class PageExample:
    """A record beside its source."""

    name: str
    captions: Sequence[Sequence[Word]]
    numbers: str
    images: Sequence[EmbeddedImage]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Content of the page."""

    title: str
    description: str
    """The run in one line."""

    done: int
    failed: int
    missing: int
    facts: list[Fact]
    """Numbers beside these counts."""

    charts: Sequence[Chart]
    reasons: Sequence[Reason]
    examples: Sequence[tuple[str, Sequence[PageExample]]]
    """Records under their headings."""

    notes: Sequence[str]
    """What could not be shown, and why."""

    settings: Sequence[tuple[str, str]]

    @property
    def counts(self) -> list[Fact]:
        """Outcomes of the records."""
        return [Fact(f"{getattr(self, name):,}", name) for name in ("done", "failed", "missing")]

    def html(self) -> str:
        """Content of the file."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            finalize=_make_showable,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        return environment.get_template("page.html").render(page=self)


def _make_showable(value: object) -> object:
    """Escape what is not printable in a text, and hide credentials; a chart is markup of our own."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return own_lines(str(value)) if is_text else value


def settings_of(run: OutputRun[Any, Any, Any]) -> list[tuple[str, str]]:
    """Settings and shards of a run, as rows of a table."""
    addresses = [public_address(url) for url in run.shards.values()]
    summary = f"{len(addresses):,}, from {addresses[0]} to {addresses[-1]}" if addresses else "none"
    settings = flatten(run.settings.to_json()) | {"shards": summary}
    return [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in settings.items()]


def embed(title: str, pixels: Tensor) -> EmbeddedImage:
    """An image, [3, height, width] in [0, 1], for the page."""
    image, file = to_image(to_bytes(pixels)), io.BytesIO()
    kind = "png" if max(image.size) <= LOSSLESS_SIZE else "jpeg"
    image.thumbnail((LARGEST_SIZE, LARGEST_SIZE))
    image.save(file, kind, quality=90, subsampling=0)
    return EmbeddedImage(title, f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}")
