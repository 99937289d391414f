"""A model of how workers commit to an object store (docs/protocol.md), and a search of all its states.

Two workers work on the images of one work unit. Each of their steps touches the store or the disk once; steps of both
come in any order. A worker may die before each step, and starts again with what its disk holds, or on an empty disk.
A put may be refused by the store, or be cut: the worker hears nothing, and the put takes effect at once, later, even
after the death of its worker, or never. An image may fail at first, and is then computed again.

Claims are not in the model: a claim only keeps a worker from a unit, and here workers may wait at any step.
"""

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Literal, NamedTuple

WORKERS = 2

Step = Literal["read", "compute", "put tar", "put manifest", "clear spool", "end"]

Fault = Literal[
    "",
    "does not read the manifest that won",
    "continues with the next number after a cut put",
    "puts without the condition",
    "puts the manifest before the tar",
    "removes its tar after a lost put",
    "keeps images that others have committed",
]
"""A step of the protocol that is left out."""


class Row(NamedTuple):
    """Outcome of an image."""

    image: int
    generation: int
    maker: int
    """Worker that computed it: the bytes of two workers differ."""

    is_done: bool


Rows = frozenset[Row]
NOTHING: Rows = frozenset()


class Worker(NamedTuple):
    """A worker. All but `spool` is lost when it dies."""

    step: Step = "read"
    number: int = 0
    """Manifests that it has read: the number of the one that it reads or puts next."""

    known: Rows = NOTHING
    """Rows of these manifests."""

    failed: Rows = NOTHING
    """Failed rows that are not committed, which are only in memory."""

    spool: Rows = NOTHING
    """Done rows on its disk."""

    part: Rows = NOTHING
    """Rows of the part that is put."""


class State(NamedTuple):
    """The store and the workers."""

    workers: tuple[Worker, ...] = (Worker(),) * WORKERS
    log: tuple[Rows, ...] = ()
    """Manifests of the work unit by number."""

    tars: frozenset[Rows] = frozenset()
    """Tars by their content, which names them."""

    cut: frozenset[tuple[int, Rows]] = frozenset()
    """Manifests of cut puts that may still take effect, with their numbers."""

    accidents: int = 0
    """Deaths, refused and cut puts so far."""


