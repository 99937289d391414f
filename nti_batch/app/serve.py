"""Serves the page on this machine. Nothing here or in the browser asks another machine for anything."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nti_batch.app.page import Page
from nti_batch.data.folder import MAX_IMAGE_BYTES

MAX_WAITING = 64
"""Requests that wait for the device at most."""

MAX_VISITS = 32
"""Visitors whose edits are kept."""

POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self' data: blob: ws: wss:; "
    "frame-ancestors 'self'"
)
"""Content-Security-Policy: a browser loads nothing from elsewhere, whatever Gradio's pages name."""

STYLE = """
.image.small img { image-rendering: pixelated; }
.image .image-frame img, .image .image-container img { width: 100%; height: 100%; object-fit: contain; }
.block.image { padding-top: 26px !important; }
.image .caption-label { position: static; max-width: 100%; white-space: normal; font-size: 12px; line-height: 1.3;
  padding: 4px 6px 0; margin-bottom: 4px;
  display: -webkit-box; -webkit-line-clamp: 3; -webkit-box-orient: vertical; overflow: hidden; }
.image .thumbnail-item { height: auto; aspect-ratio: auto; overflow: visible; flex-direction: column; }
.image .thumbnail-item img { width: 100%; aspect-ratio: 1; }
footer { display: none !important; }
"""


class OwnFilesOnly:
    """Sends `POLICY` with every answer."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def theme() -> gr.Theme:
    """Gradio's theme with the fonts of the system: its own are fetched from elsewhere."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def _usable_port(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        ValueError: If the page cannot be served there.
    """
    try:
        with socket.create_server((host, port)) as server:
            usable: int = server.getsockname()[1]
            return usable
    except OSError as error:
        raise ValueError(
            f"the page cannot be served at {host} on port {port} ({error.strerror}): give another --port or --host"
        ) from error


@contextmanager
def served(page: Page, host: str, port: int) -> Iterator[tuple[gr.Blocks, str]]:
    """Serve a page within a `with` block; yield it with its address.

    Args:
        page: The page.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.

    Raises:
        ValueError: If the address or the port cannot be used.
    """
    usable = _usable_port(host, port)
    with tempfile.TemporaryDirectory(prefix="nti-batch-app-") as folder:
        # Gradio keeps the images that it shows and uploads there
        os.environ["GRADIO_TEMP_DIR"] = folder
        blocks = page.blocks().queue(max_size=MAX_WAITING, default_concurrency_limit=4)
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=usable,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            enable_monitoring=False,
            footer_links=[],
            max_file_size=MAX_IMAGE_BYTES,
            state_session_capacity=MAX_VISITS,
            theme=theme(),
            css=STYLE,
            app_kwargs={"middleware": [Middleware(OwnFilesOnly)]},
        )
        try:
            yield blocks, address
        finally:
            blocks.close(verbose=False)
