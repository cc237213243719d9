"""DMD2's GAN loss on inner maps: recordings of the reference, what has a gradient, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from onestep.discriminators.teacher_features import TeacherFeatures
from onestep.networks import build_denoiser
from onestep.objectives import Batch
from onestep.objectives.dmd2 import Dmd2
from onestep.objectives.variational_score import VariationalScore, score_identity
from onestep.training.streams import CountedRows
from recorded_studies import (
    Replayed,
    StandIn,
    assert_close,
    constants,
    denoiser,
    load_heads,
    objectives_of,
    tensors,
    tolerance,
)

_FILE = "shared_adversary.npz"


@pytest.fixture(scope="module")
def recorded(golden):
    return objectives_of(golden)


@pytest.fixture(scope="module")
def arrays(recorded):
    return recorded.load(_FILE)


class Both(nn.Module):
    """A fake score with a recorded encoder, and a denoiser that returns zeros in the place of its images."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x, sigma, condition=None, *, maps=None):
        images = torch.zeros_like(x)
        return self.encoder(x, sigma, condition, maps="only") if maps else images


class Made(nn.Module):
    """A generator of given images."""

    def __init__(self, images):
        super().__init__()
        self.images = nn.Parameter(images.clone())

    def forward(self, noisy, sigma, condition):
        return self.images


@pytest.fixture
def networks(arrays, recorded):
    """The recorded encoder as a fake score, its head, and the generated images."""
    own = constants(recorded, _FILE)
    sizes = [(own["ch"], own["R"] >> level) for level in range(3)]
    heads = TeacherFeatures(map_shapes=sizes, img_channels=3, seed=0)
    weights = {f"0.{name}": value for name, value in tensors(arrays, "dmd2/head/").items()}
    load_heads(heads.discriminators, weights, groups=own["groups"])
    fake = Both(StandIn(tensors(arrays, "fake_encoder/")))
    return {"generator": Made(torch.from_numpy(arrays["generated"])), "fake": fake, "discriminator": heads}


def _close(recorded, found, wanted):
    rtol, atol = (tolerance(recorded, _FILE, rf"losses {each} ([\d.e-]+\d)") for each in (r"abs [\d.e-]+ rel", "abs"))
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)


def _grads(recorded):
    return tolerance(recorded, _FILE, r"grads rel ([\d.e-]+\d)")


def _draws(case, names, own):
    """Return the draws that give the recorded levels of a grid of T steps and the recorded noise."""
    if f"{names[0]}" not in case:
        return []
    return [case[names[0]].float() / (own["T"] - 1), case[names[1]]]


@pytest.mark.golden
@pytest.mark.parametrize("kind", ["noised", "clean"])
def test_gan_losses_and_their_gradients_equal_the_recordings(recorded, arrays, networks, kind):
    own, case = constants(recorded, _FILE), tensors(arrays, f"dmd2/{kind}/")
    objective = Dmd2(gan_grid=(0.0, 1.0) if kind == "noised" else None)
    sets = [torch.from_numpy(arrays[name]) for name in ("generated", "real")]
    draws = _draws(case, ("D/step_fake", "D/eps_fake"), own) + _draws(case, ("D/step_real", "D/eps_real"), own)

    def batch(*given):
        return Batch(images=sets[1], condition=None, random=Replayed(*given), images_seen=0)

    fake, real = objective.logits(networks, sets, batch(*draws))
    value = (nn.functional.softplus(fake) + nn.functional.softplus(-real)).mean()
    _close(recorded, value, case["D/loss"])
    value.backward()
    for name, wanted in tensors(arrays, f"dmd2/{kind}/D/grad_encoder/").items():
        found = networks["fake"].encoder.weights[name.replace(".", "_")].grad
        assert_close(found, wanted, share=_grads(recorded), what=name)
    heads = networks["discriminator"].discriminators
    for name, wanted in tensors(arrays, f"dmd2/{kind}/D/grad_head/").items():
        assert_close(heads.get_parameter(f"0.{name}").grad, wanted, share=_grads(recorded), what=name)

    # The training of the heads has the same value and gradients, and leaves the encoder.
    networks["fake"].zero_grad()
    heads.zero_grad()
    phase = {each.name: each for each in objective.phases()}["discriminator"]
    loss = phase.loss(networks, batch(sets[0], *draws))
    _close(recorded, loss.value, case["D/loss"])
    loss.value.backward()
    for name, wanted in tensors(arrays, f"dmd2/{kind}/D/grad_head/").items():
        assert_close(heads.get_parameter(f"0.{name}").grad, wanted, share=_grads(recorded), what=name)
    assert all(each.grad is None for each in networks["fake"].parameters())


@pytest.mark.golden
@pytest.mark.parametrize("kind", ["noised", "clean"])
def test_the_generator_s_gan_loss_equals_the_recordings(recorded, arrays, networks, kind):
    """Of equal scores, whose difference is 0: what is left is the GAN loss."""
    own, case = constants(recorded, _FILE), tensors(arrays, f"dmd2/{kind}/")
    images = torch.from_numpy(arrays["generated"])
    objective = Dmd2(gan_grid=(0.0, 1.0) if kind == "noised" else None, gan_weight=2.0)
    networks["teacher"] = networks["fake"]
    scores = torch.full((len(images),), 0.5), torch.zeros_like(images)
    random = Replayed(images, *scores, *_draws(case, ("G/step", "G/eps"), own))
    loss = objective.generator_loss(networks, Batch(images=images, condition=None, random=random, images_seen=0))
    assert loss.observed["matching"] == 0 == loss.observed["score_difference"]
    _close(recorded, loss.observed["adversarial"], case["G/loss"])
    loss.value.backward()
    wanted = 2.0 * case["G/grad_generated"]
    assert_close(networks["generator"].images.grad, wanted, share=_grads(recorded), what="images")


