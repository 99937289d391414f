"""`nti-batch status`."""

from dataclasses import asdict

from nti_batch.commands.flags import PipeFlags
from nti_batch.exit_codes import DONE, SOME_FAILED, STOPPED
from nti_batch.json_object import Json
from nti_batch.plans.open_plan import open_plan
from nti_batch.terminal import print_json, print_lines


def status(
    out: str,
    json: bool = False,
    exit_code: bool = False,
    failures: bool = False,
    table: bool = False,
    data: PipeFlags = PipeFlags(),
) -> int:
    """Print how far a run is.

    Args:
        out: Output folder of the run, or its address in an object store.
        json: Print one JSON object.
        exit_code: Exit with 75 if records are missing, with 3 if some have failed.
        failures: List failed records with their reasons, the first 20, and say where the others are.
        table: Also print a line for each shard, which says where records have failed or are missing.
        data: Consent to shell commands.
    """
    plan = open_plan(out, allow_pipe=data.allow_pipe)
    found = plan.status(plan.units)
    if json:
        shards: list[Json] = [asdict(shard) for shard in found.shards]
        print_json({**found.to_json(), **({"shards": shards} if table else {})})
    else:
        print_lines(found.lines())
        print_lines(found.failure_lines(plan.run.folder_address) if failures else ())
        print_lines(found.table_lines() if table else ())
    if exit_code and found.missing:
        return STOPPED
    return SOME_FAILED if exit_code and found.has_failures else DONE
