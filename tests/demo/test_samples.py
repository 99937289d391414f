"""The shipped sample shards agree with the code and with their README."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nti_batch.demo.judge import name_colour
from nti_batch.demo.samples import FOLDER, scene_from_json, scene_to_json, write_shard, write_shards
from nti_batch.demo.scenes import Scene, SceneObject, unseen_scenes


def members(path: Path) -> dict[str, bytes]:
    """Read the content of each member, in the order of the tar."""
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}


def pixels(png: bytes) -> np.ndarray:
    """Decode an image."""
    with Image.open(io.BytesIO(png)) as image:
        assert image.mode == "RGB" and image.size == (64, 64)
        return np.array(image).astype(int)


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the scene shards to another folder."""
    folder = tmp_path_factory.mktemp("samples with spaces")
    write_shards(folder)
    return folder


def test_a_scene_read_from_its_json_is_equal() -> None:
    for scene in unseen_scenes(32):
        again = scene_from_json(scene_to_json(scene))
        assert again == scene
        assert hash(again) == hash(scene)


def test_the_json_of_a_scene_has_every_field_by_name() -> None:
    ring = SceneObject("small", "red", "ring", "top", (0.5, -1.25), 1.05, (0.1, 0.0, -0.05))
    scene = Scene((ring,), "blue", 0.75, 0.1, (0.0, 0.02, 0.0), (0.03,) * 25)
    fields = json.loads(scene_to_json(scene))
    assert fields.pop("caption") == "at the top a small red ring on a blue background"
    thing = {"size": "small", "colour": "red", "shape": "ring", "place": "top", "offset": [0.5, -1.25], "stretch": 1.05}
    background = {"background": "blue", "tone": [0.0, 0.02, 0.0], "texture": [0.03] * 25}
    thing["tone"] = [0.1, 0.0, -0.05]
    assert fields == {"objects": [thing], "shade_angle": 0.75, "shade": 0.1} | background


@pytest.mark.parametrize("shard", [0, 1])
def test_the_code_writes_the_shipped_scenes(shard: int, rewritten: Path) -> None:
    name = f"scenes-{shard:06d}.tar"
    shipped, written = members(FOLDER / name), members(rewritten / name)
    assert list(shipped) == list(written)
    for member, data in shipped.items():
        if member.endswith(".png"):
            # the last bit of a sine can round a pixel to the next level
            assert np.abs(pixels(data) - pixels(written[member])).max() <= 1
        else:
            assert data == written[member]


def test_the_shipped_scenes_are_unseen_and_each_shard_counts_keys_from_zero() -> None:
    scenes = []
    for shard in ("scenes-000000.tar", "scenes-000001.tar"):
        files = members(FOLDER / shard)
        assert list(files) == [f"{i:06d}.{ending}" for i in range(16) for ending in ("json", "png", "txt")]
        for i in range(16):
            scenes.append(scene_from_json(files[f"{i:06d}.json"].decode()))
            assert files[f"{i:06d}.txt"].decode() == scenes[-1].caption
    assert scenes == unseen_scenes(32)


def test_shipped_images_show_their_scenes() -> None:
    files = members(FOLDER / "scenes-000000.tar")
    for i, scene in enumerate(unseen_scenes(16)):
        corner = pixels(files[f"{i:06d}.png"])[:4, :4].mean((0, 1))
        assert name_colour(torch.from_numpy(corner).float() / 255) == scene.background


def test_a_tar_depends_only_on_its_scenes(tmp_path: Path) -> None:
    first, second = tmp_path / "a.tar", tmp_path / "b.tar"
    write_shard(first, unseen_scenes(2))
    write_shard(second, unseen_scenes(2))
    assert first.read_bytes() == second.read_bytes()
    for path in (first, *FOLDER.glob("*.tar")):
        with tarfile.open(path) as tar:
            assert tar.getnames() == sorted(tar.getnames())
            for m in tar:
                assert (m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) == (0, 0, 0, "", "", 0o644)
                assert not m.pax_headers


def test_every_camera_image_has_a_caption_and_credits() -> None:
    files = members(FOLDER / "photographs-000000.tar")
    keys = {Path(name).stem for name in files}
    assert len(keys) == 8 and len(files) == 24
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for key in keys:
        about = json.loads(files[f"{key}.json"])
        assert about.keys() == {"caption", "source", "author", "licence", "changes"} and all(about.values())
        assert files[f"{key}.txt"].decode() == about["caption"]
        assert pixels(files[f"{key}.png"]).std() > 20
        assert b"iCCP" not in files[f"{key}.png"], "the figures in the documents are for the pixels as they are"
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{key}` |"))
        licence = about["licence"].split(",")[0].split(" (")[0]
        assert licence in row and about["author"].split(",")[0].split(" (")[0] in row
