"""What an objective's `augment:` changes, and what it must leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from onestep.networks import build_denoiser
from onestep.objectives import Batch
from onestep.objectives.d2o import D2O
from onestep.objectives.edm import Edm
from onestep.training.streams import CountedRows

PIPE = {"name": "edm", "probability": 0.8, "operations": {"yflip": 1.0, "brightness": 1.0}}
EDM = {"p_mean": -1.2, "p_std": 1.2, "sigma_data": 0.5}
D2O_OPTIONS = {"loss": "non_saturating", "sigma": 80.0, "rows_per_rank": 4.0, "r1_gamma": 0.1, "r1_every": 16}


def _batch(rows=range(6), **controls):
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(2))[rows.start : rows.stop] - 0.5
    random = CountedRows(seed=1, phase="any", rows=rows, device=torch.device("cpu"))
    return Batch(images=images, condition=None, random=random, images_seen=0, controls=controls)


class Told(nn.Module):
    """A denoiser that keeps what it is told, and returns what it is given."""

    def forward(self, noisy, sigma, labels, augment_labels=None):
        self.noisy, self.sigma, self.augment_labels = noisy, sigma, augment_labels
        return noisy


class Watching(nn.Module):
    """A discriminator that keeps what it sees."""

    splits = (1,)

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images, labels):
        return self.heads(self.frozen_features(images), labels)

    def frozen_features(self, images):
        return ((images,),)

    def heads(self, features, condition):
        ((images,),) = features
        self.seen.append(images.detach())
        return images.flatten(1).sum(dim=1, keepdim=True)


def test_a_denoiser_is_told_what_was_done_and_learns_the_changed_images():
    batch, network = _batch(), Told()
    loss = Edm(**EDM, augment=PIPE).generator_loss({"generator": network}, batch)
    flipped, brighter = network.augment_labels.T[:, :, None, None, None]
    assert flipped.unique().tolist() == [0, 1] and brighter.unique().numel() > 2
    images = torch.where(flipped == 1, batch.images.flip(2), batch.images) + 0.2 * brighter
    random = CountedRows(seed=1, phase="any", rows=range(6), device=torch.device("cpu"))
    random.normal()
    noise = network.sigma[:, None, None, None] * random.normal(1, 8, 8)
    torch.testing.assert_close(network.noisy, images + noise)
    # This denoiser errs by the noise, and by nothing else.
    weight = Edm(**EDM).weight(network.sigma)
    torch.testing.assert_close(loss.value, (weight * noise.square().sum(dim=(1, 2, 3))).mean())


def test_without_augmentation_a_denoiser_is_told_nothing():
    network = Told()
    Edm(**EDM).generator_loss({"generator": network}, _batch())
    assert network.augment_labels is None


def test_two_halves_of_an_augmented_batch_average_to_the_whole():
    objective, networks = Edm(**EDM, augment=PIPE), {"generator": Told()}
    whole, first, second = (
        objective.generator_loss(networks, _batch(rows)).value for rows in (range(6), range(3), range(3, 6))
    )
    torch.testing.assert_close((first + second) / 2, whole)


def _network(augment_dim):
    return build_denoiser(
        {
            "name": "song_unet",
            "img_resolution": 8,
            "img_channels": 1,
            "model_channels": 16,
            "channel_mult": [1],
            "num_blocks": 1,
            "attn_resolutions": [],
            "augment_dim": augment_dim,
        }
    )


def test_a_real_denoiser_learns_from_the_description():
    torch.manual_seed(0)
    network = _network(2)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    Edm(**EDM, augment=PIPE).generator_loss({"generator": network}, _batch()).value.backward()
    assert network.model.map_augment.weight.grad.abs().min() > 0


@pytest.mark.parametrize("augment_dim", [0, 9])
def test_a_denoiser_that_would_not_read_the_description_is_refused(augment_dim):
    with pytest.raises(ValueError, match=f"^augment_labels: .* 2 .* {augment_dim}.*augment_dim: 2"):
        Edm(**EDM, augment=PIPE).generator_loss({"generator": _network(augment_dim)}, _batch())


def test_a_discriminator_sees_changed_images_each_by_its_own_draw():
    batch, plain = _batch(), Watching()
    bright = {"name": "stylegan2_ada", "probability": 1.0, "operations": {"brightness": 1.0}}
    objective, networks = D2O(**D2O_OPTIONS, augment=bright), {"generator": Told(), "discriminator": Watching()}
    D2O(**D2O_OPTIONS).discriminator_loss(networks | {"discriminator": plain}, _batch())
    objective.discriminator_loss(networks, batch)
    shifts = [(seen - given).flatten(1) for seen, given in zip(networks["discriminator"].seen, plain.seen, strict=True)]
    for shift in shifts:
        torch.testing.assert_close(shift, shift[:, :1].expand_as(shift), rtol=0, atol=1e-4)
        assert shift[:, 0].unique().numel() == len(batch.images)
    assert not torch.allclose(shifts[0][:, 0], shifts[1][:, 0], atol=1e-3)


def test_the_generator_is_trained_through_the_augmentation():
    darkened = {"name": "stylegan2_ada", "probability": 1.0, "operations": {"contrast": 1.0}}
    watching = Watching()
    weight = nn.Parameter(torch.ones(()))
    networks = {"generator": lambda noisy, sigma, labels: weight * noisy, "discriminator": watching}
    D2O(**D2O_OPTIONS, augment=darkened).generator_loss(networks, _batch()).value.backward()
    (seen,) = watching.seen
    # d softplus(-D)/d weight at weight 1, where D is the sum of what is seen.
    logits = seen.flatten(1).sum(dim=1)
    torch.testing.assert_close(weight.grad, 4.0 * (-(-logits).sigmoid() * logits).mean())
    noise = 80 * _batch().random.normal(1, 8, 8)
    factors = (seen / noise).flatten(1)
    assert factors[:, 0].unique().numel() == 6
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors))


@pytest.mark.parametrize("steered", [0.0, 0.5, 1.0])
def test_a_steered_probability_takes_the_place_of_the_first(steered):
    bright = {"name": "stylegan2_ada", "probability": 0.5, "operations": {"brightness": 1.0}}
    objective, images = D2O(**D2O_OPTIONS, augment={**bright, "target": 0.6}), _batch().images
    found = objective.augmented(images, _batch(augment_probability=steered))
    changed = (found - images).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert changed.all() if steered == 1 else not changed.any() if steered == 0 else changed.any() and not changed.all()
    assert torch.equal(
        objective.augmented(images, _batch()), objective.augmented(images, _batch(augment_probability=0.5))
    )


def test_only_augmented_objectives_observe_signs():
    networks = {"generator": Told(), "discriminator": Watching()}
    plain = D2O(**D2O_OPTIONS).discriminator_loss(networks, _batch())
    loss = D2O(**D2O_OPTIONS, augment={**PIPE, "operations": {}}).discriminator_loss(networks, _batch())
    assert set(plain.observed) == {"logits_fake", "logits_real"}
    torch.testing.assert_close(loss.observed["signs_real"], _batch().images.sum(dim=(1, 2, 3)).sign().mean())


def test_the_gradient_penalty_sees_the_images_themselves():
    batch, watching = _batch(), Watching()
    D2O(**D2O_OPTIONS, augment=PIPE).r1_loss({"discriminator": watching}, batch)
    assert torch.equal(watching.seen[0], batch.images)


@pytest.mark.parametrize(
    "objective", [lambda augment: Edm(**EDM, augment=augment), lambda a: D2O(**D2O_OPTIONS, augment=a)]
)
@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"name": "ada"}, "augment: .*'ada'.*diffaugment, edm, stylegan2_ada"),
        ({}, "augment: .*None"),
        ({**PIPE, "p": 1}, "augment: .*'p'"),
        ({**PIPE, "probability": -1}, "augment: probability -1"),
        ({**PIPE, "probability": "often"}, "augment: "),
        ({**PIPE, "operations": {"flip": 1}}, "augment: operation 'flip'"),
    ],
)
def test_a_choice_that_is_none_is_refused(objective, augment, message):
    with pytest.raises(ValueError, match=message):
        objective(augment)
