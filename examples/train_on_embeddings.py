"""Trains a small network on the null embeddings of a run: `python examples/train_on_embeddings.py demo-output`.

The network predicts the null embedding of each timestep, averaged over its tokens, from the noise latents. The script
shows how a training reads a run through a DataLoader.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nti_batch import InversionBatch, InversionDataset

GRID = 8
"""Height and width that the noise latents are averaged to."""


class EmbeddingPredictor(nn.Module):
    """Predicts all null embeddings of an image at once."""

    def __init__(self, channels: int, mean: Tensor, scale: float, width: int = 128) -> None:
        """Start at the mean of the null embeddings, [T, dim], about which they have the standard deviation `scale`."""
        super().__init__()
        num_steps, dim = mean.shape
        self.encoder = nn.Sequential(nn.Linear(channels * GRID * GRID, width), nn.SiLU())
        self.timesteps = nn.Embedding(num_steps, width)
        self.head = nn.Linear(width, dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.scale = scale
        self.register_buffer("mean", mean)

    def forward(self, noise_latents: Tensor) -> Tensor:
        """Return embeddings, [batch, T, dim], for noise latents, [batch, channels, height, width]."""
        image = self.encoder(F.adaptive_avg_pool2d(noise_latents, GRID).flatten(1))
        return self.mean + self.scale * self.head(F.silu(image[:, None] + self.timesteps.weight))


def targets(batch: InversionBatch) -> Tensor:
    """Null embeddings averaged over their tokens, [batch, T, dim]."""
    return batch.null_embeddings.mean(dim=2)


def statistics(loader: DataLoader) -> tuple[Tensor, float]:
    """Mean of the targets over images, [T, dim], and their standard deviation about it."""
    count, total, squares = 0, 0, 0
    for batch in loader:
        count += len(batch.ids)
        total += targets(batch).sum(dim=0)
        squares += targets(batch).square().sum(dim=0)
    mean = total / count
    return mean, (squares / count - mean.square()).clamp(min=1e-12).mean().sqrt().item()


def train(run: Path, epochs: int, batch_size: int, num_workers: int, learning_rate: float) -> EmbeddingPredictor:
    """Train on a run, and print the loss of each epoch: the mean squared error in parts of the variance."""
    dataset = InversionDataset(run)
    print(dataset)
    loader = DataLoader(
        dataset, batch_size, shuffle=True, num_workers=num_workers, collate_fn=InversionDataset.collate_fn
    )
    mean, scale = statistics(loader)
    network = EmbeddingPredictor(len(dataset[0].noise_latents), mean, scale)
    optimizer = torch.optim.Adam(network.parameters(), learning_rate)
    for epoch in range(epochs):
        losses = []
        for batch in loader:
            loss = F.mse_loss(network(batch.noise_latents), targets(batch)) / scale**2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: {sum(losses) / len(losses):.3f}")
    return network


def main() -> None:
    """Read the arguments, train, and save the weights."""
    parser = argparse.ArgumentParser(description="Train a small network on the null embeddings of a run.")
    parser.add_argument("run", type=Path, help="output folder of nti-batch invert")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read the run")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--output", type=Path, help="file of the weights, such as predictor.safetensors")
    arguments = parser.parse_args()
    network = train(
        arguments.run, arguments.epochs, arguments.batch_size, arguments.num_workers, arguments.learning_rate
    )
    if arguments.output:
        save_file(network.state_dict(), arguments.output)


if __name__ == "__main__":
    main()
