"""Easy consistency tuning: recordings of two references, its limits, equal dropout masks, what is refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onestep.objectives import Batch
from onestep.objectives.easy_consistency import EasyConsistency
from onestep.training.streams import CountedRows
from recorded_studies import Replayed, assert_close, constants, denoiser, objectives_of, tensors, tolerance

_FILE = "ect.npz"
_IMAGENET = {"p_mean": -0.8, "p_std": 1.6, "q": 4.0, "c": 0.06, "weighting": "edm"}  # as the manifest describes it
_OF_DROPOUT = 2  # the stage of this case, which the manifest does not name
_WEIGHTINGS = {
    "default": "interval",
    "c_out": "c_out",
    "c_out_sq": "edm",
    "sigma_sq": "sigma_squared",
    "sqrt": "sqrt_interval",
    "one": "uniform",
}


@pytest.fixture(scope="module")
def recorded(golden):
    return objectives_of(golden)


@pytest.fixture(scope="module")
def arrays(recorded):
    return recorded.load(_FILE)


@pytest.fixture
def own(recorded):
    return constants(recorded, _FILE)


@pytest.mark.golden
def test_lower_levels_equal_the_tables(recorded, arrays, own):
    levels = torch.from_numpy(arrays["table/t"])
    share = tolerance(recorded, _FILE, r"tables rel ([\d.e-]+\d)")
    for q in own["q"]:
        for stage in own["stages"]:
            for mapping, kind in (("sigmoid", "sigmoid"), ("const", "constant")):
                objective = EasyConsistency(q=q, k=own["k"], b=own["b"], mapping=kind, limit=1.0)
                wanted = torch.from_numpy(arrays[f"table/r/{mapping}/q{q}/stage{stage}"])
                torch.testing.assert_close(objective.lower_levels(levels, stage=stage), wanted, rtol=share, atol=1e-300)
            assert objective.ratio(stage) == pytest.approx(float(arrays[f"table/ratio/q{q}/stage{stage}"]), rel=share)


@pytest.mark.golden
def test_stages_equal_the_schedules(recorded, arrays, own):
    share = tolerance(recorded, _FILE, r"tables rel ([\d.e-]+\d)")
    for thousands, q, limit in own["fastgen_schedule"]:
        objective = EasyConsistency(q=q, limit=limit, stage_images=1000 * thousands)
        wanted = arrays[f"table/fastgen/{thousands}_{q}_{limit}"]
        for iteration, (stage, ratio) in zip(own["iters"], wanted, strict=True):
            found = objective.stage_at(iteration * own["fg_batch"])
            assert (found, objective.ratio(found)) == (stage, pytest.approx(ratio, rel=share))


def _loss(objective, network, arrays, case, *, stage):
    """Return the loss of a recorded batch at a stage, whose images are 1,000."""
    images = torch.from_numpy(arrays["x"])
    normal = (case["t"].log() - objective.p_mean) / objective.p_std
    seen = 1000 * stage + 999
    batch = Batch(images=images, condition=None, random=Replayed(normal, case["eps"]), images_seen=seen)
    loss = objective.generator_loss({"generator": network}, batch)
    assert loss.observed["stage"] == stage
    return loss


@pytest.mark.golden
def test_losses_and_gradients_equal_the_recordings(recorded, arrays, own):
    cifar = {"p_mean": own["mean"], "p_std": own["std"], "q": min(own["q"]), "k": own["k"], "b": own["b"]}
    cases = {f"cifar/stage{stage}/c{c}": (stage, {**cifar, "c": c}) for stage in own["stages"] for c in own["c"]} | {
        f"imagenet/stage{stage}": (stage, _IMAGENET) for stage in own["stages"][:2]
    }
    share, slope = (tolerance(recorded, _FILE, rf"{each} rel ([\d.e-]+\d)") for each in ("losses", "grads"))
    for name, (stage, options) in cases.items():
        case, network = tensors(arrays, f"{name}/"), denoiser(arrays, "student", law="edm", resolution=own["R"])
        objective = EasyConsistency(**options, stage_images=1000)
        torch.testing.assert_close(objective.lower_levels(case["t"], stage=stage).float(), case["r"])
        loss = _loss(objective, network, arrays, case, stage=stage)
        torch.testing.assert_close(loss.value, case["loss"].mean(), rtol=share, atol=0)
        loss.value.backward()
        for key, wanted in tensors(arrays, f"{name}/grad/").items():
            found = getattr(network.model, key).grad
            assert_close(
                found, wanted, share=tolerance(recorded, _FILE, r"grads rel ([\d.e-]+\d)"), what=f"{name} {key}"
            )


@pytest.mark.golden
def test_the_loss_with_one_mask_for_both_evaluations_equals_the_recording(recorded, arrays, own):
    case, inner = tensors(arrays, "dropout/"), denoiser(arrays, "student", law="edm", resolution=own["R"])

    def dropped(noisy, sigma, condition):
        return inner(noisy * case["mask"] / 0.7, sigma, condition)

    objective = EasyConsistency(q=min(own["q"]), stage_images=1000)
    loss = _loss(objective, dropped, arrays, case, stage=_OF_DROPOUT)
    share = tolerance(recorded, _FILE, r"losses rel ([\d.e-]+\d)")
    torch.testing.assert_close(loss.value, case["loss"].mean(), rtol=share, atol=0)


@pytest.mark.golden
@pytest.mark.parametrize("name", _WEIGHTINGS)
def test_weightings_and_distances_equal_the_recordings(recorded, arrays, name):
    case = tensors(arrays, "weighting/")
    distances = {key.split("/")[1] for key in case if key.startswith(f"{name}/")}
    assert len(distances) > 1
    for distance in distances:
        options = {"squared": True} if distance == "squared" else {"c": float(distance.removeprefix("huber"))}
        objective = EasyConsistency(weighting=_WEIGHTINGS[name], **options)
        images = case["a"].clone().requires_grad_()
        losses = objective.weight(case["t"], case["r"]) * objective.distances(images, case["b"])
        share = tolerance(recorded, _FILE, r"losses rel ([\d.e-]+\d)")
        torch.testing.assert_close(losses, case[f"{name}/{distance}/loss"], rtol=share, atol=0)
        losses.mean().backward()
        share = tolerance(recorded, _FILE, r"grads rel ([\d.e-]+\d)")
        assert_close(images.grad, case[f"{name}/{distance}/grad_a_of_mean"], share=share, what=distance)


class Scaled(nn.Module):
    """A denoiser of one number, with dropout if it has some; it keeps the masks that it drew."""

    def __init__(self, *, dropout=0.0):
        super().__init__()
        self.weight, self.dropout, self.masks = nn.Parameter(torch.tensor(0.5)), dropout, []

    def forward(self, noisy, sigma, condition):
        assert bool((sigma > 0).all())
        mask = F.dropout(torch.ones_like(noisy), self.dropout)
        self.masks.append(mask)
        return self.weight * mask * noisy


def _batch(rows=range(8), seen=0):
    images = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(2))[rows.start : rows.stop] - 0.5
    random = CountedRows(seed=1, phase="generator", rows=rows, device=torch.device("cpu"))
    return Batch(images=images, condition=None, random=random, images_seen=seen)


def test_where_the_lower_level_is_zero_it_is_denoising():
    """With q = 1.1 at stage 0, r is 0 at every level below 3, which holds for all of this law."""
    objective, network = EasyConsistency(q=1.1, p_mean=-1.0, p_std=0.1), Scaled()
    batch = _batch()
    normal, noise = batch.random.normal(), batch.random.normal(1, 4, 4)
    t = (-1.0 + 0.1 * normal).exp()
    assert not objective.lower_levels(t, stage=0).any()
    errors = (network(batch.images + t[:, None, None, None] * noise, t, None) - batch.images).flatten(1).norm(dim=1)
    torch.testing.assert_close(objective.generator_loss({"generator": network}, _batch()).value, (errors / t).mean())


def test_both_evaluations_have_the_same_masks_and_the_next_step_has_others():
    network, objective = Scaled(dropout=0.5), EasyConsistency()
    torch.manual_seed(0)
    objective.generator_loss({"generator": network}, _batch())
    objective.generator_loss({"generator": network}, _batch())
    target, prediction, _, later = network.masks
    assert torch.equal(target, prediction) and not torch.equal(prediction, later)
    torch.manual_seed(0)
    assert torch.equal(F.dropout(torch.ones(8, 1, 4, 4), 0.5), prediction)  # as of one evaluation


def test_two_halves_of_a_batch_average_to_the_whole():
    objective = EasyConsistency(q=4.0, stage_images=8)
    losses = [
        objective.generator_loss({"generator": Scaled()}, _batch(rows, seen=12)).value
        for rows in (range(8), range(4), range(4, 8))
    ]
    torch.testing.assert_close((losses[1] + losses[2]) / 2, losses[0])


def test_the_target_is_constant_and_equal_images_have_no_gradient():
    network, objective = Scaled(), EasyConsistency(q=256.0, limit=1.0, stage_images=1)
    objective.generator_loss({"generator": network}, _batch(seen=9)).value.backward()  # 1 - 256^-10 is 1: r = t
    assert network.weight.grad == 0
    network.zero_grad()
    objective.generator_loss({"generator": network}, _batch()).value.backward()
    assert math.isfinite(network.weight.grad) and network.weight.grad != 0


def test_a_stage_is_a_function_of_the_images_seen():
    assert [EasyConsistency(stage_images=100).stage_at(seen) for seen in (0, 99, 100, 250)] == [0, 0, 1, 2]
    assert EasyConsistency().stage_at(10**9) == 0
    ratios = [EasyConsistency(q=2.0).ratio(stage) for stage in (0, 1, 30)]
    assert ratios == [0.5, 0.75, 0.999]


def test_a_norm_beside_its_square_is_refused_in_one_line():
    with pytest.raises(ValueError, match="squared") as error:
        EasyConsistency(c=0.06, squared=True)
    assert "\n" not in str(error.value)
