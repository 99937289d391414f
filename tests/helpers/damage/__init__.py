"""Small damaged shards, with the manifest row that each of their images must get."""

from helpers.damage.archives import cuts, headers, whole_files
from helpers.damage.captions import captions, json_captions
from helpers.damage.case import DONE, Case
from helpers.damage.images import images
from helpers.damage.members import formats, keys

CASES = [*cuts(), *headers(), *whole_files(), *formats(), *keys(), *images(), *captions()]
JSON_CASES = json_captions()
__all__ = ["CASES", "DONE", "JSON_CASES", "Case"]
