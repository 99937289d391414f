"""The layout of the page: its parts, and their labels. `page` names the function of each."""

from collections.abc import Sequence
from typing import get_args

import gradio as gr

from nti_batch.app.form import FURTHER
from nti_batch.app.visit import MAX_KEPT, SCORES
from nti_batch.data.folder import IMAGE_EXTENSIONS
from nti_batch.diffusion.alignment import Kind
from nti_batch.diffusion.edit_settings import AttentionMethod, EditSettings

ROWS = ("source", "edit")
"""Rows whose attention can be shown."""

_DEFAULTS = EditSettings()


class Layout:
    """The parts of the page, laid out in the `gr.Blocks` that is open."""

    def __init__(self, name: str, style: Sequence[str], list_name: str, command: str, takes_uploads: bool) -> None:
        """Lay out the page.

        Args:
            name: Name of the run.
            style: CSS classes of images.
            list_name: Name of the list of edits.
            command: Command of the job that takes the list.
            takes_uploads: Whether images can be uploaded.
        """
        self.style = list(style)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                if takes_uploads:
                    self._lay_out_upload()
                self._lay_out_run(name)
            with gr.Column(scale=3, min_width=600):
                self._lay_out_source()
                self._lay_out_form()
                self._lay_out_result()
                self._lay_out_list(list_name, command)

    def _lay_out_upload(self) -> None:
        with gr.Group():
            self.file = gr.File(
                label="Image to invert", file_types=[f".{e}" for e in IMAGE_EXTENSIONS], height=120, elem_id="file"
            )
            self.caption = gr.Textbox(label="Its caption", placeholder="what the image shows", elem_id="caption")
            self.invert_button = gr.Button("Invert", variant="primary", elem_id="invert")

    def _lay_out_run(self, name: str) -> None:
        self.search_text = gr.Textbox(label=f"Search {name}", placeholder="part of a key or caption", elem_id="search")
        self.found = gr.Gallery(
            label="Images",
            columns=2,
            height=560,
            allow_preview=False,
            object_fit="contain",
            elem_id="gallery",
            elem_classes=self.style,
            buttons=[],
        )
        self.found_text = gr.Markdown()

    def _lay_out_source(self) -> None:
        self.prompt_of_source = gr.Textbox(
            label="Caption", interactive=False, placeholder="choose an image", elem_id="source-prompt"
        )
        with gr.Row():
            self.images = [self._image(label) for label in ("Input", "VAE bound", "Reconstruction")]

    def _image(self, label: str, elem_id: str | None = None) -> gr.Image:
        return gr.Image(
            label=label,
            format="png",
            interactive=False,
            height=250,
            min_width=150,
            buttons=["download", "fullscreen"],
            elem_id=elem_id,
            elem_classes=self.style,
        )

    def _lay_out_form(self) -> None:
        with gr.Group():
            prompt = gr.Textbox(label="Prompt of the edit", elem_id="prompt", max_lines=3)
            with gr.Row():
                attention = gr.Dropdown(list(get_args(AttentionMethod)), value=_DEFAULTS.attention, label="Method")
                kind = gr.Radio(list(get_args(Kind)), value=_DEFAULTS.kind, label="Kind of edit")
                cross = gr.Textbox(label="cross_replace_steps", placeholder=str(_DEFAULTS.cross_replace_steps))
                steps = gr.Textbox(label="self_replace_steps", placeholder=str(_DEFAULTS.self_replace_steps))
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
            names = {"source": "Source", "edit": "Edit", "mask": "Blend mask", "heat": "Attention"}
            self.results = [self._image(label, f"{name}-image") for name, label in names.items()]
        with gr.Row(equal_height=True):
            self.row = gr.Radio(list(ROWS), value=ROWS[0], label="Attention in the prompt of the")
            self.word = gr.Dropdown(
                [], label="Word", allow_custom_value=True, info="or several in a row", elem_id="word"
            )
            self.heat_button = gr.Button("Show attention", elem_id="attention")
        self.kept = gr.Gallery(
            label="Last edits: choose one to show it again",
            columns=MAX_KEPT,
            fit_columns=False,
            height=230,
            format="png",
            allow_preview=False,
            object_fit="contain",
            elem_id="kept",
            elem_classes=self.style,
            buttons=[],
        )
        self.scores = gr.Dataframe(
            headers=list(SCORES),
            column_widths=list(SCORES.values()),
            datatype="str",
            interactive=False,
            wrap=True,
            elem_id="scores",
            label="Scores against the input, PSNR in dB; with blend words first those of the part outside the mask",
        )

    def _lay_out_list(self, list_name: str, command: str) -> None:
        with gr.Group():
            with gr.Row(equal_height=True):
                self.name = gr.Textbox(label="Name of the edit", placeholder="its number", elem_id="name")
                self.with_mask = gr.Checkbox(label="With the mask, so that the job scores the part outside")
                self.add_button = gr.Button(f"Add to {list_name}", elem_id="add")
            self.line = gr.Textbox(label="Line", interactive=False, lines=2, elem_id="line")
            gr.Textbox(label="The job that makes these edits", interactive=False, value=command, elem_id="command")
