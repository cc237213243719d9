"""R3GAN's loss: recordings of the reference, what it does not depend on, lazy penalties, what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onestep.objectives import Batch
from onestep.objectives.relativistic import Relativistic, half_cosine
from onestep.training.streams import CountedRows
from recorded_studies import constants, objectives_of, tensors, tolerance

_FILE = "r3gan.npz"
_CASES = ("uncond", "cond")


class Discriminator(nn.Module):
    """The recorded one: two convolutions, the mean over pixels, a linear layer, and a product with a class."""

    splits = (1,)

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.ParameterDict({name.replace(".", "_"): value.clone() for name, value in weights.items()})

    def forward(self, images, condition):
        return self.heads(self.frozen_features(images), condition)

    def frozen_features(self, images):
        return ((images,),)

    def heads(self, features, condition):
        ((x,),) = features
        for layer in ("c1", "c2"):
            x = F.conv2d(x, self.weights[f"{layer}_weight"], self.weights[f"{layer}_bias"], stride=2, padding=1).tanh()
        x = x.mean(dim=(2, 3))
        logits = F.linear(x, self.weights["fc_weight"], self.weights["fc_bias"])
        if condition is None:
            return logits
        return logits + (x * F.linear(condition, self.weights["emb_weight"])).sum(dim=1, keepdim=True)


class Generator(nn.Module):
    """The recorded one, of recorded vectors."""

    def __init__(self, weights, z, shape):
        super().__init__()
        self.weights = nn.ParameterDict({name.replace(".", "_"): value.clone() for name, value in weights.items()})
        self.z, self.shape = z, shape

    def forward(self, noisy, sigma, condition):
        return F.linear(self.z, self.weights["fc_weight"], self.weights["fc_bias"]).tanh().reshape(self.shape)


def rows(count):
    return CountedRows(seed=1, phase="any", rows=range(count), device=torch.device("cpu"))


@pytest.fixture(scope="module")
def recorded(golden):
    return objectives_of(golden)


@pytest.fixture(scope="module")
def arrays(recorded):
    return recorded.load(_FILE)


@pytest.fixture(params=_CASES)
def game(request, arrays):
    """The recordings of a case, its networks and a function that makes a batch of it."""
    case = tensors(arrays, f"{request.param}/")
    networks = {
        "generator": Generator(tensors(arrays, f"{request.param}/G/"), case["z"], case["x"].shape),
        "discriminator": Discriminator(tensors(arrays, f"{request.param}/D/")),
    }

    def batch(seen=0):
        images, condition = case["x"], case.get("labels")
        return Batch(images=images, condition=condition, random=rows(len(images)), images_seen=seen)

    return case, networks, batch


def _phases(objective):
    return {phase.name: phase for phase in objective.phases()}


def _share(recorded):
    return tolerance(recorded, _FILE, r"grads rel ([\d.e-]+\d)")


def _assert_gradients(network, case, prefix, *, share):
    gradients = {name: wanted for name, wanted in case.items() if name.startswith(prefix)}
    largest = max(float(wanted.abs().max()) for wanted in gradients.values())
    for name, wanted in gradients.items():
        found = network.weights[name.removeprefix(prefix).replace(".", "_")].grad
        # That of a number added to all logits is 0 but for rounding.
        near = share * wanted.abs().max() + 1e-6 * largest
        assert (found - wanted).abs().max() <= near, name


@pytest.mark.golden
def test_steps_of_the_discriminator_equal_the_recordings(game, recorded):
    case, networks, batch = game
    close = tolerance(recorded, _FILE, r"abs ([\d.e-]+\d)")
    for gamma in constants(recorded, _FILE)["gamma"]:
        step = f"D_step/gamma{gamma}/"
        phase = _phases(Relativistic(gamma=gamma))["discriminator"]
        assert phase.second_order and phase.every == 1
        networks["discriminator"].zero_grad()
        loss = phase.loss(networks, batch())
        means = {name: case[f"{step}{name}"].mean() for name in ("adversarial", "relative", "r1", "r2")}
        wanted = means["adversarial"] + gamma / 2 * (means["r1"] + means["r2"])
        torch.testing.assert_close(loss.value, wanted, rtol=close, atol=close)
        for name, key in (("relative", "relative"), ("r1_penalty", "r1"), ("r2_penalty", "r2")):
            torch.testing.assert_close(loss.observed[name], means[key], rtol=0, atol=close)
        loss.value.backward()
        _assert_gradients(networks["discriminator"], case, f"{step}grad/", share=_share(recorded))
        assert networks["generator"].weights["fc_weight"].grad is None


@pytest.mark.golden
def test_steps_of_the_generator_equal_the_recordings(game, recorded):
    case, networks, batch = game
    loss = _phases(Relativistic())["generator"].loss(networks, batch())
    close = tolerance(recorded, _FILE, r"abs ([\d.e-]+\d)")
    torch.testing.assert_close(loss.value, case["G_step/adversarial"].mean(), rtol=0, atol=close)
    loss.value.backward()
    _assert_gradients(networks["generator"], case, "G_step/grad/", share=_share(recorded))


@pytest.mark.golden
def test_penalties_differentiate_through_what_precedes_the_network(game, recorded):
    case, networks, batch = game
    inner, factor = networks["discriminator"], constants(recorded, _FILE)["pre"]

    class Preprocessed:
        splits, heads = inner.splits, inner.heads

        def prepared(self, images, *, random, condition):
            return factor * images.flip(3)

        def frozen_features(self, images):
            return ((images,),)

    (gamma, *_), close = constants(recorded, _FILE)["gamma"], tolerance(recorded, _FILE, r"abs ([\d.e-]+\d)")
    loss = _phases(Relativistic(gamma=gamma))["discriminator"].loss(
        {**networks, "discriminator": Preprocessed()}, batch()
    )
    for name in ("r1", "r2"):
        wanted = case[f"preprocessed/{name}"].mean()
        torch.testing.assert_close(loss.observed[f"{name}_penalty"], wanted, rtol=0, atol=close)
    loss.value.backward()
    _assert_gradients(inner, case, "preprocessed/grad/", share=_share(recorded))


@pytest.mark.golden
def test_schedules_equal_the_recordings(recorded, arrays):
    own, share = constants(recorded, _FILE), tolerance(recorded, _FILE, r"schedule rel ([\d.e-]+\d)")
    for name, schedule in own["schedules"].items():
        first, last, images = (schedule[key] for key in ("base_value", "final_value", "total_nimg"))
        for seen, wanted in zip(own["nimg"], arrays[f"schedule/{name}"], strict=True):
            assert half_cosine(first, last, seen / images) == pytest.approx(wanted, rel=share)
            if name == "gamma":
                objective = Relativistic(gamma=first, gamma_final=last, schedule_images=int(images))
                assert objective.gamma_at(seen) == pytest.approx(wanted, rel=share)


class Linear(nn.Module):
    """A discriminator of several critics; its features are not trained, so both ways to its penalty are possible."""

    def __init__(self, *, constant=0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.matrices = nn.Parameter(torch.randn(2, 16, 3, generator=generator) / 4)
        self.splits, self.constant = (3, 3), constant

    def forward(self, images, condition):
        return self.heads(self.frozen_features(images), condition)

    def frozen_features(self, images):
        return tuple((images.flatten(1).tanh(),) for _ in self.matrices)

    def heads(self, features, condition):
        both = zip(features, self.matrices, strict=True)
        return torch.cat([(maps[0] @ matrix).sin() for maps, matrix in both], dim=1) + self.constant


class Scaled(nn.Module):
    """A generator of one number."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.4))

    def forward(self, noisy, sigma, condition):
        return self.weight * noisy / 80.0


