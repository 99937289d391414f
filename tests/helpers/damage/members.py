"""Members of a tar in old, new and odd formats, and with awkward names."""

import tarfile

from helpers.damage.case import (
    DONE,
    IRREGULAR,
    IS_DONE,
    NO_HEADER,
    PNG,
    Case,
    Row,
    X,
    Y,
    after,
    between,
    caption,
    good,
    written,
)
from helpers.tars import END, file, forge, header, record
from helpers.tiny import png


def both(*fields: tuple[int, bytes]) -> bytes:
    """A sample whose headers have other bytes at these places."""
    return forge(PNG, *fields) + forge(caption("x"), *fields)


def formats() -> list[Case]:
    """Old, new and odd ways to write a member: some are read, the others have an error."""
    long = "d/" + "k" * 120
    gnu, v7 = (257, b"ustar  \0"), (257, bytes(255))
    size = len(png(1))
    times = [(345, b"%011o\0" % (1_700_000_000 + n)) for n in range(2)]
    spread = (386, b"%011o\0%011o\0" % (0, size)), (483, b"%011o\0" % size)
    sparse = {"GNU.sparse.map": f"0,{size}", "GNU.sparse.size": str(size), "GNU.sparse.name": "x.png"}
    samples: dict[str, tuple[bytes, dict[str, Row]]] = {
        "v7": (both(v7, (156, b"\0")), IS_DONE),
        "ustar with a prefix": (both((345, b"some/folder")), {"some/folder/x": DONE}),
        "gnu": (both(gnu), IS_DONE),
        "gnu incremental": (forge(PNG, gnu, times[0]) + forge(caption("x"), gnu, times[1]), IS_DONE),
        "gnu folder listing": (forge(header("d/", 7, b"D"), gnu) + b"Yx.png\0".ljust(512, b"\0") + X, IS_DONE),
        "gnu volume label": (forge(header("Volume 1", 0, b"V"), gnu) + X, IS_DONE),
        "gnu long name": (written(tarfile.GNU_FORMAT, long), {long: DONE}),
        "pax long name": (written(tarfile.PAX_FORMAT, long), {long: DONE}),
        "pax size": (record(b"x", {"size": str(size)}) + forge(PNG, (124, b"00000000000\0")) + caption("x"), IS_DONE),
        "pax comment": (written(tarfile.PAX_FORMAT, "x", mtime=1.5, pax_headers={"comment": "é"}), IS_DONE),
        "pax global comment": (record(b"g", {"comment": "0123abc"}) + X, IS_DONE),
        "base 256 size": (forge(PNG, (124, b"\x80" + size.to_bytes(11, "big"))) + caption("x"), IS_DONE),
        "contiguous file": (both((156, b"7")), IS_DONE),
        "sparse by old gnu": (forge(PNG, gnu, (156, b"S"), *spread) + caption("x"), IRREGULAR),
        "sparse by pax": (record(b"x", sparse) + PNG + caption("x"), IRREGULAR),
        "hard link": (header("x.png", 0, b"1") + caption("x"), IRREGULAR),
        "symbolic link": (forge(header("x.png", 0, b"2"), (157, b"a.png")) + caption("x"), IRREGULAR),
        "character device": (header("x.png", 0, b"3") + caption("x"), IRREGULAR),
        "block device": (header("x.png", 0, b"4") + caption("x"), IRREGULAR),
        "fifo": (header("x.png", 0, b"6") + caption("x"), IRREGULAR),
        "second volume": (forge(PNG, (156, b"M")) + caption("x"), IRREGULAR),
        "unknown type": (forge(PNG, (156, b"Z")) + caption("x"), IRREGULAR),
        "caption that is a link": (PNG + header("x.txt", 0, b"2"), {"x": ("shard", "'x.txt' is no regular file")}),
        "v7 folder": (header("x.png/", 0, b"\0") + caption("x"), {"x": ("image", "there is no image beside .txt;")}),
        "caption of 2 MiB": (
            PNG + file("x.txt", bytes(1 << 21)),
            {"x": ("shard", "2097152 bytes, and at most 1048576")},
        ),
    }
    cases = [between("member", name, content, rows) for name, (content, rows) in samples.items()]
    large: dict[str, Row] = {"x": ("shard", "'x.png' has 2147483648 bytes, and at most 536870912 are read")}
    return [
        *cases,
        after("member", "image of 2 GiB", header("x.png", 1 << 31), "unexpected end of data", large),
        after("member", "pax global size", record(b"g", {"size": "3"}) + X + END, "impossible size of 3 bytes"),
        after(
            "member",
            "pax record of another form",
            header("p", 30, b"x") + b"x" * 512 + X + END,
            "none follow|" + NO_HEADER,
        ),
        after("member", "pax record before nothing", X + record(b"x", {"path": "y.png"}) + END, NO_HEADER, IS_DONE),
        after(
            "member",
            "long name before nothing",
            X + file("n", b"y.png").replace(header("n", 5), header("n", 5, b"L")),
            NO_HEADER,
            IS_DONE,
        ),
    ]


