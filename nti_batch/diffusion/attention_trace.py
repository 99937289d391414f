"""What a sampling run shows of its attention: the map of each token, and the mask of local blend."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True, eq=False)
class AttentionTrace:
    """The attention of one batch; `edit_sample` fills it, and computes nothing else for it.

    The maps are those that local blend takes, of one resolution.
    """

    maps: Tensor | None = None
    """Cross-attention maps, mean over heads, sum over layers and steps, [rows, map height, map width, tokens]; None
    before the first step."""

    mask: Tensor | None = None
    """Where local blend let each row change in the last step, bool [rows, height, width] of the latents; None
    without local blend."""

    def collect(self, maps: Tensor, size: tuple[int, int]) -> None:
        """Add the maps of one layer.

        Args:
            maps: [rows, heads, pixels, tokens].
            size: Height and width of the maps.
        """
        mean = maps.mean(1).unflatten(1, size)
        self.maps = mean if self.maps is None else self.maps + mean