@pytest.mark.golden
def test_the_score_term_of_the_shared_recordings_is_sid_s(recorded, arrays):
    """SiDA's at both weights, and Uni-Instruct's, which is SiDA's at weight 1."""
    own, images = constants(recorded, _FILE), torch.from_numpy(arrays["generated"])
    pair = [denoiser(arrays, role, law="edm", resolution=own["R"]) for role in ("teacher", "fake")]
    for alpha in own["alpha"]:
        case = tensors(arrays, f"sida/G/alpha{alpha}/")
        grid = (0.0, own["tmax"] / own["T"])
        objective = VariationalScore(loss="sid", alpha=alpha, grid=grid)
        batch = Batch(images=images, condition=None, random=Replayed(case["u"]), images_seen=0)
        sigma = objective.noise_levels(batch, grid)
        noisy = images + sigma[:, None, None, None] * case["eps"]
        teacher, fake = (network(noisy, sigma) for network in pair)
        found = score_identity(images, teacher=teacher, fake=fake, alpha=alpha)
        assert_close(found, case["score_term"], share=_grads(recorded), what=f"alpha {alpha}")
        if alpha == 1.0:
            assert_close(found, arrays["uni_instruct/score_term"], share=_grads(recorded), what="uni_instruct")


def _denoiser(seed):
    torch.manual_seed(seed)
    config = {"name": "song_unet", "img_resolution": 8, "img_channels": 2, "model_channels": 8, "channel_mult": (1, 2)}
    network = build_denoiser(config | {"num_blocks": 1, "attn_resolutions": (), "dropout": 0.0})
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def _game(*, fake=1):
    teacher = _denoiser(0).requires_grad_(False).eval()
    heads = TeacherFeatures(levels=(0, 1), map_shapes=teacher.model.map_shapes, img_channels=2, seed=0)
    return {"generator": _denoiser(2), "teacher": teacher, "fake": _denoiser(fake), "discriminator": heads}


def _batch(part=range(4)):
    images = torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(5))[part.start : part.stop] - 0.5
    random = CountedRows(seed=1, phase="any", rows=part, device=torch.device("cpu"))
    return Batch(images=images, condition=None, random=random, images_seen=0)


@pytest.mark.parametrize("features", ["fake", "teacher"])
def test_two_halves_of_a_batch_average_to_the_whole(features):
    networks, objective = _game(), Dmd2(features=features, r1_gamma=10.0)
    for phase in objective.phases():
        whole, *halves = (phase.loss(networks, _batch(part)).value for part in (range(4), range(2), range(2, 4)))
        torch.testing.assert_close((halves[0] + halves[1]) / 2, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("features", ["fake", "teacher"])
def test_each_phase_trains_its_own_role_and_the_teacher_stays(features):
    objective = Dmd2(features=features)
    assert list(objective.networks()) == ["generator", "teacher", "fake", "discriminator"]
    assert objective.networks()["discriminator"].maps_of == features
    assert [(each.name, each.every) for each in objective.phases()] == [
        ("fake", 1),
        ("discriminator", 1),
        ("generator", 5),
    ]
    for phase in objective.phases():
        networks = _game()
        for role, network in networks.items():
            network.requires_grad_(role == phase.trains)
        phase.loss(networks, _batch()).value.backward()
        moved = {
            role: any(p.grad is not None and bool(p.grad.any()) for p in network.parameters())
            for role, network in networks.items()
        }
        assert [role for role, is_moved in moved.items() if is_moved] == [phase.trains]


def test_equal_scores_leave_the_gan_loss_alone():
    networks = _game(fake=0)
    loss = Dmd2(features="teacher", gan_weight=0.0).generator_loss(networks, _batch())
    loss.value.backward()
    assert loss.value == 0 and not any(
        p.grad is not None and bool(p.grad.any()) for p in networks["generator"].parameters()
    )


def test_the_gan_loss_reaches_the_fake_score_s_encoder_alone():
    def gradients(**options):
        networks = _game()
        Dmd2(**options).fake_loss(networks, _batch()).value.backward()
        return {name: p.grad.clone() for name, p in networks["fake"].named_parameters() if p.grad is not None}

    plain, with_gan = gradients(features="teacher"), gradients(fake_gan_weight=1.0)
    same = {name.split(".")[1] for name, grad in plain.items() if torch.equal(grad, with_gan[name])}
    other = {name.split(".")[1] for name, grad in plain.items() if not torch.equal(grad, with_gan[name])}
    assert same == {"dec"} and "enc" in other and "dec" not in other


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"features": "teacher", "fake_gan_weight": 0.1}, "fake_gan_weight"),
        ({"gan_grid": (0.5, 0.5)}, "gan_grid"),
        ({"grid": (0.9, 0.1)}, "grid"),
    ],
)
def test_wrong_options_are_refused_in_one_line(wrong, part):
    with pytest.raises(ValueError, match=part) as error:
        Dmd2(**wrong)
    assert "\n" not in str(error.value)
