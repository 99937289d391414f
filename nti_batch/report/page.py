"""The page that a person opens: what it says of a run, and its HTML. Nothing on it is fetched from anywhere."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from torch import Tensor

from nti_batch.data.images import to_bytes, to_image
from nti_batch.output.run import OutputRun
from nti_batch.report.charts import Chart
from nti_batch.report.statistics import Reason

LOSSLESS_SIZE = 128


LARGEST_SIZE = 384
"""Sizes of embedded pictures, in pixels: up to the first as they are, from there on as JPEG, shrunk to the second."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A number that stands large."""

    value: str
    label: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture inside the page."""

    title: str
    source: str
    """A data url."""


@dataclass(frozen=True, slots=True)
class Example:
    """Pictures of one record."""

    name: str
    captions: Sequence[str]
    numbers: str
    pictures: Sequence[Picture]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What the template shows."""

    title: str
    what: str
    """What run it is, in a line."""

    done: int
    failed: int
    missing: int
    facts: list[Fact]
    """Beside these numbers."""

    charts: Sequence[Chart]
    reasons: Sequence[Reason]
    examples: Sequence[tuple[str, Sequence[Example]]]
    """Under their headings."""

    notes: Sequence[str]
    """What could not be had for this page."""

    settings: Sequence[tuple[str, str]]

    @property
    def counts(self) -> list[Fact]:
        """What became of the records."""
        return [Fact(f"{getattr(self, name):,}", name) for name in ("done", "failed", "missing")]

    def html(self) -> str:
        """The whole file."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        html = environment.get_template("page.html").render(page=self)
        # a path may hold half a surrogate pair, which no file could
        return html.encode(errors="backslashreplace").decode()


def settings_of(run: OutputRun[Any, Any]) -> list[tuple[str, str]]:
    """The content of run.json, as a table."""
    shards = run.shards()
    told = {**run.settings(), "shards": f"{len(shards):,}, from {shards[0]} to {shards[-1]}"}
    return [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in told.items()]


def embed(title: str, pixels: Tensor) -> Picture:
    """A picture, [3, height, width], uint8 or in [0, 1]."""
    image, file = to_image(to_bytes(pixels) if pixels.is_floating_point() else pixels), io.BytesIO()
    kind = "png" if max(image.size) <= LOSSLESS_SIZE else "jpeg"
    image.thumbnail((LARGEST_SIZE, LARGEST_SIZE))
    image.save(file, kind, quality=90, subsampling=0)
    return Picture(title, f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}")
