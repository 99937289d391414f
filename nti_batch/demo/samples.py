"""Writes shards of drawn scenes that training does not use: `python -m nti_batch.demo.samples [FOLDER --shards 4]`.

Without arguments it writes the sample shards of the package. More shards begin with the same scenes.

Equal versions of Pillow write equal bytes.
"""

import argparse
import json
import tarfile
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

from nti_batch.data.images import to_bytes, to_image
from nti_batch.demo.scenes import Scene, SceneObject, draw, unseen_scenes
from nti_batch.diffusion.edit_settings import with_tuples
from nti_batch.files import atomic_open

FOLDER = Path(__file__).with_suffix("")
"""Folder of the sample shards."""

NUM_SHARDS = 2
SCENES_PER_SHARD = 16


def scene_to_json(scene: Scene) -> str:
    """Write the fields of a scene and its caption as JSON."""
    return json.dumps(asdict(scene) | {"caption": scene.caption}, indent=1) + "\n"


def scene_from_json(text: str) -> Scene:
    """Read a scene from the JSON of `scene_to_json`, exactly."""
    fields = {name: with_tuples(value) for name, value in json.loads(text).items() if name != "caption"}
    objects = tuple(SceneObject(**thing) for thing in fields.pop("objects"))
    return Scene(objects, **fields)


def scene_to_png(scene: Scene) -> bytes:
    """Draw a scene, and encode it as PNG."""
    file = BytesIO()
    to_image(to_bytes(draw(scene))).save(file, "PNG")
    return file.getvalue()


def write_shard(path: Path, scenes: list[Scene]) -> None:
    """Write a WebDataset shard, whole or not at all; keys count from 000000 in every shard."""
    # TarInfo's defaults do not depend on the machine: time 0, user 0, group 0, mode 0644
    with atomic_open(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for index, scene in enumerate(scenes):
            members = {
                "json": scene_to_json(scene).encode(),
                "png": scene_to_png(scene),
                "txt": scene.caption.encode(),
            }
            for ending, data in members.items():
                member = tarfile.TarInfo(f"{index:06d}.{ending}")
                member.size = len(data)
                tar.addfile(member, BytesIO(data))


def write_shards(folder: Path = FOLDER, num_shards: int = NUM_SHARDS) -> None:
    """Write shards of scenes.

    Args:
        folder: Existing folder.
        num_shards: Number of shards, each with `SCENES_PER_SHARD` scenes.
    """
    scenes = unseen_scenes(num_shards * SCENES_PER_SHARD)
    for shard in range(num_shards):
        first = shard * SCENES_PER_SHARD
        write_shard(folder / f"scenes-{shard:06d}.tar", scenes[first : first + SCENES_PER_SHARD])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write shards of drawn scenes.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="existing folder")
    parser.add_argument(
        "--shards", type=int, default=NUM_SHARDS, help=f"number of shards, each with {SCENES_PER_SHARD} scenes"
    )
    arguments = parser.parse_args()
    write_shards(arguments.folder, arguments.shards)
