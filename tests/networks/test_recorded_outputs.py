"""Small networks with all their weights: outputs and gradients as the reference computed them."""

from __future__ import annotations

import re

import pytest
import torch

from onestep.networks import build_denoiser, one_step_config, teacher_weights_for
from recorded_networks import RecordedNetwork, assert_close, assert_recorded, assert_relatively_close, recordings

pytestmark = pytest.mark.golden


def test_there_are_recordings():
    assert_recorded("net_*.npz")


@pytest.fixture(params=recordings("net_*.npz"))
def recorded(request, golden):
    return RecordedNetwork(golden, request.param)


@torch.no_grad()
def test_outputs(recorded):
    for preconditioning in ("edm", "d2o"):
        network = recorded.network(preconditioning)
        out = network(recorded.arrays["x"], recorded.arrays["sigma"], recorded.labels())
        assert_close(out, recorded.arrays[f"{preconditioning}/out"], tolerance=1e-5)


@torch.no_grad()
def test_outputs_without_labels(recorded):
    keys = recorded.keys("out_nolabel")
    assert keys or not recorded.kwargs["label_dim"]
    for key in keys:
        out = recorded.network(key[:3])(recorded.arrays["x"], recorded.arrays["sigma"])
        assert_close(out, recorded.arrays[key], tolerance=1e-5)


@torch.no_grad()
def test_outputs_of_augmented_images(recorded):
    keys = recorded.keys("out_aug")
    assert keys or not recorded.kwargs["augment_dim"]
    for key in keys:
        network, described = recorded.network(key[:3]), recorded.arrays["aug_labels"]
        out = network(recorded.arrays["x"], recorded.arrays["sigma"], recorded.labels(), described)
        assert_close(out, recorded.arrays[key], tolerance=1e-5)


@torch.no_grad()
def test_the_network_inside(recorded):
    network, sigma = recorded.network("edm"), recorded.arrays["sigma"]
    scale = (network.sigma_data**2 + sigma**2).rsqrt().reshape(-1, 1, 1, 1)
    out = network.model(scale * recorded.arrays["x"], sigma.log() / 4, recorded.labels())
    assert_close(out, recorded.arrays["edm/raw_unet_out"], tolerance=1e-5)


@torch.no_grad()
def test_d2o_keeps_float64_images_in_float64(recorded):
    network, x = recorded.network("d2o"), recorded.arrays["x"].to(torch.float64)
    out = network(x, recorded.arrays["sigma"], recorded.labels())
    assert_close(out, recorded.arrays["d2o/out_x64"], tolerance=1e-5)


def test_gradients_of_the_weights(recorded):
    network = recorded.network("d2o")
    out = network(recorded.arrays["x"], recorded.arrays["sigma"], recorded.labels())
    (out * recorded.arrays["r"]).sum().backward()
    gradients = {key: array for key, array in recorded.arrays.items() if key.startswith("d2o/grad/")}
    assert gradients
    for key, gradient in gradients.items():
        parameter = network.get_parameter(key.removeprefix("d2o/grad/"))
        assert_relatively_close(parameter.grad, gradient, tolerance=1e-4)


def test_gradients_of_the_images(recorded):
    keys = [key for key in recorded.arrays if re.fullmatch(r"d2o/grad[\d.]*_x", key)]
    assert keys
    for key in keys:
        network, x = recorded.network("d2o"), recorded.arrays["x"].clone().requires_grad_()
        level = re.search(r"grad([\d.]*)_x", key)[1]
        sigma = torch.full((len(x),), float(level)) if level else recorded.arrays["sigma"]
        (network(x, sigma, recorded.labels()) * recorded.arrays["r"]).sum().backward()
        assert_relatively_close(x.grad, recorded.arrays[key], tolerance=1e-4)


@torch.no_grad()
def test_a_generator_that_starts_from_a_teacher_computes_what_the_teacher_would(recorded):
    config = one_step_config(recorded.kwargs, preconditioning="d2o", dropout=0.0)
    generator = build_denoiser(config)
    generator.load_state_dict(teacher_weights_for(generator, recorded.state), strict=True)
    out = generator(recorded.arrays["x"], recorded.arrays["sigma"], recorded.labels())
    assert_close(out, recorded.arrays["d2o/out"], tolerance=1e-5)


@torch.no_grad()
def test_half_precision_is_for_cuda_alone(recorded):
    network = recorded.network("d2o")
    network.use_fp16 = True
    out = network(recorded.arrays["x"], recorded.arrays["sigma"], recorded.labels())
    assert_close(out, recorded.arrays["d2o/out"], tolerance=1e-5)


@torch.no_grad()
def test_the_image_path_runs_in_bfloat16_and_stays_near(recorded):
    network, x = recorded.network("edm"), recorded.arrays["x"]
    noise = torch.full((len(x),), -0.5)
    exact = network.model(x, noise, recorded.labels())
    half = network.model(x.to(torch.bfloat16), noise, recorded.labels())
    assert half.dtype == torch.bfloat16
    assert (half - exact).norm() <= 0.05 * exact.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_on_a_gpu_half_precision_is_an_option(recorded):
    network = recorded.network("d2o").cuda()
    network.use_fp16 = True
    x, sigma = recorded.arrays["x"].cuda(), recorded.arrays["sigma"].cuda()
    labels = None if recorded.labels() is None else recorded.labels().cuda()
    exact = recorded.arrays["d2o/out"]
    single = network(x, sigma, labels, force_fp32=True).cpu() - exact
    half = network(x, sigma, labels).cpu() - exact
    assert single.norm() <= 0.005 * exact.norm()
    assert single.norm() < half.norm() <= 0.1 * exact.norm()
