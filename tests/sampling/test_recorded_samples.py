"""Samplers on the recorded networks, and the recorded noise, schedules and batches of the reference."""

from __future__ import annotations

import re
from itertools import zip_longest

import numpy as np
import pytest
import torch

from onestep.data import to_pixels
from onestep.sampling import PerSeedRandom, per_seed_noise, rank_batches
from onestep.sampling.heun import Heun
from onestep.sampling.one_step import OneStep
from recorded_networks import RecordedNetwork, assert_close, assert_recorded, recordings

pytestmark = pytest.mark.golden

_OURS = {
    "sigma_min": "sigma_min",
    "sigma_max": "sigma_max",
    "rho": "rho",
    "S_churn": "churn",
    "S_min": "churn_min",
    "S_max": "churn_max",
    "S_noise": "churn_noise",
}


def test_there_are_recordings():
    assert_recorded("net_*.npz")


@pytest.fixture(params=recordings("net_*.npz"))
def recorded(request, golden):
    # With the threads of the recordings all differences are 0. With one, torch takes other algorithms, which round
    # otherwise by 1e-6 an evaluation, and the last of few steps multiplies that by ten.
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield RecordedNetwork(golden, request.param)
    torch.set_num_threads(threads)


def _heun(recorded, key):
    """Return the sampler that the manifest describes for `key`, such as edm/heun5."""
    said, steps = recorded.options(key), int(re.search(r"heun(\d+)", key)[1])
    return Heun(steps=steps, **{ours: said[name] for name, ours in _OURS.items() if name in said})


def test_heun_without_churn(recorded):
    keys = [key for key in recorded.arrays if re.fullmatch(r"(edm|d2o)/heun\d+", key)]
    assert keys
    for key in keys:
        noise = recorded.arrays["latents"]
        images = _heun(recorded, key)(recorded.network(key[:3]), noise, recorded.labels(len(noise)))
        assert_close(images, recorded.arrays[key], tolerance=1e-5)


def test_heun_with_churn(recorded):
    keys = [key for key in recorded.arrays if re.fullmatch(r"(edm|d2o)/heun\d+_churn", key)]
    assert keys
    for key in keys:
        (noise_key,) = [name for name in recorded.arrays if name.startswith(f"{key[:3]}/churn_latents_seeds_")]
        random = PerSeedRandom([int(seed) for seed in noise_key.split("seeds_")[1].split("_")])
        noise = random.normal(recorded.arrays[noise_key].shape[1:])
        assert torch.equal(noise, recorded.arrays[noise_key])
        sampler = _heun(recorded, key)
        assert sampler.churn > 0
        images = sampler(recorded.network(key[:3]), noise, recorded.labels(len(noise)), random=random)
        assert_close(images, recorded.arrays[key], tolerance=1e-5)


def test_one_step(recorded):
    noise = recorded.arrays["latents"]
    labels = recorded.labels(len(noise))
    for preconditioning, key in (("d2o", "d2o/one_step"), ("edm", "d2o/one_step_edmprecond")):
        images = OneStep()(recorded.network(preconditioning), noise, labels)
        assert_close(images, recorded.arrays[key], tolerance=1e-5)


def test_one_step_as_pixels(recorded):
    noise = recorded.arrays["latents"]
    images = OneStep()(recorded.network("d2o"), noise, recorded.labels(len(noise)))
    pixels = to_pixels(images).permute(0, 2, 3, 1)
    difference = (pixels.int() - recorded.arrays["d2o/one_step_uint8_nhwc"].int()).abs()
    assert difference.max() <= 1
    assert difference.count_nonzero() < 1e-3 * difference.numel()


def test_noise_and_classes_of_a_seed(golden):
    recorded = golden.load("latents.npz")
    seeds = recorded["seeds"].tolist()
    keys = [key for key in recorded if key.startswith("class_idx")]
    assert keys
    for key in keys:
        resolution, classes = map(int, re.fullmatch(r"class_idx_res(\d+)_ld(\d+)", key).groups())
        random, shown = PerSeedRandom(seeds), recorded[f"latents_{resolution}"]
        noise = random.normal((shown.shape[1], resolution, resolution)).numpy()
        stride = golden.stride(resolution, shown.shape[-1])
        assert np.array_equal(noise[..., ::stride, ::stride], shown)
        assert np.array_equal(random.integers(classes).numpy(), recorded[key])
        assert torch.equal(per_seed_noise(seeds, noise.shape[1:]), torch.from_numpy(noise))


def test_the_second_draw_of_a_seed_is_float64(golden):
    recorded = golden.load("latents.npz")
    (key,) = [key for key in recorded if key.startswith("second_draw")]
    shown = recorded[key]
    random = PerSeedRandom(recorded["seeds"].tolist())
    channels = next(array.shape[1] for name, array in recorded.items() if name.startswith("latents_"))
    shape = (channels, *shown.shape[2:])
    random.normal(shape)
    second = random.normal(shape, dtype=torch.float64).numpy()
    assert np.array_equal(second[:, : shown.shape[1]], shown)


class _Probe:
    """A network that returns a part of its input, and remembers the noise levels it was asked for."""

    def __init__(self, part):
        self.part, self.sigmas = part, []

    def __call__(self, x, sigma, labels):
        self.sigmas.append(sigma.item())
        return self.part * x


def test_the_noise_levels_of_heun(golden):
    recorded, part = golden.load("schedules.npz"), float(golden.said("schedules.npz", r"returns ([\d.]+)\s*\*\s*x"))
    keys = [key for key in recorded if key.startswith("heun_sigmas_evaluated_")]
    assert keys
    for key in keys:
        steps, probe = int(key.rsplit("_", 1)[1]), _Probe(part)
        out = Heun(steps=steps)(probe, torch.ones(1, 1, 1, 1), None)
        np.testing.assert_allclose(probe.sigmas, recorded[key], rtol=1e-12)
        np.testing.assert_allclose(out.numpy(), recorded[f"heun_linear_net_out_{steps}"], rtol=1e-12)
        assert Heun(steps=steps).nfe == len(recorded[key])


def test_quantisation(golden):
    recorded = golden.load("schedules.npz")
    assert np.array_equal(to_pixels(torch.from_numpy(recorded["quant_in"])).numpy(), recorded["quant_out"])


def test_batches_of_each_process(golden):
    cases = golden.json("data_order.json")["generate_batches"]
    assert cases
    for case in cases:  # where seeds are fewer than batches, the reference's last batches are empty, and ours left out
        world, seeds = case["world"], range(case["num_seeds"])
        ranks = [rank_batches(seeds, batch=case["max_batch"], world_size=world, rank=rank) for rank in range(world)]
        dealt = [batch for turn in zip_longest(*ranks, fillvalue=()) for batch in turn]
        assert [len(batch) for batch in dealt] == case["batch_sizes"]
        assert len(dealt) == case["num_batches"]
        assert [seed for batch in dealt for seed in batch] == list(seeds)
        for rank, first in case["first_of_rank"].items():
            assert [batch[0] for batch in ranks[int(rank)]][: len(first)] == first
