"""`nti-batch app`."""

from importlib.util import find_spec
from pathlib import Path

from nti_batch.commands.invert import run_settings
from nti_batch.commands.parser import OptionalText
from nti_batch.exit_codes import DONE
from nti_batch.jobs.flags import InvertDataFlags, InvertModelFlags, InvertOutputFlags
from nti_batch.jobs.parser import silence_warnings
from nti_batch.models.load import load_model
from nti_batch.models.supported import ModelDescription
from nti_batch.models.weights import check_model
from nti_batch.output.inversions import open_inversions
from nti_batch.settings import InversionRunSettings
from nti_batch.terminal import print_line

MAX_PORT = 65535


def app(
    run: OptionalText = None,
    port: int = 7860,
    host: str = "127.0.0.1",
    edits: Path | None = None,
    shards: str | None = None,
    output: Path = Path("app-run"),
    model: InvertModelFlags = InvertModelFlags(),
) -> int:
    """Serve a page to look at a run and to try edits, until Ctrl-C. Without a run it inverts what is uploaded.

    Args:
        run: Output folder of `nti-batch invert`, or its address in an object store.
        port: Port of the page; 0 takes a free one.
        host: Address to listen on. Any other than the default lets other machines use the page, without a password.
        edits: JSONL file that the page adds edits to; the default is edits.jsonl in the run's folder, or in the
            present one for a run in an object store.
        shards: Present place of the input shards, if the run read them elsewhere.
        output: Output folder of the images that are uploaded, if no run is given.
        model: Model and method for the images that are uploaded.
    """
    silence_warnings()
    if find_spec("gradio") is None:
        raise ValueError("app needs gradio: pip install 'nti-batch[app]'")
    if not 0 <= port <= MAX_PORT:
        raise ValueError(f"--port is {port}, allowed: 0 to {MAX_PORT}")
    from nti_batch.app.edit_list import EditList
    from nti_batch.app.page import Page
    from nti_batch.app.serve import served
    from nti_batch.app.uploads import Uploads
    from nti_batch.app.workbench import Workbench

    uploads = Uploads(output, upload_settings(model)) if run is None else None
    out = str(output) if run is None else run
    opened = open_inversions(out)
    folder = Path() if opened.files.is_shared else opened.out
    edit_list, settings = EditList(edits or folder / "edits.jsonl", list(opened.shards)), opened.settings
    networks = load_model(settings.source, settings.precision, settings.fingerprint)
    page = Page(Workbench(out, networks, shards), edit_list, uploads)
    with served(page, host, port) as (blocks, address):
        print_line(f"{address} shows {out}; Ctrl-C ends it")
        blocks.block_thread()
    return DONE


def upload_settings(model: InvertModelFlags) -> InversionRunSettings:
    """Settings of a run of uploaded images.

    Raises:
        ValueError: If the model is missing or not supported.
    """
    description = ModelDescription.of(model.source)
    check_model(model.source, description)
    # the folder is the run's own
    data, output = InvertDataFlags(images="images"), InvertOutputFlags(dir="")
    return run_settings(model, data, output, description)
