"""The page: its layout, and which function each part calls."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import gradio as gr
import torch

from nti_batch.app import gallery, visit
from nti_batch.app.edit_list import EditList
from nti_batch.app.form import FURTHER, EditForm
from nti_batch.app.gallery import ImageId
from nti_batch.app.overlays import heat_map, mask_overlay
from nti_batch.app.uploads import Upload, Uploads
from nti_batch.app.visit import SCORES, Visit
from nti_batch.app.workbench import Edit, Workbench
from nti_batch.data.folder import IMAGE_EXTENSIONS, MAX_IMAGE_BYTES
from nti_batch.data.images import to_image
from nti_batch.diffusion.alignment import Kind
from nti_batch.diffusion.edit_settings import AttentionMethod, EditSettings
from nti_batch.files import OutputError, read_bounded
from nti_batch.lock import UnitInUseError
from nti_batch.phrases import hide_credentials

SMALL = 256
"""Images with smaller sides are shown with their pixels enlarged."""

ROWS = ("source", "edit")
"""Rows whose attention can be shown."""

PROGRESS = gr.Progress()
DEFAULTS = EditSettings()
DEVICE: dict[str, Any] = {"concurrency_id": "device", "concurrency_limit": 1}
"""Requests with this wait for each other."""


def reported(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn what a user can cause into a message on the page."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except torch.OutOfMemoryError as error:
            raise gr.Error("the device has too little free memory for this", print_exception=False) from error
        except (ValueError, OutputError, UnitInUseError) as error:
            raise gr.Error(hide_credentials(str(error)), duration=None, print_exception=False) from error

    return call


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

    # --- layout ----------------------------------------------------------------------------------

    def blocks(self) -> gr.Blocks:
        """Lay out the page."""
        settings = self.workbench.dataset.run.settings
        self.style = ["image", "small"] if max(settings.height, settings.width) < SMALL else ["image"]
        name = self.workbench.out.resolve().name
        with gr.Blocks(title=f"nti-batch: {name}", analytics_enabled=False, fill_width=True) as page:
            self.visit = gr.State(Visit())
            with gr.Row():
                with gr.Column(scale=1, min_width=300):
                    self._lay_out_run(name)
                with gr.Column(scale=3, min_width=600):
                    self._lay_out_source()
                    self._lay_out_form()
                    self._lay_out_result()
                    self._lay_out_list()
            self._connect(page)
        return page

    def _lay_out_run(self, name: str) -> None:
        if self.uploads:
            with gr.Group():
                self.file = gr.File(label="Image to invert", file_types=[f".{e}" for e in IMAGE_EXTENSIONS], height=120)
                self.caption = gr.Textbox(label="Its caption", placeholder="what the image shows", elem_id="caption")
                self.invert_button = gr.Button("Invert", variant="primary", elem_id="invert")
        self.search_text = gr.Textbox(label=f"Search {name}", placeholder="part of a key or caption", elem_id="search")
        self.found = gr.Gallery(
            label="Images", columns=3, height=560, allow_preview=False, object_fit="contain", elem_id="gallery",
            elem_classes=self.style, buttons=[],
        )  # fmt: skip
        self.found_text = gr.Markdown()

    def _lay_out_source(self) -> None:
        self.prompt_of_source = gr.Textbox(
            label="Caption", interactive=False, placeholder="choose an image", elem_id="source-prompt"
        )
        with gr.Row():
            self.images = [self._image(label) for label in ("Input", "VAE bound", "Reconstruction")]

    def _image(self, label: str, elem_id: str | None = None) -> gr.Image:
        return gr.Image(
            label=label, format="png", interactive=False, height=250, min_width=150, buttons=["download", "fullscreen"],
            elem_id=elem_id, elem_classes=self.style,
        )  # fmt: skip

    def _lay_out_form(self) -> None:
        with gr.Group():
            prompt = gr.Textbox(label="Prompt of the edit", elem_id="prompt", max_lines=3)
            with gr.Row():
                attention = gr.Dropdown(list(get_args(AttentionMethod)), value=DEFAULTS.attention, label="Method")
                kind = gr.Radio(list(get_args(Kind)), value=DEFAULTS.kind, label="Kind of edit")
                cross = gr.Textbox(
                    label="cross_replace_steps", placeholder=f"{DEFAULTS.cross_replace_steps}, or default_=0.4;word=1"
                )
                steps = gr.Textbox(label="self_replace_steps", placeholder=f"{DEFAULTS.self_replace_steps}, or 0.1;0.5")
            with gr.Row():
                source_words = gr.Textbox(label="Blend words of the caption", placeholder="word;other word")
                edit_words = gr.Textbox(label="Blend words of the edit", placeholder="word;other word")
                equalizer = gr.Textbox(label="Equalizer", placeholder="word=2;other=0.5", elem_id="equalizer")
            with gr.Accordion("Further settings", open=False):
                further = gr.Textbox(
                    label="One a line: name = value",
                    info=", ".join(FURTHER),
                    lines=3,
                    placeholder="blend_threshold = 0.3",
                )
            self.edit_button = gr.Button("Edit", variant="primary", elem_id="edit")
        self.prompt = prompt
        self.fields = [prompt, attention, kind, cross, steps, source_words, edit_words, equalizer, further]

    def _lay_out_result(self) -> None:
        with gr.Row():
            self.source_image = self._image("Source")
            self.edit_image = self._image("Edit", "edit-image")
            self.mask_image = self._image("Where local blend let it change")
            self.heat_image = self._image("Attention", "heat-image")
        with gr.Row(equal_height=True):
            self.row = gr.Radio(list(ROWS), value=ROWS[0], label="Attention in the prompt of the")
            self.word = gr.Dropdown(
                [], label="Word", allow_custom_value=True, info="or several in a row", elem_id="word"
            )
            self.heat_button = gr.Button("Show attention", elem_id="attention")
        self.kept = gr.Gallery(
            label="Last edits: choose one to show it again", columns=visit.MAX_KEPT, height=170, format="png",
            allow_preview=False, object_fit="contain", elem_id="kept", elem_classes=self.style, buttons=[],
        )  # fmt: skip
        self.scores = gr.Dataframe(
            headers=list(SCORES), datatype="str", interactive=False, wrap=True, elem_id="scores",
            label="Scores against the input: of all pixels, or with blend words of the part that could not change",
        )  # fmt: skip

    def _lay_out_list(self) -> None:
        with gr.Group():
            with gr.Row(equal_height=True):
                self.name = gr.Textbox(label="Name of the edit", placeholder="its number", elem_id="name")
                self.with_mask = gr.Checkbox(label="With the mask, so that the job scores the part outside")
                self.add_button = gr.Button(f"Add to {self.edits.path.name}", elem_id="add")
            self.line = gr.Textbox(label="Line", interactive=False, lines=2, elem_id="line")
            gr.Textbox(label="The job that makes these edits", interactive=False, value=self.command, elem_id="command")

    @property
    def command(self) -> str:
        """Command of the job that takes the list."""
        return (
            f"nti-batch edit --data.inversions={self.workbench.out} --data.edits={self.edits.path} --output.dir=edits"
        )

    def _connect(self, page: gr.Blocks) -> None:
        """Name the function of each part."""
        of_search = [self.visit, self.found, self.found_text]
        of_source = [self.visit, self.prompt_of_source, *self.images, self.prompt, self.word]
        of_edit = [self.visit, self.source_image, self.edit_image, self.mask_image, self.word, self.kept, self.scores]
        of_search_text = [self.visit, self.search_text]
        gr.on([page.load, self.search_text.submit], reported(self.search), of_search_text, of_search)
        self.found.select(reported(self.choose), self.visit, of_source, **DEVICE)
        gr.on(
            [self.edit_button.click, self.prompt.submit],
            reported(self.edit),
            [self.visit, *self.fields],
            of_edit,
            **DEVICE,
        )
        self.kept.select(reported(self.show_again), self.visit, of_edit)
        of_heat = [self.visit, self.row, self.word]
        self.heat_button.click(reported(self.show_attention), of_heat, [self.visit, self.heat_image], **DEVICE)
        self.row.change(reported(self.choose_row), [self.visit, self.row], self.word)
        self.add_button.click(
            reported(self.add), [self.visit, self.name, self.with_mask], self.line, concurrency_limit=1
        )
        if self.uploads:
            inverted = self.invert_button.click(
                reported(self.invert), [self.visit, self.file, self.caption], of_source, **DEVICE
            )
            inverted.success(reported(self.search), of_search_text, of_search)

    # --- functions of the parts ---------------------------------------------------------------------

    def search(self, state: Visit, text: str) -> list[Any]:
        """Show the images that fit a text."""
        found = self.workbench.gallery.search(text)
        state.found = [(entry.shard, entry.key) for entry in found]
        return [
            state,
            [self._thumbnail(entry) for entry in found],
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
            gr.Warning(f"the input is not shown: {source.unread}")
        prompt = source.stored.prompt
        shown = zip((source.input, source.vae, source.reconstruction), visit.describe(source), strict=True)
        images = [gr.Image(value=None if pixels is None else to_image(pixels), label=label) for pixels, label in shown]
        return [
            state,
            gr.Textbox(value=prompt, label=f"Caption of {source.stored.key}"),
            *images,
            prompt,
            self._words(prompt),
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
            gr.Warning("the text encoder reads only the beginning of the caption")
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
            gr.Warning("the text encoder reads only the beginning of the prompt")
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
            gr.Image(value=to_image(heat_map(image, attention)), label=f"Attention of {word!r} in the {row}"),
        ]

    def add(self, state: Visit, name: str, with_mask: bool) -> str:
        """Add the edit that is shown to the list."""
        return self.edits.add(state.current_edit(name, with_mask).request)
