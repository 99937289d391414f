"""Draws charts for a page as SVG, and summarises them in words.

A chart takes its colours from the page, so that it suits a light and a dark page.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from nti_batch.phrases import format_duration
from nti_batch.report.drawn_text import drawable
from nti_batch.report.statistics import Curve, Numbers, histogram, throughput

INK, LINE, ACCENT = "#000001", "#000002", "#000003"


_PAGE_COLOURS = {INK: "currentColor", LINE: "var(--line)", ACCENT: "var(--accent)"}
"""CSS colour for each colour that matplotlib draws with, since matplotlib does not know CSS."""


_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.sans-serif": "DejaVu Sans",
    "grid.color": LINE,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}


_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True, slots=True)
class Chart:
    """Drawing with its title and summary."""

    title: str
    summary: str
    """Content of the drawing in words; screen readers read it."""

    svg: Markup


def histogram_chart(title: str, values: Numbers, unit: str, digits: int, records: str) -> Chart:
    """Draw a histogram.

    Args:
        title: Title of the chart.
        values: Finite values, at least one.
        unit: Unit of the values, such as 'dB'.
        digits: Decimal places in the summary.
        records: Plural noun for the records, such as 'images'.
    """
    numbers = histogram(values)
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
    summary = (
        f"Median {median:.{digits}f} {unit}; 90 % lie between {low:.{digits}f} and {high:.{digits}f}, "
        f"all between {values.min():.{digits}f} and {values.max():.{digits}f}."
    )
    if values.min() < numbers.edges[0] or values.max() > numbers.edges[-1]:
        summary += " The outer bars include the values beyond them."

    def paint(axes: Axes) -> None:
        _bars(axes, numbers.edges, numbers.counts)
        axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))

    return Chart(title, summary, _draw(title, unit, records, paint))


def throughput_chart(finished: Numbers, seconds: Numbers, records: str) -> Chart:
    """Draw the records an hour over time.

    Args:
        finished: Times in seconds since 1970.
        seconds: Duration of each record; nan if it is unknown.
        records: Plural noun for the records, such as 'images'.
    """
    numbers = throughput(finished, seconds)
    times = [datetime.fromtimestamp(edge, UTC) for edge in numbers.edges]
    width = numbers.edges[1] - numbers.edges[0]

    def paint(axes: Axes) -> None:
        _bars(axes, date2num(times), numbers.counts / width * 3600)
        locator = AutoDateLocator(maxticks=6, tz=UTC)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))

    summary = (
        f"{len(finished):,} {records} from {times[0]:%Y-%m-%d %H:%M} to {times[-1]:%Y-%m-%d %H:%M} UTC; "
        f"each bar is {format_duration(width)} wide."
    )
    return Chart("Throughput", summary, _draw("throughput", "time, UTC", f"{records} an hour", paint))


def timestep_chart(title: str, about: str, curve: Curve, records: str, ylabel: str) -> Chart:
    """Draw a median with a band around it, from noise to image.

    Args:
        title: Title of the chart.
        about: Name of the value, for the summary.
        curve: Distribution at each timestep.
        records: Size of the sample, such as '8 images'.
        ylabel: Label of the axis, which is logarithmic unless a median is 0.
    """

    def paint(axes: Axes) -> None:
        axes.fill_between(curve.timesteps, curve.low, curve.high, color=ACCENT, alpha=0.3, linewidth=0)
        axes.plot(curve.timesteps, curve.median, color=ACCENT)
        axes.invert_xaxis()
        if (curve.median > 0).all():
            axes.set_yscale("log", nonpositive="clip")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_locator(NullLocator())

    summary = (
        f"{about}: the median of {records}, and a band with 80 % of them. The median is "
        f"{curve.median[0]:.2g} at the first timestep and {curve.median[-1]:.2g} at the last."
    )
    return Chart(title, summary, _draw(title, "timestep of the network, from noise to image", ylabel, paint))


def _bars(axes: Axes, edges: Numbers, heights: NDArray[np.float64] | NDArray[np.int64]) -> None:
    axes.bar(edges[:-1], heights, 0.9 * np.diff(edges), align="edge", color=ACCENT)


def _draw(name: str, xlabel: str, ylabel: str, paint: Callable[[Axes], None]) -> Markup:
    """Draw a chart without size and background; its name makes its ids unique on the page."""
    file = io.StringIO()
    with matplotlib.style.context({**_STYLE, "svg.hashsalt": name}, after_reset=True):
        figure = Figure(figsize=(4.4, 2.7), layout="constrained")
        axes = figure.add_subplot(xlabel=drawable(xlabel), ylabel=drawable(ylabel))
        paint(axes)
        figure.savefig(file, format="svg", metadata=_NO_METADATA, transparent=True)
    svg = file.getvalue()
    svg = re.sub(r'^(<svg [^>]*?) width="[^"]*" height="[^"]*"', r'\1 aria-hidden="true"', svg[svg.index("<svg") :])
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for placeholder, colour in _PAGE_COLOURS.items():
        svg = svg.replace(placeholder, colour)
    return Markup(svg)
