"""Scores a run of edits from its files: `nti-batch score`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from nti_batch.data.fit import without_padding
from nti_batch.editing.masks import mask_pixels
from nti_batch.editing.pie_bench import CATEGORIES, category, has_missing_blend_word
from nti_batch.editing.requests import request_id
from nti_batch.json_object import Json
from nti_batch.output.edits import read_edited_images
from nti_batch.plans.missing_edits import EditPlan
from nti_batch.records import EditRequest, WorkUnit
from nti_batch.scores.edits import EditScores, Protocol, score_edits, scores_table
from nti_batch.scores.learned import LearnedScores

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


@dataclass(frozen=True, slots=True)
class ScoredEdit:
    """Edit with its scores."""

    shard: str
    key: str
    name: str
    has_missing_blend_word: bool
    """Whether a blend word is not in its prompt, so that the mask of local blend is the other word's alone."""

    scores: dict[Protocol, EditScores]

    def to_json(self) -> dict[str, Json]:
        """Return the object that `nti-batch score --json` prints."""
        scores: dict[str, Json] = {protocol: asdict(scores) for protocol, scores in self.scores.items()}
        return {
            "shard": self.shard,
            "key": self.key,
            "name": self.name,
            "has_missing_blend_word": self.has_missing_blend_word,
            "scores": scores,
        }


def score_run(plan: EditPlan, learned: LearnedScores) -> Iterator[ScoredEdit]:
    """Score all committed edits that have a mask, a prompt and an input image.

    Args:
        plan: Plan of the run.
        learned: Networks of the learned scores.

    Yields:
        Each edit with its scores.

    Raises:
        ValueError: If a part is damaged.
    """
    for unit in plan.units:
        yield from _score_unit(plan, unit, learned)


def _score_unit(plan: EditPlan, unit: WorkUnit, learned: LearnedScores) -> Iterator[ScoredEdit]:
    requests = {request_id(request): request for request in plan.requests_of(unit) if request.mask}
    originals = plan.read_originals(unit, requests.values())
    for row, pixels in read_edited_images(plan.run, unit, requests) if originals else ():
        request = requests[row.id]
        mask, original = request.mask, originals.get((row.shard, row.key))
        if mask and original and row.edit_prompt is not None:
            shown = original.original
            edited, source = (without_padding(each, shown)[None] / 255 for each in (pixels, original.pixels))
            inside = mask_pixels(mask, edited.shape[2], edited.shape[3], shown.fit)[None]
            scores = {
                protocol: score_edits(edited, source, inside, [row.edit_prompt], learned, protocol)[0]
                for protocol in PROTOCOLS
            }
            yield ScoredEdit(row.shard, row.key, row.name, has_missing_blend_word(request), scores)


def notes(plan: EditPlan, scored: Sequence[ScoredEdit]) -> list[str]:
    """Count the edits without scores by their reason, and those with a blend word that is not in its prompt.

    Args:
        plan: Plan of the run.
        scored: Edits of the run with their scores.
    """
    one_sided = sum(edit.has_missing_blend_word for edit in scored)
    line = (
        f"{one_sided} of {len(scored)} edits have a blend word that is not in its prompt, so that the other word's "
        "attention alone decides where the image may change, as in the benchmark"
    )
    return [*unscored_note(plan, scored), *([line] if one_sided else [])]


def unscored_note(plan: EditPlan, scored: Sequence[ScoredEdit]) -> list[str]:
    """Count the edits without scores by their reason, in a line; no line if all have scores."""
    found = {(edit.shard, edit.key, edit.name) for edit in scored}
    reasons: Counter[str] = Counter()
    for unit in plan.units:
        done = {row.id for row in plan.run.rows(unit) if row.status == "done"}
        for request in plan.requests_of(unit):
            if (request.shard, request.key, request.name) not in found:
                reasons[_why_unscored(request, request_id(request) in done)] += 1
    listed = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
    return [f"edits without scores: {listed}"] if reasons else []


def _why_unscored(request: EditRequest, is_done: bool) -> str:
    needed = {"a mask": request.mask, "a prompt": request.edit_prompt}
    if missing := [name for name, value in needed.items() if value is None]:
        return f"without {' and '.join(missing)}"
    return "whose input image cannot be read" if is_done else "that are not done"


def tables(plan: EditPlan, scored: Sequence[ScoredEdit]) -> list[str]:
    """Format a table for each protocol; for PIE-Bench, each category has a row.

    Args:
        plan: Plan of the run.
        scored: Edits of the run with their scores.
    """
    edits = plan.run.settings.edits
    is_pie_bench = edits is not None and Path(edits).is_dir()
    groups: dict[str, list[ScoredEdit]] = {name: [] for name in (CATEGORIES if is_pie_bench else ["edits"])}
    for edit in scored:
        groups[category(edit.name) if is_pie_bench else "edits"].append(edit)
    return [
        scores_table({name: [edit.scores[protocol] for edit in group] for name, group in groups.items()}, protocol)
        for protocol in PROTOCOLS
    ]
