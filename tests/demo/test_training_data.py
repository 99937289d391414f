"""The attention that training asks for follows the drawn objects and the words that name them."""

from dataclasses import replace
from random import Random

import torch

from nti_batch.demo.captions import CaptionRates
from nti_batch.demo.networks import make_tokenizer
from nti_batch.demo.scenes import Scene, SceneObject
from nti_batch.demo.stages import loss_weights, random_rectangles
from nti_batch.demo.training_data import garbled_captions, make_captions, region_masks, word_targets

SCENE = Scene((SceneObject("large", "red", "square", "left"), SceneObject("small", "blue", "ring", "right")), "green")

TRUE = CaptionRates(mistaken=dict.fromkeys(("size", "place", "colour", "shape", "background"), 0.0))


def targets(rates: CaptionRates) -> tuple[list[str], torch.Tensor]:
    """Words of a caption of the scene with its first token, and the target of each latent pixel, [16, 16, 77]."""
    tokenizer = make_tokenizer()
    captions = make_captions([SCENE], 1, rates, tokenizer, Random(0))
    words = tokenizer.convert_ids_to_tokens(captions.tokens[0, 0].tolist())
    found = word_targets(region_masks([SCENE]), captions.regions[:, 0])
    return [word.removesuffix("</w>") for word in words], found[0].view(16, 16, 77)


def test_a_pixel_attends_to_the_words_of_what_is_drawn_there():
    words, found = targets(replace(TRUE, omitted=dict.fromkeys(TRUE.omitted, 0.0)))
    expected = {(8, 4): ("red", "square"), (0, 0): ("green", "background")}
    for (row, column), pair in expected.items():
        assert {words[i] for i in found[row, column].nonzero().flatten()} == set(pair)
        assert set(found[row, column][found[row, column] > 0].tolist()) == {0.5}
    torch.testing.assert_close(found.sum(-1), torch.ones(16, 16))


def test_a_pixel_attends_to_the_start_token_where_the_caption_does_not_name_its_region():
    rates = replace(TRUE, omitted={"size": 0.0, "place": 0.0, "colour": 1.0, "background": 1.0})
    words, found = targets(rates)
    assert "green" not in words and "red" not in words
    assert found[0, 0, 0] == 1
    assert words[int(found[8, 4].argmax())] == "square" and found[8, 4].max() == 1


def test_captions_of_textures_have_known_words_and_others_and_name_no_region():
    tokenizer = make_tokenizer()
    captions = make_captions([SCENE], 1, replace(TRUE, omitted=dict.fromkeys(TRUE.omitted, 0.0)), tokenizer, Random(0))
    empty = tokenizer("", padding="max_length", return_tensors="pt").input_ids
    garbled = garbled_captions(captions, 50, empty, torch.Generator().manual_seed(0))
    words = captions.tokens[0, 0] < empty.min()
    kept = (garbled.tokens == captions.tokens[0])[:, 0]
    assert kept[:, ~words].all()
    assert 0.3 < kept[:, words].float().mean() < 0.7
    assert garbled.tokens.max() == empty.max() and (garbled.regions == -1).all()


def test_both_weights_of_the_loss_have_the_mean_1():
    alphas = torch.linspace(0.999, 0.001, 1000)
    assert torch.isclose(loss_weights(alphas).mean(), torch.tensor(2.0))
    assert (loss_weights(alphas).diff() > 0).all()


def test_rectangles_are_rectangles_of_all_sizes():
    inside = random_rectangles(200, torch.Generator().manual_seed(0))[:, 0]
    for mask in inside:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns[None, :])
        assert (rows.int().diff() != 0).sum() <= 2 and (columns.int().diff() != 0).sum() <= 2
    assert inside.flatten(1).sum(1).unique().numel() > 50
