"""Operations and passes of a training: against hand counts, real steps, and the costs that the loops imply."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_coupled import CASES
from test_peers import run_document

from image_archives import write_archive
from onestep.bench.option_sets import own_options
from onestep.bench.random_run import random_training, random_wrapped, shape_of
from onestep.bench.timing import Contestant
from onestep.cli import main
from onestep.components import build
from onestep.config import parse_experiment
from onestep.distributed import Ranks
from onestep.records import read_work
from onestep.training.nowhere import NOWHERE, flop_counter
from onestep.training.work import work
from tiny import tiny_config, write_config

_CPU = Ranks(rank=0, world=1, device=torch.device("cpu"))
_IMAGES = 1_797


def counted(function):
    """Return the operations of a function's call."""
    with flop_counter() as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_convolution_and_each_of_its_gradients_have_two_operations_a_weight_and_place(groups, transposed):
    images = torch.randn(3, 4, 6, 6, requires_grad=True)
    weight = torch.randn(4, 8 // groups if transposed else 4 // groups, 3, 3, requires_grad=True)
    convolve = F.conv_transpose2d if transposed else F.conv2d
    once = 2 * weight.numel() * 3 * 6 * 6  # with padding as many places as there are pixels
    assert counted(lambda: convolve(images, weight, padding=1, groups=groups)) == once
    assert counted(lambda: convolve(images, weight, padding=1, groups=groups).sum().backward()) == 3 * once


def test_a_gradient_of_a_gradient_counts_each_product():
    weight, images = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)

    def penalty():
        (slope,) = torch.autograd.grad((images @ weight.t()).square().sum(), images, create_graph=True)
        slope.square().sum().backward(inputs=[weight])

    # The layer, its slope, two gradients of the slope's product, and that of the layer to the weight.
    assert counted(penalty) == 5 * 2 * 3 * 4 * 5


def test_decompositions_and_vectors_count():
    matrix = torch.eye(6, dtype=torch.float64)
    assert counted(lambda: torch.linalg.eigh(matrix)) == 9 * 6**3
    assert counted(lambda: matrix @ matrix[0]) == 2 * 6 * 6


def test_a_frechet_loss_counts_its_moments_and_the_root():
    images, width = 5, 3
    objective = build("objectives", CASES["average"])
    eye = torch.eye(width, dtype=torch.float64)
    zero = torch.zeros(width, dtype=torch.float64)
    state = {"reference_mean": zero, "reference_covariance": eye, "root": eye, "mean": zero, "second_moment": eye}
    state = {f"digits/{name}": value for name, value in state.items()}
    features = torch.randn(images, width, requires_grad=True)
    found = counted(lambda: objective.loss({"digits": features}, state).value.backward())
    moments = 3 * 2 * images * width**2  # the second moment, and the gradient of each of its two factors
    root = (2 * 2 + 9 + 2 + 2 * 2) * width**3  # R S R, its eigenvalues, their gradient, and that of the two products
    assert found == moments + root


def arranged(name):
    """Return a tiny config with a run `own` of a method."""
    config = tiny_config()
    run = config["runs"]["digits_d2o"]
    plain = {key: value for key, value in run.items() if key != "discriminator"}
    adam = run["optimizers"]["generator"]
    if name in CASES:
        own = plain | {"objective": CASES[name], "optimizers": {"generator": adam}, "batch": 16}
    elif name == "cd":
        distance = {"name": "features", "backbone": "digits"}
        objective = {"name": "instance", "kind": "cd", "steps": 16, "distance": distance}
        own = plain | {"objective": objective, "optimizers": {"generator": adam}}
    elif name in ("diff_instruct", "sid"):
        objective = {"name": "variational_score", "loss": name, "sigma": 2.5} | (
            {"alpha": 1.2} if name == "sid" else {}
        )
        own = plain | {
            "objective": objective,
            "preconditioning": "edm",
            "optimizers": {"generator": adam, "fake": adam},
        }
    elif name == "ladd":
        own = run | {"discriminator": {"name": "teacher_features", "levels": [0, 1]}}
    else:
        own = run if name == "d2o" else run_document(run, name)
    config["runs"]["own"] = own
    return config


