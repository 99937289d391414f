"""A folder in PIE-Bench's form with drawn images."""

import json
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nti_batch.demo.scenes import Scene, SceneObject, draw, object_masks
from nti_batch.editing.masks import encode_runs

SIZE = 512
SOURCE = Scene((SceneObject("large", "red", "circle", "middle"),), "white")
EDITS = {
    "000000000000": ("0", "blue", "circle circle"),
    "111000000001": ("1", "green", "red green"),
    "921000000002": ("9", "purple", ""),
}
"""Category, colour and `blended_word` of each id."""


def enlarged(image: Tensor) -> Tensor:
    """Enlarge [channels, 64, 64] to [channels, 512, 512]."""
    return F.interpolate(image[None], SIZE, mode="nearest")[0]


def drawn(colour: str) -> Tensor:
    """Draw a circle of that colour, [3, 512, 512] in [0, 1]."""
    return enlarged(draw(scene(colour)))


def scene(colour: str) -> Scene:
    return replace(SOURCE, objects=(replace(SOURCE.objects[0], colour=colour),))


def edited_part() -> Tensor:
    """Return the circle, bool [512, 512], which is each mask without the borders."""
    return enlarged(object_masks(SOURCE))[0] > 0


def entry(key: str) -> dict[str, object]:
    """Return an entry of the mapping file, with brackets around the words that change."""
    category, colour, words = EDITS[key]
    return {
        "image_path": f"{category}_category/{key}.jpg",
        "original_prompt": SOURCE.caption.replace("red", "[red]"),
        "editing_prompt": scene(colour).caption.replace(colour, f"[{colour}]"),
        "editing_instruction": f"Make it {colour}",
        "editing_type_id": category,
        "blended_word": words,
        "mask": list(encode_runs(edited_part()).runs),
    }


def write_pie_folder(folder: Path, **changes: object) -> Path:
    """Write three edits of a red circle; `changes` replace fields of the first entry, and None removes one."""
    mapping = {key: entry(key) for key in EDITS}
    first = {**next(iter(mapping.values())), **changes}
    mapping[next(iter(mapping))] = {name: value for name, value in first.items() if value is not None}
    for key in EDITS:
        path = folder / "annotation_images" / str(entry(key)["image_path"])
        path.parent.mkdir(parents=True)
        pixels = (drawn("red") * 255).round().to(torch.uint8).permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(path, "JPEG", quality=95)
    (folder / "mapping_file.json").write_text(json.dumps(mapping))
    return folder
