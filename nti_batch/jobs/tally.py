"""Counts of what a job has written."""

from dataclasses import astuple, dataclass

from nti_batch.records import EditedImage, Failure, Inversion


@dataclass(frozen=True, slots=True)
class Tally:
    """What has been written since the start of a job, by one rank or by several together."""

    done: int = 0
    failed: int = 0
    scored: int = 0
    """Of those that are done, how many have a PSNR."""

    psnr_sum: float = 0.0
    """In dB."""

    gaps: int = 0
    """Of those that are done, how many have a PSNR of the VAE's round trip."""

    gap_sum: float = 0.0
    """By how much the PSNR is below that, in dB."""

    @property
    def processed(self) -> int:
        """Records that are done or failed."""
        return self.done + self.failed

    def __add__(self, other: "Tally") -> "Tally":
        """What two have written."""
        return Tally(*(one + more for one, more in zip(astuple(self), astuple(other), strict=True)))

    @classmethod
    def of(cls, outcome: Inversion | EditedImage | Failure) -> "Tally":
        """One record."""
        match outcome:
            case Inversion():
                return cls(1, 0, 1, outcome.psnr, 1, outcome.psnr_vae - outcome.psnr)
            case EditedImage():
                return cls(1) if outcome.psnr_unedited is None else cls(1, 0, 1, outcome.psnr_unedited)
            case Failure():
                return cls(failed=1)
