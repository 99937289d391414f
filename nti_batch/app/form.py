"""The settings of an edit as the page has them: texts, in the words of a list of edits."""

from dataclasses import dataclass

from nti_batch.diffusion.edit_settings import EditSettings
from nti_batch.editing.columns import SETTINGS_COLUMNS
from nti_batch.editing.requests import read_settings
from nti_batch.json_object import Json

_DEFAULTS = EditSettings()
FIELDS = ("attention", "kind", "cross_replace_steps", "self_replace_steps", "equalizer", "blend_words")
"""Settings with a field of their own."""

FURTHER = tuple(name for name in SETTINGS_COLUMNS if name not in FIELDS)
"""Settings that are lines of `further`."""


@dataclass(frozen=True, slots=True)
class EditForm:
    """The fields of the page. An empty text stands for the default."""

    prompt: str
    attention: str = _DEFAULTS.attention
    kind: str = _DEFAULTS.kind
    cross_replace_steps: str = ""
    self_replace_steps: str = ""
    source_blend_words: str = ""
    """Words of the source's prompt, joined by ';'."""

    edit_blend_words: str = ""
    equalizer: str = ""
    further: str = ""
    """Other settings, each a line 'name = value' with the value as in a CSV."""

    def settings(self) -> EditSettings:
        """Read the settings.

        Raises:
            ValueError: If a field has a wrong form, or a value is out of range.
        """
        cells: dict[str, Json] = {
            "attention": self.attention,
            "kind": self.kind,
            "cross_replace_steps": self.cross_replace_steps.strip(),
            "self_replace_steps": self.self_replace_steps.strip(),
            "equalizer": self.equalizer.strip(),
            **self._further(),
        }
        words = [_words(self.source_blend_words), _words(self.edit_blend_words)]
        if any(words):
            cells["blend_words"] = list(words)
        return read_settings({name: cell for name, cell in cells.items() if cell != ""}, _DEFAULTS)

    def _further(self) -> dict[str, Json]:
        cells: dict[str, Json] = {}
        for line in filter(None, map(str.strip, self.further.splitlines())):
            name, _, value = (part.strip() for part in line.partition("="))
            if name not in FURTHER or not value:
                raise ValueError(
                    f"further settings: {line!r}, allowed: lines 'name = value' with one of {', '.join(FURTHER)}"
                )
            cells[name] = value
        return cells


def _words(text: str) -> Json:
    """One word, or a list of several."""
    words: list[Json] = [word.strip() for word in text.split(";") if word.strip()]
    return words if len(words) > 1 else next(iter(words), "")
