"""Places of the images in a shard, for reading them in any order."""

import os
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from nti_batch.data.folder import IMAGE_EXTENSIONS, extension_of, list_folder
from nti_batch.data.shard_reader import DAMAGE, split_name, user_files
from nti_batch.data.shards import is_url, public_address
from nti_batch.data.tar import MemberPlace, open_archive

ImagePlace = tuple[Path, MemberPlace]
"""A file, and the place of an image in it."""


def locate_images(url: str) -> dict[str, ImagePlace]:
    """Return the place of each key's image in a folder, or in a local tar up to its first damage.

    Raises:
        ValueError: If the shard is remote, cannot be read or is compressed, so that its members have no offset.
    """
    if is_url(url):
        raise ValueError(
            f"shard {public_address(url)!r} is remote, and images are read in any order: fetch it, and give shards=..."
        )
    try:
        return _locate_in_folder(Path(url)) if os.path.isdir(url) else _locate_in_tar(Path(url))
    except OSError as error:
        raise ValueError(f"shard {url!r} cannot be read ({error.strerror}): give shards=... where it is now") from error


def _locate_in_folder(folder: Path) -> dict[str, ImagePlace]:
    places: dict[str, ImagePlace] = {}
    for sample in list_folder(str(folder), "txt").samples:
        images = [folder / path for path in sample.files if extension_of(path) in IMAGE_EXTENSIONS]
        if len(images) == 1:
            places[sample.key] = images[0], MemberPlace(0, images[0].stat().st_size)
    return places


def _locate_in_tar(tar: Path) -> dict[str, ImagePlace]:
    places: dict[str, ImagePlace] = {}
    if tar.exists() and not tar.is_file():
        raise ValueError(f"shard {str(tar)!r} is no regular file: give shards=... with tars")
    with open(tar, "rb") as stream:
        try:
            archive = open_archive(stream)
            if archive.fileobj is not stream:
                raise ValueError(
                    f"shard {str(tar)!r} is compressed, and images are read in any order: "
                    "unpack it, and give shards=..."
                )
            named = ((*name, m) for m in user_files(archive) if (name := split_name(m.name)))
            for key, members in groupby(named, itemgetter(0)):
                images = [member for _, extension, member in members if extension in IMAGE_EXTENSIONS]
                if len(images) == 1:
                    places.setdefault(key, (tar, MemberPlace(images[0].offset_data, images[0].size)))
        except DAMAGE:
            # the members before the damage are whole; the caller misses the others by their keys
            return places
    return places
