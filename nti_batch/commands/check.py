"""`nti-batch check`: what a model shows on a few images, beside what a healthy one shows."""

from collections.abc import Sequence
from pathlib import Path

import torch

from nti_batch.commands.env import environment
from nti_batch.exit_codes import DONE, ERROR
from nti_batch.files import atomic_open, atomic_write
from nti_batch.health.families import Family, family_of
from nti_batch.health.findings import Line, Settings, causes, judge
from nti_batch.health.images import load_photographs, load_scenes
from nti_batch.health.measure import Measured, measure
from nti_batch.jobs.parser import silence_warnings
from nti_batch.models.fingerprint import model_fingerprint
from nti_batch.models.source import Lora, ModelSource, Precision
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.models.supported import ModelDescription
from nti_batch.models.weight_files import is_half
from nti_batch.models.weights import check_model
from nti_batch.report.preview import draw_rows
from nti_batch.scores.edits import table_line
from nti_batch.terminal import print_lines


def check(
    model: str,
    output: Path = Path("check"),
    precision: Precision = "float32",
    revision: str | None = None,
    variant: str | None = None,
    config: str | None = None,
    vae: str | None = None,
    loras: list[str] | None = None,
    height: int | None = None,
    width: int | None = None,
    num_steps: int = 50,
) -> int:
    """Invert and edit a few bundled photographs with a model, and compare what it shows with a healthy model.

    Prints a table, right or wrong in each line, with the likely causes, for a bug report. OUTPUT/check.md keeps it, and
    OUTPUT/preview.png shows the images. The exit code is 1 if a line is wrong.

    Args:
        model: A diffusers checkpoint folder, a hub id, a .safetensors file, or 'demo', as --model.name of invert.
        output: Folder for check.md and preview.png.
        precision: Precision of the UNet, as for invert.
        revision: Branch, tag or commit on the hub.
        variant: Variant of the weights, such as 'fp16'.
        config: Folder or hub id with the JSON files and tokenizers that a single .safetensors file lacks.
        vae: Another VAE than the model's own, as --model.vae of invert.
        loras: LoRAs that are merged into the model, each PATH or PATH=WEIGHT, as --model.loras of invert.
        height: Height of the images in pixels; left out, it is the model's own.
        width: Width of the images in pixels.
        num_steps: Number of DDIM steps; the limits are for 50.
    """
    silence_warnings()
    source = ModelSource(model, revision, variant, config, vae, Lora.parse_all(loras or []))
    description = ModelDescription.of(source)
    check_model(source, description)
    family, size = family_of(description), description.image_size(height, width)
    images = (load_scenes if family.draws_scenes else load_photographs)(*size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = StableDiffusion.load(source, precision).to(device)
    networks.schedule(num_steps)
    measured = measure(networks, list(images.values()), num_steps)
    lines = judge(measured, family, model_settings(source, networks, precision))
    about = describe(source, family, measured, precision, size, num_steps)
    text = [*about, "", *table(lines), "", *conclusion(lines)]
    output.mkdir(parents=True, exist_ok=True)
    atomic_write(output / "check.md", "".join(f"{line}\n" for line in text))
    with atomic_open(output / "preview.png") as file:
        draw_rows(measured.rows).save(file, "PNG")
    print_lines([*text, f"preview: {output / 'preview.png'}"])
    return DONE if all(line.is_right for line in lines) else ERROR


def model_settings(source: ModelSource, networks: StableDiffusion, precision: Precision) -> Settings:
    """Read the settings that a finding may name."""
    scheduler = networks.scheduler.config
    betas = (scheduler.beta_schedule, scheduler.beta_start, scheduler.beta_end)
    return Settings(
        prediction_type=scheduler.prediction_type,
        scaling_factor=networks.vae.config.scaling_factor,
        betas=None if scheduler.trained_betas is not None else betas,
        precision=precision,
        half_vae=source.has_local_weights and is_half(source, "vae"),
    )


def describe(
    source: ModelSource,
    family: Family,
    measured: Measured,
    precision: Precision,
    size: tuple[int, int],
    num_steps: int,
) -> list[str]:
    """Describe the model, the machine and the cost, a line each."""
    found = environment()
    devices = found["devices"]
    assert isinstance(devices, list)
    place = str(found["processor"]) if devices == ["CPU alone"] else ", ".join(devices)
    versions = ", ".join(f"{name} {found[name]}" for name in ("nti-batch", "torch", "diffusers", "transformers"))
    changes = [f"VAE {source.vae}"] if source.vae else []
    changes += [f"LoRA {lora.name}={lora.weight}" for lora in source.loras]
    rate = f"{measured.replays.images_per_hour:.0f} images an hour" if measured.replays else "no inversions"
    return [
        f"model: {', '.join((source.name, *changes))}, fingerprint {model_fingerprint(source) or 'unknown'}",
        f"family: {family.name}; UNet in {precision}, images of {size[0]} x {size[1]}, {num_steps} steps",
        f"machine: {place}; {versions}",
        f"cost: {rate} by null-text inversion, {measured.peak_bytes / 2**30:.2f} GiB of memory",
    ]


def table(lines: Sequence[Line]) -> list[str]:
    """Lay out the lines as a Markdown table."""
    rows = [(line.name, line.measured, line.healthy, line.source, line.verdict) for line in lines]
    return [
        table_line(["", "measured", "a healthy model", "source", "verdict", "likely cause"]),
        table_line(["---"] * 6),
        *(table_line([*row, cause]) for row, cause in zip(rows, causes(lines), strict=True)),
    ]


def conclusion(lines: Sequence[Line]) -> list[str]:
    """Say what is wrong and why."""
    wrong = [line for line in lines if not line.is_right]
    if not wrong:
        return ["the model is healthy"]
    named = [cause for line, cause in zip(lines, causes(lines), strict=True) if cause == line.cause]
    return [f"{len(wrong)} of {len(lines)} lines are wrong", *(f"likely cause: {cause}" for cause in named)]
