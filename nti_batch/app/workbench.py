"""A run with its model: what the page computes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nti_batch.app.form import EditForm
from nti_batch.app.gallery import Gallery
from nti_batch.data.fit import without_padding
from nti_batch.data.images import to_bytes
from nti_batch.diffusion.attention_trace import AttentionTrace
from nti_batch.editing.editor import ControlledEdit, edit_images
from nti_batch.editing.masks import encode_runs, mask_pixels
from nti_batch.editing.reconstruct import reconstruct
from nti_batch.models.stable_diffusion import StableDiffusion
from nti_batch.output.dataset import InversionDataset
from nti_batch.output.serialization import StoredInversion
from nti_batch.records import EditRequest, Mask
from nti_batch.scores.edits import EditScores, score_edits
from nti_batch.scores.learned import LearnedScores
from nti_batch.scores.metrics import psnr

OnProgress = Callable[[float], None]
"""Called with the share of the work that is done, from 0 to 1."""

MAX_PROMPT = 10_000
"""Characters of a prompt; the text encoder reads 77 tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """An image of the run with its VAE bound and its reconstruction, uint8 [3, height, width]."""

    stored: StoredInversion
    input: Tensor | None
    """None if it cannot be read any more."""

    unread: str
    """Why the input cannot be read; empty if it can."""

    vae: Tensor | None
    reconstruction: Tensor
    psnr_vae: float | None
    """PSNR against the input, in dB."""

    psnr: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """Attention of a source and, if there is one, of its edit."""

    prompts: tuple[str, ...]
    maps: Tensor
    """Maps of each token, [rows, map height, map width, tokens]."""


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """An edit beside its source; images are uint8 [3, height, width]."""

    request: EditRequest
    """The request without a name and a mask."""

    source: Tensor
    pixels: Tensor
    mask: Mask | None
    """Where local blend let the image change, without padding, as a list of edits has it; None without blend words."""

    inside: Tensor | None
    """The mask's pixels of the image, bool [height, width]."""

    attention: Attention
    scores: EditScores
    """Scores against the input, or against the reconstruction if the input cannot be read."""

    seconds: float
    is_truncated: bool
    """Whether the text encoder reads only the beginning of the prompt."""


