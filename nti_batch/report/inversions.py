"""What the page shows of a run of inversions."""

from collections.abc import Mapping, Sequence

from nti_batch.output.manifest_rows import InversionRow
from nti_batch.output.status import RunStatus
from nti_batch.output.stored_part import Located
from nti_batch.phrases import and_more
from nti_batch.plans.missing_images import ImagePlan
from nti_batch.report.charts import Chart, histogram_chart, throughput_chart, timestep_chart
from nti_batch.report.page import Fact
from nti_batch.report.statistics import RunNumbers, by_timestep, extremes, read_sample

SAMPLE = 256
"""Maximum number of images whose losses and steps at each timestep are read, drawn at random."""

COLUMNS = ("psnr", "psnr_vae", "inner_steps")


def describe(plan: ImagePlan) -> str:
    """The run in one line."""
    settings = plan.run.settings
    method = settings.inversion
    return (
        f"Model {settings.source.name}, {method.method} inversion, guidance {method.guidance_scale}, "
        f"{settings.num_steps} steps."
    )


def facts(status: RunStatus) -> list[Fact]:
    """Scores of the run as numbers that stand large."""
    found = []
    if "psnr" in status.metrics:
        psnr, psnr_vae = status.metrics["psnr"], status.metrics["psnr_vae"]
        side = "above" if psnr > psnr_vae else "below"
        found.append(Fact(f"{psnr:.2f} dB", "mean PSNR"))
        found.append(Fact(f"{abs(psnr_vae - psnr):.2f} dB", f"{side} the VAE bound of {psnr_vae:.2f} dB"))
    if status.prompts_truncated:
        found.append(Fact(f"{status.prompts_truncated:,}", "prompts truncated"))
    return found


def charts(plan: ImagePlan, numbers: RunNumbers[InversionRow], notes: list[str]) -> list[Chart]:
    """Charts of the rows, and of a sample of the inversions.

    Args:
        plan: Work of the run.
        numbers: Numbers of its rows, at least one.
        notes: Receives what cannot be read, and why.
    """
    drawn = [
        throughput_chart(numbers["finished"], numbers["seconds"], "images"),
        histogram_chart("PSNR of the reconstruction", numbers["psnr"], "dB", 2, "images"),
        histogram_chart("PSNR below the VAE bound", numbers["psnr_vae"] - numbers["psnr"], "dB", 2, "images"),
        histogram_chart("Inner steps of an image", numbers["inner_steps"], "updates", 0, "images"),
    ]
    sample = read_sample(numbers.find(numbers.sample(SAMPLE)), plan.run.settings.num_steps)
    if sample.errors:
        notes.append(and_more(sample.errors, 1))
    if count := len(sample.losses):
        images = f"{count:,} images" + (", drawn at random" if count < len(numbers) else "")
        for title, about, values, ylabel in (
            ("Loss by timestep", "Mean squared distance of the guided step to the pivot", sample.losses, "loss"),
            ("Inner steps by timestep", "Updates of the null embedding", sample.inner_steps, "updates"),
        ):
            drawn.append(timestep_chart(title, about, by_timestep(sample.timesteps, values), images, ylabel))
    return drawn


def groups(numbers: RunNumbers[InversionRow], count: int) -> Mapping[str, Sequence[Located[InversionRow]]]:
    """Rows to show under their headings: at most `count` of the worst, the median and the best."""
    return {
        f"The {name}, by the PSNR relative to the VAE bound": numbers.find(entries)
        for name, entries in extremes(numbers["psnr"] - numbers["psnr_vae"], count).items()
    }


def scores(row: InversionRow) -> str:
    """Scores of a row in one line."""
    return f"PSNR {row.psnr:.2f} dB, the VAE bound {row.psnr_vae:.2f} dB, {row.inner_steps} inner steps"
