"""The functions of the page, and which part calls which."""

import functools
import shlex
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from nti_batch.app import gallery, visit
from nti_batch.app.edit_list import EditList
from nti_batch.app.form import EditForm
from nti_batch.app.gallery import ImageId
from nti_batch.app.layout import ROWS, Layout
from nti_batch.app.overlays import heat_map, mask_overlay
from nti_batch.app.uploads import Upload, Uploads
from nti_batch.app.visit import Visit
from nti_batch.app.workbench import Edit, Workbench
from nti_batch.data.folder import MAX_IMAGE_BYTES
from nti_batch.data.images import to_image
from nti_batch.files import OutputError, read_bounded
from nti_batch.lock import UnitInUseError
from nti_batch.phrases import hide_credentials

SMALL = 256
"""Images with smaller sides are shown with their pixels enlarged."""

PROGRESS = gr.Progress()
DEVICE: dict[str, Any] = {"concurrency_id": "device", "concurrency_limit": 1}
"""Requests with this wait for each other."""


def reported(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn what a user can cause into a message on the page."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except torch.OutOfMemoryError as error:
            raise _message("the device has too little free memory for this") from error
        except (ValueError, OutputError, UnitInUseError) as error:
            raise _message(str(error)) from error

    return call


def _message(text: str) -> gr.Error:
    """A message that stays; Gradio shows its text as HTML."""
    return gr.Error(escape(hide_credentials(text)), duration=None, print_exception=False)


def _warn(text: str) -> None:
    """Show a message beside the result."""
    gr.Warning(escape(hide_credentials(text)))


class Page:
    """The page over one run."""

    def __init__(self, workbench: Workbench, edits: EditList, uploads: Uploads | None) -> None:
        """Lay out nothing yet.

        Args:
            workbench: The run with its model.
            edits: The list that edits are added to.
            uploads: The run as one that takes uploads; None if it takes none.
        """
        self.workbench, self.edits, self.uploads = workbench, edits, uploads

    def blocks(self) -> gr.Blocks:
        """Lay out the page, and name the function of each part."""
        settings, name = self.workbench.dataset.run.settings, self.workbench.dataset.run.name
        style = ["image", "small"] if max(settings.height, settings.width) < SMALL else ["image"]
        with gr.Blocks(title=f"nti-batch: {name}", analytics_enabled=False, fill_width=True) as page:
            self._connect(page, Layout(name, style, self.edits.path.name, self.command, self.uploads is not None))
        return page

    @property
    def command(self) -> str:
        """Command of the job that takes the list."""
        flags = (f"--data.inversions={self.workbench.out}", f"--data.edits={self.edits.path}", "--output.dir=edits")
        return shlex.join(["nti-batch", "edit", *flags])

    def _connect(self, page: gr.Blocks, parts: Layout) -> None:
        """Name the function of each part."""
        state = gr.State(Visit())
        of_search = [state, parts.found, parts.found_text]
        of_source = [state, parts.prompt_of_source, *parts.images, parts.prompt, parts.word, *parts.results]
        of_edit = [state, *parts.results[:3], parts.word, parts.kept, parts.scores]
        of_search_text = [state, parts.search_text]
        gr.on([page.load, parts.search_text.submit], reported(self.search), of_search_text, of_search)
        parts.found.select(reported(self.choose), state, of_source, show_progress_on=parts.images, **DEVICE)
        gr.on(
            [parts.edit_button.click, parts.prompt.submit],
            reported(self.edit),
            [state, *parts.fields],
            of_edit,
            show_progress_on=parts.results[1],
            **DEVICE,
        )
        parts.kept.select(reported(self.show_again), state, of_edit)
        of_heat = [state, parts.row, parts.word]
        parts.heat_button.click(reported(self.show_attention), of_heat, [state, parts.results[3]], **DEVICE)
        parts.row.change(reported(self.choose_row), [state, parts.row], parts.word)
        parts.add_button.click(
            reported(self.add), [state, parts.name, parts.with_mask], parts.line, concurrency_limit=1
        )
        if self.uploads:
            inverted = parts.invert_button.click(
                reported(self.invert),
                [state, parts.file, parts.caption],
                of_source,
                show_progress_on=parts.images[0],
                **DEVICE,
            )
            inverted.success(reported(self.search), of_search_text, of_search)

    def search(self, state: Visit, text: str) -> list[Any]:
        """Show the images that fit a text."""
        found = self.workbench.gallery.search(text)
        state.found = [(entry.shard, entry.key) for entry in found]
        return [
            state,
            gr.Gallery(value=[self._thumbnail(entry) for entry in found], selected_index=None),
            gallery.describe(found, len(self.workbench.dataset)),
        ]

    def _thumbnail(self, entry: gallery.Entry) -> tuple[Any, str]:
        pixels, _ = self.workbench.gallery.pixels(entry.shard, entry.key)
        settings = self.workbench.dataset.run.settings
        grey = torch.full((3, settings.height, settings.width), 128, dtype=torch.uint8)
        return to_image(grey if pixels is None else pixels), entry.title

    def choose(self, state: Visit, event: gr.SelectData) -> list[Any]:
        """Look at an image of the gallery."""
        return self._look_at(state, state.found[event.index])

    def _look_at(self, state: Visit, id: ImageId) -> list[Any]:
        source = self.workbench.source(*id)
        state.start(source)
        if source.unread:
            _warn(f"the input is not shown: {source.unread}")
        prompt = source.stored.prompt
        shown = zip((source.input, source.vae, source.reconstruction), visit.describe(source), strict=True)
        images = [gr.Image(value=None if pixels is None else to_image(pixels), label=label) for pixels, label in shown]
        return [
            state,
            gr.Textbox(value=prompt, label=f"Caption of {source.stored.key}"),
            *images,
            prompt,
            self._words(prompt),
            *[None] * 4,
        ]

    def _words(self, prompt: str) -> gr.Dropdown:
        words = self.workbench.words(prompt)
        return gr.Dropdown(choices=words, value=words[-1] if words else None)

    def invert(self, state: Visit, path: str | None, caption: str, progress: gr.Progress = PROGRESS) -> list[Any]:
        """Invert an uploaded image, and look at it."""
        assert self.uploads
        if path is None:
            raise ValueError("no image is chosen: drop one into the field")
        content = read_bounded(Path(path), MAX_IMAGE_BYTES)
        if self.workbench.networks.truncates(caption):
            _warn("the text encoder reads only the beginning of the caption")
        upload = Upload(Path(path).name, content, caption)
        known = self.workbench.dataset.ids
        id = self.uploads.invert(
            self.workbench.networks, upload, known, lambda share: progress(share, desc="Inverting")
        )
        self.workbench.reload()
        return self._look_at(state, id)

    def edit(self, state: Visit, progress: gr.Progress = PROGRESS, *fields: Any) -> list[Any]:
        """Edit the image that is looked at."""
        form = EditForm(*(field or "" for field in fields))
        edit = self.workbench.edit(state.current_source(), form, lambda share: progress(share, desc="Editing"))
        if edit.is_truncated:
            _warn("the text encoder reads only the beginning of the prompt")
        state.keep(edit)
        return self._shown(state, edit)

    def show_again(self, state: Visit, event: gr.SelectData) -> list[Any]:
        """Show an edit that is kept."""
        state.show(state.edits[event.index])
        return self._shown(state, state.edits[event.index])

    def _shown(self, state: Visit, edit: Edit) -> list[Any]:
        mask = None if edit.inside is None else to_image(mask_overlay(edit.pixels, edit.inside))
        kept = [(to_image(kept.pixels), title) for kept, title in zip(state.edits, state.titles(), strict=True)]
        images = [to_image(edit.source), to_image(edit.pixels), mask]
        return [state, *images, self._words(edit.attention.prompts[0]), kept, state.scores()]

    def choose_row(self, state: Visit, row: str) -> gr.Dropdown:
        """Offer the words of the prompt of a row."""
        prompts = state.attention.prompts if state.attention else (state.current_source().stored.prompt,)
        return self._words(prompts[min(ROWS.index(row), len(prompts) - 1)])

    def show_attention(self, state: Visit, row: str, word: str | None, progress: gr.Progress = PROGRESS) -> list[Any]:
        """Draw the attention of a word over its image."""
        source = state.current_source()
        if state.attention is None:
            state.attention = self.workbench.attention(source.stored, lambda share: progress(share, desc="Sampling"))
        number = ROWS.index(row)
        if number >= len(state.attention.prompts):
            raise ValueError("there is no edit yet: make one, or show the attention of the source")
        attention = self.workbench.map_of(state.attention, number, (word or "").strip())
        image = state.shown.pixels if number and state.shown else source.reconstruction
        return [
            state,
            gr.Image(value=to_image(heat_map(image, attention)), label=f"{word} in the {row}"),
        ]

    def add(self, state: Visit, name: str, with_mask: bool) -> str:
        """Add the edit that is shown to the list."""
        return self.edits.add(state.current_edit(name, with_mask).request)
