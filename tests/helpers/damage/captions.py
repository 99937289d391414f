"""Captions beside an image."""

import json

from helpers.damage.case import DONE, PNG, Case, Row, between
from helpers.tars import END, file
from helpers.tiny import png


def captions() -> list[Case]:
    """Texts beside an image."""
    texts: dict[str, tuple[bytes, Row]] = {
        "empty": (b"", ("caption", "the caption is empty")),
        "blank": (b" \r\n\t\xc2\xa0", ("caption", "the caption is empty")),
        "of a mark alone": (b"\xef\xbb\xbf", ("caption", "the caption is empty")),
        "in latin 1": (b"caf\xe9", ("caption", "'utf-8' codec can't decode")),
        "in utf-16": ("a cat".encode("utf-16"), ("caption", "'utf-8' codec can't decode")),
        "with half a character": ("é".encode()[:1], ("caption", "'utf-8' codec can't decode")),
        "with a surrogate": (b"\xed\xa0\x80", ("caption", "'utf-8' codec can't decode")),
        "too long": (b"a red circle " * 100, DONE),
        "of 100000 characters": (b"word " * 20_000, DONE),
        "with a mark": (b"\xef\xbb\xbfa red circle", DONE),
        "of many lines": (b"a red circle\r\n\r\nand a blue one\n", DONE),
        "in other letters": ("красный круг 赤い円 🔴 دائرة".encode(), DONE),
        "with a zero byte": (b"a red\0circle", DONE),
        "with markup": (b"<|endoftext|> <b>&amp;</b> {json: [1]}", DONE),
    }
    cases = [between("caption", name, PNG + file("x.txt", data), {"x": row}) for name, (data, row) in texts.items()]
    missing: dict[str, Row] = {"x": ("caption", "there is no .txt member beside .png")}
    return [
        *cases,
        between("caption", "missing", PNG, missing),
        between(
            "caption",
            "in a json",
            PNG + file("x.json", b'{"caption": "a cat"}'),
            {"x": ("caption", "beside .png, .json")},
        ),
        between(
            "caption",
            "under another extension",
            PNG + file("x.caption", b"a cat"),
            {"x": ("caption", "beside .png, .caption")},
        ),
    ]


def with_json(key: str, text: bytes) -> bytes:
    return file(f"{key}.png", png(ord(key[0]))) + file(f"{key}.json", text)


def json_captions() -> list[Case]:
    """JSON beside an image, the caption being expected in the field 'caption'."""
    no_field = ("caption", "has no field 'caption' that is a string")
    nested = b'{"caption": "a cat", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    texts: dict[str, tuple[bytes, Row]] = {
        "json": (json.dumps({"width": 8, "caption": "кот", "tags": ["a"]}).encode(), DONE),
        "json with a mark": (b'\xef\xbb\xbf{"caption": "a cat"}', DONE),
        "json in escapes": (b'{"caption": "\\ud83d\\ude42"}', DONE),
        "json with the field twice": (b'{"caption": 3, "caption": "a cat"}', DONE),
        "json under another field": (b'{"text": "a cat"}', no_field),
        "json in another case": (b'{"Caption": "a cat"}', no_field),
        "json in a nested field": (b'{"meta": {"caption": "a cat"}}', no_field),
        "json of a list of captions": (b'{"caption": ["a cat", "a dog"]}', no_field),
        "json of null": (b'{"caption": null}', no_field),
        "json that is a list": (b'["a cat"]', no_field),
        "json that is a string": (b'"a cat"', no_field),
        "json of an empty caption": (b'{"caption": "  "}', ("caption", "the caption is empty")),
        "json that is empty": (b"", ("caption", "Expecting value")),
        "json cut": (b'{"caption": "a ca', ("caption", "Unterminated string")),
        "json of half a surrogate pair": (b'{"caption": "\\ud83d"}', ("caption", "surrogates not allowed")),
        "json in latin 1": (b'{"caption": "caf\xe9"}', ("caption", "'utf-8' codec can't decode")),
        "json nested deeply": (nested, ("caption", "recursion")),
        "json with a huge number": (b'{"caption": "a cat", "n": ' + b"1" * 5000 + b"}", ("caption", "digits")),
        "json lines": (b'{"caption": "a cat"}\n{"caption": "a dog"}', ("caption", "Extra data")),
    }
    return [
        Case(
            "caption",
            name,
            with_json("a", b'{"caption": "a"}') + with_json("x", data) + with_json("z", b'{"caption": "z"}') + END,
            {"a": DONE, "x": row, "z": DONE},
        )
        for name, (data, row) in texts.items()
    ]
