"""`nti-batch score`."""

from pathlib import Path

import torch

from nti_batch.commands.flags import PipeFlags
from nti_batch.exit_codes import DONE
from nti_batch.output.edits import open_edits
from nti_batch.plans.missing_edits import EditPlan
from nti_batch.report.scores import notes, score_run, tables
from nti_batch.scores.learned import LearnedScores
from nti_batch.terminal import print_json, print_lines


def score(out: str, json: bool = False, weights: Path | None = None, data: PipeFlags = PipeFlags()) -> int:
    """Score a run of edits that have masks, in tables with PIE-Bench's layout.

    Args:
        out: Output folder of the run, or its address in an object store.
        json: Print one JSON list with the scores of each edit.
        weights: Folder with clip, dino or lpips in it, for the scores that need networks.
        data: Consent to shell commands.
    """
    plan = EditPlan.of_run(open_edits(out), data.allow_pipe)
    learned = LearnedScores.load(weights, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    found = list(score_run(plan, learned))
    if json:
        print_json([edit.to_json() for edit in found])
    else:
        text = [*tables(plan, found), learned.missing] if found else ["no edit has scores"]
        print_lines("\n".join([*text, *notes(plan, found)]).split("\n"))
    return DONE
