"""LoRAs that are merged into a model."""

import json
from pathlib import Path

import pytest
import torch
from helpers.edits import edit, edited_images
from helpers.jobs import arguments, expect_one_sentence
from helpers.loras import KEY, QUERY, RANK, lora_pair, needs_peft, write_kohya_lora, write_lora
from helpers.tiny import captioned, write_shard
from safetensors.torch import load_file, save_file

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.models.source import Lora, ModelSource
from nti_batch.models.stable_diffusion import StableDiffusion


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("shards") / "a.tar", captioned(1))


def merged(networks: StableDiffusion, base: StableDiffusion) -> tuple[torch.Tensor, torch.Tensor]:
    """What was added to the layer of the UNet and to that of the text encoder."""
    pairs = ((networks.unet, base.unet, QUERY), (networks.text.encoder, base.text.encoder, KEY))
    one, other = (new.get_submodule(name).weight - old.get_submodule(name).weight for new, old, name in pairs)
    return one, other


@needs_peft
@pytest.mark.parametrize("kohya", [False, True])
def test_loras_add_their_product_times_the_weight(kohya: bool, tiny_model: Path, tmp_path: Path):
    path = tmp_path / "lora.safetensors"
    scale = 0.5 if kohya else 1.0
    file = write_kohya_lora(path, alpha=RANK * scale) if kohya else write_lora(path)
    base = StableDiffusion.load(ModelSource(str(tiny_model)))
    networks = StableDiffusion.load(ModelSource(str(tiny_model), loras=(Lora(str(file), 0.7),)))
    for seed, added in enumerate(merged(networks, base)):
        down, up = lora_pair(seed)
        torch.testing.assert_close(added, 0.7 * scale * up @ down, atol=1e-6, rtol=1e-5)
    changed = {n for (n, p), q in zip(networks.named_parameters(), base.parameters(), strict=True) if not p.equal(q)}
    assert changed == {f"unet.{QUERY}.weight", f"text.encoder.{KEY}.weight"}
    assert not any(p.requires_grad for p in networks.parameters())


@needs_peft
def test_several_loras_add_up_and_are_rounded_once(tiny_model: Path, tmp_path: Path):
    first, second = write_lora(tmp_path / "a.safetensors"), write_lora(tmp_path / "b" / "b.safetensors", seed=5)
    source = ModelSource(str(tiny_model), loras=(Lora(str(first)), Lora(str(second.parent), -0.5)))
    base, networks = StableDiffusion.load(ModelSource(str(tiny_model))), StableDiffusion.load(source, "bfloat16")
    expected = base.unet.get_submodule(QUERY).weight
    for weight, seed in ((1, 0), (-0.5, 5)):
        down, up = lora_pair(seed)
        expected = expected + weight * up @ down
    assert networks.unet.dtype == torch.bfloat16
    assert torch.equal(networks.unet.get_submodule(QUERY).weight, expected.bfloat16())


@needs_peft
def test_the_loras_of_xl_reach_both_text_encoders(tiny_xl_model: Path, tmp_path: Path):
    down, up = lora_pair(3, 12)
    name = "text_encoder_2.text_model.encoder.layers.2.self_attn.k_proj"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "a.safetensors")
    base = StableDiffusion.load(ModelSource(str(tiny_xl_model)))
    networks = StableDiffusion.load(ModelSource(str(tiny_xl_model), loras=(Lora(str(tmp_path)),)))
    weights = [n.text.encoders[1].get_submodule(name.removeprefix("text_encoder_2.")).weight for n in (networks, base)]
    torch.testing.assert_close(weights[0] - weights[1], up @ down, atol=1e-6, rtol=1e-5)


