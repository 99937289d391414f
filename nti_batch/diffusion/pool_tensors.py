"""Tensors of the images in flight: a row for each, allocated once, read and written for many images by one operation.

`rows` are the rows of images, and `t` their levels, both [images] int64 on the device. Rows of images that have left
hold what they held; every row is written before it is read.
"""

import torch
from torch import Tensor

from nti_batch.diffusion.call import Call
from nti_batch.diffusion.host import to_device
from nti_batch.diffusion.null_text import Decision, InversionState, InvertedImage
from nti_batch.diffusion.rounding import Storage, round_embeddings, round_values
from nti_batch.diffusion.settings import InversionSettings
from nti_batch.diffusion.solvers import adam_step, polyak_step


class PoolTensors:
    """The images in flight on one device."""

    def __init__(
        self,
        settings: InversionSettings,
        storage: Storage,
        num_steps: int,
        count: int,
        latents: Tensor,
        embedding: Tensor,
    ) -> None:
        """Allocate the rows.

        Args:
            settings: The settings of the method.
            storage: The form in which embeddings are stored; each is rounded to it when it is found.
            num_steps: T.
            count: Number of images.
            latents: Latents of one image, for their shape.
            embedding: Embedding of one image, likewise.
        """
        points, size, shape = num_steps + 1, latents.shape, embedding.shape
        self.settings, self.storage, self.num_steps = settings, storage, num_steps
        self.trajectory = latents.new_empty(count, points, *size)
        """z*_0 ... z*_T."""

        self.latents = latents.new_empty(count, *size)
        """z*_t on the way up, z_t on the way down: input of the next evaluation."""

        self.cond = latents.new_empty(count, *size)
        """The prediction for the prompt."""

        self.prompts = embedding.new_empty(count, *shape)
        self.candidates = embedding.new_empty(count, *shape)
        """Embedding of the next evaluation: the prompt's, or a candidate for null_t."""

        self.null_embeddings = embedding.new_empty(count, points, *shape)
        """The start, then the accepted embeddings, t = T first: null_t is at T - t + 1."""

        self.means = embedding.new_empty(count, *shape)
        """Adam's running mean of the gradient; the last step of Polyak's solver."""

        self.squares = embedding.new_empty(count, *shape)
        """Running mean of the squared gradient."""

        self.best_latents = latents.new_empty(count, *size)
        self.best_embeddings = embedding.new_empty(count, *shape)
        """The candidate that Polyak's solver updated last."""

    def admit(self, row: int, trajectory: Tensor, prompt: Tensor, start: Tensor) -> None:
        """Write a new image.

        Args:
            row: Its row.
            trajectory: z*_0, or all points of the pivot, [points, channels, height, width].
            prompt: C, [tokens, dim].
            start: Initial value of null_T, rounded.
        """
        self.trajectory[row, : len(trajectory)] = trajectory
        self.latents[row] = trajectory[0]
        self.prompts[row] = self.candidates[row] = prompt
        self.null_embeddings[row, 0] = start

    @torch.no_grad()
    def write(self, call: Call, decisions: list[Decision], gradients: Tensor | None) -> None:
        """Write what follows from a call, for all images with one decision at once.

        Args:
            call: The call.
            decisions: What each of its images does.
            gradients: Gradients by the embeddings, if any image gets an update.
        """
        members = {each: [i for i, d in enumerate(decisions) if d == each] for each in dict.fromkeys(decisions)}
        positions = [i for group in members.values() for i in group]
        indices = to_device(positions, call.rows.device, torch.int64).split([len(g) for g in members.values()])
        for (decision, group), index in zip(members.items(), indices, strict=True):
            rows, t, next_t = call.rows[index], call.t[index], call.next_t[index]
            match decision:
                case "append pivot":
                    self.trajectory[rows, next_t] = self.latents[rows] = call.latents[index]
                case "keep cond":
                    self.cond[rows] = call.predictions[index]
                    self.candidates[rows] = self._previous(rows, t)
                case "accept":
                    embeddings = call.embeddings[index] if self.settings.guided else self._previous(rows, t)
                    is_direct = self.settings.method == "direct"
                    latents = self._pivot(rows, next_t) if is_direct else call.latents[index]
                    self._accept(rows, t, embeddings, latents)
                case "accept best":
                    self._accept(rows, t, self.best_embeddings[rows], self.best_latents[rows])
                case "update":
                    assert gradients is not None
                    embeddings, states = call.embeddings[index], [call.states[i] for i in group]
                    if self.settings.solver == "polyak":
                        self.best_embeddings[rows], self.best_latents[rows] = embeddings, call.latents[index]
                    updated = self._updated(rows, states, embeddings, gradients[index], call.losses[index])
                    self._set_candidates(rows, t, updated)
                case "backtrack":
                    self.means[rows] = step = self.means[rows] / 2
                    self._set_candidates(rows, t, self.best_embeddings[rows] + step)

    def _previous(self, rows: Tensor, t: Tensor) -> Tensor:
        """null_{t+1}, or the start."""
        return self.null_embeddings[rows, self.num_steps - t]

    def _pivot(self, rows: Tensor, t: Tensor) -> Tensor:
        """z*_t in the form in which it would be stored."""
        return round_values(self.storage, self.trajectory[rows, t])

    def _set_candidates(self, rows: Tensor, t: Tensor, embeddings: Tensor) -> None:
        """Set the next candidates, in the form in which they would be stored."""
        self.candidates[rows] = round_embeddings(self.storage, embeddings, self._previous(rows, t))

    def _accept(self, rows: Tensor, t: Tensor, embeddings: Tensor, latents: Tensor) -> None:
        """Accept null_t and z_{t-1}; the next evaluation is of the prompt."""
        self.null_embeddings[rows, self.num_steps - t + 1] = embeddings
        self.latents[rows] = latents
        self.candidates[rows] = self.prompts[rows]

    def _updated(
        self, rows: Tensor, states: list[InversionState], embeddings: Tensor, gradients: Tensor, losses: Tensor
    ) -> Tensor:
        """Embeddings after an update by the solver, [images, tokens, dim]."""
        if self.settings.solver == "polyak":
            is_first = to_device([not s.has_updated for s in states], losses.device, torch.bool)
            step, self.squares[rows] = polyak_step(gradients, losses, self.squares[rows], is_first)
            self.means[rows] = step
            return embeddings + step
        counts, rates = [s.current.updates + 1 for s in states], [s.learning_rate for s in states]
        moments = self.means[rows], self.squares[rows]
        updated, self.means[rows], self.squares[rows] = adam_step(embeddings, gradients, *moments, counts, rates)
        return updated

    def inverted(self, state: InversionState) -> InvertedImage:
        """Copy a finished image out of its row."""
        trajectory = self.trajectory[state.row].clone()
        null_embeddings = self.null_embeddings[state.row].clone()
        is_ddpm = self.settings.method == "ddpm"
        pivot = round_values(self.storage, trajectory[:-1].flip(0)) if self.settings.keeps_pivot else None
        return InvertedImage(
            error=state.error,
            prompt_embedding=self.prompts[state.row].clone(),
            start_embedding=null_embeddings[0],
            trajectory=trajectory,
            null_embeddings=null_embeddings[:1].expand_as(null_embeddings[1:]) if is_ddpm else null_embeddings[1:],
            pivot=pivot,
            latents=self.latents[state.row].clone() if pivot is None else pivot[-1],
            losses=state.losses,
            inner_steps=state.inner_steps,
            forwards=state.forwards,
            backwards=state.backwards,
        )
