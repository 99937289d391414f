"""PIE-Bench's table: inversion methods with prompt-to-prompt, each row beside the published one.

Ju et al., "PnP Inversion: Boosting Diffusion-based Editing with 3 Lines of Code", ICLR 2024,
https://arxiv.org/abs/2310.01506, table 1.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from nti_batch.diffusion.settings import Method
from nti_batch.editing.pie_bench import SpecialCases
from nti_batch.json_object import Json
from nti_batch.plans.missing_edits import EditPlan
from nti_batch.plans.missing_images import ImagePlan
from nti_batch.report.scores import score_run, unscored_note
from nti_batch.scores.edits import COLUMNS, format_score, mean_score, table_line
from nti_batch.scores.learned import LearnedScores

SHOWN = tuple(COLUMNS)[:7]
"""Scores that the published table has, in its order."""

PUBLISHED: Mapping[Method, tuple[float, ...]] = {
    "ddim": (69.43, 17.87, 208.80, 219.88, 71.14, 25.01, 22.44),
    "null-text": (13.44, 27.03, 60.67, 35.86, 84.11, 24.75, 21.86),
    "negative-prompt": (16.17, 26.21, 69.01, 39.73, 83.40, 24.61, 21.87),
    "direct": (11.65, 27.22, 54.55, 32.86, 84.76, 25.02, 22.10),
}
"""Published scores of prompt-to-prompt with each inversion, in the columns `SHOWN` and their units."""

SOURCE = (
    "published: Ju et al., PnP Inversion, ICLR 2024 (https://arxiv.org/abs/2310.01506), table 1: 700 images of "
    "512 x 512, Stable Diffusion 1.4; 'direct' is their own method, and 'null-text' the mean of two GPUs"
)


@dataclass(frozen=True, slots=True)
class MethodRow:
    """Scores of the edits by one inversion method."""

    method: Method
    edits: int
    """Edits with scores."""

    scores: Mapping[str, float | None]
    """Mean of each score in the unit of its column; None if no edit has it."""

    seconds_inversion: float | None
    """Time of the inversion job for an image, in seconds; None if the job has finished none."""

    seconds_edit: float | None
    """Time of the edit job for an edit, in seconds."""

    notes: list[str]
    """Lines about edits without scores."""

    @classmethod
    def of(cls, method: Method, inversions: ImagePlan, edits: EditPlan, learned: LearnedScores) -> "MethodRow":
        """Score the runs of a method by the benchmark's protocol.

        Args:
            method: Name of the inversion method.
            inversions: Plan of the inversions.
            edits: Plan of the edits.
            learned: Networks of the learned scores.

        Raises:
            ValueError: If a part is damaged.
        """
        found = list(score_run(edits, learned))
        scores = [edit.scores["pie-bench"] for edit in found]
        return cls(
            method,
            len(found),
            {name: mean_score(scores, name) for name in SHOWN},
            _seconds(inversions),
            _seconds(edits),
            unscored_note(edits, found),
        )

    def to_json(self) -> dict[str, Json]:
        """Return the row as `nti-batch pie-bench --json` prints it."""
        published = PUBLISHED.get(self.method)
        return {
            "method": self.method,
            "edits": self.edits,
            "scores": dict(self.scores),
            "published": dict(zip(SHOWN, published, strict=True)) if published else None,
            "seconds_inversion": self.seconds_inversion,
            "seconds_edit": self.seconds_edit,
            "notes": list(self.notes),
        }


def _seconds(plan: ImagePlan | EditPlan) -> float | None:
    """Seconds of the job for a record, over its last hour of work."""
    rate = plan.throughput(plan.units).per_hour()
    return 3600 / rate if rate else None


def benchmark_table(rows: Iterable[MethodRow]) -> list[str]:
    """Lay out the rows in the order of the published table, each method with its published row below."""
    by_method = {row.method: row for row in rows}
    ordered = [by_method.pop(method) for method in PUBLISHED if method in by_method] + list(by_method.values())
    titles = ["inversion", "editing", "scores", "edits", *(COLUMNS[name][0] for name in SHOWN), "s to invert, to edit"]
    return [
        table_line(titles),
        table_line([*["---"] * 3, *["---:"] * (len(titles) - 3)]),
        *(line for row in ordered for line in _lines(row)),
    ]


def _lines(row: MethodRow) -> Iterator[str]:
    seconds = f"{format_score(row.seconds_inversion)}, {format_score(row.seconds_edit)}"
    method = [row.method, "prompt-to-prompt"]
    yield table_line([*method, "these runs", str(row.edits), *map(format_score, row.scores.values()), seconds])
    if published := PUBLISHED.get(row.method):
        yield table_line([*method, "published", "700", *map(format_score, published), "-"])


def describe_cases(cases: SpecialCases) -> list[str]:
    """Say how many edits the benchmark's code treats in a way of its own, and how."""
    counts = {
        "with bracket marks in a prompt: left out of the prompt": cases.brackets,
        "with an empty mask: the borders alone are the edited part": cases.empty_masks,
        "with a mask of the whole image: no scores of the unedited part": cases.full_masks,
        "without two blend words: neither local blend nor an equalizer": cases.no_blend_words,
        "with a blend word that is not in its prompt: the other word's attention decides alone": (
            cases.missing_blend_words
        ),
    }
    return [f"{count} of {cases.edits} edits {case}, as in the benchmark" for case, count in counts.items()]