def _batch(part=range(8), seen=0):
    images = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(2))[part.start : part.stop] - 0.5
    random = CountedRows(seed=1, phase="any", rows=part, device=torch.device("cpu"))
    return Batch(images=images, condition=None, random=random, images_seen=seen)


def _values(objective, networks, batch=None):
    return {phase.name: phase.loss(networks, batch or _batch()) for phase in objective.phases()}


def test_a_number_added_to_all_logits_changes_nothing():
    networks = {"generator": Scaled(), "discriminator": Linear()}
    one = _values(Relativistic(), networks)
    other = _values(Relativistic(), {**networks, "discriminator": Linear(constant=5.0)})
    for name in one:
        torch.testing.assert_close(one[name].value, other[name].value, rtol=1e-5, atol=1e-6)


def test_swapping_real_and_generated_images_swaps_the_penalties_and_the_sign():
    discriminator, phase = Linear(), _phases(Relativistic())["discriminator"]
    pair = _batch().images, _batch().images.flip(0) * 1.5
    found = []
    for real, generated in (pair, pair[::-1]):
        batch = Batch(images=real, condition=None, random=_batch().random, images_seen=0)
        found.append(
            phase.loss({"generator": lambda *_, g=generated: g, "discriminator": discriminator}, batch).observed
        )
    one, other = found
    torch.testing.assert_close(one["relative"], -other["relative"])
    torch.testing.assert_close(one["r1_penalty"], other["r2_penalty"])
    torch.testing.assert_close(one["r2_penalty"], other["r1_penalty"])


