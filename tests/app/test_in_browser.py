"""The page in a browser: open it, edit, save a line, and run the job on it; nothing is loaded from elsewhere."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.edits import edit, edited_images
from helpers.tiny import png
from PIL import Image

from nti_batch.cli import main
from nti_batch.data.images import decode_image

gradio = pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome is installed"),
]
TIMEOUT_MS = 120_000


@contextmanager
def served(*arguments: str) -> Iterator[str]:
    """Run `nti-batch app` in its own process; yield its address, and end it with Ctrl-C."""
    command = [sys.executable, "-m", "nti_batch", "app", "--port=0", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            address = re.match(r"(http://127\.0\.0\.1:\d+/) shows", server.stdout.readline())
            assert address is not None
            yield address[1]
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
        finally:
            server.kill()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """A visitor's page, and what it asked for."""

    def __init__(self, browser: Any, address: str) -> None:
        """Open the page."""
        self.page = browser.new_context(viewport={"width": 1400, "height": 1500}).new_page()
        self.page.set_default_timeout(TIMEOUT_MS)
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)

    def value(self, name: str) -> str:
        """Text of a field, once it has one."""
        field = f"#{name} textarea, #{name} input"
        self.page.wait_for_function(f"document.querySelector({json.dumps(field)}).value != ''")
        text: str = self.page.locator(field).first.input_value()
        return text

    def choose(self, number: int) -> str:
        """Choose an image of the gallery; return its caption."""
        self.page.locator("#gallery button img").nth(number).click()
        return self.value("source-prompt")

    def image(self, name: str) -> torch.Tensor:
        """Pixels of an image that is shown."""
        address = self.page.locator(f"#{name}-image img").get_attribute("src")
        return decode_image(self.page.request.get(address).body(), 64, 64)

    def message(self) -> str:
        """Text of the message that is shown."""
        toast = self.page.locator(".toast-body").first
        toast.wait_for()
        text: str = toast.inner_text()
        return text


def test_open_edit_save_a_line_and_run_the_job_on_it(app_run: Path, chromium: Any, tmp_path: Path):
    edits = tmp_path / "edits.jsonl"
    with served(str(app_run), f"--edits={edits}") as address:
        visitor = Visitor(chromium, address)
        page = visitor.page
        prompt = visitor.choose(1)
        assert page.locator("#gallery button img").count() == 3
        page.get_by_label("Prompt of the edit").fill(changed := prompt.replace("small", "large"))
        page.get_by_label("Blend words of the edit").fill("background")
        page.locator("#edit").click()
        page.wait_for_selector("#mask-image img")
        page.locator("#attention").click()
        page.wait_for_selector("#heat-image img")
        page.locator("#add").click()
        line = visitor.value("line")
        shown = visitor.image("edit")
        page.get_by_label("Equalizer").fill("<b>zebra</b>=2")
        page.locator("#edit").click()
        assert "'<b>zebra</b>' does not occur in the prompt" in visitor.message()
        assert visitor.errors == []
        elsewhere = [url for url in visitor.requests if not url.startswith((address, "data:", "blob:"))]
        assert elsewhere == []
    assert edits.read_text() == f"{line}\n"
    cells = json.loads(line)
    assert cells["edit_prompt"] == changed and cells["blend_words"] == ["", "background"]
    assert main(edit(app_run, tmp_path / "out", f"--data.edits={edits}")) == 0
    assert torch.equal(edited_images(tmp_path / "out")[cells["shard"], cells["key"], "0"], shown)


def test_a_second_visitor_waits_and_sees_the_place_in_the_queue(app_run: Path, chromium: Any):
    with served(str(app_run)) as address:
        first, second = Visitor(chromium, address), Visitor(chromium, address)
        for visitor in (first, second):
            visitor.page.get_by_label("Prompt of the edit").fill(visitor.choose(0))
        first.page.locator("#edit").click()
        second.page.locator("#edit").click()
        second.page.locator("#edit-image").get_by_text(re.compile(r"queue: \d/\d")).wait_for()
        for visitor in (first, second):
            visitor.page.wait_for_selector("#edit-image img")


def test_an_upload_is_inverted_and_mistakes_become_messages(tmp_path: Path, chromium: Any):
    few = ["--model.num_steps=3", "--model.num_inner_steps=1", f"--output={tmp_path / 'run'}"]
    (tmp_path / "page.png").write_bytes(b"<html>")
    (tmp_path / "cup.png").write_bytes(png(1, 64))
    with served(*few) as address:
        visitor = Visitor(chromium, address)
        page = visitor.page
        page.locator("#caption textarea, #caption input").fill("a small red circle")
        page.locator("#invert").click()
        assert "no image is chosen" in visitor.message()
        page.reload()
        for name, outcome in (("page.png", "is not a whole JPEG"), ("cup.png", "")):
            page.reload()
            page.locator("#file input[type=file]").set_input_files(tmp_path / name)
            page.get_by_text(name[:4]).first.wait_for()
            page.locator("#caption textarea, #caption input").fill("a small red circle")
            page.locator("#invert").click()
            if outcome:
                assert outcome in visitor.message()
        assert visitor.value("source-prompt") == "a small red circle"
        page.locator("#gallery button img").wait_for()
    with Image.open(tmp_path / "run" / "images" / "cup.png") as image:
        assert image.size == (64, 64)
