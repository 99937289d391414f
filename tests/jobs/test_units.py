"""A rank that is done takes units that no rank of its job has taken, and none of another job."""

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from helpers.jobs import arguments, held_job, hold_flags, ids, run_console, wait_for
from helpers.tiny import captioned, write_shard

from nti_batch import read_inversions
from nti_batch.cli import main
from nti_batch.files import OutputError
from nti_batch.jobs.ranks import JobPart
from nti_batch.jobs.units import RankUnits, TakenUnits
from nti_batch.lock import exclusive, is_locked
from nti_batch.plans.plan import never
from nti_batch.records import WorkUnit

UNITS = [WorkUnit(shard, "", index, 4) for shard in ("a", 'b "c"') for index in range(4)]


class _Plan:
    """Work units whose records never tell that they are finished, as with `data.redo`."""

    def __init__(self, complete: tuple[WorkUnit, ...] = ()) -> None:
        self.units, self.run, self.complete = UNITS, self, complete

    def is_waiting(self, unit: WorkUnit) -> bool:
        return unit not in self.complete

    def claim(self, unit: WorkUnit) -> list[Any]:
        return []


def rank_units(folder: Path, rank: int, ranks: int, plan: _Plan | None = None, job: str = "job") -> RankUnits:
    taken = TakenUnits(folder / "taken.jsonl", job)
    return RankUnits(cast(Any, plan or _Plan()), JobPart(), rank, ranks, taken)


def claims(units: RankUnits) -> Iterator[WorkUnit]:
    return (claimed[0] for claimed in units.claim(never) if isinstance(claimed, tuple))


def test_a_unit_is_taken_once_in_a_job_and_by_each_job(tmp_path: Path):
    first, second = (TakenUnits(tmp_path / "taken.jsonl", job) for job in "ab")
    assert [first.take(UNITS[4]), first.take(UNITS[4]), first.take(UNITS[5])] == [True, False, True]
    assert [second.take(UNITS[4]), second.take(UNITS[4])] == [True, False]


def test_a_line_that_a_full_disk_has_cut_hides_no_other(tmp_path: Path):
    taken = TakenUnits(tmp_path / "taken.jsonl", "job")
    with taken.file.open("a") as file:
        file.write('\n{"job": "job", "unit": "a.0o')
    assert [taken.take(unit) for unit in (*UNITS[:2], *UNITS[:2])] == [True, True, False, False]


def test_a_rank_takes_its_own_units_in_order_then_those_of_others_from_their_end(tmp_path: Path):
    fast, slow = (rank_units(tmp_path, rank, 2) for rank in (0, 1))
    of_slow = claims(slow)
    assert next(of_slow) == UNITS[1]
    assert list(claims(fast)) == [*UNITS[0::2], UNITS[7], UNITS[5], UNITS[3]]
    assert list(of_slow) == [], "it passes over its own, which another has taken"
    assert fast.mine() == [unit for unit in UNITS if unit != UNITS[1]]
    assert slow.mine() == [UNITS[1]]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 9])
def test_each_unit_has_one_rank_whatever_their_speeds(tmp_path: Path, ranks: int):
    dice, plan = random.Random(ranks), _Plan(complete=(UNITS[2], UNITS[6]))
    all_units = [rank_units(tmp_path, rank, ranks, plan) for rank in range(ranks)]
    for units in all_units:
        units.take_first(never)
    running, claimed = {rank: claims(units) for rank, units in enumerate(all_units)}, []
    while running:
        rank = dice.choice(list(running))
        if unit := next(running[rank], None):
            claimed.append(unit)
        else:
            del running[rank]
    assert Counter(claimed) == Counter(unit for unit in UNITS if plan.is_waiting(unit))
    answered = Counter(unit for units in all_units for unit in units.mine())
    assert answered == Counter(UNITS), "one rank answers for each"


def test_the_first_unit_of_each_rank_is_its_own_however_late_it_comes(tmp_path: Path):
    early, late = (rank_units(tmp_path, rank, 2, _Plan(complete=(UNITS[1],))) for rank in (0, 1))
    for units in (early, late):
        units.take_first(never)
    assert len(list(claims(early))) == 6
    assert list(claims(late)) == [UNITS[3]]


def test_an_error_of_the_first_unit_comes_where_no_rank_waits_for_another(tmp_path: Path):
    class Damaged(_Plan):
        def is_waiting(self, unit: WorkUnit) -> bool:
            raise ValueError("the mark is damaged")

    units = rank_units(tmp_path, 0, 2, Damaged())
    units.take_first(never)
    with pytest.raises(OutputError, match="the mark is damaged"):
        next(claims(units))


def test_a_stop_ends_the_search(tmp_path: Path):
    stops = iter([False, False, True])
    units = rank_units(tmp_path, 0, 1)
    assert [claimed[0] for claimed in units.claim(lambda: next(stops)) if isinstance(claimed, tuple)] == UNITS[:2]


class _Trainer:
    """One of two ranks, and what both see of the first one's lock."""

    def __init__(self, rank: int, world_size: int = 2, other_sees_lock: bool = True) -> None:
        self.is_global_zero, self.world_size, self.strategy = rank == 0, world_size, self
        self.other_sees_lock = other_sees_lock

    def broadcast(self, name: str) -> str:
        return name if self.is_global_zero else "name of the first"

    def reduce_boolean_decision(self, decision: bool) -> bool:
        return decision and self.other_sees_lock


def of_job(file: Path, *trainer: Any, is_shared: bool = False) -> TakenUnits | None:
    run = SimpleNamespace(out=file.parent, files=SimpleNamespace(is_shared=is_shared))
    return TakenUnits.of_job(cast(Any, run), cast(Any, _Trainer(*trainer)))