def renamed(names: dict[bytes, bytes]) -> bytes:
    return b"".join(file(name, content) for name, content in names.items())


def keys() -> list[Case]:
    """Awkward keys, and members that belong to no sample."""
    plain = {
        "in folders": "d/e.f/x",
        "that goes up": "../../x",
        "that is absolute": "/etc/x",
        "in this folder": "./x",
        "with quotes": "x'\"`",
        "with spaces": " x y ",
        "in other letters": "ключ 図 🙂",
        "with a line break": "x\ny",
        "with control characters": "x\t\x1b[31m\x7f",
        "with backslashes": "d\\x",
        "with signs of a url": "x#y?z=%41&+",
        "like an option": "-rf",
        "like a pattern": "x*[y]{0,9}::z",
    }
    cases = [between("key", name, good(key), {key: DONE}) for name, key in plain.items()]
    long = {"of 300 characters": "k" * 300, "of 20000 characters": "k" * 20_000, "in 300 folders": "d/" * 300 + "x"}
    cases += [between("key", name, written(tarfile.GNU_FORMAT, key), {key: DONE}) for name, key in long.items()]
    image, text = png(1), b"an image of x"
    nul = b"".join(record(b"x", {"path": f"x\0y.{e}"}) + file("n", d) for e, d in (("png", image), ("txt", text)))
    odd = b"\xff\xe9"
    samples: dict[str, tuple[bytes, dict[str, Row]]] = {
        "that is no utf-8": (renamed({odd + b".png": image, odd + b".txt": text}), {r"\xff\xe9": DONE}),
        "with a zero byte": (nul, {"x\0y": DONE}),
        "with capital extensions": (renamed({b"x.PNG": image, b"x.Txt": text}), IS_DONE),
        "in both cases": (good("x") + good("X"), {"x": DONE, "X": DONE}),
        "with more members": (X + renamed({b"x.json": b"{}", b"x.mask.png": image, b"x.cls": b"1"}), IS_DONE),
        "with two dots": (
            renamed({b"x.v2.png": image, b"x.v2.txt": text}),
            {"x": ("image", "first dot of the file name")},
        ),
        "with two images": (
            X + renamed({b"x.jpg": image}),
            {"x": ("image", "there are 2 images, .png, .jpg, of one key")},
        ),
        "without an image": (caption("x"), {"x": ("image", "there is no image beside .txt")}),
        "with one member twice": (X + caption("x"), {"x": ("shard", "two members are called 'x.txt'")}),
        "with one member in both cases": (
            X + renamed({b"x.TXT": text}),
            {"x": ("shard", "upper and lower case being equal")},
        ),
        "that ends in a dot": (renamed({b"x.": image}), {"x": ("image", "there is no image beside .;")}),
        "beside webdataset's own": (renamed({b"__url__": b"", b"__meta__/x.json": b"{}"}) + X, IS_DONE),
        "beside folders": (header("d", 0, b"5") + header("d.e/", 0, b"5") + X, IS_DONE),
        "of macOS": (
            renamed({b"._x.png": b"\0\5\x16\7", b"x.png": image, b"._x.txt": b"\0\5\x16\7", b"x.txt": text}),
            IS_DONE,
        ),
        "of macOS in a folder": (
            renamed(
                {
                    b"d/.DS_Store": b"\0\0\0\1Bud1",
                    b"d/._x.png": b"\0\5",
                    b"d/x.png": image,
                    b"d/._x.txt": b"\0\5",
                    b"d/x.txt": text,
                }
            ),
            {"d/x": DONE},
        ),
        "of macOS in its own folder": (
            X + renamed({b"__MACOSX/d/._x.png": b"\0\5", b"__MACOSX/._y.png": b""}),
            IS_DONE,
        ),
    }
    cases += [between("key", name, content, rows) for name, (content, rows) in samples.items()]
    with_errors: dict[str, tuple[bytes, dict[str, Row], str]] = {
        "that comes again": (X + good("y") + good("x"), {"x": DONE, "y": DONE}, "members of key 'x' come again"),
        "of a neighbour": (X + good("a"), IS_DONE, "members of key 'a' come again"),
        "with a member further on": (
            PNG + Y + caption("x"),
            {"x": ("caption", "no .txt member beside .png"), "y": DONE},
            "key 'x' come again",
        ),
        "without an extension": (
            file("x", image) + Y,
            {"y": DONE},
            "'x' belongs to no sample: its name is not KEY.EXT",
        ),
        "that is empty": (file("", image) + Y, {"y": DONE}, "'' belongs to no sample"),
        "that is an extension": (file(".png", image) + Y, {"y": DONE}, "'.png' belongs to no sample"),
        "that is hidden in a folder": (file("d/.x.png", image) + Y, {"y": DONE}, "'d/.x.png' belongs to no sample"),
        "that ends in a slash": (file("x.png/", image) + Y, {"y": DONE}, "'x.png/' belongs to no sample"),
    }
    return cases + [between("key", name, content, rows, shard) for name, (content, rows, shard) in with_errors.items()]
