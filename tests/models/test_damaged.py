"""Damaged, hostile and incomplete model folders through the front door: one sentence, exit code 2, nothing written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.jobs import arguments
from helpers.models import edit_json
from helpers.tiny import captioned, write_shard
from safetensors.torch import load_file, save_file
from torch import Tensor

from nti_batch.cli import main
from nti_batch.models.source import ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion

UNET_FILE, UNET_WEIGHTS = "unet/config.json", "unet/diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS, VOCABULARY = "text_encoder/model.safetensors", "tokenizer/tokenizer.json"
Damage = Callable[[Path], object]


def write(file: str, content: bytes) -> Damage:
    return lambda model: (model / file).write_bytes(content)


def change(file: str, **values: object) -> Damage:
    return lambda model: edit_json(model / file, **values)


def cut(file: str, size: int) -> Damage:
    return lambda model: os.truncate(model / file, size)


def without(name: str) -> Damage:
    return lambda model: shutil.rmtree(model / name) if (model / name).is_dir() else (model / name).unlink()


def replace_by(file: str, make: Callable[[Path], object]) -> Damage:
    def damage(model: Path) -> None:
        (model / file).unlink()
        make(model / file)

    return damage


def weights(file: str, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Damage:
    return lambda model: save_file(edit(load_file(model / file)), model / file, {"format": "pt"})


def header(file: str, **entries: object) -> Damage:
    content = json.dumps(entries).encode()
    return write(file, len(content).to_bytes(8, "little") + content)


def pickled(model: Path) -> None:
    (model / UNET_WEIGHTS).unlink()
    torch.save({}, model / "unet" / "diffusion_pytorch_model.bin")


SPECIAL = {"<|startoftext|>": 0, "<|endoftext|>": 1}
HUGE = {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}


def empty_vocabulary(model: Path) -> None:
    (model / "tokenizer" / "vocab.json").write_text(json.dumps(SPECIAL))
    (model / "tokenizer" / "merges.txt").write_text("")
    (model / VOCABULARY).unlink()


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no JSON": (write(UNET_FILE, b"{"), "unet/config.json cannot be read: Expecting property name"),
    "no UTF-8": (write(UNET_FILE, b"\xff\xfe{}"), "unet/config.json cannot be read"),
    "null": (write(UNET_FILE, b"null"), "the content is None, allowed: a JSON object"),
    "a list": (write("vae/config.json", b"[]"), r"the content is \[\], allowed: a JSON object"),
    "an empty object": (write(UNET_FILE, b"{}"), "the key block_out_channels is missing"),
    "an empty VAE": (write("vae/config.json", b"{}"), "the key block_out_channels is missing"),
    "an empty text encoder": (write("text_encoder/config.json", b"{}"), "the key hidden_size is missing"),
    "deep nesting": (write(UNET_FILE, b"[" * 100_000), "unet/config.json cannot be read"),
    "a huge file": (write(UNET_FILE, b" " * (1 << 21)), "it has more than 1048576 bytes"),
    "a directory": (replace_by(UNET_FILE, Path.mkdir), "has no unet/config.json"),
    "a pipe": (replace_by(UNET_FILE, os.mkfifo), "has no unet/config.json"),
    "no list of channels": (change(UNET_FILE, block_out_channels=8), "block_out_channels is 8, allowed: a list"),
    "too few blocks": (change(UNET_FILE, down_block_types=["DownBlock2D"]), "allowed: 2 values, as block_out"),
    "channels of another type": (change(UNET_FILE, block_out_channels=[8, "8"]), "block_out_channels is"),
    "a huge number of channels": (change(UNET_FILE, block_out_channels=[10**9] * 2), "from 1 to 16384"),
    "a huge number of layers": (change(UNET_FILE, layers_per_block=10**9), "an integer from 1 to 8"),
    "a huge vocabulary": (change("text_encoder/config.json", vocab_size=10**9), "vocab_size is 1000000000"),
    "a number beyond floats": (change("vae/config.json", scaling_factor=10**400), "scaling_factor is 1000"),
    "far more channels than weights": (
        change(UNET_FILE, block_out_channels=[16384] * 2),
        "does not load: unet .*size mismatch",
    ),
    "channels that no group divides": (change(UNET_FILE, norm_num_groups=3), "does not load: unet"),
    "half a header": (cut(UNET_WEIGHTS, 1000), r"unet/diffusion_pytorch_model.safetensors' is damaged"),
    "no bytes": (cut(TEXT_WEIGHTS, 0), r"text_encoder/model.safetensors' is damaged"),
    "a lost end": (cut(UNET_WEIGHTS, 20_000), "is damaged"),
    "an endless header": (write(UNET_WEIGHTS, (1 << 62).to_bytes(8, "little") + b"{}"), "is damaged"),
    "a huge weight": (header(UNET_WEIGHTS, weight=HUGE), "is damaged"),
    "no weights": (without(UNET_WEIGHTS), "it has no weights of unet. Allowed: safetensors weights"),
    "a pickle only": (pickled, "a pickled checkpoint .* can run any code"),
    "a lost weight": (
        weights(UNET_WEIGHTS, lambda found: {name: w for name, w in found.items() if name != "conv_in.bias"}),
        "unet lacks 1 weights, the first is 'conv_in.bias'",
    ),
    "a weight of another shape": (
        weights(UNET_WEIGHTS, lambda found: found | {"conv_in.bias": torch.zeros(3)}),
        "size mismatch for conv_in.bias",
    ),
    "a weight too many": (
        weights(UNET_WEIGHTS, lambda found: found | {"time_embedding.cond_proj.weight": torch.zeros(3)}),
        "weights that its configuration does not describe, the first is 'time_embedding.cond_proj.weight'",
    ),
    "quantized weights": (
        weights(TEXT_WEIGHTS, lambda found: {name: weight.to(torch.int8) for name, weight in found.items()}),
        "of text_encoder is quantized, allowed: weights in BF16, F16, F32, F64",
    ),
    "no tokenizer": (without("tokenizer"), "has no tokenizer/tokenizer_config.json"),
    "no vocabulary": (without(VOCABULARY), "tokenizer has no vocabulary"),
    "a damaged vocabulary": (write(VOCABULARY, b"{}"), "tokenizer does not load"),
    "half a vocabulary": (cut(VOCABULARY, 1000), "tokenizer does not load"),
    "a vocabulary without words": (
        empty_vocabulary,
        "tokenizer does not know the word 'a'",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model_is_refused_in_one_sentence_before_anything_is_written(
    name: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    damage, words = DAMAGES[name]
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    damage(model)
    out = tmp_path / "out"
    assert main(arguments(model, write_shard(tmp_path / "a.tar", captioned(1)), out)) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and len(errors) < 1000
    with pytest.raises(ValueError, match=words):
        raise ValueError(errors)
    assert not out.exists()


def test_a_tokenizer_with_more_tokens_than_the_text_encoder_is_refused(tiny_model: Path, tmp_path: Path):
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    edit_json(model / "text_encoder" / "config.json", vocab_size=600)
    weights(
        TEXT_WEIGHTS,
        lambda found: {name: w[:600].contiguous() if "token_embedding" in name else w for name, w in found.items()},
    )(model)
    with pytest.raises(ValueError, match="vocab_size is 600, allowed: above 611, the largest token"):
        StableDiffusion.load(ModelSource(str(model)))
