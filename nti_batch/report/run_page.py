"""The page about a run of either kind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nti_batch.models.load import load_model
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.status import RunStatus
from nti_batch.output.stored_part import Located
from nti_batch.phrases import format_duration
from nti_batch.plans.missing_edits import EditPlan
from nti_batch.plans.missing_images import ImagePlan
from nti_batch.report import edits, inversions
from nti_batch.report.changed_words import mark_all_changes
from nti_batch.report.charts import Chart
from nti_batch.report.examples import examples_of
from nti_batch.report.page import Fact, Page, PageExample, embed, settings_of
from nti_batch.report.statistics import RunNumbers


@dataclass(frozen=True, slots=True)
class View:
    """What a page shows of a kind of run."""

    title: str
    columns: Sequence[str]
    """Columns of the rows that the charts need."""

    describe: Callable[[Any], str]
    facts: Callable[[RunStatus], list[Fact]]
    charts: Callable[[Any, RunNumbers[Any], list[str]], list[Chart]]
    groups: Callable[[RunNumbers[Any], int], Mapping[str, Sequence[Located[Any]]]]
    scores: Callable[[Any], str]


INVERSIONS = View(
    "Inversions",
    inversions.COLUMNS,
    inversions.describe,
    inversions.facts,
    inversions.charts,
    inversions.groups,
    inversions.scores,
)
EDITS = View("Edits", edits.COLUMNS, edits.describe, edits.facts, edits.charts, edits.groups, edits.scores)


def run_page(plan: ImagePlan | EditPlan, images: int) -> Page:
    """The page of a run, from its rows and a sample of its records.

    Args:
        plan: Work of the run, which may still be running.
        images: Number of the worst, the median and the best records to show; 0 loads no model.

    Raises:
        ValueError: If a manifest is damaged.
    """
    view = INVERSIONS if isinstance(plan, ImagePlan) else EDITS
    notes, numbers = list[str](), RunNumbers(plan.run.kind.row_type, view.columns)
    status = plan.status(plan.units, numbers.add)  # type: ignore[arg-type]  # the kind of row is the plan's
    return Page(
        title=f"{view.title}: {plan.run.name}",
        description=view.describe(plan),
        done=status.done,
        failed=status.failed,
        missing=status.missing,
        facts=[*_facts(status), *view.facts(status)],
        charts=view.charts(plan, numbers, notes) if len(numbers) else [],
        reasons=numbers.reasons.sorted(),
        examples=_examples(plan, view, numbers, images, notes) if len(numbers) and images else [],
        notes=list(dict.fromkeys(notes)),
        settings=settings_of(plan.run),
    )


def _facts(status: RunStatus) -> list[Fact]:
    """Numbers that every run has."""
    facts = []
    if status.damaged_shards:
        facts.append(Fact(f"{status.damaged_shards:,}", "damaged shards"))
    if status.per_hour is not None:
        facts.append(Fact(f"{status.per_hour:,.0f}", f"{status.record_noun} an hour"))
    if status.missing and status.hours_left is not None:
        facts.append(Fact(format_duration(3600 * status.hours_left), "left at this rate"))
    return facts


def _examples(
    plan: ImagePlan | EditPlan, view: View, numbers: RunNumbers[Any], count: int, notes: list[str]
) -> list[tuple[str, list[PageExample]]]:
    groups = view.groups(numbers, count)
    located = [found for group in groups.values() for found in group]
    shown = {e.row: e for e in examples_of(plan, located, _load_networks(plan, notes), notes)}
    pages = {
        row: PageExample(
            name=f"{row.shard}/{row.key}",
            captions=mark_all_changes(example.captions),
            numbers=view.scores(row),
            images=[embed(title, image) for title, image in example.images.items()],
        )
        for row, example in shown.items()
    }
    return [
        (heading, examples)
        for heading, group in groups.items()
        if (examples := [pages[row] for _, row in group if row in pages])
    ]


def _load_networks(plan: ImagePlan | EditPlan, notes: list[str]) -> StableDiffusion | None:
    """The model of a run; None, with a note, if it cannot be loaded."""
    settings = plan.run.settings if isinstance(plan, ImagePlan) else plan.inversions.settings
    try:
        return load_model(settings.source, settings.precision, settings.fingerprint)
    except ValueError as error:
        notes.append(f"No image could be reconstructed: {error}")
        return None
