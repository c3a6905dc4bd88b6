"""Cross-view completion: masks by count, and what the decoder may and may not see."""

import pytest
import torch
from training_pairs import MICRO, PATCH

from dust3r_ros.network import Dust3rNetwork
from dust3r_ros.training.architectures import initialised
from dust3r_ros.training.croco import Completion, CompletionHead, patches_of, random_mask, share_decoder

SIZE = (56, 84)
TOKENS = (SIZE[0] // PATCH) * (SIZE[1] // PATCH)


@pytest.fixture
def task() -> tuple[Dust3rNetwork, Completion]:
    torch.manual_seed(0)
    model = initialised(Dust3rNetwork(MICRO), torch.Generator().manual_seed(0))
    return model, Completion(model, CompletionHead(MICRO.dec_dim, PATCH))


def images(seed: int) -> torch.Tensor:
    squares = torch.rand(2, 3, SIZE[0] // 7, SIZE[1] // 7, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return squares.repeat_interleave(7, 2).repeat_interleave(7, 3)


@pytest.mark.parametrize(("ratio", "hidden"), [(0.9, 22), (0.5, 12), (0.0, 1), (1.0, 23)])
def test_a_mask_hides_so_many_tokens_of_each_image(ratio, hidden):
    mask = random_mask(5, TOKENS, ratio, torch.Generator().manual_seed(0))
    assert mask.hidden.shape == (5, hidden)
    assert mask.visible.shape == (5, TOKENS - hidden)
    every = torch.cat([mask.hidden, mask.visible], 1).sort(1).values
    assert torch.equal(every, torch.arange(TOKENS).expand(5, -1))
    assert torch.equal(mask.is_hidden().sum(1), torch.full((5,), hidden))
    assert bool(mask.is_hidden().gather(1, mask.hidden).all())


def test_masks_are_different_for_every_image_and_all_tokens_are_hidden_alike():
    mask = random_mask(4000, 10, 0.3, torch.Generator().manual_seed(1))
    share = mask.is_hidden().float().mean(0)
    torch.testing.assert_close(share, torch.full((10,), 0.3), atol=0.03, rtol=0)
    assert len(torch.unique(mask.hidden, dim=0)) == 120  # all choices of 3 of 10


def test_patches_are_in_raster_order():
    numbers = torch.arange(TOKENS).view(1, 1, SIZE[0] // PATCH, SIZE[1] // PATCH).float()
    image = torch.nn.functional.interpolate(numbers.expand(1, 3, -1, -1), scale_factor=PATCH)
    patches = patches_of(image, PATCH)
    assert patches.shape == (1, TOKENS, 3 * PATCH**2)
    assert torch.equal(patches, torch.arange(TOKENS).float()[None, :, None].expand_as(patches))


def test_hidden_tokens_are_told_their_places(task):
    model, completion = task
    mask = random_mask(2, TOKENS, 0.9, torch.Generator().manual_seed(2))
    with torch.no_grad():
        told = completion.complete(images(0), images(1), mask)
        model.dec_places.proj.weight.zero_()
        untold = completion.complete(images(0), images(1), mask)
    assert (told - untold).abs().amax(dim=-1).gather(1, mask.hidden).min() > 1e-4


def test_hidden_pixels_are_not_read(task):
    _, completion = task
    mask = random_mask(2, TOKENS, 0.9, torch.Generator().manual_seed(2))
    first, second = images(0), images(1)
    hidden = mask.is_hidden().view(2, 1, SIZE[0] // PATCH, SIZE[1] // PATCH).float()
    pixels = torch.nn.functional.interpolate(hidden, scale_factor=PATCH)
    plain = completion.complete(first, second, mask)
    torch.testing.assert_close(completion.complete(torch.lerp(first, images(5), pixels), second, mask), plain)
    seen = completion.complete(torch.lerp(images(5), first, pixels), second, mask)
    assert (seen - plain).abs().max() > 1e-3
    assert (completion.complete(first, images(6), mask) - plain).abs().max() > 1e-3


def test_visible_tokens_are_encoded_where_they_are(task):
    """With nothing hidden, the masked encoder is the usual one."""
    model, completion = task
    mask = random_mask(2, TOKENS, 0.9, torch.Generator().manual_seed(3))
    everything = type(mask)(torch.arange(TOKENS).expand(2, -1), torch.zeros(2, 0, dtype=torch.int64))
    encoded = completion._encode_visible(images(0), everything, (SIZE[0] // PATCH, SIZE[1] // PATCH))
    torch.testing.assert_close(encoded, model.encode(images(0)))


def test_it_can_be_learned(task):
    model, completion = task
    optimiser = torch.optim.Adam([*model.parameters(), *completion._head.parameters()], lr=3e-3)
    pair = torch.stack([images(0), images(0)], 1)  # the second view is the first: all can be found there
    mask = random_mask(2, TOKENS, 0.5, torch.Generator().manual_seed(4))
    losses = []
    for _ in range(60):
        loss = completion.loss(pair, mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


def test_the_second_decoder_starts_as_the_first(task):
    model, _ = task
    with torch.no_grad():
        for p in model.dec_blocks.parameters():
            p.add_(1.0)
    share_decoder(model)
    for one, two in zip(model.dec_blocks.parameters(), model.dec_blocks2.parameters()):
        assert torch.equal(one, two)
        assert one is not two