class Workbench:
    """A run and its networks, which are loaded once."""

    def __init__(self, out: Path | str, networks: StableDiffusion, shards: str | None = None) -> None:
        """Read the run's manifests.

        Args:
            out: Output folder of `nti-batch invert`, or its address.
            networks: Networks of the run.
            shards: Present place of the input shards; None for the recorded one.

        Raises:
            ValueError: If the folder is no such run, or is damaged.
        """
        self.out, self.networks, self._shards = out, networks, shards
        self.reload()

    def reload(self) -> None:
        """Read the run's manifests again."""
        self.gallery = Gallery(InversionDataset(self.out, pixels=True, shards=self._shards))

    @property
    def dataset(self) -> InversionDataset:
        """The run's inversions."""
        return self.gallery.dataset

    @torch.no_grad()
    def source(self, shard: str, key: str) -> Source:
        """Reconstruct an image.

        Raises:
            ValueError: If its inversion cannot be read.
        """
        stored = self.dataset.inversion((shard, key))
        pixels, unread = self.gallery.pixels(shard, key)
        reconstruction = reconstruct(self.networks, [stored], guided=True).cpu()
        if pixels is None:
            return Source(stored, None, unread, None, to_bytes(reconstruction[0]), None, None)
        vae = self.networks.decode_latents(self.networks.encode_images(pixels[None])).cpu()
        bound, reached = psnr(torch.cat([vae, reconstruction]), pixels[None] / 255).tolist()
        return Source(stored, pixels, "", to_bytes(vae[0]), to_bytes(reconstruction[0]), bound, reached)

    def edit(self, source: Source, form: EditForm, on_progress: OnProgress) -> Edit:
        """Edit an image as the job does.

        Raises:
            ValueError: If a field is wrong, a word is not in its prompt, or the edited image is not finite.
        """
        stored, prompt, settings = source.stored, form.prompt.strip(), form.settings()
        check_prompt(prompt)
        edit = ControlledEdit.of(self.networks, stored.prompt, prompt, settings)
        started = time.monotonic()
        (rebuilt, edited), trace = self._sample(stored, [edit], on_progress)
        seconds = time.monotonic() - started
        if not edited.isfinite().all():
            raise ValueError(f"the edited image of {stored.key!r} is not finite")
        pixels = to_bytes(edited)
        grid = None if trace.mask is None else encode_runs(trace.mask[1].cpu())
        inside = None if grid is None else mask_pixels(grid, *pixels.shape[1:])
        mask = None if inside is None else encode_runs(_shown(inside, stored))
        reference = source.reconstruction if source.input is None else source.input
        return Edit(
            request=EditRequest(
                shard=stored.shard, key=stored.key, name="", prompt=None, edit_prompt=prompt, settings=settings
            ),
            source=to_bytes(rebuilt),
            pixels=pixels,
            mask=mask,
            inside=inside,
            attention=_attention(trace, stored.prompt, prompt),
            scores=_scores(
                _shown(pixels, stored),
                _shown(reference, stored),
                None if inside is None else _shown(inside, stored),
                prompt,
            ),
            seconds=seconds,
            is_truncated=self.networks.truncates(prompt),
        )

    def attention(self, stored: StoredInversion, on_progress: OnProgress) -> Attention:
        """The attention of an image without an edit."""
        _, trace = self._sample(stored, [], on_progress)
        return _attention(trace, stored.prompt)

    def words(self, prompt: str) -> list[str]:
        """The words of a prompt that the text encoder reads, once each."""
        tokenized = self.networks.tokenize(prompt)
        return list(dict.fromkeys(word for word, span in zip(tokenized.words, tokenized.spans, strict=True) if span))

    def map_of(self, attention: Attention, row: int, phrase: str) -> Tensor:
        """Attention of a word, or of several in a row, from 0 to 1, [map height, map width].

        Args:
            attention: The attention of a source and its edit.
            row: 0 for the source, 1 for the edit.
            phrase: The words.

        Raises:
            ValueError: If they are not in the prompt.
        """
        positions = self.networks.tokenize(attention.prompts[row]).find(phrase)
        of_words = attention.maps[row, :, :, positions].sum(-1)
        low, high = of_words.aminmax()
        return (of_words - low) / (high - low).clamp(min=torch.finfo(of_words.dtype).tiny)

    def _sample(
        self, stored: StoredInversion, edits: list[ControlledEdit], on_progress: OnProgress
    ) -> tuple[Tensor, AttentionTrace]:
        """Images of a source and its edits, [1 + edits, 3, height, width] in [0, 1], and their attention."""
        trace, calls = AttentionTrace(), 2 * len(stored.null_embeddings)
        counter = iter(range(calls + 1))

        def report() -> bool:
            on_progress(next(counter, calls) / calls)
            return False

        inversion = self.dataset.run.settings.inversion
        (images,) = edit_images(self.networks, [(stored, edits)], inversion, report, trace)
        return images, trace


def check_prompt(prompt: str) -> None:
    """Check that a prompt is a text of a size that can be read.

    Raises:
        ValueError: If not.
    """
    if not prompt:
        raise ValueError("the prompt is empty: write what the image shows")
    if len(prompt) > MAX_PROMPT:
        raise ValueError(f"the prompt has {len(prompt):,} characters, allowed: {MAX_PROMPT:,}")


def _shown(pixels: Tensor, stored: StoredInversion) -> Tensor:
    """The part of an image, [..., height, width], that is no padding."""
    return pixels if stored.original is None else without_padding(pixels, stored.original)


def _attention(trace: AttentionTrace, *prompts: str) -> Attention:
    assert trace.maps is not None
    return Attention(prompts, trace.maps.cpu())


def _scores(pixels: Tensor, reference: Tensor, inside: Tensor | None, prompt: str) -> EditScores:
    """Score an edit; without a mask, all pixels count as unedited."""
    part = torch.zeros(pixels.shape[1:], dtype=torch.bool) if inside is None else inside
    pair = pixels[None] / 255, reference[None] / 255
    (scores,) = score_edits(*pair, part[None], [prompt], LearnedScores(), "unedited")
    return scores