@dataclass
class Search:
    """Search of all states of the protocol, or of one with a fault."""

    images: int = 2
    accidents: int = 2
    """Most deaths, refused and cut puts in one history."""

    may_fail: bool = False
    """Whether the first image may fail once."""

    fault: Fault = ""
    states: int = 0
    endings: int = 0
    """States from which nothing happens any more."""

    finding: str = ""
    """What is wrong in a state that can be reached; empty if nothing is."""

    history: list[State] = field(default_factory=list)
    """The shortest history that leads there."""

    def run(self) -> "Search":
        """Visit all states, and check each; stop at the first that is wrong."""
        start = State()
        before: dict[State, State | None] = {start: None}
        leads_to: defaultdict[State, list[State]] = defaultdict(list)
        waiting, ended = deque([start]), list[State]()
        while waiting:
            state = waiting.popleft()
            self.states += 1
            following = [self._without_leftovers(after) for after in self._following(state)]
            if finding := self._wrong(state, following):
                return self._found(finding, state, before)
            if all(worker.step == "end" for worker in state.workers):
                ended.append(state)
            self.endings += not following
            for after in following:
                leads_to[after].append(state)
                if after not in before:
                    before[after] = state
                    waiting.append(after)
        # from every state an ending can be reached
        reached, waiting = set(ended), deque(ended)
        while waiting:
            new = set(leads_to[waiting.popleft()]) - reached
            reached |= new
            waiting.extend(new)
        stuck = next((state for state in before if state not in reached), None)
        return self if stuck is None else self._found("the run cannot end", stuck, before)

    def _found(self, finding: str, state: State, before: dict[State, State | None]) -> "Search":
        self.finding, at = finding, state
        while at is not None:
            self.history.insert(0, at)
            at = before[at]  # type: ignore[assignment]
        return self

    def _wrong(self, state: State, following: list[State]) -> str:
        rows = [(row.image, row.generation) for manifest in state.log for row in manifest]
        if len(set(rows)) < len(rows):
            return "an image is committed twice"
        if any(_done(manifest) and _done(manifest) not in state.tars for manifest in state.log):
            return "a manifest names a tar that is not there"
        if any(after.log[: len(state.log)] != state.log for after in following):
            return "a commit is overwritten"
        if all(worker.step == "end" for worker in state.workers) and self._missing(frozenset().union(*state.log)):
            return "an image is missing at the end"
        return ""

    def _without_leftovers(self, state: State) -> State:
        """The state without what changes nothing: tars that nobody names, and cut puts whose number is taken."""
        cut = state.cut if self._is_plain else frozenset(put for put in state.cut if put[0] >= len(state.log))
        named = [*state.log, *(rows for _, rows in cut), *(worker.part for worker in state.workers)]
        return state._replace(cut=cut, tars=state.tars & {_done(rows) for rows in named})

    def _missing(self, known: Rows) -> list[tuple[int, int]]:
        """Images that must be computed, given the rows that a worker knows, and their generations."""
        newest = {
            image: max((row for row in known if row.image == image), default=None) for image in range(self.images)
        }
        return [
            (image, row.generation + 1 if row else 0) for image, row in newest.items() if row is None or not row.is_done
        ]

    def _following(self, state: State) -> Iterator[State]:
        """States that one step leads to."""
        for number, manifest in state.cut:
            yield replace_log(state, number, manifest, self._is_plain)._replace(cut=state.cut - {(number, manifest)})
        for index, worker in enumerate(state.workers):
            if worker.step == "end":
                continue
            yield from self._steps(state, index)
            if state.accidents < self.accidents:
                after = state._replace(accidents=state.accidents + 1)
                yield with_worker(after, index, Worker(spool=worker.spool))
                if worker.spool:
                    yield with_worker(after, index, Worker())

    @property
    def _is_plain(self) -> bool:
        return self.fault == "puts without the condition"

    def _steps(self, state: State, index: int) -> Iterator[State]:
        """States that a step of one worker leads to."""
        worker = state.workers[index]
        match worker.step:
            case "read":
                if worker.number < len(state.log):
                    known = worker.known | state.log[worker.number]
                    yield with_worker(state, index, worker._replace(number=worker.number + 1, known=known))
                else:
                    yield with_worker(state, index, self._next_step(worker))
            case "compute":
                yield from (with_worker(state, index, after) for after in self._compute(index, worker))
            case "put tar":
                done = _done(worker.part)
                after = state._replace(tars=state.tars | {done}) if done else state
                is_swapped = self.fault == "puts the manifest before the tar"
                yield with_worker(after, index, worker._replace(step="clear spool" if is_swapped else "put manifest"))
            case "put manifest":
                yield from self._put_manifest(state, index, worker)
            case "clear spool":
                yield with_worker(
                    state, index, worker._replace(step="read", spool=NOTHING, failed=NOTHING, part=NOTHING)
                )

    def _next_step(self, worker: Worker) -> Worker:
        """What a worker does that has read all manifests: put what it has, compute, or end."""
        finished = worker.spool | worker.failed
        committed = {(row.image, row.generation) for row in worker.known}
        part = frozenset(row for row in finished if (row.image, row.generation) not in committed)
        if self.fault == "keeps images that others have committed":
            part = finished
        if part and (worker.part or not self._to_compute(worker, part)):
            first: Step = "put manifest" if self.fault == "puts the manifest before the tar" else "put tar"
            return worker._replace(step=first, part=part)
        if self._to_compute(worker, part):
            return worker._replace(step="compute", spool=_done(part), failed=part - _done(part), part=NOTHING)
        return worker._replace(step="clear spool" if finished else "end", part=NOTHING)

    def _to_compute(self, worker: Worker, finished: Rows) -> list[tuple[int, int]]:
        has = {row.image for row in finished}
        return [each for each in self._missing(worker.known) if each[0] not in has]

    def _compute(self, index: int, worker: Worker) -> Iterator[Worker]:
        """Compute some of the missing images, of which the first may fail once, and then read what is new."""
        finished = worker.spool | worker.failed
        outcomes = [[None, *self._outcomes(index, *each)] for each in self._to_compute(worker, finished)]
        for chosen in product(*outcomes):
            rows = finished | {row for row in chosen if row}
            if rows:
                yield worker._replace(step="read", spool=_done(rows), failed=rows - _done(rows), part=rows)

    def _outcomes(self, maker: int, image: int, generation: int) -> list[Row]:
        may_fail = self.may_fail and image == generation == 0
        return [Row(image, generation, maker, is_done) for is_done in ((True, False) if may_fail else (True,))]

    def _put_manifest(self, state: State, index: int, worker: Worker) -> Iterator[State]:
        """Put the manifest; the store accepts it, refuses it, or the worker hears nothing."""
        number, swapped = worker.number, self.fault == "puts the manifest before the tar"
        if self._is_plain or number >= len(state.log):
            put = replace_log(state, number, worker.part, self._is_plain)
            yield with_worker(put, index, worker._replace(step="put tar" if swapped else "clear spool"))
        else:
            # somebody else's manifest, or our own of a cut put: both are read
            lost = worker._replace(step="read")
            if self.fault == "does not read the manifest that won":
                lost = worker._replace(number=number + 1)
            tars = state.tars
            if self.fault == "removes its tar after a lost put":
                tars -= {_done(worker.part)}
            yield with_worker(state._replace(tars=tars), index, lost)
        if state.accidents < self.accidents:
            after = state._replace(accidents=state.accidents + 1, cut=state.cut | {(number, worker.part)})
            if self.fault == "continues with the next number after a cut put":
                worker = worker._replace(number=number + 1) if number < len(state.log) else worker
                after = with_worker(after, index, worker._replace(number=number + 1))
            yield after


def replace_log(state: State, number: int, manifest: Rows, is_plain: bool) -> State:
    """The state after a put of a manifest: it takes effect if its number is free, or always without the condition."""
    if number < len(state.log) and not is_plain:
        return state
    return state._replace(log=(*state.log[:number], manifest, *state.log[number + 1 :]))


def with_worker(state: State, index: int, worker: Worker) -> State:
    """The state with another worker in a place."""
    return state._replace(workers=(*state.workers[:index], worker, *state.workers[index + 1 :]))


def _done(rows: Rows) -> Rows:
    """Rows with members in a tar."""
    return frozenset(row for row in rows if row.is_done)