@needs_peft
def test_a_run_with_loras_is_verified_edited_and_refuses_others(
    tiny_model: Path, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    one, two = write_lora(tmp_path / "one.safetensors"), write_lora(tmp_path / "two.safetensors", seed=9)
    job = arguments(tiny_model, shard, tmp_path / "out")
    assert main([*job, "--model.loras", f"{one}=0.5", str(two)]) == 0
    (stored,) = read_inversions(tmp_path / "out")
    assert stored.settings.source.loras == (Lora(str(one), 0.5), Lora(str(two), 1.0))
    recorded = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["model"]
    assert recorded["loras"] == [{"name": str(one), "weight": 0.5}, {"name": str(two), "weight": 1.0}]
    assert main(["verify", str(tmp_path / "out"), "--recompute=1"]) == 0
    assert main(edit(tmp_path / "out", tmp_path / "edits")) == 0
    assert len(edited_images(tmp_path / "edits")) == 1
    for others in ([], [f"{one}=0.6", str(two)], [str(two), f"{one}=0.5"], [f"{one}=0.5"]):
        assert main([*job, *(["--model.loras", *others] if others else [])]) == 2
        assert "model.loras" in capsys.readouterr().err
    # the same places again, in one word, and with a weight that is written out
    assert main([*job, f"--model.loras=[{one}=0.5,{two}=1.0]"]) == 0
    moved = two.rename(tmp_path / "moved.safetensors")
    assert main(edit(tmp_path / "out", tmp_path / "edits2")) == 2
    assert "two.safetensors' is no file" in capsys.readouterr().err
    assert main(edit(tmp_path / "out", tmp_path / "edits2", "--model.loras", f"{one}=0.5", str(moved))) == 0
    write_lora(two, seed=11)
    assert main([*job, "--model.loras", f"{one}=0.5", str(two)]) == 2
    assert "lora=sha256:" in capsys.readouterr().err


def _not_fitting(kind: str, path: Path) -> Path:
    match kind:
        case "other family":
            return write_lora(path, width=12)
        case "other layer":
            return write_lora(path, layer=QUERY.replace("down_blocks.0", "down_blocks.7"))
        case "one layer more":
            write_lora(path)
            down, up = lora_pair(3)
            more = {f"unet.mid_block.nowhere.to_q.lora_{name}.weight": w for name, w in (("A", down), ("B", up))}
            save_file(load_file(path) | more, path)
        case "weights":
            save_file({"conv.weight": torch.zeros(2)}, path)
        case "empty":
            save_file({}, path)
        case "damaged":
            path.write_bytes(b"no weights")
        case "not finite":
            write_lora(path)
            save_file({name: w * float("nan") for name, w in load_file(path).items()}, path)
    return path


@needs_peft
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("other family", "to_q.lora_A.weight has the shape [2, 12], and the model takes [2, 8]; give"),
        ("other layer", "not found in the base model"),
        ("one layer more", "4 of its 6 weights have a place in the model; give"),
        ("weights", ""),
        ("empty", ""),
        ("damaged", ""),
    ],
)
def test_a_lora_that_does_not_fit_ends_with_one_sentence(
    kind: str, reason: str, tiny_model: Path, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = _not_fitting(kind, tmp_path / "lora.safetensors")
    job = arguments(tiny_model, shard, tmp_path / "out")
    assert main([*job, f"--model.loras={file}"]) == 2
    expect_one_sentence("lora.safetensors' does not fit the model: ", reason, capsys=capsys)
    assert not (tmp_path / "out").exists()


@needs_peft
def test_a_lora_that_is_not_finite_is_refused(tiny_model: Path, tmp_path: Path):
    file = _not_fitting("not finite", tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="does not fit the model"):
        StableDiffusion.load(ModelSource(str(tiny_model), loras=(Lora(str(file)),)))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("absent.safetensors", "is no file and no folder with one .safetensors file"),
        ("lora.pt", "is a pickle, which can run any code"),
        ("lora.safetensors=inf", "allowed: PATH or PATH=WEIGHT"),
        ("=1", "allowed: PATH or PATH=WEIGHT"),
    ],
)
def test_a_place_without_a_lora_ends_with_one_sentence(
    given: str, words: str, tiny_model: Path, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*arguments(tiny_model, shard, tmp_path / "out"), "--model.loras", given]) == 2
    expect_one_sentence(words, capsys=capsys)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", Lora("a.safetensors", 1)),
        ("a.safetensors=0.8", Lora("a.safetensors", 0.8)),
        ("rank=4.safetensors", Lora("rank=4.safetensors", 1)),
        ("rank=4=-1", Lora("rank=4", -1)),
    ],
)
def test_a_weight_follows_the_last_equals_sign(text: str, expected: Lora):
    assert Lora.parse(text) == expected


@pytest.mark.parametrize(("name", "found"), [("find_spec", None), ("version", "0.40.1")])
def test_without_what_merges_them_the_way_out_is_named(
    name: str,
    found: str | None,
    tiny_model: Path,
    shard: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(f"nti_batch.models.loras.{name}", lambda package: found)
    file = write_lora(tmp_path / "lora.safetensors")
    assert main([*arguments(tiny_model, shard, tmp_path / "out"), f"--model.loras={file}"]) == 2
    expect_one_sentence(
        "model.loras needs peft and diffusers 0.41 or newer: pip install 'nti-batch[lora]'", capsys=capsys
    )
