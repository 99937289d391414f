"""Compares what a model shows with what a healthy one shows, and names the likely cause of what is wrong."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nti_batch.diffusion.schedule import PredictionType
from nti_batch.health.families import BETA_START, RULE, Family, Limit
from nti_batch.health.measure import Measured
from nti_batch.models.source import Precision

CLEARLY = 1.5
"""Factor by which the other prediction type must explain the noise better."""

MOST_UNEXPLAINED = 0.6
"""Share of the noise that a network of any family leaves unexplained at most, if it predicts noise at all."""

MISFIT = 0.01
"""Largest relative difference of a number in a JSON file to the family's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of a model, as its files have them."""

    prediction_type: PredictionType
    scaling_factor: float
    betas: tuple[str, float, float] | None
    """Kind of the schedule, first and last beta; None for a list of betas."""

    precision: Precision
    half_vae: bool
    """Whether the VAE's weights are stored in half precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Figure of a model beside that of a healthy one."""

    name: str
    measured: str
    healthy: str
    source: str
    is_right: bool
    cause: str
    """Likely cause if the figure is wrong and those above it are right."""

    is_independent: bool = False
    """Whether the lines above have no influence on the figure."""

    @property
    def verdict(self) -> str:
        """Verdict for the table."""
        return "right" if self.is_right else "WRONG"


def judge(measured: Measured, family: Family, settings: Settings) -> list[Line]:
    """Compare all figures; each line depends only on those before it.

    Args:
        measured: Figures of the model.
        family: Family of the model.
        settings: Settings of the model.
    """
    lines = [*_vae_lines(measured, family, settings), *_unet_lines(measured, family, settings)]
    return lines if measured.replays is None else [*lines, *_replay_lines(measured, family)]


def causes(lines: Sequence[Line]) -> list[str]:
    """Likely cause of each line; empty for what is right. A wrong line mostly follows from the first wrong one."""
    first, found = None, []
    for line in lines:
        if line.is_right:
            found.append("")
        elif first is None or line.is_independent:
            first = first or line.name
            found.append(line.cause)
        else:
            found.append(f"follows from: {first}")
    return found


def _vae_lines(measured: Measured, family: Family, settings: Settings) -> Iterator[Line]:
    damaged = "the VAE's weights are damaged or another model's"
    if settings.half_vae:
        damaged += ", or lost too much when they were stored in half precision"
    if not math.isfinite(measured.psnr_vae):
        damaged = "the VAE overflows: its weights are damaged, or were made in half precision; give another VAE"
    yield _at_least("VAE round trip", measured.psnr_vae, family.least_psnr_vae, "dB", damaged)
    gain = measured.psnr_second_trip - measured.psnr_vae
    yield _at_least("second VAE round trip, above the first", gain, family.least_second_trip_gain, "dB", damaged)
    low, high = family.latent_std
    own, expected = settings.scaling_factor, family.scaling_factor
    fits = expected is None or abs(own / expected - 1) <= MISFIT
    better = expected or own / measured.latent_std
    yield Line(
        name="standard deviation of the latents",
        measured=f"{measured.latent_std:.2f} at scaling_factor {own:g}",
        healthy=f"{low:g} to {high:g}" + (f" at {expected:g}" if expected else ""),
        source="Rombach et al., CVPR 2022, appendix G: 1 over the training images",
        is_right=low <= measured.latent_std <= high and fits,
        cause=f"scaling_factor in vae/config.json is {own:g}, and about {better:.2g} fits the VAE's weights",
    )


def _unet_lines(measured: Measured, family: Family, settings: Settings) -> Iterator[Line]:
    kind = settings.prediction_type
    other: PredictionType = "epsilon" if kind == "v_prediction" else "v_prediction"
    own, of_other = measured.unexplained[kind], measured.unexplained[other]
    least = min(own, of_other)
    unet = "the UNet's weights are damaged, another model's, or of another variant"
    if not math.isfinite(own):
        unet = f"the UNet overflows in {settings.precision}: try --precision float32 or bfloat16"
    text = "the text encoder or the tokenizer is damaged or another model's"
    yield _at_least(
        "own caption fits better than another's",
        measured.caption_share,
        family.least_caption_share,
        "of the comparisons",
        text if _explains(least) else unet,
    )
    yield Line(
        name="prediction type",
        measured=f"{kind} leaves {own:.2f} of the noise, {other} {of_other:.2f}",
        healthy="the configured type leaves less",
        source=RULE,
        is_right=not (own > CLEARLY * of_other and _explains(of_other)),
        cause=f"prediction_type in scheduler/scheduler_config.json is {kind!r}, and the UNet predicts {other!r}: the "
        "wrong prediction type, or weights of another variant of the model (Stable Diffusion 2.1 and 2.1-base)",
        is_independent=True,
    )
    betas, expected = settings.betas, ("scaled_linear", BETA_START, family.beta_end)
    yield Line(
        name="noise schedule",
        measured=" ".join(map(str, betas)) if betas else "a list of betas",
        healthy=" ".join(map(str, expected)) if family.beta_end else "unknown",
        source="the family's scheduler_config.json",
        is_right=family.beta_end is None or betas is None or betas == expected,
        cause="scheduler/scheduler_config.json has the betas of another family",
        is_independent=True,
    )
    yield _at_most("noise that the UNet leaves unexplained", least, family.most_unexplained, "", unet)


def _explains(unexplained: float) -> bool:
    """Whether a network predicts noise at all."""
    return unexplained <= MOST_UNEXPLAINED


def _replay_lines(measured: Measured, family: Family) -> Iterator[Line]:
    replays = measured.replays
    assert replays is not None
    vae = measured.psnr_vae
    rounding = "the UNet's precision is too low, or the noise schedule is not the model's"
    yield _at_most(
        "DDIM at guidance scale 1, below the VAE", vae - replays.ddim_1, family.most_ddim_1_loss, "dB", rounding
    )
    weak = "guidance has no effect: the text encoder is damaged, or the model is distilled (turbo, lightning, LCM)"
    yield _at_least("DDIM at guidance scale 7.5, below the VAE", vae - replays.ddim, family.least_ddim_loss, "dB", weak)
    stuck = "null embeddings do not reach the pivot: half precision, or a model that needs more updates"
    yield _at_most("null-text, below the VAE", vae - replays.null_text, family.most_null_text_loss, "dB", stuck)
    colour = "prompts hardly change the image: the text encoder or the attention layers are not the model's"
    yield _at_least("colour edit, way to the new colour", replays.colour, family.least_colour, "", colour)
    spread = "edits spread beyond the object: attention does not localise in this model"
    yield _at_least("colour edit, outside of the object", replays.unedited, family.least_unedited, "dB", spread)


def _at_least(name: str, value: float, limit: Limit, unit: str, cause: str) -> Line:
    return _line(name, value, "at least", limit, unit, value >= limit.value, cause)


def _at_most(name: str, value: float, limit: Limit, unit: str, cause: str) -> Line:
    return _line(name, value, "at most", limit, unit, value <= limit.value, cause)


def _line(name: str, value: float, word: str, limit: Limit, unit: str, is_right: bool, cause: str) -> Line:
    """Make a line of a number; nan is never right."""
    return Line(
        name=name,
        measured=f"{value:.2f} {unit}".strip(),
        healthy=f"{word} {limit.value:g} {unit}".strip(),
        source=limit.source,
        is_right=is_right,
        cause=cause,
    )
