"""What a job does after its last commit is a courtesy: it may fail, and neither a signal nor the time waits for it."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from nti_batch.jobs.signals import STOP_SIGNALS

logger = logging.getLogger(__name__)
END_SIGNALS = (*STOP_SIGNALS, signal.SIGALRM)


class _EndedError(BaseException):
    """A signal ends the courtesy; no `except Exception` on the way keeps it."""


@contextmanager
def courtesy(what: str, seconds: float) -> Iterator[None]:
    """Run a block that may fail: a warning names the reason, and the job continues behind the block.

    A stop signal ends the block, and so does the end of its time. A single long call of a library ends first.

    Args:
        what: Result of the block, for the warning.
        seconds: Longest duration of the block.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        for each in END_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        is_late = signum == signal.SIGALRM
        raise _EndedError(f"it takes more than {seconds:g} s" if is_late else f"{signal.Signals(signum).name} ended it")

    previous = {signum: signal.getsignal(signum) for signum in END_SIGNALS}
    try:
        for signum in END_SIGNALS:
            signal.signal(signum, end)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    except (_EndedError, Exception) as error:
        name = "" if isinstance(error, _EndedError) else f"{type(error).__name__}: "
        reason = " ".join(str(error).split())[:500]
        logger.warning("%s is left out (%s%s); what is committed does not depend on it", what, name, reason)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in previous.items():
            signal.signal(signum, handler)