def composed(name, *, ranks):
    """Return a run with its networks on a device, which calls them as a training does."""
    experiment = parse_experiment(arranged(name))
    shape, options = shape_of(experiment, "own", given={}), own_options(experiment.runs["own"]).without_devices()
    training = random_training(experiment, "own", options=options, shape=shape, batch=None, ranks=ranks)
    return training, random_wrapped(training, options=options)


def work_of(name, **options):
    return work(lambda: composed(name, ranks=NOWHERE), images=_IMAGES, **options)


@pytest.mark.parametrize(
    "name", ["d2o", "average", *(pytest.param(each, marks=pytest.mark.long) for each in ("kernel", "batch", "dmd2"))]
)
def test_a_step_without_numbers_has_the_operations_of_a_real_one(name):
    training, wrapped = composed(name, ranks=_CPU)
    options = own_options(training.run)
    real = Contestant(options=options, training=training, wrapped=wrapped, ranks=_CPU, resident=0).count()
    found = work_of(name)
    assert {phase: each.flops for phase, each in found.phases.items()} == pytest.approx(
        {phase: real[phase] for phase in found.phases},
        rel=1e-3,  # on a CPU, spectral norms iterate by products of their own
    )


# What the loops of the methods imply, in forward passes; backward is two with parameters, one to the input alone.
_PASSES = {
    "d2o": {"denoiser": 4, "features": 4 + 2 / 4},  # two backbones count as one; the penalty in each fourth step
    "average": {"denoiser": 3, "features": 2},
    "diff_instruct": {"denoiser": 9},
    "sid": {"denoiser": 11},
    "easy_consistency": {"denoiser": 4},
    "ladd": {"denoiser": 6 + 1 / 4},
}


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("average", "easy_consistency") else pytest.param(name, marks=pytest.mark.long)
        for name in _PASSES
    ],
)
def test_passes_are_those_of_the_loop(name):
    found = {kind: each for kind, each in work_of(name).units.items() if kind in ("denoiser", "features")}
    assert found == pytest.approx(_PASSES[name])


def test_a_coupled_loss_of_several_processes_is_computed_by_each_after_another_forward_pass():
    one, two = work_of("average"), work_of("average", processes=2)
    assert two.units["denoiser"] == one.units["denoiser"] + 1 and two.units["features"] == one.units["features"] + 1
    assert two.flops > one.flops * 4 / 3 * 0.98 and two.start == one.start > 128 * one.flops / 4


@pytest.mark.long
def test_moves_count_as_often_as_levels_need_them():
    training, wrapped = composed("cd", ranks=_CPU)
    options = own_options(training.run)
    real = Contestant(options=options, training=training, wrapped=wrapped, ranks=_CPU, resident=0)
    measured = sum(real.count()["generator"] for _ in range(4)) / 4
    found = work_of("cd")
    assert found.flops == pytest.approx(measured, rel=0.03)
    assert found.phases["generator"].passes["teacher.forward"] == pytest.approx(2 + 2 / 15, abs=0.01)


def test_the_verb_writes_what_a_study_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write_config(tmp_path, arranged("easy_consistency"))
    write_archive(tmp_path / "digits.zip", [(np.zeros((1, 16, 16), dtype=np.uint8), label) for label in range(10)])
    words = ["bench", "work", "--config", str(path), "--data", "digits.zip", "--output", "work.json", "--run"]
    assert main([*words, "own"]) == 0
    found = read_work(tmp_path / "work.json", run="own")
    assert found["passes_per_image"] == {"denoiser": 4.0} and found["flops_per_image"] > 1e6
    assert main([*words, "x"]) == 1
    assert "run: got 'x'" in capsys.readouterr().err.splitlines()[-1]
