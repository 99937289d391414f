"""Chooses the files of a run: those of a local folder, or those of an object store."""

from pathlib import Path

from nti_batch.files import STORE_ADDRESSES, refuse_url, store_address
from nti_batch.output.bucket_files import BucketFiles
from nti_batch.output.run_files import FolderFiles, RunFiles


def run_files(out: Path | str, spool: str | None = None) -> RunFiles:
    """The files of a run in a local folder or in an object store.

    Args:
        out: Local folder, or address in a store.
        spool: Local folder for what is read from a store, and for what is not committed there yet.

    Raises:
        ValueError: If it is another address, or the store cannot be used.
        OutputError: If the store does not answer.
    """
    if address := store_address(out):
        return BucketFiles(address, spool)
    refuse_url("the run", out, STORE_ADDRESSES)
    return FolderFiles(Path(out))
