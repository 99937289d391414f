"""Commands that read a run in an object store print and write what they do of its copy in a folder."""

import filecmp
from pathlib import Path

import pytest
import torch
from helpers.edits import edit, edits_flag
from helpers.jobs import arguments
from helpers.tiny import write_mixed_shard
from torch.utils.data import DataLoader

from nti_batch import InversionDataset, read_inversions
from nti_batch.cli import main
from nti_batch.json_object import Json
from nti_batch.output.bucket import Bucket


def copy_run(address: str, folder: Path) -> str:
    """Copy the objects of a run to a folder."""
    store = Bucket(address)
    for name in ("run.json", "shards.00000.json"):
        if (content := store.read(name)) is not None:
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    for kind in ("inversions", "edits"):
        for name in store.list(kind):
            (folder / kind).mkdir(exist_ok=True)
            store.download(f"{kind}/{name}", folder / kind / name)
    return str(folder)


@pytest.fixture
def inverted(tiny_model: Path, bucket: str, tmp_path: Path) -> str:
    """Address of a run of two shards, of which one was added later, with a failed image."""
    for name in "ab":
        shard = write_mixed_shard(tmp_path / f"{name}.tar")
        job = arguments(tiny_model, shard, Path("out"), f"--output.dir={bucket}/inverted", "--output.part_images=2")
        assert main(job) == 3
    return f"{bucket}/inverted"


@pytest.fixture
def edited(inverted: str, bucket: str, tmp_path: Path) -> str:
    """Address of a run of edits with masks."""
    mask: dict[str, Json] = {"mask": [0, 128], "mask_size": [16, 16]}
    edits = edits_flag(
        tmp_path / "edits.jsonl", *({"key": key, "edit_prompt": "a dog", **mask} for key in ("000", "002"))
    )
    assert (
        main([*edit(Path("in"), Path("out"), f"--data.inversions={inverted}", edits), f"--output.dir={bucket}/edited"])
        == 0
    )
    return f"{bucket}/edited"


def outcome(arguments: list[str], out: str, written: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and printed text of a command, without the address of the run and the place that it writes to."""
    capsys.readouterr()
    code = main([each.format(out=out, written=written) for each in arguments])
    return code, capsys.readouterr().out.replace(out, "OUT").replace(str(written), "WRITTEN")


def same_files(one: Path, other: Path) -> bool:
    """Whether two files, or the files of two folders, have the same bytes."""
    if one.is_file() or other.is_file():
        return one.read_bytes() == other.read_bytes()
    names = [
        sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) for folder in (one, other)
    ]
    return names[0] == names[1] and filecmp.cmpfiles(one, other, map(str, names[0]), shallow=False)[1:] == ([], [])


READING = [
    ["status", "{out}", "--failures", "--table"],
    ["verify", "{out}"],
    ["report", "{out}", "--output={written}.html", "--images=1"],
    ["export", "{out}", "--output={written}.parquet", "--format=parquet"],
    ["export", "{out}", "--output={written}", "--format=hub"],
]


def compare(commands: list[list[str]], address: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local = copy_run(address, folder / Path(address).name)
    for number, command in enumerate(commands):
        places = [folder / f"{kind}-{number}" for kind in ("stored", "local")]
        outcomes = [outcome(command, out, place, capsys) for out, place in zip((address, local), places, strict=True)]
        assert outcomes[0] == outcomes[1], command
        assert outcomes[0][0] in (0, 3), outcomes[0][1]
        for suffix in ("", ".html", ".parquet", ".png"):
            one, other = (place.with_name(place.name + suffix) for place in places)
            assert one.exists() == other.exists()
            assert not one.exists() or same_files(one, other), command


def test_commands_read_inversions(inverted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    diffusers = ["export", "{out}", "--output={written}"]
    one = ["edit", "--inversions={out}", "--key=001", "--shard=a", "--output={written}.png", "--prompt=a dog"]
    compare([*READING, diffusers], inverted, tmp_path, capsys)
    capsys.readouterr()
    assert main([part.format(out=inverted, written=tmp_path / "one") for part in one]) == 0
    assert main(["report", inverted, "--images=0"]) == 0
    assert f"{inverted}/report.html" in capsys.readouterr().out
    assert (Bucket(inverted).read("report.html") or b"").startswith(b"<!")


def test_commands_read_edits(edited: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images = ["export", "{out}", "--output={written}", "--format=images"]
    compare([*READING, images, ["score", "{out}"]], edited, tmp_path, capsys)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_reads_a_run(inverted: str, tmp_path: Path, workers: int):
    dataset = InversionDataset(inverted, pixels=True)
    loader = DataLoader(
        dataset,
        batch_size=4,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        collate_fn=InversionDataset.collate_fn,
    )
    batches, stored = list(loader), list(read_inversions(inverted))
    assert [id for batch in batches for id in batch.ids] == [(one.shard, one.key) for one in stored]
    embeddings = torch.cat([batch.null_embeddings for batch in batches])
    assert torch.equal(embeddings, torch.stack([one.null_embeddings for one in stored]))
    assert inverted in repr(dataset)


def test_a_fork_is_refused_in_words(inverted: str):
    """In a fork of a process that has asked a store, a request would wait for ever."""
    loader = DataLoader(
        InversionDataset(inverted),
        num_workers=1,
        multiprocessing_context="fork",
        collate_fn=InversionDataset.collate_fn,
    )
    with pytest.raises(ValueError, match=r"object stores cannot be read in a forked process: .*'spawn'"):
        next(iter(loader))
