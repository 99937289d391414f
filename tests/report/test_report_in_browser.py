"""A browser shows the whole page in its width and loads nothing."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from helpers.pages import Element

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


MEASURE = """<!DOCTYPE html><iframe src="{page}" style="width: {width}px; height: 900px; border: 0"></iframe><script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  document.title = JSON.stringify({{
    scroll: root.scrollWidth,
    width: frame.contentWindow.innerWidth,
    shown: [...page.images].filter(image => image.naturalWidth > 0).length,
    fetched: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
    ground: getComputedStyle(page.body).backgroundColor,
    ink: getComputedStyle(page.querySelector("svg text")).fill,
  }});
}};
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome is installed")
@pytest.mark.parametrize(("width", "is_dark"), [(390, False), (1280, True)], ids=["phone, light", "desktop, dark"])
def test_a_browser_fits_the_page_to_its_width_and_loads_nothing(
    page: Element, finished: Path, tmp_path: Path, width: int, is_dark: bool
):
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(MEASURE.format(page=(finished / "out" / "report.html").as_uri(), width=width))
    assert BROWSER is not None
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if is_dark else 1}",
        "--window-size=1400,1000",
        "--dump-dom",
        wrapper.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search("<title>(.*)</title>", dom)
    assert title is not None, dom[:500]
    measured = json.loads(unescape(title[1]))
    assert measured["scroll"] <= measured["width"] == width
    assert measured["shown"] == len(page.all("img")) > 0
    assert [name for name in measured["fetched"] if not name.startswith("data:")] == []
    assert contrast(measured["ground"], measured["ink"]) > 7
    assert (luminance(measured["ground"]) < 0.5) is is_dark


def luminance(colour: str) -> float:
    """Compute the relative luminance of 'rgb(r, g, b)'.

    Web Content Accessibility Guidelines 2.2, https://www.w3.org/TR/WCAG22.
    """
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(first: str, second: str) -> float:
    """Compute the contrast ratio, from 1 to 21; the guidelines demand 4.5."""
    low, high = sorted(luminance(colour) for colour in (first, second))
    return (high + 0.05) / (low + 0.05)
