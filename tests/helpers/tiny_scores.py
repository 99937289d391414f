"""Weights of scores: tiny networks with random weights, and a SqueezeNet of full size."""

from pathlib import Path

import torch
from pytest import MonkeyPatch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics.functional.image import lpips
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, ViTConfig, ViTModel

from nti_batch.demo.networks import make_tokenizer


def write_clip(folder: Path, seed: int = 3, sign: float = 1.0) -> Path:
    """Write a CLIP for images of 16 x 16; all its cosines have the other sign if `sign` is -1."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **sizes,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=4))
    model.text_projection.weight.data.mul_(sign)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    return folder


def write_dino(folder: Path) -> Path:
    """Write a ViT of three layers for images of 16 x 16."""
    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=12, intermediate_size=12, num_hidden_layers=3, num_attention_heads=3, image_size=16, patch_size=4
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


class Fire(nn.Module):
    """SqueezeNet's module, as its paper draws it."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        """Make random weights."""
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Squeeze, then expand twice, side by side."""
        x = torch.relu(self.squeeze(x))
        return torch.cat([torch.relu(self.expand1x1(x)), torch.relu(self.expand3x3(x))], 1)


def squeezenet_features() -> nn.Sequential:
    """Build the features of SqueezeNet 1.1."""
    torch.manual_seed(2)

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool(), Fire(64, 16, 64), Fire(128, 16, 64), pool()),
        *(Fire(128, 32, 128), Fire(256, 32, 128), pool(), Fire(256, 48, 192), Fire(384, 48, 192)),
        *(Fire(384, 64, 256), Fire(512, 64, 256)),
    )


def torchmetrics_lpips(monkeypatch: MonkeyPatch) -> nn.Module:
    """Return torchmetrics' LPIPS with the features above in place of torchvision's."""
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda net, pretrained: squeezenet_features())
    return lpips._NoTrainLpips(net="squeeze")


def write_lpips(folder: Path, net: nn.Module) -> Path:
    """Write torchmetrics' network as docs/scores.md says."""
    folder.mkdir(parents=True)
    save_file({name: weight.clone() for name, weight in net.state_dict().items()}, folder / "model.safetensors")
    return folder