def test_ranks_keep_to_their_own_units_where_locks_are_not_shared(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = tmp_path / "taken.jsonl"
    assert of_job(file, 0, 1) is None and not file.exists(), "a single rank needs none"
    assert of_job(file, 0) != of_job(file, 0), "each start has its own name"
    with exclusive(file):
        assert of_job(file, 1) == TakenUnits(file, "name of the first")
    assert of_job(file, 1) is None and not caplog.text
    assert of_job(file, 0, 2, False) is None
    assert "do not see each other's locks" in caplog.text
    caplog.clear()
    assert of_job(file, 0, 2, False, is_shared=True) is None and not caplog.text
    units = RankUnits(cast(Any, _Plan()), JobPart(), 1, 2, None)
    units.take_first(never)
    assert list(claims(units)) == units.mine() == UNITS[1::2]


def test_a_lock_of_another_process_is_seen(tmp_path: Path):
    hold = "import sys; from pathlib import Path; from nti_batch.lock import exclusive\n"
    hold += "with exclusive(Path(sys.argv[1])): print('held', flush=True); input()"
    command = [sys.executable, "-c", hold, str(tmp_path / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert is_locked(tmp_path / "file")
        process.communicate("\n")
    assert not is_locked(tmp_path / "file")
    assert not is_locked(tmp_path / "no folder" / "file")


def images_of(index: int, count: int = 160) -> list[tuple[str, str]]:
    """Images of a unit of the shard `s`, of eight units."""
    unit = WorkUnit("s", "", index, 8)
    return [("s", f"{i:03}") for i in range(count) if unit.holds(f"{i:03}")]


def images_of_part(part: int) -> set[tuple[str, str]]:
    """Images of every second unit."""
    return {image for index in range(part, 8, 2) for image in images_of(index)}


def test_a_rank_that_is_done_takes_the_units_of_a_slow_one_and_no_unit_of_another_job(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """In part 0/2, rank 0 has the units 0 and 4, and rank 1 has 2 and 6. Rank 1 is held in 2, rank 0 then in 6."""
    shard, out = write_shard(tmp_path / "s.tar", captioned(160)), tmp_path / "out"
    slow, fast = tmp_path / "slow", tmp_path / "fast"
    flags = ["--data.units_per_shard=8", "--output.part_images=4", "--model.num_steps=1", "--model.num_inner_steps=1"]
    alone = arguments(tiny_model, shard, out, *flags)
    job_arguments = [*alone, "--trainer.devices=2"]
    own = len(images_of(0)) + len(images_of(4))
    holds = [*hold_flags(slow, rank=1), *hold_flags(fast, images=own + 14, rank=0)]
    fast.touch()
    with held_job([*job_arguments, "--data.part=0/2"], slow, holds) as job:
        wait_for(tmp_path / "slow.1")
        wait_for(tmp_path / "fast.0")
        committed = set(ids(out))
        assert {*images_of(0), *images_of(4)} <= committed <= images_of_part(0)
        assert committed & set(images_of(6)), "the fast rank has taken it"
        assert len(committed & set(images_of(2))) < len(images_of(2))
        # another part
        other = run_console([*job_arguments, "--data.part=1/2"])
        assert other.returncode == 0, other.stderr
        done = set(ids(out))
        assert images_of_part(1) <= done
        assert len(done & set(images_of(2))) < len(images_of(2)), "a job of another part leaves it alone"
        # all parts, by mistake
        assert main(alone) == 1
        assert "'s.2of8' in" in (error := capsys.readouterr().err) and "is in use by another job" in error
        assert len(set(ids(out)) & set(images_of(2))) < len(images_of(2))
        # the owner passes over its unit while the other rank works on it, and ends
        slow.unlink()
        wait_for(out / "inversions" / "s.2of8.complete")
        log = out / "log" / "part-0of2.rank-1.log"
        while "ended" not in log.read_text():
            wait_for(log)
        assert "ended exit_code=0" in log.read_text()
        assert not (out / "inversions" / "s.6of8.complete").exists()
        slow.touch()
        fast.unlink()
        stdout, stderr = job.communicate(timeout=120)
    assert job.returncode == 0, stderr
    assert "80 done, 0 failed, 0 missing of 80 images" in stdout
    assert ids(out) == [("s", f"{i:03}") for i in range(160)]
    rows = [row for manifest in out.glob("inversions/*.jsonl") for row in manifest.read_text().splitlines()[:-2]]
    assert len(rows) == len(list(read_inversions(out))) == 160
    assert main(["verify", str(out)]) == 0
    assert not list(out.glob("inversions/*.lock"))


def test_two_ranks_try_a_failed_image_once(tiny_model: Path, tmp_path: Path):
    """The rows of a unit that was tried again do not tell that this job has done so."""
    for name in "abcd":
        write_shard(tmp_path / f"{name}.tar", captioned(3) | {f"{i:03}.png": b"<html>" for i in range(3)})
    out = tmp_path / "out"
    job_arguments = arguments(tiny_model, tmp_path / "*.tar", out, "--trainer.devices=2", "--data.units_per_shard=1")
    assert run_console(job_arguments).returncode == 3
    again = run_console([*job_arguments, "--data.retry_failed=true"])
    assert again.returncode == 3, again.stderr
    rows = [row for path in out.glob("inversions/*.jsonl") for row in path.read_text().splitlines()[:-2]]
    tries = Counter((row["shard"], row["key"]) for row in map(json.loads, rows))
    assert len(tries) == 12 and set(tries.values()) == {2}
