"""Reads a page of `nti-batch report` as a browser does."""

import base64
import io
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

VOID = {"meta", "img"}


@dataclass
class Element:
    """A tag with its content."""

    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    def all(self, tag: str, class_name: str = "") -> list["Element"]:
        """Find the elements below with this tag and class, in the order of the page."""
        found = []
        for child in self.children:
            classes = (child.attributes.get("class") or "").split()
            if child.tag == tag and (not class_name or class_name in classes):
                found.append(child)
            found += child.all(tag, class_name)
        return found

    def elements(self) -> list["Element"]:
        """Return all elements below."""
        return [found for child in self.children for found in (child, *child.elements())]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} comes twice"
        self.open[-1].children.append(Element(tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(self.open[-1].children[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data


def read_page(path: Path) -> Element:
    """Parse a page, and check that every tag is closed."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    (root,) = reader.open
    return root


def facts(page: Element) -> dict[str, str]:
    """Return the large numbers by their labels."""
    return {pair.all("dt")[0].text: pair.all("dd")[0].text for dl in page.all("dl") for pair in dl.all("div")}


def table(page: Element, heading: str) -> list[list[str]]:
    """Return the rows of the table in the section under this heading."""
    (section,) = (s for s in page.all("section") if s.all("h2")[0].text == heading)
    rows = section.all("tbody")[0].all("tr")
    return [[" ".join(cell.text.split()) for cell in row.children] for row in rows]


def summaries(page: Element) -> dict[str, str]:
    """Return the caption of each chart by its title."""
    charts = [figure for figure in page.all("figure", "card")]
    return {chart.all("h3")[0].text: chart.all("figcaption")[0].text for chart in charts}


def images(example: Element) -> dict[str, np.ndarray]:
    """Return the pixels of each image by its title, uint8 [height, width, 3]."""
    found = {}
    for figure in example.all("figure"):
        kind, data = re.fullmatch(
            "data:image/(png|jpeg);base64,(.*)", figure.all("img")[0].attributes["src"] or ""
        ).groups()
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.format.lower() == kind
        found[figure.all("figcaption")[0].text] = np.array(image)
    return found
