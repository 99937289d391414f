"""Flags that several commands about a run have."""

from dataclasses import dataclass

from nti_batch.data.shards import input_shards


@dataclass(frozen=True, kw_only=True, slots=True)
class PipeFlags:
    """Consent to shell commands."""

    allow_pipe: bool = False
    """Allow shards that are the output of a shell command, as for invert; only this flag itself is consent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFlags(PipeFlags):
    """Present place of the input of a run."""

    shards: str | None = None
    """The input shards, if they are elsewhere than the run read them."""

    images: str | None = None
    """The folder of images, if it is elsewhere than the run read it."""

    def addresses(self) -> dict[str, str] | None:
        """Addresses of the input shards by their names; None for those that the run recorded.

        Raises:
            ValueError: If both flags are given, or nothing is found.
        """
        if self.shards is None and self.images is None:
            return None
        return input_shards(self.shards, self.images, self.allow_pipe)
