"""The two kinds of run, inversions and edits: what differs between their output folders."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from nti_batch.json_object import JsonObject
from nti_batch.output.manifest_rows import AnyRow, Metadata
from nti_batch.records import Record
from nti_batch.settings import EditRunSettings, InversionRunSettings

AnyRecord = TypeVar("AnyRecord", bound=Record)
AnySettings = TypeVar("AnySettings", bound=InversionRunSettings | EditRunSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunKind(Generic[AnyRecord, AnyRow, AnySettings]):
    """How a kind of run stores its records."""

    command: Literal["invert", "edit"]
    """Command that makes such a run."""

    record_noun: str
    """Plural noun for the records, such as 'images'."""

    folder: str
    """Folder of the parts below the output folder."""

    suffix: str
    """Suffix of the member beside each record's `.json`."""

    psnr: str
    """Metric that progress and loggers show."""

    row_type: type[AnyRow]
    encode: Callable[[AnyRecord, AnySettings], tuple[bytes, Metadata]]
    """Turns a record into its two members."""

    read_settings: Callable[[JsonObject], AnySettings]
    """Reads the settings in a `run.json`."""
