"""An image depends on its seed alone."""

from __future__ import annotations

import pytest
import torch

from onestep.networks import build_denoiser
from onestep.sampling import generate, per_seed_noise, rank_batches
from onestep.sampling.heun import Heun
from onestep.sampling.one_step import OneStep


class _LastBits:
    """A sampler whose images show the last bits of another's, so that rounding is seen in the pixels."""

    def __init__(self, sampler):
        self.sampler, self.nfe = sampler, sampler.nfe

    def __call__(self, generator, noise, condition, *, random=None):
        return (self.sampler(generator, noise, condition, random=random) * 2**22) % 2 - 1


_SAMPLERS = {
    "one_step": _LastBits(OneStep()),
    "heun": _LastBits(Heun(steps=2)),
    "churn": _LastBits(Heun(steps=2, churn=1.0)),
}
_SEEDS = [*range(70), 10**9, 2**32 + 3]


@pytest.fixture(params=["demo", "ncsn++"])
def generator(request):
    torch.manual_seed(0)
    style = {
        "demo": {"label_dim": 3},
        "ncsn++": {"embedding_type": "fourier", "encoder_type": "residual", "resample_filter": (1, 3, 3, 1)},
    }
    network = build_denoiser(
        {
            "name": "song_unet",
            "img_resolution": 16,
            "img_channels": 1,
            "model_channels": 16,
            "channel_mult": (1, 2),
            "num_blocks": 1,
            "attn_resolutions": (8,),
            "preconditioning": "d2o",
            **style[request.param],
        }
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=2 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3)
    return network.eval()


def _pixels(generator, sampler, seeds, batch=64):
    parts = list(generate(generator, sampler, seeds=seeds, batch=batch))
    labels = torch.cat([part.labels for part in parts]) if generator.label_dim else None
    return torch.cat([part.pixels for part in parts]), labels


@pytest.mark.parametrize("sampler", _SAMPLERS.values(), ids=_SAMPLERS)
def test_the_batch_changes_no_image(generator, sampler):
    pixels, labels = _pixels(generator, sampler, _SEEDS)
    assert pixels.shape == (len(_SEEDS), 16, 16, 1) and pixels.dtype == torch.uint8
    assert pixels.float().std() > 50
    for batch in (29, 72):
        again, labels_again = _pixels(generator, sampler, _SEEDS, batch)
        assert torch.equal(again, pixels)
        assert labels is None or torch.equal(labels_again, labels)


@pytest.mark.parametrize("sampler", _SAMPLERS.values(), ids=_SAMPLERS)
def test_other_seeds_and_their_order_change_no_image(generator, sampler):
    pixels, _ = _pixels(generator, sampler, _SEEDS)
    chosen = [71, 3, 69, 40]
    some, _ = _pixels(generator, sampler, [_SEEDS[index] for index in chosen])
    assert torch.equal(some, pixels[chosen])


def test_the_number_of_processes_changes_no_image(generator):
    sampler = _SAMPLERS["one_step"]
    pixels, _ = _pixels(generator, sampler, _SEEDS)
    for world_size in (2, 3):
        for rank in range(world_size):
            for batch in rank_batches(range(len(_SEEDS)), batch=20, world_size=world_size, rank=rank):
                some, _ = _pixels(generator, sampler, [_SEEDS[index] for index in batch])
                assert torch.equal(some, pixels[batch.start : batch.stop])


def test_seeds_count_modulo_two_to_the_32(generator):
    pixels, _ = _pixels(generator, OneStep(), [3, 2**32 + 3, 4])
    assert torch.equal(pixels[0], pixels[1])
    assert not torch.equal(pixels[0], pixels[2])


def test_the_class_comes_from_the_seed_and_is_used(generator):
    if generator.label_dim == 0:
        assert next(generate(generator, OneStep(), seeds=[0], batch=1)).labels is None
        return
    seeds = list(range(32))
    pixels, labels = _pixels(generator, OneStep(), seeds)
    assert set(labels.tolist()) == {0, 1, 2}
    images = OneStep()(generator, per_seed_noise(seeds, (1, 16, 16)), torch.eye(3)[labels])
    expected = (images * 127.5 + 128).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    assert (pixels.int() - expected.int()).abs().max() <= 1


def test_noise_is_standard_normal_and_its_own_for_each_seed():
    noise = per_seed_noise(range(200), (1, 16, 16))
    assert noise.dtype == torch.float32 and noise.shape == (200, 1, 16, 16)
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(per_seed_noise([7], (1, 16, 16))[0], noise[7])
    assert per_seed_noise([], (1, 4, 4)).shape == (0, 1, 4, 4)


def test_more_processes_than_seeds_leaves_some_idle():
    batches = [rank_batches([5, 6], batch=64, world_size=4, rank=rank) for rank in range(4)]
    assert batches == [[[5]], [[6]], [], []]
    assert rank_batches([], batch=64, world_size=4, rank=0) == []


def test_a_generator_in_training_mode_is_refused(generator):
    with pytest.raises(ValueError, match="training mode"):
        next(generate(generator.train(), OneStep(), seeds=[0], batch=1))


def test_a_batch_of_nothing_is_refused(generator):
    with pytest.raises(ValueError, match="batch: got 0"):
        next(generate(generator, OneStep(), seeds=[0], batch=0))