def test_two_halves_of_a_batch_average_to_the_whole():
    networks, objective = {"generator": Scaled(), "discriminator": Linear()}, Relativistic(gamma=2.0)
    whole, *halves = (_values(objective, networks, _batch(part)) for part in (range(8), range(4), range(4, 8)))
    for name, loss in whole.items():
        torch.testing.assert_close(sum(half[name].value for half in halves) / 2, loss.value)


def test_both_ways_to_the_penalties_and_lazy_ones_have_the_same_gradients():
    networks = {"generator": Scaled(), "discriminator": Linear()}

    def gradients(**options):
        objective, found = Relativistic(gamma=2.0, **options), torch.zeros_like(networks["discriminator"].matrices)
        for phase in objective.phases():
            if phase.trains == "discriminator":
                networks["discriminator"].zero_grad()
                # The same images in both phases: a phase has its own streams, here equal ones.
                phase.loss(networks, _batch()).value.backward()
                found += networks["discriminator"].matrices.grad
        return found

    double = gradients()
    torch.testing.assert_close(gradients(r1_gradient="forward_mode"), double, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients(penalty_every=16), double, rtol=1e-4, atol=1e-6)
    lazy = _phases(Relativistic(penalty_every=16))
    assert (lazy["penalties"].every, lazy["penalties"].gain, lazy["penalties"].lazy_regularizer) == (16, 16.0, True)
    assert not lazy["discriminator"].second_order
    assert set(_phases(Relativistic(gamma=0.0))) == {"generator", "discriminator"}


def test_the_probability_of_an_augmentation_rises_from_zero():
    pipe = {"name": "stylegan2_ada", "probability": 1.0, "operations": {"brightness": 1.0}}
    objective = Relativistic(augment=pipe, schedule_images=1000)
    images = _batch().images
    changed = [
        float((objective.augmented(images, _batch(seen=seen)) != images).flatten(1).any(dim=1).float().mean())
        for seen in (0, 500, 1000, 2000)
    ]
    assert changed[0] == 0 and changed[2] == changed[3] == 1 and 0 < changed[1] < 1


_PIPE = {"name": "stylegan2_ada", "probability": 0.5, "operations": {"xflip": 1.0}}


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"augment": {**_PIPE, "target": 0.6}}, "target"),
        ({"augment": _PIPE, "r1_gradient": "forward_mode"}, "r1_gradient"),
        ({"gamma_final": 0.005}, "schedule_images"),
        ({"schedule_images": 1000}, "schedule_images"),
        ({"middle": 0.8}, "middle"),
    ],
)
def test_wrong_options_are_refused_in_one_line(wrong, part):
    with pytest.raises(ValueError, match=part) as error:
        Relativistic(**wrong)
    assert "\n" not in str(error.value)


def test_a_generator_of_two_steps_is_sampled_in_two():
    assert Relativistic(steps=2).samples_in == 2 and Relativistic().samples_in == 1
