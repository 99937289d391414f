"""The server of the benchmark of transfers breaks as it says, and all images arrive."""

import threading

import pytest

from nti_batch.benchmarks import transfers
from nti_batch.data import download, transfer


@pytest.mark.parametrize(("fault", "requests"), [("no fault", 1), ("two cuts a shard", 3), ("a stall a shard", 2)])
def test_every_image_arrives(fault: str, requests: int, monkeypatch: pytest.MonkeyPatch):
    for module, name, value in (
        (transfers, "IMAGES", 4),
        (transfers, "SILENCE", 0.1),
        (transfer, "READ_TIMEOUT", 2.0),
        (download, "RETRY_DELAYS", (0.0,)),
    ):
        monkeypatch.setattr(module, name, value)
    with transfers._Server(transfers._tar(), fault) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert transfers._read_here([f"http://127.0.0.1:{server.server_port}/0.tar"]) == 4
        server.shutdown()
    assert server.requests.total() == requests
