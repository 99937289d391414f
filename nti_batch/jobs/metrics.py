"""Serves the numbers of a rank as OpenMetrics, which Prometheus collects."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from lightning.pytorch import Trainer

import nti_batch
from nti_batch.jobs.rank_numbers import RankNumbers

MAX_PORT = 65535


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsFlags:
    """Metrics of a job."""

    port: int | None = None
    """Port on which the job serves OpenMetrics; rank k of a node takes port + k, and null serves none."""

    host: str = "127.0.0.1"
    """Its address; '0.0.0.0' is every network."""

    def __post_init__(self) -> None:
        """Raise a ValueError for a value out of range."""
        if self.port is not None and not 1 <= self.port <= MAX_PORT:
            raise ValueError(f"metrics.port is {self.port}, allowed: 1 to {MAX_PORT}; leave it out for no metrics")
        if not self.host:
            raise ValueError("metrics.host is empty, allowed: an address of this machine, such as 127.0.0.1 or 0.0.0.0")


class MetricsServer:
    """Serves a rank's numbers inside a `with` block."""

    def __init__(self, flags: MetricsFlags, trainer: Trainer, numbers: RankNumbers) -> None:
        """Take the numbers; nothing is served yet."""
        self.flags, self.trainer, self.numbers = flags, trainer, numbers
        self._served: tuple[Any, Any] | None = None

    def __enter__(self) -> Self:
        """Start to serve in a thread.

        Raises:
            ValueError: If prometheus_client is not installed, or the address cannot be served.
        """
        if self.flags.port is None:
            return self
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ImportError as error:
            raise ValueError(
                "metrics.port needs prometheus_client, which is not installed: pip install 'nti-batch[metrics]'"
            ) from error
        host, port = self.flags.host, self.flags.port + self.trainer.local_rank
        registry = CollectorRegistry()
        registry.register(RankCollector(self.numbers, self.trainer.global_rank))
        for other in range(port + 1, port + self._started_ranks + 1):
            with _address_errors(host, other):
                _check_address(host, other)
        with _address_errors(host, port):
            self._served = start_http_server(port, host, registry)
        return self

    @property
    def _started_ranks(self) -> int:
        """Ranks that this process will start; it would wait in vain for one that cannot serve its numbers."""
        environment = getattr(self.trainer.strategy, "cluster_environment", None)
        starts_others = environment is not None and not environment.creates_processes_externally
        return self.trainer.num_devices - 1 if starts_others else 0

    def __exit__(self, *error: object) -> None:
        """Serve no more."""
        if self._served:
            server, thread = self._served
            server.shutdown()
            thread.join()
            server.server_close()


@contextmanager
def _address_errors(host: str, port: int) -> Iterator[None]:
    """Turn an error about an address into one that names it.

    Raises:
        ValueError: In place of an OSError, and for a port that is too large.
    """
    try:
        if port > MAX_PORT:
            raise OSError(None, f"the largest port is {MAX_PORT}")
        yield
    except OSError as error:
        raise ValueError(
            f"metrics cannot be served at {host} on port {port} ({error.strerror}): give another --metrics.port or "
            "--metrics.host"
        ) from error


def _check_address(host: str, port: int) -> None:
    """Raise an OSError if nothing can be served at an address."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    socket.create_server((host, port), family=family).close()


@dataclass(frozen=True, slots=True)
class RankCollector:
    """Reads a rank's numbers whenever somebody asks for them."""

    numbers: RankNumbers
    rank: int

    def collect(self) -> Iterator[Any]:
        """The families of metrics."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        kind, tally = self.numbers.writer.run.kind, self.numbers.tally
        version = {"version": nti_batch.__version__, "command": kind.command, "rank": str(self.rank)}
        yield InfoMetricFamily("nti_batch_job", "The job.", version)
        about = f"{kind.record_noun.capitalize()} that are done or failed since the start."
        records = CounterMetricFamily(f"nti_batch_{kind.record_noun}", about, labels=["status"])
        for status, count in (("done", tally.done), ("failed", tally.failed)):
            records.add_metric([status], count)
        yield records
        about = "Seconds of each stage; those of the device count while it works, those of the host may pass meanwhile."
        stages = CounterMetricFamily("nti_batch_stage_seconds", about, labels=["stage"], unit="seconds")
        for stage, seconds in self.numbers.stage_seconds().items():
            stages.add_metric([stage], seconds)
        yield stages
        about = "Share of the time since the start in which the device has had something to do."
        ratio = self.numbers.device_busy_ratio()
        yield GaugeMetricFamily("nti_batch_device_busy_ratio", about, value=ratio, unit="ratio")
        queues = GaugeMetricFamily("nti_batch_queue_length", "Records in a queue.", labels=["queue"])
        for queue, length in self.numbers.queue_lengths().items():
            queues.add_metric([queue], length)
        yield queues
        for where, size in self.numbers.memory_bytes().items():
            about = f"Memory: {where.replace('_', ' ')}."
            yield GaugeMetricFamily(f"nti_batch_{where}_memory_bytes", about, value=size, unit="bytes")
