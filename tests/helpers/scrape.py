"""Callback that asks a job for its metrics, as Prometheus does."""

import urllib.request
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Scrape(Callback):
    """Writes the metrics of a rank to a file: after each image, and at the end."""

    def __init__(self, folder: str, port: int) -> None:
        """Store the settings.

        Args:
            folder: Folder for the answers.
            port: Port of the first rank.
        """
        self.folder, self.port = Path(folder), port

    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Ask while the job runs."""
        self._scrape(trainer, "running")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask when everything is committed."""
        self._scrape(trainer, "end")

    def _scrape(self, trainer: Trainer, moment: str) -> None:
        url = f"http://127.0.0.1:{self.port + trainer.local_rank}/metrics"
        request = urllib.request.Request(url, headers={"Accept": OPENMETRICS})
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert "openmetrics-text" in answer.headers["Content-Type"]
            (self.folder / f"{moment}-{trainer.global_rank}").write_bytes(answer.read())
