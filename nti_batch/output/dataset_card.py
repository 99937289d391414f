"""The card of a dataset on the Hugging Face hub: what a run holds, what made it, and how to read it."""

import json
from collections.abc import Mapping

from huggingface_hub import DatasetCardData

from nti_batch.output.inversions import INVERT
from nti_batch.output.origin import Origin
from nti_batch.output.run_folder import AnyRun
from nti_batch.output.status import RowCounts
from nti_batch.phrases import hide_credentials
from nti_batch.terminal import own_lines

_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")
"""The hub's names for numbers of rows, each ten times the one before."""

_CARD = """---
{front}
# choose one: nti-batch cannot know it
# license: ...
---

# {name}

{about}

| | |
|---|---|
| records | {done:,} done, {failed:,} failed |
{facts}

## Files

| file | content |
|---|---|
| `{folder}.parquet` | a row for each record, done or failed, with scores, settings and the place of its tensors |
| `{folder}/*.tar` | WebDataset shards with two members for each record: `KEY{suffix}` and `KEY.json` |
| `{folder}/*.jsonl`, `run.json` | manifests and settings: this folder is a run of nti-batch |

`part`, `member`, `offset` and `bytes` of a row say where its tensors lie. A shard may also hold an older record of an
image that was computed again; the row names the one that counts.

```python
from datasets import load_dataset

rows = load_dataset("FOLDER", split="train")
shards = load_dataset("webdataset", data_files="FOLDER/{folder}/*.tar", split="train", streaming=True)
```

{reading}

## Settings

```json
{settings}
```

## Licence

None is chosen. The captions and what was computed from the images depend on the rights to the images, and on the
licence of the model. The input images are no part of this dataset.
"""

_INVERSIONS = """Null-text inversions of captioned images: the noise latents z_T of each image, and a null embedding for
each DDIM step. With its caption, guided sampling rebuilds the image from them, and prompt-to-prompt edits it.
[Mokady et al., 2022](https://arxiv.org/abs/2211.09794)"""

_EDITS = "Images that were edited by prompts, from null-text inversions of the originals."

_READING = """With nti-batch, `nti_batch.read_inversions("FOLDER")` reads the tensors, `nti-batch verify FOLDER`
compares all checksums, and `nti-batch edit --data.inversions=FOLDER` edits the images."""


def dataset_card(run: AnyRun, counts: RowCounts, origins: Mapping[Origin, int]) -> str:
    """The text of the card.

    Args:
        run: The run.
        counts: Its rows.
        origins: Finished records by what made them.
    """
    kind, is_inversion = run.kind, run.kind.command == INVERT.command
    total = counts.done + counts.failures.total()
    front = DatasetCardData(
        pretty_name=_line(run.name),
        task_categories=["image-to-image", "text-to-image"],
        tags=["nti-batch", "null-text-inversion", "prompt-to-prompt", "stable-diffusion", "webdataset"],
        size_categories=[_SIZES[min(max(0, len(str(total)) - 3), len(_SIZES) - 1)]],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": f"{kind.folder}.parquet"}]}],
    )
    metrics = [f"| {name} | {total / counts.scored[name]:.4g} (mean) |" for name, total in counts.totals.items()]
    made_by = [f"| made by | {_cell(_origin(origin))}: {records:,} |" for origin, records in origins.items() if records]
    return _CARD.format(
        front=front.to_yaml(),
        name=_line(run.name),
        about=_INVERSIONS if is_inversion else _EDITS,
        done=counts.done,
        failed=counts.failures.total(),
        facts="\n".join([*metrics, *made_by]),
        folder=kind.folder,
        suffix=kind.suffix,
        reading=_READING if is_inversion else "",
        settings=hide_credentials(json.dumps(run.settings.to_json(), indent=2)),
    )


def _origin(origin: Origin) -> str:
    driver = f", driver {origin.driver}" if origin.driver else ""
    versions = f"nti-batch {origin.nti_batch}, torch {origin.torch}, diffusers {origin.diffusers}"
    return f"{versions}, on {origin.device}{driver}"


def _line(text: str) -> str:
    return " ".join(own_lines(text).split())


def _cell(text: str) -> str:
    """A text in a table of Markdown."""
    return _line(text).replace("|", r"\|")
