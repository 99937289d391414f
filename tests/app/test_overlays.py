"""Attention and masks over an image."""

import torch

from nti_batch.app.overlays import heat_map, mask_overlay

IMAGE = torch.full((3, 8, 8), 100, dtype=torch.uint8)


def test_a_heat_map_is_brightest_where_attention_is():
    attention = torch.zeros(4, 4)
    attention[1, 2] = 1
    brightness = heat_map(IMAGE, attention).float().mean(0)
    assert divmod(int(brightness.argmax()), 8) in [(2, 4), (2, 5), (3, 4), (3, 5)]
    assert heat_map(IMAGE, torch.ones(4, 4)).shape == IMAGE.shape


def test_a_mask_darkens_what_lies_outside():
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:4] = True
    shown = mask_overlay(IMAGE, inside)
    assert (shown[:, ~inside] == 45).all()
    assert (shown[1:, inside] > 100).all()
