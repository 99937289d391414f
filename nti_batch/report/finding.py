"""What a check of a run finds, and what it has read."""

from dataclasses import dataclass, field

from nti_batch.plans.missing_images import ImagePlan
from nti_batch.plans.plan import AnyPlan

AGAIN = "run the job again with the same command"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong in a run."""

    where: str
    """A file, or an image as 'shard/key'."""

    what: str
    mend: str = ""
    """What mends it."""


@dataclass(slots=True)
class Checked:
    """What a check of a run has read, counted as it goes."""

    units: int = 0
    parts: int = 0
    done: int = 0
    failed: int = 0
    inputs: int = 0
    """Keys of the input, or requested edits, that were looked for."""

    reconstructed: int = 0
    manifests: set[str] = field(default_factory=set)
    """Names of the manifests that could be read."""

    tars: set[str] = field(default_factory=set)
    """Names of the tars that they name."""

    def line(self, plan: AnyPlan) -> str:
        """The counts as text."""
        looked_for = f"{self.inputs} images of the input" if isinstance(plan, ImagePlan) else "all requested edits"
        again = f"{self.reconstructed} reconstructions" if self.reconstructed else "no reconstruction (--recompute N)"
        return (
            f"checked {self.units} work units: {self.parts} parts with {self.done} {plan.run.kind.record_noun} "
            f"(checksums, shapes, finite numbers, settings), {self.failed} failed rows, {looked_for}; {again}"
        )
