"""Claims of work units in an object store: they save double work, and nothing rests on them.

A claim counts for some minutes after it was last put. Both times are the store's own: that of the claim, and that of
the last object that this process has put. Clocks of workers may differ by hours.
"""

import json
import threading
import time
import uuid
from contextlib import suppress
from datetime import datetime, timedelta

from nti_batch.files import OutputError
from nti_batch.lock import UnitInUseError, describe_owner, whoami
from nti_batch.output.bucket import Bucket

RENEWED_EVERY = 60.0
"""Seconds between two puts of a claim."""

CLAIM_SECONDS = 300.0
"""Seconds for which a claim counts."""


class Claims:
    """The claims of one process."""

    def __init__(self, bucket: Bucket) -> None:
        """Claim nothing yet.

        Args:
            bucket: The store.
        """
        self._bucket = bucket
        self._held: dict[str, bytes] = {}
        """Names and contents."""

        self._clock: tuple[datetime, float] | None = None
        """Time of a put by the clock of the store, and by that of this process."""

        self._end = threading.Event()

    def take(self, stem: str, disk: str) -> None:
        """Put a claim of a work unit.

        Args:
            stem: Stem of the work unit.
            disk: Name of the local disk; claims of other processes there are dead, since its lock is held.

        Raises:
            UnitInUseError: If a process with another disk has put one lately.
        """
        name = f"{stem}.claim"
        put = self._bucket.put_time(name)
        if put is not None and self.now() - put < timedelta(seconds=CLAIM_SECONDS):
            owner = self._bucket.read(name) or b""
            if f'"disk": "{disk}"'.encode() not in owner:
                raise UnitInUseError(
                    f"{self._bucket.address}/{stem} is in use by another job ({describe_owner(owner.decode())})"
                )
        content = json.dumps({**whoami(), "disk": disk}).encode()
        self._bucket.put(name, content)
        if not self._held:
            self._end = threading.Event()
            threading.Thread(target=self._renew, args=(self._end,), name="claims", daemon=True).start()
        self._held[name] = content

    def drop(self, stem: str) -> None:
        """Remove a claim."""
        del self._held[f"{stem}.claim"]
        if not self._held:
            self._end.set()
        with suppress(OutputError):
            self._bucket.remove(f"{stem}.claim")

    def now(self) -> datetime:
        """The time of the store."""
        if self._clock is None:
            name = f"clock-{uuid.uuid4()}"
            self._bucket.put(name, b"")
            now = self._bucket.put_time(name)
            self._bucket.remove(name)
            assert now is not None
            self._clock = now, time.monotonic()
        return self._clock[0] + timedelta(seconds=time.monotonic() - self._clock[1])

    def _renew(self, end: threading.Event) -> None:
        while not end.wait(RENEWED_EVERY):
            for name, content in list(self._held.items()):
                with suppress(OutputError, ValueError):
                    self._bucket.put(name, content)
