"""What the page shows of a run of edits."""

from collections.abc import Mapping, Sequence

import numpy as np

from nti_batch.output.manifest_rows import EditRow
from nti_batch.output.status import RunStatus
from nti_batch.output.stored_part import Located
from nti_batch.plans.missing_edits import EditPlan
from nti_batch.report.charts import Chart, histogram_chart, throughput_chart
from nti_batch.report.page import Fact
from nti_batch.report.statistics import RunNumbers, extremes

COLUMNS = ("psnr_unedited", "ssim_unedited")


def describe(plan: EditPlan) -> str:
    """The run in one line."""
    return f"Edits of the inversions in {plan.run.settings.inversions}."


def facts(status: RunStatus) -> list[Fact]:
    """Scores of the run as numbers that stand large."""
    if not status.scored:
        return []
    psnr, ssim = status.metrics["psnr_unedited"], status.metrics["ssim_unedited"]
    return [
        Fact(f"{psnr:.2f} dB", f"mean PSNR of the unedited part of {status.scored:,}"),
        Fact(f"{ssim:.3f}", "mean SSIM of the unedited part"),
    ]


def charts(plan: EditPlan, numbers: RunNumbers[EditRow], notes: list[str]) -> list[Chart]:
    """Charts of the rows."""
    drawn = [throughput_chart(numbers["finished"], numbers["seconds"], "edits")]
    for column, title, unit, digits in (("psnr_unedited", "PSNR", "dB", 2), ("ssim_unedited", "SSIM", "SSIM", 3)):
        values = numbers[column]
        if len(scored := values[np.isfinite(values)]):
            drawn.append(histogram_chart(f"{title} of the unedited part", scored, unit, digits, "edits"))
    return drawn


def groups(numbers: RunNumbers[EditRow], count: int) -> Mapping[str, Sequence[Located[EditRow]]]:
    """Rows to show under their headings: the worst, the median and the best of those with scores, or a sample."""
    values = numbers["psnr_unedited"]
    scored = np.flatnonzero(np.isfinite(values))
    if not len(scored):
        return {"A sample": numbers.find(numbers.sample(3 * count))}
    return {
        f"The {name}, by the PSNR of the unedited part": numbers.find(scored[entries])
        for name, entries in extremes(values[scored], count).items()
    }


def scores(row: EditRow) -> str:
    """Scores of a row in one line."""
    return "" if row.psnr_unedited is None else f"unedited part: PSNR {row.psnr_unedited:.2f} dB"
