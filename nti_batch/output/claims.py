"""Claims of work units in an object store: they save double work, and nothing rests on them.

A claim counts for some minutes after it was last put. Both times are the store's own: that of the claim, and that of
the last object that this process has put. Clocks of workers may differ by hours.
"""

import json
import threading
import time
import uuid
from contextlib import suppress

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

        self._lock = threading.Lock()
        self._clock: float | None = None
        """Seconds by which the clock of the store is ahead of this process's."""

        self._end = threading.Event()

    def take(self, stem: str, disk: str) -> None:
        """Put a claim of a work unit.

        Args:
            stem: Stem of the work unit.
            disk: Name of the local disk; claims of other processes there are dead, since its lock is held.

        Raises:
            UnitInUseError: If a process with another disk has put one lately.
        """
        name, content = f"{stem}.claim", json.dumps({**whoami(), "disk": disk}).encode()
        version = self._bucket.version(name)
        if version is None:
            is_free = self._bucket.put_if_absent(name, content) or self._bucket.read(name) == content
        else:
            is_free = self.now() - version.second >= CLAIM_SECONDS
        if not is_free:
            owner = (self._bucket.read(name) or b"").decode(errors="replace")
            if f'"disk": "{disk}"' not in owner:
                raise UnitInUseError(
                    f"{self._bucket.address}/{stem} is in use by another job ({describe_owner(owner)})"
                )
        if version is not None or not is_free:
            self._bucket.put(name, content)
        with self._lock:
            if not self._held:
                self._end = threading.Event()
                threading.Thread(target=self._renew, args=(self._end,), name="claims", daemon=True).start()
            self._held[name] = content

    def drop(self, stem: str) -> None:
        """Remove a claim."""
        name = f"{stem}.claim"
        with self._lock:
            del self._held[name]
            if not self._held:
                self._end.set()
        with suppress(OutputError):
            self._bucket.remove(name)

    def now(self) -> float:
        """The time of the store, in seconds."""
        if self._clock is None:
            name = f"clock-{uuid.uuid4()}"
            self._bucket.put(name, b"")
            version = self._bucket.version(name)
            self._bucket.remove(name)
            assert version is not None
            self._clock = version.second - time.monotonic()
        return self._clock + time.monotonic()

    def _renew(self, end: threading.Event) -> None:
        while not end.wait(RENEWED_EVERY):
            for name, content in list(self._held.items()):
                if name in self._held:
                    with suppress(OutputError):
                        self._bucket.put(name, content)
